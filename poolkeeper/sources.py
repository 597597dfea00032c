"""The source files that a process has loaded, and whether they are still what they were.

A process that outlives its keeper runs the code that it has imported. What belongs to the interpreter or is installed
is told by version; the user's own files, and ours where they are being worked on, by time of change and size.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

__all__ = ["SourceCheck", "Sources", "changed_sources", "current_sources", "loaded_sources"]

GLANCE_SECONDS = 0.05
"""How long a look at a file holds, where a hundred processes say at once what they have loaded."""

Sources = dict[str, tuple[int, int]]
"""Time of change in nanoseconds, and size in bytes, by path."""


def loaded_sources(known: Sources | None = None) -> Sources:
    """Return the files behind the modules that this process has loaded; what is ``known`` is not looked at again."""
    found: Sources = {} if known is None else known
    installed = _installed()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or path in found or path.startswith(installed):
            continue
        try:
            status = os.stat(path)
        except OSError:  # an archive, or gone already
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
    return found


class SourceCheck:
    """``changed_sources`` for many processes that have mostly loaded the same files."""

    def __init__(self) -> None:
        self._now: Sources = {}
        self._look_again = 0.0

    def changed(self, sources: Sources) -> list[str]:
        """Return the files that are not what they were when they were loaded, or gone."""
        now = time.monotonic()
        if now >= self._look_again:
            self._now.clear()
            self._look_again = now + GLANCE_SECONDS
        self._now.update(current_sources(sources.keys() - self._now.keys()))
        return [path for path, seen in sources.items() if self._now[path] != tuple(seen)]


def changed_sources(sources: Sources) -> list[str]:
    """Return the files that are not what they were when they were loaded, or gone."""
    now = current_sources(sources)
    return [path for path, seen in sources.items() if now[path] != tuple(seen)]


def current_sources(paths: Iterable[str]) -> Sources:
    """Return what files are like now; those that are gone have no time and no size."""
    found: Sources = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found[path] = (-1, -1)
        else:
            found[path] = (status.st_mtime_ns, status.st_size)
    return found


_INSTALLED: tuple[str, ...] = ()


def _installed() -> tuple[str, ...]:
    global _INSTALLED  # noqa: PLW0603 - sysconfig is slow to import and to ask, and what it says does not change
    if not _INSTALLED:
        import sysconfig

        names = ("stdlib", "platstdlib", "purelib", "platlib")
        _INSTALLED = tuple({os.path.join(path, "") for path in map(sysconfig.get_path, names) if path})
    return _INSTALLED
