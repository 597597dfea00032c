"""Lines on their way from the pipes to the disk: bounded memory between a thread that reads and one that writes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["CALM", "Batch", "LogBuffer"]

CALM = 0.25
"""The fraction of its share below which a file's part of the buffer counts as all but empty."""


class Batch(NamedTuple):
    """What the writing thread takes at once: per file, how many lines were lost, and the blocks; then what to do."""

    lost: dict[str, int]
    blocks: dict[str, list[bytes]]
    after: list[Callable[[], None]]


class LogBuffer:
    """Blocks of lines per file; a file's share is what the others leave free, so that none can fill the buffer.

    That is the dynamic threshold of shared-memory switches (Choudhury and Hahne, 1998): one flood takes half, and what
    comes second still finds half of the rest.

    Args:
        limit: bytes, of what is being written, too.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._held: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        self._blocks: dict[str, list[bytes]] = {}
        self._after: deque[Callable[[], None]] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def offer(self, stem: str, block: bytes, fraction: float = 1.0) -> bool:
        """Take ``block`` for the file ``stem`` unless that exceeds this fraction of its share; return whether so."""
        with self._changed:
            held = self._held.get(stem, 0)
            if held + len(block) > fraction * (self._limit - self._total):
                return False
            self._put(stem, block)
            return True

    def force(self, stem: str, block: bytes) -> None:
        """Take ``block`` whatever the share; for what is short and rare."""
        with self._changed:
            self._put(stem, block)

    def lose(self, stem: str, lines: int) -> None:
        """Note that there was no room for so many lines of the file ``stem``."""
        with self._changed:
            self._lost[stem] = self._lost.get(stem, 0) + lines
            self._changed.notify()

    def is_calm(self, stem: str) -> bool:
        """Whether next to nothing of the file ``stem`` waits for the disk."""
        with self._changed:
            return self._held.get(stem, 0) <= CALM * (self._limit - self._total)

    def then(self, action: Callable[[], None]) -> None:
        """Have the writing thread call ``action`` when all that was taken before is on disk."""
        with self._changed:
            self._after.append(action)
            self._changed.notify()

    def take(self) -> Batch | None:
        """Wait for something to write and return it; None when the buffer is closed and empty."""
        with self._changed:
            while not self._blocks and not self._after and not self._lost:
                if self._closed:
                    return None
                self._changed.wait()
            batch = Batch(self._lost, self._blocks, list(self._after))
            self._lost, self._blocks = {}, {}
            self._after.clear()
            return batch

    def written(self, stem: str, size: int) -> None:
        """Give back the room of what was taken and is written, or never will be."""
        with self._changed:
            self._total -= size
            self._held[stem] -= size
            if not self._held[stem]:
                del self._held[stem]

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _put(self, stem: str, block: bytes) -> None:
        self._blocks.setdefault(stem, []).append(block)
        self._held[stem] = self._held.get(stem, 0) + len(block)
        self._total += len(block)
        self._changed.notify()
