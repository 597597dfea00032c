"""``poolkeeper run --watch``: a new program takes over when source files of this one have changed.

The files are looked at once a second: a few hundred ``stat`` calls take a millisecond, need no library, work on every
filesystem, and do not mind how an editor saves. inotify sees none of what happens on the other side of a network or
container mount, and loses a file that is replaced by another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .logs import emit
from .sources import Sources, changed_sources, current_sources, loaded_sources

__all__ = ["Change", "SourceWatch"]

LOOK_SECONDS = 1.0


class Change:
    """Decides when to act on changes: once each, when nothing has changed any more from one look to the next."""

    def __init__(self) -> None:
        self._seen: Sources = {}
        self._acted: Sources = {}

    def settled(self, now: Sources) -> bool:
        """Whether to act now, given what the changed files are like."""
        calm, self._seen = now == self._seen, now
        if not calm or now == self._acted:
            return False
        self._acted = now
        return bool(now)


class SourceWatch:
    """Calls ``reload`` with what has changed, in a thread of its own, from ``with`` on to its end.

    Args:
        sources: what has been loaded, as it was then.
        reload: does not return where it succeeds.
        seconds: between two looks.
    """

    def __init__(self, sources: Sources, reload: Callable[[list[str]], object], seconds: float = LOOK_SECONDS) -> None:
        self._reload = reload
        self._seconds = seconds
        self._sources = sources
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="poolkeeper-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        change = Change()
        while not self._ended.wait(self._seconds):
            loaded_sources(self._sources)  # what was imported since
            changed = changed_sources(self._sources)
            if change.settled(current_sources(changed)):
                emit("INFO", f"changed: {', '.join(sorted(changed))}")
                self._reload(changed)
