"""How far a run has come: counts, the present rate and what remains of each batch, computed from what it is told."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from .fleet import BatchSpec, Fleet
from .model import BatchResult, RunStatistics, StepResult, TaskResult, TaskStatus
from .runner import RunObserver

__all__ = ["BatchProgress", "ProgressRow", "RunProgress", "duration", "reused", "troubles"]


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One part of a run at one moment; where ``text`` says how it is, there is nothing to count.

    ``rate`` is in tasks per second, ``remaining`` in seconds, None where nobody can tell.
    """

    name: str
    text: str = ""
    total: int | None = None
    done: int = 0
    failed: int = 0
    retried: int = 0
    rate: float = 0.0
    remaining: float | None = None


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

    def row(self, now: float) -> ProgressRow:
        """Return what is to be seen of it."""
        return ProgressRow(
            self.name,
            total=self.total,
            done=self.done,
            failed=self.failed,
            retried=self.retried,
            rate=self.rate(now),
            remaining=self.remaining(now),
        )


class RunProgress(RunObserver):
    """The progress of all parts of a run; told by one thread for each batch, read by any.

    Args:
        clock: gives seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.notice = ""
        """What there is to say besides."""
        self._clock = clock
        self._fleet = ""
        self._rows: dict[str, BatchProgress | str] = {}
        self._lock = threading.Lock()

    def run_started(self, fleet: Fleet) -> None:
        """Make room for every batch."""
        # Only what has a bar gets a line before its time: a step is over before one has read that it waits.
        self._fleet = fleet.name
        self._rows.update((name, "waiting") for name, spec in fleet.parts.items() if isinstance(spec, BatchSpec))

    def batch_started(self, name: str, total: int | None) -> None:
        """Begin to count."""
        self._rows[name] = BatchProgress(name, total, self._clock())

    def task_ended(self, name: str, result: TaskResult[Any]) -> None:
        """Count one task."""
        row = self._rows[name]
        if isinstance(row, BatchProgress):
            row.ended(result)

    def batch_ended(self, result: BatchResult[Any]) -> None:
        """Put one line in the place of its bar."""
        figures = result.statistics
        failed = f", {figures.failed} failed" if figures.failed else ""
        self._rows[result.name] = f"{figures.succeeded} done{failed} in {duration(result.seconds)}{reused(figures)}"

    def batch_skipped(self, name: str, reason: str) -> None:
        """Tell why."""
        self._rows[name] = f"not run: {reason}"

    def step_started(self, name: str) -> None:
        """Show that it runs."""
        self._rows[name] = "running"

    def step_ended(self, result: StepResult) -> None:
        """Show it no more: what it had to say it has printed."""
        self._rows.pop(result.name, None)

    def rows(self) -> list[ProgressRow]:
        """Return what is to be seen now."""
        return [self._seen(name, row) for name, row in list(self._rows.items())]

    def row(self, name: str) -> ProgressRow:
        """Return what is to be seen of one part."""
        return self._seen(name, self._rows[name])

    def _seen(self, name: str, row: BatchProgress | str) -> ProgressRow:
        if isinstance(row, str):
            return ProgressRow(name, row)
        with self._lock:  # rates take samples as they are read
            return row.row(self._clock())

    def as_data(self) -> dict[str, Any]:
        """Return the same as plain data, for who looks on from elsewhere."""
        return {"fleet": self._fleet, "rows": [asdict(row) for row in self.rows()], "notice": self.notice}


class _Troubled(Protocol):
    @property
    def failed(self) -> int: ...
    @property
    def retried(self) -> int: ...


def troubles(row: _Troubled) -> str:
    """Return what has failed and what was retried, with a comma behind it; nothing where all is well."""
    failed = f"{row.failed} failed, " if row.failed else ""
    return failed + (f"{row.retried} retried, " if row.retried else "")


def reused(figures: RunStatistics) -> str:
    """Return how much is of an earlier run, with a comma before it; nothing where nothing is."""
    return f", {figures.reused} of them reused" if figures.reused else ""


def duration(seconds: float) -> str:
    """Return ``seconds`` as people say it: 29 µs, 4.4 ms, 0.42 s, 12 s, 3:05 min, 2:03:09 h."""
    if 0 < seconds < 0.01:
        return f"{seconds * 1e3:.2g} ms" if seconds >= 0.001 else f"{max(1, round(seconds * 1e6))} µs"
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"
