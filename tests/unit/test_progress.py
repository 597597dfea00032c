"""Progress computed from results and a clock that the test owns."""

from __future__ import annotations

import pytest

from poolkeeper.model import TaskResult, TaskStatus
from poolkeeper.progress import BatchProgress, duration


def end(progress: BatchProgress, count: int, status: TaskStatus = TaskStatus.SUCCEEDED, attempts: int = 1) -> None:
    for index in range(count):
        progress.ended(TaskResult(status, index, attempts=attempts))


def test_counts() -> None:
    progress = BatchProgress("load", 10, now=0.0)
    end(progress, 3)
    end(progress, 2, TaskStatus.FAILED, attempts=3)
    end(progress, 1, TaskStatus.CANCELLED, attempts=0)
    assert (progress.done, progress.failed, progress.retried) == (6, 2, 2)


def test_rate_and_what_remains() -> None:
    progress = BatchProgress("load", 100, now=0.0)
    end(progress, 20)
    assert progress.rate(10.0) == pytest.approx(2.0)
    assert progress.remaining(10.0) == pytest.approx(40.0)


def test_the_rate_forgets_what_is_long_past() -> None:
    progress = BatchProgress("load", None, now=0.0)
    end(progress, 1000)
    progress.rate(1.0)
    for second in range(2, 100):
        end(progress, 1)
        progress.rate(float(second))
    assert progress.rate(100.0) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("total", "done", "now"), [(None, 5, 10.0), (10, 0, 10.0), (10, 5, 0.0)])
def test_nobody_can_tell_what_remains(total: int | None, done: int, now: float) -> None:
    progress = BatchProgress("load", total, now=0.0)
    end(progress, done)
    assert progress.remaining(now) is None


def test_nothing_remains_when_there_were_more_than_expected() -> None:
    progress = BatchProgress("load", 5, now=0.0)
    end(progress, 6)
    assert progress.remaining(1.0) == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"),
        (1e-9, "1 µs"),
        (2.9e-05, "29 µs"),
        (0.001, "1 ms"),
        (0.0044, "4.4 ms"),
        (0.01, "0.01 s"),
        (0.42, "0.42 s"),
        (5.25, "5.2 s"),
        (12.4, "12 s"),
        (185, "3:05 min"),
        (7389, "2:03:09 h"),
    ],
)
def test_a_duration_is_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said
