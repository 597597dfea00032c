"""When the survivors of an earlier keeper are called. Pure.

Busy workers are called a few at a time, for all at once would keep the machine from whoever is idle and could take what
is new. The next ones are called as those come, or a moment later, for some may be stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container

from .roster import Worker

__all__ = ["AT_ONCE", "Summons"]

AT_ONCE = 8
"""Workers that are on their way at a time."""

FIRST_SECONDS = 0.005
"""How long those have a start who call by themselves."""

NEXT_SECONDS = 0.02
"""How long those are waited for who were called, before the next are."""


class Summons:
    """The workers that are to be called; ``call`` calls one."""

    def __init__(self, call: Callable[[Worker], None]) -> None:
        self._call = call
        self._left: deque[Worker] = deque()
        self._on_their_way: set[Worker] = set()
        self._has_begun = False
        self.deadline: float | None = None
        """When to go on, even if nobody comes."""

    def __bool__(self) -> bool:
        return bool(self._left)

    def add(self, worker: Worker) -> None:
        """Have a worker called when it is its turn."""
        self._left.append(worker)

    def came(self, worker: Worker) -> None:
        """A worker has called, or is gone."""
        self._on_their_way.discard(worker)

    def go_on(self, now: float, awaited: Container[Worker]) -> None:
        """Call those whose turn it is, if they are still ``awaited``."""
        if self.deadline is None:
            self.deadline = now + FIRST_SECONDS
        if now >= self.deadline:
            self._has_begun = True
            self._on_their_way.clear()
            self.deadline = now + NEXT_SECONDS
        while self._has_begun and self._left and len(self._on_their_way) < AT_ONCE:
            worker = self._left.popleft()
            if worker in awaited:
                self._on_their_way.add(worker)
                self._call(worker)
