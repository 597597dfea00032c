"""What the core asks the runtime to do. The closed set of types behind ``Command`` is all of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from .ledger import Segment, Task
from .roster import Worker

__all__ = ["Command", "Decide", "Fail", "Failure", "Feed", "Kill", "Nudge", "Retire", "Settle", "Spawn"]


class Failure(Enum):
    """How a task can end without a result or exception of its own."""

    LOST = "lost"
    QUARANTINED = "quarantined"
    TIMEOUT = "timeout"
    NO_WORKERS = "no workers"


class Spawn(NamedTuple):
    """Start this worker."""

    worker: Worker


class Feed(NamedTuple):
    """Send these tasks, all of one call, to this worker; the first gets index ``first``."""

    worker: Worker
    first: int
    tasks: list[Task]


class Retire(NamedTuple):
    """Tell this worker to leave when it has done what it holds."""

    worker: Worker


class Kill(NamedTuple):
    """Kill this worker and all that it started."""

    worker: Worker


class Nudge(NamedTuple):
    """Make this worker send the results that it holds back."""

    worker: Worker


class Settle(NamedTuple):
    """These tasks have these results; ``codes`` None means that all are plain values. An entry may be None (revoked).

    ``seconds`` is the mean run time. The values of a chunk are one piece that the map understands.
    """

    worker: Worker
    tasks: list[Task | None]
    codes: Sequence[int] | None
    values: Any
    seconds: float | None


class Decide(NamedTuple):
    """Ask the task's retry policy, away from the keeper's thread, and come back with ``decided``.

    ``outcome`` is the pickled exception, None after a timeout; ``seconds`` is how long the attempt ran.
    """

    task: Task
    outcome: Any
    worker: Worker
    seconds: float


class Fail(NamedTuple):
    """This task has ended for the given reason; ``worker`` is the one that it took down, if any."""

    task: Task | Segment
    failure: Failure
    worker: Worker | None = None
    detail: str = ""


Command = Spawn | Feed | Retire | Kill | Nudge | Settle | Decide | Fail
