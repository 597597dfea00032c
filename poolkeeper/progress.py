"""How far a batch has come: counts, the present rate and what remains, computed from what it is told."""

from __future__ import annotations

from collections import deque
from typing import Any

from .model import TaskResult, TaskStatus

__all__ = ["BatchProgress"]


class BatchProgress:
    """The progress of one batch. One thread tells it of results; others may read it at any time.

    Args:
        name: the batch's name.
        total: how many items it has, None if that is not known.
        now: the time of its start, in seconds of a monotonic clock.
    """

    HORIZON = 30.0
    """Seconds that the present rate looks back."""

    def __init__(self, name: str, total: int | None, now: float) -> None:
        self.name = name
        self.total = total
        self.started = now
        self.done = 0
        self.failed = 0
        self.retried = 0
        self.reused = 0
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def ended(self, result: TaskResult[Any]) -> None:
        """Count one task that has come to its end."""
        self.done += 1
        self.failed += result.status.is_failure
        self.reused += result.reused
        self.retried += result.attempts + result.deaths > 1 and result.status is not TaskStatus.CANCELLED

    def rate(self, now: float) -> float:
        """Return tasks run per second over the last ``HORIZON`` seconds, or since the start."""
        samples = self._samples
        if now - samples[-1][0] >= 0.5:
            samples.append((now, self.done - self.reused))
        while len(samples) > 1 and now - samples[1][0] >= self.HORIZON:
            samples.popleft()
        then, done = samples[0]
        return (self.done - self.reused - done) / (now - then) if now > then else 0.0

    def remaining(self, now: float) -> float | None:
        """Return the seconds that the rest will take at the present rate, None where nobody can tell."""
        rate = self.rate(now)
        if self.total is None or rate <= 0:
            return None
        return max(0, self.total - self.done) / rate
