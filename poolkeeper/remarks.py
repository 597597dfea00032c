"""What is said in passing, and waits while nobody listens: progress and notices. Pure.

Two classes of messages may be lost, and wait here rather than in the session's outbox, so that an orphan that reports
for hours stays small: of progress the newest for each task, of notices the last few, with the number of those that
they have pushed out. All else (control, results) is numbered, kept and resent by ``session``.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .messages import Kind

__all__ = ["Remarks"]

NOTICES = 16
TASKS = 16
"""Of so many tasks the newest progress is kept; a worker runs one, but threads of earlier ones may still report."""


class Remarks:
    """The remarks that have not been made yet."""

    def __init__(self) -> None:
        self._progress: dict[int, tuple[Any, ...]] = {}
        self._notices: deque[tuple[Any, ...]] = deque()
        self._dropped = 0

    def __bool__(self) -> bool:
        return bool(self._progress or self._notices)

    def add(self, message: tuple[Any, ...]) -> None:
        """Keep a PROGRESS or NOTICE message in the place of what it makes worthless."""
        if message[0] == Kind.PROGRESS:
            self._progress.pop(message[1], None)
            self._progress[message[1]] = message
            if len(self._progress) > TASKS:
                del self._progress[next(iter(self._progress))]
            return
        self._notices.append(message)
        if len(self._notices) > NOTICES:
            self._notices.popleft()
            self._dropped += 1

    def take(self) -> list[tuple[Any, ...]]:
        """Return and forget what is to be said, notices first."""
        messages = [*self._notices, *self._progress.values()]
        if self._dropped:
            messages.insert(0, (Kind.NOTICE, f"{self._dropped} earlier notices are lost, for nobody listened"))
        self._notices.clear()
        self._progress.clear()
        self._dropped = 0
        return messages
