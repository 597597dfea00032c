"""What every process of a keeper does first: a session of its own, default signals, its limits, its output."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal makes enums of numbers, slow in a fresh fork
import faulthandler
import functools
import hmac  # noqa: F401 - for handshakes: a signal's handler may call the keeper, in the midst of any other import
import json  # noqa: F401
import os
import signal
import sys
from typing import Any

from .limits import Limits
from .output import redirect_output

__all__ = [
    "DUMP_SIGNAL",
    "adopt_descendants",
    "begin_session",
    "block_signals",
    "child_pids",
    "handle",
    "prepare_stacks",
    "settle_in",
    "unblock_signals",
]

PR_SET_CHILD_SUBREAPER = 36

DUMP_SIGNAL: int | None = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else None
"""Makes a process of ours write the stacks of all its threads into its crash file."""

LOG_DUMP_SIGNAL: int | None = signal.SIGRTMIN + 8 if hasattr(signal, "SIGRTMIN") else None
"""The same, into its log."""


_ALL_SIGNALS = frozenset(map(int, signal.valid_signals()))
_TO_DEFAULT = tuple(map(int, (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)))
_SIGINT = int(signal.SIGINT)


def block_signals() -> None:
    """Have all signals wait."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)


def unblock_signals() -> None:
    """Let all signals in, those that wait first."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def handle(number: int, handler: Any) -> None:
    """Have ``handler`` called at a signal, without the enums that ``signal.signal`` makes of what was there before."""
    _signal.signal(number, handler)


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None)


def adopt_descendants() -> None:
    """Have descendants whose parents end become children of this process, as init would have them (Linux)."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def child_pids() -> list[int]:
    """Return the children of this process, which has one thread; none where the system does not tell."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except (OSError, ValueError):
        return []


def begin_session() -> None:
    """Give this process a session of its own and the signals that a program begins with; nothing the second time."""
    if os.getsid(0) == os.getpid():
        return
    os.setsid()
    adopt_descendants()
    for number in _TO_DEFAULT:
        _signal.signal(number, _signal.SIG_DFL)
    if _signal.getsignal(_SIGINT) != _signal.SIG_IGN:  # to ignore it again would drop one that waits
        _signal.signal(_SIGINT, _signal.SIG_IGN)


def settle_in(tag: str, logs: str, limits: Limits, *, inherit_output: bool) -> None:
    """Make this process one of a keeper's; ``tag`` names its files in the folder ``logs``. Raises OSError, ValueError.

    Signals stay blocked, as the fork server has left them, until the caller has its handlers.
    """
    begin_session()
    limits.apply()
    if not inherit_output:
        redirect_output(_open_log(os.path.join(logs, f"{tag}.log")))
    _write_stacks(os.path.join(logs, f"{tag}.crash"))
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # forked siblings would all draw the same numbers


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:  # as below
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


_prepared: list[int] = []
"""The descriptor by which the interpreter writes its stacks, of which each child that is forked makes its own file."""


def prepare_stacks() -> None:
    """Have the interpreter ready to write its stacks, here and in every fork, which only has to say where."""
    fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    _enable_stacks(fd)
    _prepared[:] = [fd]


def _write_stacks(path: str) -> None:
    """Have the interpreter write its stacks into ``path`` when it crashes, and when it is asked."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError:  # the disk is full, or the folder gone: a process that runs matters more than its stacks
        fd = os.dup(2)
    if _prepared:
        os.dup2(fd, _prepared[0], inheritable=False)
        os.close(fd)
    else:
        _enable_stacks(fd)  # open for the process' life


def _enable_stacks(fd: int) -> None:
    faulthandler.enable(fd)
    if DUMP_SIGNAL is not None and LOG_DUMP_SIGNAL is not None:
        faulthandler.register(DUMP_SIGNAL, fd, all_threads=True)
        faulthandler.register(LOG_DUMP_SIGNAL, 2, all_threads=True)
