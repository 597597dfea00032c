"""``command(...)``: other people's programs, as tasks and as services.

As a task the program is a child of the worker and in its process group, so it ends with a worker that is killed.
Asked to stop, it gets SIGTERM together with all that it has started, and SIGKILL if that does not help: what
systemd.kill(5) does with KillMode=control-group. As a service it takes the worker's place (``execvpe``).
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from .errors import CommandFailed, signal_name
from .held_signals import HeldSignals
from .task_context import context

__all__ = ["Program", "command"]

TERM_SECONDS = 5.0
"""How long a program that is asked to end may take."""
LOOK_SECONDS = 0.1
"""How often to look for a cancellation where none can wake us: outside the main thread, and without pidfds."""
SHOWN = 200

_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


def command(
    *argv: str | os.PathLike[str],
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Program:
    """Make a callable, to be run by a worker, of another program; no shell is involved.

    Args:
        argv: the program, searched for in PATH, and its arguments; in a task every ``{}`` in them becomes the item.
        cwd: the directory to run it in, the worker's own by default.
        env: variables to set on top of the worker's environment.

    Raises:
        TypeError: for what is neither text nor a path.
        ValueError: for no program, an empty name of it, or what holds a NUL.
    """
    variables = {_text("a variable", name): _text(f"env[{name!r}]", value) for name, value in (env or {}).items()}
    return Program(
        tuple(_text("an argument", word) for word in argv),
        None if cwd is None else _text("cwd", cwd),
        MappingProxyType(variables),
    )


@dataclass(frozen=True, repr=False)
class Program:
    """What ``command`` makes; two that run the same in the same way are equal.

    Called, it runs the program to its end. The one argument is the item that takes the place of every ``{}``; without a
    ``{}`` there must be none. Standard input is empty, output goes where the worker's own goes.
    """

    argv: tuple[str, ...]
    cwd: str | None
    env: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise ValueError("command() needs the name of a program")
        for name in self.env:
            if not name or "=" in name:
                raise ValueError(f"env={dict(self.env)!r}: {name!r} cannot be the name of a variable")
        name = os.path.basename(self.argv[0].rstrip("/")) or self.argv[0]
        # What messages and batches call it. A class cannot have these two as properties.
        self.__dict__.update(__name__=name, __qualname__=name)

    def __call__(self, *items: Any) -> None:
        """Run the program and wait for its end.

        Raises:
            CommandFailed: if it cannot be started, ends with another exit code than 0, is killed by a signal, or was
                asked to stop because the task was cancelled.
            TypeError: for an item without ``{}``, or the other way round.
            ValueError: for an item whose text holds a NUL.
        """
        argv = self._filled(items)
        _flush()
        with HeldSignals() as signals:  # they may interrupt our waiting, but come between us and the program nowhere
            process = _start(argv, self.cwd, {**os.environ, **self.env})
            try:
                cancelled = not _wait(process, signals)
            finally:
                if process.returncode is None:
                    _end(process)
        code = process.returncode
        if cancelled or code != 0:
            why = "was told to end, for its task was cancelled; it " if cancelled else ""
            raise CommandFailed(f"{_shown(argv)} {why}{_ending(code)}", argv, code)

    def exec(self, variables: Mapping[str, str] = _NO_VARIABLES) -> NoReturn:
        """Replace this process with the program; ``{}`` stays as it is, for there is no item.

        The program finds the signals as a shell would leave them: none ignored, none blocked. Open files without the
        close-on-exec flag are passed on.

        Args:
            variables: more of them, such as NOTIFY_SOCKET; ``env`` takes precedence.

        Raises:
            CommandFailed: if that fails; the process goes on, in the directory ``cwd``.
            ValueError: outside the main thread, which alone may set signals.
        """
        environment = {**os.environ, **variables, **self.env}
        _flush()
        if self.cwd is not None:
            try:
                os.chdir(self.cwd)
            except OSError as error:
                raise _not_started(self.argv, self.cwd, error) from error
        with _plain_signals():
            try:
                os.execvpe(self.argv[0], self.argv, environment)  # noqa: S606 - no shell is the point
            except (OSError, ValueError) as error:
                raise _not_started(self.argv, self.cwd, error) from error

    def __repr__(self) -> str:
        words = [repr(word) for word in self.argv]
        if self.cwd is not None:
            words.append(f"cwd={self.cwd!r}")
        if self.env:
            words.append(f"env={dict(self.env)!r}")
        return f"command({', '.join(words)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.argv, self.cwd, dict(self.env))

    def _filled(self, items: tuple[Any, ...]) -> tuple[str, ...]:
        wanted = any("{}" in word for word in self.argv)
        if len(items) != wanted:
            if wanted:
                raise TypeError(f"{self!r} takes the one item that {{}} stands for, but was given {len(items)}")
            raise TypeError(f"{self!r} takes no item, for no argument has a {{}}, but was given {len(items)}")
        if not wanted:
            return self.argv
        item = items[0]
        text = os.fsdecode(item) if isinstance(item, (bytes, os.PathLike)) else str(item)
        if "\0" in text:
            raise ValueError(f"{self!r}: the item {text[:SHOWN]!r} holds a NUL, which no argument of a program can")
        return tuple(word.replace("{}", text) for word in self.argv)


def _remake(argv: tuple[str, ...], cwd: str | None, env: dict[str, str]) -> Program:
    return Program(argv, cwd, MappingProxyType(env))


def _text(what: str, value: str | os.PathLike[str]) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{what} of a command must be text or a path, and {value!r} is neither")
    if "\0" in text:
        raise ValueError(f"{what} of a command must not hold a NUL, and {value!r} does")
    return text


# -- the child --------------------------------------------------------------------------------------------------------


def _start(argv: tuple[str, ...], cwd: str | None, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        with _interruptible_children():
            return subprocess.Popen(argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL)
    except (OSError, ValueError) as error:
        raise _not_started(argv, cwd, error) from error


@contextlib.contextmanager
def _interruptible_children() -> Iterator[None]:
    """Workers ignore SIGINT, and a program inherits that; a signal that is caught is reset by exec instead."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait(process: subprocess.Popen[bytes], signals: HeldSignals) -> bool:
    """Wait for the end of ``process``; return False as soon as the task is asked to stop."""
    task = context()
    with _alarm(process) as alarm:
        while process.poll() is None:
            if task.cancelled:
                return False
            try:
                signals.open()
                alarm(math.inf)
            finally:
                signals.hold()
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` and all that it has started, politely first."""
    import psutil

    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        if process.poll() is None:
            family.append(psutil.Process(process.pid))
            family += family[0].children(recursive=True)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.terminate()
    deadline = time.monotonic() + TERM_SECONDS
    with _alarm(process) as alarm:
        while process.poll() is None and (left := deadline - time.monotonic()) > 0:
            alarm(left)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()  # what has not ended with the program; psutil knows a stranger with the same pid
    process.wait()
    for member in family[1:]:  # from the top down: a worker that adopts descendants has to reap them, too
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if member.is_running():
                os.waitpid(member.pid, 0)


class _Alarm:
    """Sleeps until the child ends, a signal comes (a cancellation does, as SIGURG), or time is up.

    Where signals cannot wake it, it sleeps for ``LOOK_SECONDS`` at most.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._poll: select.poll | None = None
        self._pidfd = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(child.pid)
                self._poll = select.poll()
                self._poll.register(self._pidfd, select.POLLIN)
        self._wakes = (-1, -1)
        if self._poll is not None and threading.current_thread() is threading.main_thread():
            self._listen(self._poll)

    def _listen(self, poll: select.poll) -> None:
        with contextlib.suppress(OSError):
            self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            earlier = signal.set_wakeup_fd(self._wakes[1], warn_on_full_buffer=False)
            if earlier >= 0:  # somebody else wants to hear of signals
                signal.set_wakeup_fd(earlier)
                self._shut()
            else:
                poll.register(self._wakes[0], select.POLLIN)

    def __call__(self, seconds: float) -> None:
        if self._wakes[0] < 0:
            seconds = min(seconds, LOOK_SECONDS)
        if self._poll is None:
            time.sleep(seconds)
            return
        ready = self._poll.poll(None if seconds == math.inf else math.ceil(seconds * 1000))
        if any(fd == self._wakes[0] for fd, _ in ready):
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakes[0], 4096)

    def close(self) -> None:
        if self._wakes[0] >= 0:
            signal.set_wakeup_fd(-1)
            self._shut()
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def _shut(self) -> None:
        for fd in self._wakes:
            os.close(fd)
        self._wakes = (-1, -1)


@contextlib.contextmanager
def _alarm(child: subprocess.Popen[bytes]) -> Iterator[_Alarm]:
    alarm = _Alarm(child)
    try:
        yield alarm
    finally:
        alarm.close()


# -- exec -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _plain_signals() -> Iterator[None]:
    """Have no signal ignored or blocked; all as before for who survives it.

    Python ignores SIGPIPE and SIGXFSZ, workers ignore SIGINT, and exec keeps what is ignored. What has a handler gets
    its default by exec itself.
    """
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _flush() -> None:
    """What Python still holds back comes before what the program writes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


# -- messages ---------------------------------------------------------------------------------------------------------


def _not_started(argv: tuple[str, ...], cwd: str | None, error: Exception) -> CommandFailed:
    if cwd is not None and not os.path.isdir(cwd):
        why = f"its directory {cwd} is not there"
    elif isinstance(error, FileNotFoundError):
        name = argv[0]
        why = f"{name} is not there" if "/" in name else f"{name} is not in any directory of PATH"
        if "/" in name and os.path.exists(os.path.join(cwd or "", name)):
            why = f"the interpreter that {name} names in its first line is not there"
    elif isinstance(error, PermissionError):
        why = f"{argv[0]} may not be executed by this user: {error.strerror}"
    else:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return CommandFailed(f"{_shown(argv)} could not be started: {why}", argv)


def _shown(argv: tuple[str, ...]) -> str:
    text = shlex.join(argv)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code} ({signal_name(-code)})"
    if 128 < code < 192:
        # so shells report what they have run, bash(1), EXIT STATUS
        return f"ended with exit code {code} (by a shell: killed by {signal_name(code - 128)})"
    return f"ended with exit code {code}"
