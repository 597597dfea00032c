"""The duties of pid 1 in a container, done by a process of its own.

Pid 1 inherits every process whose parent ends, and has to reap it, or the table of processes fills with zombies. The
kernel also drops signals that pid 1 has no handler for, so that SIGTERM would not end it (pid_namespaces(7)).

Who reaps strangers takes the risk of reaping what somebody else in the process waits for: ``subprocess`` then reports
exit code 0 for a program that failed. A process cannot tell adopted children from its own with certainty: the kernel
does not say who started them, children of other threads and of C libraries are announced nowhere, and a zombie that has
not been collected for a while may be one that its owner looks at seldom. So nobody does both here. Before anything else
has started, pid 1 forks; the child goes on as the program, and adopts nobody. The parent does what tini
(https://github.com/krallin/tini) does: it reaps whatever ends, passes signals on, and leaves with the exit status of
the program, upon which the kernel ends all that is left in the container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import NoReturn

__all__ = ["leave_pid_one"]

# Faults must end the process, and the last two cannot be waited for.
_LEFT_ALONE = frozenset(
    {
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
        signal.SIGKILL,
        signal.SIGSTOP,
    }
)


def leave_pid_one(*, force: bool = False) -> bool:
    """Where this process is pid 1, go on in a child, and let pid 1 be a plain init.

    To be called first of all: before threads, and before children whose end matters. The child leads a process group of
    its own, in the foreground where there is a terminal, so that Ctrl-C reaches it once. A re-exec of it does no harm.

    Args:
        force: do it whatever the pid is, for a process that is a child subreaper (PR_SET_CHILD_SUBREAPER(2const)).

    Returns:
        Whether that was done, to the child alone; the parent does not return.

    Raises:
        RuntimeError: if other threads run; a fork would not have them.
        OSError: if the system refuses the fork.
    """
    if os.getpid() != 1 and not force:
        return False
    if threading.active_count() > 1:
        names = ", ".join(sorted(thread.name for thread in threading.enumerate()))
        raise RuntimeError(f"pid 1 has to be left before threads are started, and these run: {names}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()  # or both processes would write it
    awaited = signal.valid_signals() - _LEFT_ALONE
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # what comes from now on waits for serve
    # A child whose parent ignores SIGCHLD leaves no exit status. Not after the fork: to set a disposition by which a
    # signal is ignored, as this one by default, discards those that wait.
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = -1
    try:
        program = os.fork()
        if program:
            _serve(program, awaited)
        _lead()
        return True
    finally:
        if program <= 0:
            if earlier is not None:
                signal.signal(signal.SIGCHLD, earlier)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _lead() -> None:
    """Lead a process group, in the foreground if ours was; SIGTTOU is blocked here, so that the terminal agrees."""
    with contextlib.suppress(OSError):
        foreground = os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
        os.setpgid(0, 0)
        if foreground:
            os.tcsetpgrp(0, os.getpgrp())


def _serve(program: int, awaited: Iterable[int]) -> NoReturn:
    """Be init until ``program`` has ended."""
    while True:
        received = signal.sigwait(awaited)  # one that is blocked waits, whatever its disposition
        if received != signal.SIGCHLD:
            if received not in (signal.SIGTTIN, signal.SIGTTOU):
                with contextlib.suppress(OSError):
                    os.kill(program, received)
            continue
        status = _reap(program)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)  # as shells and tini report a signal


def _reap(program: int) -> int | None:
    """Reap all zombies there are; return the status of ``program`` if it is among them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == program:
            ended = status
