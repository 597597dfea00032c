"""How this process was started, noted when this module is imported, so that it can be started again in its place."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .handover import VARIABLE

if TYPE_CHECKING:
    from .invocation import Invocation

__all__ = ["STARTUP", "Startup"]


class Startup(NamedTuple):
    """The circumstances that a re-exec restores.

    Args:
        pid: tells the process from its forks, which do something else than the program.
        executable: the interpreter; "" where there is none.
        argv: the whole command line, with the interpreter's options.
        directory: the working directory, by the name that was used for it; None: it had none.
        environment: as poolkeeper found it, without what concerns one process alone.
        umask: None where the system does not tell.
        mask: the signals that were blocked.
    """

    pid: int
    executable: str
    argv: tuple[str, ...]
    directory: str | None
    environment: Mapping[str, str]
    umask: int | None
    mask: frozenset[int]

    @property
    def invocation(self) -> Invocation:
        """What the interpreter was told to run."""
        from .invocation import read_invocation

        return read_invocation(self.argv)

    @property
    def command_line(self) -> list[str]:
        """What to execute: the interpreter by its path, for the search path may have changed."""
        return [self.executable, *self.argv[1:]]

    def path_of(self, name: str) -> str:
        """Return the path of a file that is named on the command line."""
        return os.path.join(self.directory or "", name)

    @property
    def folder(self) -> str | None:
        """The working directory if it is still there."""
        return self.directory if self.directory is not None and os.path.isdir(self.directory) else None


def _note() -> Startup:
    return Startup(
        pid=os.getpid(),
        executable=sys.executable or "",
        argv=tuple(sys.orig_argv),
        directory=_directory(),
        environment={name: value for name, value in os.environ.items() if name != VARIABLE},
        umask=_umask(),
        mask=frozenset(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))) if _HAS_MASK else frozenset(),
    )


_HAS_MASK = hasattr(signal, "pthread_sigmask")


def _directory() -> str | None:
    """Return the working directory, as the shell names it: ``current``, a link to the newest release, stays that."""
    try:
        here = os.getcwd()
    except OSError:
        return None
    named = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, here):
            return named
    return here


def _umask() -> int | None:
    """Return the umask without setting it, which other threads would notice; Linux tells."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return None


STARTUP = _note()
