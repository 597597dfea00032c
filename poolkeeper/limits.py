"""What a worker may use of the machine: set in its process before it takes a task."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .policy import WorkerPolicy

__all__ = ["Limits"]


class Limits(NamedTuple):
    """The part of a ``WorkerPolicy`` that the kernel enforces; memory in bytes, None for what is not limited."""

    hard_memory: int | None = None
    cpu_seconds: float | None = None
    open_files: int | None = None
    nice: int | None = None
    affinity: tuple[int, ...] | None = None
    cwd: str | None = None
    umask: int | None = None

    @classmethod
    def of(cls, policy: WorkerPolicy) -> Limits:
        """Return the limits that ``policy`` sets."""
        return cls(
            hard_memory=policy.hard_memory,
            cpu_seconds=policy.cpu_seconds,
            open_files=policy.open_files,
            nice=policy.nice,
            affinity=policy.affinity,
            cwd=policy.cwd,
            umask=policy.umask,
        )

    def apply(self) -> None:
        """Set them for this process; raises OSError where the system refuses."""
        if self.nice is not None:
            os.setpriority(os.PRIO_PROCESS, 0, self.nice)
        if self.affinity is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.affinity)
        if self.cwd is not None:
            os.chdir(self.cwd)
        if self.umask is not None:
            os.umask(self.umask)
        if self.hard_memory is not None or self.cpu_seconds is not None or self.open_files is not None:
            self._apply_resource_limits()

    def _apply_resource_limits(self) -> None:
        import resource

        wanted = {
            # private writable memory, which is what a task allocates; arenas are shared files
            resource.RLIMIT_DATA: self.hard_memory,
            resource.RLIMIT_CPU: None if self.cpu_seconds is None else max(1, round(self.cpu_seconds)),
            resource.RLIMIT_NOFILE: self.open_files,
        }
        for kind, value in wanted.items():
            if value is not None:
                hard = resource.getrlimit(kind)[1]
                soft = min(value, sys.maxsize if hard == resource.RLIM_INFINITY else hard)
                # memory is limited for good; the others a program may want to raise again
                resource.setrlimit(kind, (soft, soft if kind == resource.RLIMIT_DATA else hard))
