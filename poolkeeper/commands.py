"""What the core asks the runtime to do. The closed set of types behind ``Command`` is all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .ledger import Segment, Task
from .roster import Worker

__all__ = ["Command", "Decide", "Fail", "Failure", "Feed", "Kill", "Nudge", "Retire", "Settle", "Spawn"]


class Failure(Enum):
    """How a task can end without a result or exception of its own."""

    LOST = "lost"
    QUARANTINED = "quarantined"
    TIMEOUT = "timeout"
    NO_WORKERS = "no workers"


@dataclass(slots=True)
class Spawn:
    """Start this worker."""

    worker: Worker


@dataclass(slots=True)
class Feed:
    """Send these tasks, all of one call, to this worker; the first gets index ``first``."""

    worker: Worker
    first: int
    tasks: list[Task]


@dataclass(slots=True)
class Retire:
    """Tell this worker to leave when it has done what it holds."""

    worker: Worker


@dataclass(slots=True)
class Kill:
    """Kill this worker and all that it started."""

    worker: Worker


@dataclass(slots=True)
class Nudge:
    """Make this worker send the results that it holds back."""

    worker: Worker


@dataclass(slots=True)
class Settle:
    """These tasks have these results; ``codes`` None means that all are plain values. An entry may be None (revoked).

    ``seconds`` is the mean run time. The values of a chunk are one piece that the map understands.
    """

    worker: Worker
    tasks: list[Task | None]
    codes: Sequence[int] | None
    values: Any
    seconds: float | None


@dataclass(slots=True)
class Decide:
    """Ask the task's retry policy, away from the keeper's thread, and come back with ``decided``.

    ``outcome`` is the pickled exception, None after a timeout; ``seconds`` is how long the attempt ran.
    """

    task: Task
    outcome: Any
    worker: Worker
    seconds: float


@dataclass(slots=True)
class Fail:
    """This task has ended for the given reason; ``worker`` is the one that it took down, if any."""

    task: Task | Segment
    failure: Failure
    worker: Worker | None = None
    detail: str = ""


Command = Spawn | Feed | Retire | Kill | Nudge | Settle | Decide | Fail
