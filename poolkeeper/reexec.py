"""Replacing this process, in place, by a new one of the same program: same pid, locks held, sockets listening.

First everything is looked at that could go wrong while the old program can still go on: whether there is a program to
start, whether this happens too often, whether the new code can be loaded. Then the keepers come to rest, and ``execv``
follows. What happens in a process happens once, so there is one ``PROCESS``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from . import logs, reporting
from .errors import NotReexecable, PoolkeeperError, ReexecRefused
from .handover import VARIABLE, HandedKeeper, Handover, encode
from .inheritance import INHERITANCE
from .invocation import Kind
from .living import KEEPERS
from .reexec_pace import delay_before, remembered
from .startup import STARTUP, Startup

if TYPE_CHECKING:
    from .instance import InstanceLock

__all__ = ["PROCESS", "Estate", "Host", "Reexec", "Replaceable"]

ANSWER_SECONDS = 10.0
REST_SECONDS = 60.0
"""How long a keeper may take to come to rest: its journal is written to the end, and there is no way back."""
FLUSH_SECONDS = 1.0
HELD = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that an owned program handles; they wait until the new program can."""


class Estate(NamedTuple):
    """What a keeper leaves to its successor: its lock, the descriptor of its listening socket, and that one's path."""

    lock: InstanceLock
    socket: int
    socket_path: str


class Replaceable(Protocol):
    """A keeper, as far as the end of its program concerns it."""

    name: str | None
    run_id: str

    def answers(self, seconds: float) -> bool:
        """Whether it has not ended; raises ReexecRefused when its loop does nothing for ``seconds``."""

    def depart(self, reason: str, seconds: float) -> bool:
        """Come to rest for good, with everything recorded; return whether it has within ``seconds``."""

    def estate(self) -> Estate | None:
        """Return what it leaves; None for an ephemeral one, which has ended."""

    def strand(self, error: BaseException) -> None:
        """There will be no new program: end."""


class Host(Protocol):
    """What the command line has to do with the end of a program that it owns."""

    def leaving(self) -> None:
        """Put the terminal in order; raises ReexecRefused where the program is about to end anyway."""

    def stayed(self) -> None:
        """It has not come to that."""


class Reexec:
    """The re-exec of one process.

    Args:
        startup: how it was started.
    """

    def __init__(self, startup: Startup) -> None:
        self.owned_as: str | None = None
        """The name of the keeper for which alone this process is there, if the command line owns it."""
        self.host: Host | None = None
        self._startup = startup
        self._busy = threading.Lock()

    def perform(self, keeper: Replaceable, *, automatic: bool = False, timeout: float = 60.0) -> NoReturn:
        """Replace the process, for one of its keepers, with all of them; from any thread.

        Args:
            keeper: who asks.
            automatic: whether nobody has asked for it: then it is refused after a few times.
            timeout: seconds that the new code may take to be loaded.

        Raises:
            NotReexecable: where there is no program that could be started again.
            ReexecRefused: if the new code cannot be loaded; the old program goes on.
            PoolkeeperError: if the system has refused at the very end; the keepers have ended then.
        """
        obstacle = "an ephemeral keeper has nothing to find again: give it a name" if keeper.name is None else None
        obstacle = obstacle or self.obstacle()
        if obstacle is not None:
            raise NotReexecable(f"this process cannot be replaced by a new one: {obstacle}")
        if not self._busy.acquire(blocking=False):
            raise ReexecRefused("a re-exec of this process is under way already")
        try:
            self._wait_for_turn(automatic=automatic)
            self._look_ahead(timeout)
            self._replace(keeper, automatic=automatic)
        finally:
            self._busy.release()

    def obstacle(self) -> str | None:
        """Say why there is no program that could be started again; None if there is one."""
        startup = self._startup
        kind, target, options, _ = startup.invocation
        if _is_interactive(options):
            return "it is an interactive session"
        if kind in (Kind.STDIN, Kind.COMMAND):
            return f"its program was {kind.value}"
        if os.getpid() != startup.pid or _is_of_multiprocessing():
            return f"it is no program of its own but was forked by process {os.getppid()}"
        if not startup.executable or getattr(sys, "frozen", False):
            return "there is no Python interpreter to start it with"
        if kind is Kind.SCRIPT and not os.path.exists(startup.path_of(target)):
            return f"{startup.path_of(target)} is gone"
        return None

    def _wait_for_turn(self, *, automatic: bool) -> None:
        delay = delay_before(INHERITANCE.history, time.monotonic(), automatic=automatic)
        if delay is None:
            raise ReexecRefused("it has been tried too often within a few minutes")
        if delay:
            time.sleep(delay)

    def _look_ahead(self, timeout: float) -> None:
        from .preflight import run_preflight

        found = run_preflight(self._startup, by_itself=self.owned_as is not None, seconds=timeout)
        if self.owned_as is not None and found.get("keeper") != self.owned_as:
            raise ReexecRefused(
                f"the new program is another fleet, {found.get('keeper')!r}, where this is {self.owned_as!r}; "
                "the old one goes on"
            )

    # -- no way back --------------------------------------------------------------------------------------------------

    def _replace(self, keeper: Replaceable, *, automatic: bool) -> NoReturn:
        departures: list[Replaceable] = [each.departure for each in list(KEEPERS)]
        keepers = [each for each in departures if each.answers(ANSWER_SECONDS)]
        if keeper not in keepers:
            raise ReexecRefused("the keeper has ended meanwhile")
        host = self.host
        if host is not None:
            host.leaving()
        logs.emit("INFO", "the new code can be loaded: this process is replaced")
        try:
            for each in sorted(keepers, key=lambda each: each.name is None):
                if not each.depart("re-exec", REST_SECONDS):
                    raise PoolkeeperError(f"keeper {each.name!r} has not come to rest within {REST_SECONDS:g} s")
            _flush()
            self._execute([(each, each.estate()) for each in keepers], automatic=automatic)
        except BaseException as error:
            for each in keepers:
                each.strand(error)
            if host is not None:
                host.stayed()
            raise PoolkeeperError(f"this process could not be replaced, and its keepers have ended: {error}") from error

    def _execute(self, left: list[tuple[Replaceable, Estate | None]], *, automatic: bool) -> NoReturn:
        startup = self._startup
        estates = [(keeper, estate) for keeper, estate in left if estate is not None]
        original = startup.mask.difference(INHERITANCE.held)
        held = {int(getattr(signal, name)) for name in HELD} - original if self.owned_as is not None else set()
        handover = Handover(
            os.getpid(),
            tuple(_handed(keeper, estate) for keeper, estate in estates),
            remembered(INHERITANCE.history, time.monotonic(), automatic=automatic),
            tuple(sorted(held)),
        )
        environment = {**startup.environment, VARIABLE: encode(handover)}
        with contextlib.ExitStack() as stack:
            self._go_back(stack)
            for _, estate in estates:
                stack.enter_context(estate.lock.inheritable())
                os.set_inheritable(estate.socket, True)
                stack.callback(os.set_inheritable, estate.socket, False)
            for stream in (0, 1, 2):
                with contextlib.suppress(OSError):  # it is closed
                    os.set_inheritable(stream, True)
            # The new program's main thread begins with the mask of this thread, which may block everything.
            before = signal.pthread_sigmask(signal.SIG_SETMASK, original | held)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            os.execve(startup.executable, startup.command_line, environment)  # noqa: S606 - no shell wanted

    def _go_back(self, stack: contextlib.ExitStack) -> None:
        """Return to where the program was started."""
        if self._startup.folder is not None:
            os.chdir(self._startup.folder)
        if self._startup.umask is not None:
            stack.callback(os.umask, os.umask(self._startup.umask))


PROCESS = Reexec(STARTUP)


def _handed(keeper: Replaceable, estate: Estate) -> HandedKeeper:
    return HandedKeeper(
        keeper.name or "",
        keeper.run_id,
        os.path.abspath(estate.lock.folder),
        estate.lock.fileno(),
        estate.socket,
        estate.socket_path,
    )


def _is_interactive(options: tuple[str, ...]) -> bool:
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return True
    ipython: Any = sys.modules.get("IPython")
    return "ipykernel" in sys.modules or (ipython is not None and ipython.get_ipython() is not None)


def _is_of_multiprocessing() -> bool:
    module: Any = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


def _flush() -> None:
    """Have what was written and logged reach its files; a terminal that is stopped must not stop us."""

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        loguru = sys.modules.get("loguru")
        if loguru is not None:
            with contextlib.suppress(Exception):
                loguru.logger.complete()

    reporting.flush()
    thread = threading.Thread(target=flush, name="poolkeeper-flush", daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread left
        thread.start()
        thread.join(FLUSH_SECONDS)
