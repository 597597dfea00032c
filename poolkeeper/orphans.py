"""What dead processes leave behind outside their groups, and how the fork server ends it.

Each process adopts its own descendants (see ``process_setup``), so whatever becomes a child of the fork server without
having been started by it has lost the last of them. It is asked to end, as a keeper within a worker does in order, and
killed if it does not. What it leaves behind in turn comes to us as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Container

from .process_setup import child_pids

__all__ = ["ORPHAN_SECONDS", "Orphans"]

ORPHAN_SECONDS = 2.0
"""How long an orphan gets to end by itself."""


class Orphans:
    """The children of this process that it has not started."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._deadlines)

    def sweep(self, known: Container[int]) -> None:
        """Ask every child that is not ``known`` to end, and kill those whose time is up."""
        now = time.monotonic()
        strangers = {pid for pid in child_pids() if pid not in known}
        for pid in strangers - self._deadlines.keys():
            self._deadlines[pid] = now + ORPHAN_SECONDS
            _signal(pid, signal.SIGTERM)
            _signal(pid, signal.SIGCONT)
        for pid, deadline in list(self._deadlines.items()):
            if pid not in strangers:
                del self._deadlines[pid]
            elif now >= deadline:
                _signal(pid, signal.SIGKILL)

    def timeout(self) -> float | None:
        """Return the milliseconds until an orphan's time is up, None if there is none."""
        if not self._deadlines:
            return None
        return max(1.0, (min(self._deadlines.values()) - time.monotonic()) * 1000)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
