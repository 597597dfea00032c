"""Deadlines by number: at most one for each, the earliest that was asked for. And ages, spread by number. Pure."""

from __future__ import annotations

import heapq

__all__ = ["Timers", "old_age"]

AGE_JITTER = 0.1
"""By how much of ``max_age`` processes differ, so that those started together are not all replaced together."""


class Timers:
    """When to look at what; the numbers are the caller's."""

    def __init__(self) -> None:
        self._due: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []  # entries that ``_due`` does not confirm are stale

    def __len__(self) -> int:
        return len(self._due)

    def set(self, number: int, when: float) -> None:
        """Ask for ``number`` at ``when``, unless it is due earlier anyway."""
        due = self._due.get(number)
        if due is None or when < due:
            self._due[number] = when
            heapq.heappush(self._heap, (when, number))
            if len(self._heap) > 2 * len(self._due) + 16:
                self._heap = [(when, number) for number, when in self._due.items()]
                heapq.heapify(self._heap)

    def cancel(self, number: int) -> None:
        """Forget the deadline of ``number``, if there is one."""
        self._due.pop(number, None)

    def take(self, now: float) -> list[int]:
        """Return and forget all that is due, the earliest first."""
        taken: list[int] = []
        while self._heap and self._heap[0][0] <= now:
            when, number = heapq.heappop(self._heap)
            if self._due.get(number) == when:
                del self._due[number]
                taken.append(number)
        return taken

    @property
    def earliest(self) -> float | None:
        """The earliest deadline, None if there is none."""
        heap = self._heap
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None


def old_age(max_age: float, number: int) -> float:
    """Return the share of ``max_age`` that the process of that number reaches: spread evenly, the same each time."""
    return max_age * (1 - AGE_JITTER * (number * 0.6180339887 % 1))
