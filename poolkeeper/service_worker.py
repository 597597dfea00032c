"""The process of a service: calls one callable, tells the keeper how it fares, and ends when it is asked to.

Nothing is read from the keeper but acknowledgements: a signal asks the service to stop, and the heartbeat is a number
in the shared page. So there is no thread here that the user's code would have to live with.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from . import task_context
from .arena import identity
from .errors import PayloadError
from .limits import Limits
from .messages import Kind
from .page import BEAT, WorkerPage, new_page
from .payload import dumps_in_band, loads
from .process_setup import settle_in, unblock_signals
from .program import Program
from .service_line import ServiceLine, leave_words
from .service_model import ExitReason
from .sources import Sources, loaded_sources
from .task_context import wants_context
from .worker import leave
from .worker_config import WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from .resumption import Resumption

__all__ = ["ServiceDefinition", "main", "rehearse"]

LOOK_SECONDS = 1.0
"""How often a heartbeat looks whether there is another keeper."""
IDLE_SECONDS = 10.0
"""The same for a service that waits."""
PROGRESS_SECONDS = 0.1
DETAIL_BYTES = 16384
"""How much of a traceback travels to the keeper; all of it goes to the log."""


class ServiceDefinition(NamedTuple):
    """What a process needs to know to be a service; travels to it through the fork server.

    ``birth`` is the incarnation of the keeper that has it made, ``blob`` the pickled ``(target, args, kwargs)``.
    ``program`` says that the target replaces the process; it gets ``variables`` in its environment.
    """

    tag: str
    birth: str
    service: str
    name: str
    replica: int
    attempt: int
    blob: bytes
    path: tuple[str, ...]
    limits: Limits
    environment: dict[str, str]
    stop_signal: int
    program: bool
    variables: dict[str, str]


class _Asked(SystemExit):
    """Raised by the stop signal's handler where the service does not look for it."""


class _Service:
    """The surroundings of the callable, and its voice towards the keeper."""

    key: str | None = None

    def __init__(self, config: WorkerConfig, definition: ServiceDefinition, page: int, link: int) -> None:
        self.name = definition.service
        self.worker = definition.tag
        self.slot = definition.replica
        self.attempt = definition.attempt
        self._config = config
        self._definition = definition
        self._page = WorkerPage(page)
        self._pages: list[WorkerPage] = []
        os.close(page)
        self._lock = threading.Lock()
        self._stopping = False
        self._looks = False
        self._stage = "starting"
        self._status: str | None = None
        self._sources: Sources = {}
        self._look_at = 0.0
        self._summoned = False
        self._progress_at = 0.0
        self._stop_signal = definition.stop_signal
        self._speaker = 0
        self.forked = False
        self._pipe = os.pipe()
        self._pipe_identity = identity(self._pipe[0])
        self.resumed: Resumption | None = None
        introduction = {
            "role": "service", "id": self.worker, "birth": definition.birth, "pid": os.getpid(),
            "cloudpickle": config.cloudpickle,
        }  # fmt: skip
        self._line = ServiceLine(config, introduction, link, self._describe)
        if not self.say((Kind.HERE, os.getpid())) and self._line.is_unwanted():
            os._exit(1)

    # -- to the keeper --------------------------------------------------------------------------------------------

    def say(self, message: tuple[Any, ...], *, last: bool = False) -> bool:
        """Tell the keeper, if it is there, and return whether it is; any thread may."""
        if self.forked:
            return False
        with self._lock:
            told = self._undisturbed(lambda: self._line.say(message, last=last))
        if self._summoned:  # meanwhile
            self._look_for_keeper()
        return told

    def _undisturbed(self, act: Callable[[], bool]) -> bool:
        """Speak to the keeper, under the lock.

        A stop signal that comes meanwhile takes effect afterwards, for half a frame would be worse than none.
        """
        self._speaker = threading.get_ident()
        try:
            return act()
        finally:
            self._speaker = 0
            if self._stopping and not self._looks and threading.current_thread() is threading.main_thread():
                self._looks = True  # asked once, as by the signal itself
                raise _Asked(0)

    def summoned(self, *_: object) -> None:
        """SIGURG: another keeper may be there."""
        self._line.summoned()
        self._summoned = True
        self._look_for_keeper()

    def _look_for_keeper(self) -> None:
        """Call the keeper that has come to the place of ours, unless somebody speaks, who will find out."""
        if self.forked or not self._lock.acquire(blocking=False):
            return
        self._summoned = False
        try:
            self._undisturbed(self._line.look)
        finally:
            self._lock.release()

    def _look_now_and_then(self, now: float) -> None:
        if now >= self._look_at and self._config.orphan_grace is not None:
            self._look_at = now + LOOK_SECONDS
            self._look_for_keeper()

    def _describe(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return what a keeper must know that has not made this process, and a page to share with it.

        The page is a new one: of the first no descriptor is left that the callable could close.
        """
        definition = self._definition
        content = {
            "tag": self.worker,
            "birth": definition.birth,
            "service": self.name,
            "replica": self.slot,
            "attempt": self.attempt,
            "stage": self._stage,
            "status": self._status,
            "sources": loaded_sources(self._sources),
        }
        fd = new_page()
        try:
            page, before = WorkerPage(fd), self._page
            self._page = page
            self._pages.append(before)  # for good: its end would close a descriptor that may be the callable's by now
            page.times[BEAT] = max(page.times[BEAT], before.times[BEAT])
        except BaseException:
            os.close(fd)
            raise
        return content, (fd,)

    def close(self) -> None:
        """Close what it has opened."""
        self._line.close()
        self._page.close()
        for end in self._pipe:
            os.close(end)

    def leave_to_parent(self) -> None:
        """In a fork of the service: its link and its stop signal are the parent's."""
        self.forked = True
        self._lock = threading.Lock()  # another thread may have held it
        signal.signal(self._stop_signal, signal.SIG_DFL)
        self._line.close()
        self._new_pipe()

    # -- what the context asks ------------------------------------------------------------------------------------

    def asked_to_stop(self, number: int, frame: object) -> None:
        """The stop signal has come."""
        first, self._stopping = not self._stopping, True
        if first:
            if identity(self._pipe[0]) == self._pipe_identity:
                with contextlib.suppress(OSError):
                    os.write(self._pipe[1], b"!")  # never read, so that every thread that waits sees it
            if not self._looks and self._speaker != threading.get_ident():
                self._looks = True
                raise _Asked(0)

    def is_stopping(self) -> bool:
        self._looks = True
        return self._stopping

    def is_cancelled(self) -> bool:
        return self.is_stopping()

    def wait(self, seconds: float) -> bool:
        self._looks = True
        deadline = time.monotonic() + seconds
        while not self._stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if identity(self._pipe[0]) != self._pipe_identity:
                self._new_pipe()  # the callable has closed it
                continue
            poll = select.poll()
            poll.register(self._pipe[0], select.POLLIN)
            if self._config.orphan_grace is None:
                poll.poll(min(left, 86400.0) * 1000)
            else:
                poll.poll(min(left, IDLE_SECONDS) * 1000)
                self._look_now_and_then(time.monotonic())
        return True

    def _new_pipe(self) -> None:
        self._pipe = os.pipe()
        self._pipe_identity = identity(self._pipe[0])

    def started(self) -> None:
        """The callable is about to be called."""
        self._stage = "started"
        if self._config.orphan_grace is not None:
            loaded_sources(self._sources)  # as they were when they were loaded
        self.say((Kind.STARTED,))

    def ready(self, status: str) -> None:
        self._stage = "ready"
        self.say((Kind.READY,))
        if status:  # afterwards, for a change of state has words of its own
            self._status = status
            self.say((Kind.STATUS, status))

    def heartbeat(self) -> None:
        now = time.monotonic()
        self._page.times[BEAT] = now
        self._look_now_and_then(now)

    def progress(self, done: float, total: float | None) -> None:
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_SECONDS or done == total:
            self._progress_at = now
            self.say((Kind.PROGRESS, 0, done, total))

    def notice(self, text: str) -> None:
        """Say what the user should know, in the service's own log and in the keeper's."""
        with contextlib.suppress(Exception):
            sys.stderr.write(f"poolkeeper: {self.name}: {text}\n")
        self.say((Kind.NOTICE, f"service {self.name}: {text}"))

    def resumption(self) -> Resumption:
        if self.resumed is None:
            from .checkpoint import store_at  # most services never ask
            from .resumption import Resumption

            store = store_at(self._config.checkpoints, self._config.key)
            identity = f"service\0{self.name}\0{self.slot}"
            self.resumed = Resumption(store, identity, self.attempt, self.notice, self.progress)
        return self.resumed


def main(config: WorkerConfig, plain: tuple[Any, ...], page: int | str, link: int) -> None:
    """Be a service: the target of a multiprocessing process; see ``worker.main`` for ``page`` and ``link``."""
    definition = ServiceDefinition(*plain)
    problem: OSError | ValueError | None = None
    try:
        settle_in(definition.tag, config.logs, definition.limits, inherit_output=config.inherit_output)
    except (OSError, ValueError) as error:
        problem = error
    os.environ.update(definition.environment)
    service = _Service(config, definition, os.open(page, os.O_RDWR) if isinstance(page, str) else page, link)
    os.register_at_fork(after_in_child=service.leave_to_parent)
    task_context.enter(service)
    try:
        signal.signal(definition.stop_signal, service.asked_to_stop)
        if config.orphan_grace is not None and definition.stop_signal != signal.SIGURG:
            signal.signal(signal.SIGURG, service.summoned)
        unblock_signals()
        status, words = _run(service, definition) if problem is None else (1, _unsettled(problem))
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - threads that are no daemons are part of it
    except _Asked:
        status, words = 0, (ExitReason.RETURNED, "", "")
    signal.signal(definition.stop_signal, signal.SIG_IGN)
    _flush()
    if service.forked:
        os._exit(status)  # what was started before the fork is the parent's
    last = (words[0].value, words[1], words[2])
    if config.orphan_grace is not None and words[0] is not ExitReason.RETURNED:
        leave_words(config.logs, definition.tag, last)
    service.say((Kind.LAST_WORDS, *last), last=True)
    leave(status)


def rehearse(config: WorkerConfig) -> None:
    """Take the first steps of a service with nobody listening, so that their memory pages are this process' own."""
    ours, theirs = socket.socketpair()
    definition = ServiceDefinition(
        "", "", "", "", 0, 0, dumps_in_band((_flush, (), {})), tuple(sys.path), Limits(), {}, signal.SIGTERM, False, {}
    )
    service = _Service(
        config._replace(orphan_grace=None),
        ServiceDefinition(*pickle.loads(pickle.dumps(tuple(definition)))),
        new_page(),
        theirs.detach(),
    )
    service.started()
    target, args, kwargs = _load(definition)
    target(*args, **kwargs)
    service.close()
    ours.close()


def _unsettled(error: Exception) -> Words:
    message = f"its process could not be set up as its WorkerPolicy says: {error}"
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{message}\n")
    return ExitReason.RAISED, message, ""


Words = tuple[ExitReason, str, str]


def _run(service: _Service, definition: ServiceDefinition) -> tuple[int, Words]:
    """Call the callable; return the exit status, and what to say of the end."""
    try:
        target, args, kwargs = _load(definition)
        if definition.program:
            _become(service, definition, target)
        service.started()
        try:
            target(*args, **kwargs)
        except BaseException:
            if service.resumed is not None:
                service.resumed.failed()
            raise
        if service.resumed is not None and not service.forked:
            service.resumed.returned()
    except _Asked:
        raise
    except SystemExit as error:
        return _exited(error)
    except BaseException as error:
        if _comes_of_asking(error):
            raise _Asked(0) from None
        return 1, _raised(error)
    return 0, (ExitReason.RETURNED, "", "")


def _comes_of_asking(error: BaseException | None) -> bool:
    """Whether ``error`` is what somebody on the way, such as pickle, has made of the request to stop."""
    while error is not None:
        if isinstance(error, _Asked):
            return True
        error = error.__cause__ or error.__context__
    return False


def _load(definition: ServiceDefinition) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    sys.path[:] = definition.path
    try:
        target, args, kwargs = loads(definition.blob)
    except PayloadError as error:
        raise PayloadError(
            f"service {definition.service} {error}; its process must be able to import the module that defines it"
        ) from error.__cause__
    if not definition.program and wants_context(target):
        args = (task_context.context(), *args)
    return target, args, kwargs


def _become(service: _Service, definition: ServiceDefinition, program: Program) -> NoReturn:
    service.started()
    variables = definition.variables
    if "WATCHDOG_USEC" in variables:
        variables = {**variables, "WATCHDOG_PID": str(os.getpid())}
    program.exec(variables)


def _exited(error: SystemExit) -> tuple[int, Words]:
    code = error.code
    if code is None or code == 0:
        return 0, (ExitReason.RETURNED, "", "")
    if isinstance(code, int):
        return code & 0xFF, (ExitReason.EXIT_STATUS, f"exited with status {code & 0xFF}", "")
    sys.stderr.write(f"{code}\n")
    return 1, (ExitReason.EXIT_STATUS, f"exited with status 1: {code}", "")


def _raised(error: BaseException) -> Words:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__ and trace.tb_next is not None:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(error.with_traceback(trace)))
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
    try:
        message = f"{type(error).__name__}: {error}"
    except Exception:  # its own __str__ raises
        message = type(error).__name__
    return ExitReason.RAISED, message[:1000], text[-DETAIL_BYTES:]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
