"""What poolkeeper reports, as immutable values: outcomes of tasks, batches and runs, and snapshots of a keeper.

Nothing here acts. Reports keep the caller's own objects (items, values, exceptions) and derive the rest when asked,
so that a report of a million tasks costs little more than what they returned.
"""

from __future__ import annotations

import reprlib
import traceback as tracebacks
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from os import PathLike, fspath
from typing import Any, Generic, TypeVar, overload

from .errors import TaskTimeout
from .losses import TaskQuarantined
from .service_model import ServiceState, ServiceStatus

__all__ = [
    "BatchResult",
    "KeeperStatus",
    "RunResult",
    "RunStatistics",
    "StepResult",
    "TaskResult",
    "TaskStatus",
    "WorkerStatus",
]

T = TypeVar("T")

_LABEL_WIDTH = 120


class TaskStatus(Enum):
    """How a task or step ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It raised."""
    TIMED_OUT = "timed out"
    """Its last attempt ran longer than the policy's ``timeout``."""
    LOST = "lost"
    """The worker that executed it died."""
    QUARANTINED = "quarantined"
    """It killed as many workers as the policy's ``deaths`` allows."""
    CANCELLED = "cancelled"
    """It was taken back before it had an outcome."""

    @property
    def is_failure(self) -> bool:
        """Whether the task was carried out and came to a bad end."""
        return self not in _NO_FAILURES

    @classmethod
    def of(cls, error: BaseException | None) -> TaskStatus:
        """Return the status of a task that ended with ``error`` (None: it returned)."""
        if error is None:
            return cls.SUCCEEDED
        return next((status for kind, status in _STATUS_OF_ERROR if isinstance(error, kind)), cls.FAILED)


_NO_FAILURES = frozenset({TaskStatus.SUCCEEDED, TaskStatus.CANCELLED})

# The first match counts: a TaskQuarantined is a BrokenProcessPool too.
_STATUS_OF_ERROR: tuple[tuple[type[BaseException], TaskStatus], ...] = (
    (CancelledError, TaskStatus.CANCELLED),
    (TaskTimeout, TaskStatus.TIMED_OUT),
    (TaskQuarantined, TaskStatus.QUARANTINED),
    (BrokenProcessPool, TaskStatus.LOST),
)


@dataclass(frozen=True, slots=True, eq=False)
class TaskResult(Generic[T]):
    """The outcome of one task of a batch.

    ``index`` is the position of ``item`` among the batch's items, from 0. ``attempts`` counts runs that ended in an
    outcome, an exception or a timeout; ``deaths`` the workers that died under it. ``seconds`` is the run time of the
    last attempt and ``worker_pid`` the process that ran it, None where that is not known. ``reused`` is whether all of
    this was recorded by an earlier part of the run, which had been interrupted.
    """

    status: TaskStatus
    index: int
    item: Any = None
    key: str | None = None
    returned: T | None = field(default=None, repr=False)
    error: BaseException | None = None
    attempts: int = 1
    deaths: int = 0
    seconds: float | None = None
    worker_pid: int | None = None
    reused: bool = False

    @property
    def ok(self) -> bool:
        """Whether the task succeeded."""
        return self.status is TaskStatus.SUCCEEDED

    @property
    def value(self) -> T:
        """What the task returned.

        Raises:
            BaseException: the task's own error, or what became of it, when it did not succeed.
        """
        if self.error is not None:
            raise self.error
        return self.returned  # type: ignore[return-value]  # None is what such a task returned

    @property
    def label(self) -> str:
        """A short text that tells this task from others: its key, else its item."""
        return self.key if self.key is not None else _describe(self.item)

    @property
    def message(self) -> str:
        """The first line of the error's text, empty for a success."""
        if self.error is None:
            return ""
        return _safely(lambda: str(self.error)).strip().partition("\n")[0]

    @property
    def traceback(self) -> str:
        """The error's traceback, with the worker's part of it, as text; empty for a success."""
        if self.error is None:
            return ""
        error = self.error
        return _safely(lambda: "".join(tracebacks.format_exception(error)))


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """Counts and times of many tasks.

    ``seconds`` is wall-clock time, ``task_seconds`` the summed run time of tasks as their workers measured it.
    ``failed`` includes what timed out, was lost or quarantined; ``reused`` counts those, good or bad, whose outcomes
    were recorded by an earlier part of the run, and their figures count as well.
    """

    tasks: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    attempts: int = 0
    deaths: int = 0
    seconds: float = 0.0
    task_seconds: float = 0.0
    reused: int = 0

    @property
    def rate(self) -> float:
        """Tasks that were run to an end per second of wall-clock time."""
        return (self.succeeded + self.failed - self.reused) / self.seconds if self.seconds > 0 else 0.0

    @classmethod
    def of(cls, results: Iterable[TaskResult[Any]], seconds: float = 0.0) -> RunStatistics:
        """Count ``results``, which took ``seconds`` in all."""
        tasks = succeeded = failed = cancelled = retried = attempts = deaths = reused = 0
        task_seconds = 0.0
        for result in results:
            tasks += 1
            if result.status is TaskStatus.SUCCEEDED:
                succeeded += 1
            elif result.status is TaskStatus.CANCELLED:
                cancelled += 1
            else:
                failed += 1
            retried += result.attempts + result.deaths > 1
            attempts += result.attempts
            deaths += result.deaths
            task_seconds += result.seconds or 0.0
            reused += result.reused
        return cls(tasks, succeeded, failed, cancelled, retried, attempts, deaths, seconds, task_seconds, reused)

    @classmethod
    def total(cls, parts: Iterable[RunStatistics], seconds: float) -> RunStatistics:
        """Add up ``parts``, which together took ``seconds`` (they may have overlapped)."""
        listed = list(parts)
        return cls(
            tasks=sum(part.tasks for part in listed),
            succeeded=sum(part.succeeded for part in listed),
            failed=sum(part.failed for part in listed),
            cancelled=sum(part.cancelled for part in listed),
            retried=sum(part.retried for part in listed),
            attempts=sum(part.attempts for part in listed),
            deaths=sum(part.deaths for part in listed),
            seconds=seconds,
            task_seconds=sum(part.task_seconds for part in listed),
            reused=sum(part.reused for part in listed),
        )


@dataclass(frozen=True, eq=False)
class BatchResult(Sequence[TaskResult[T]]):
    """What became of a batch: its ``TaskResult``s in the order of the items.

    ``error`` is what the batch's items raised, if they did: the tasks before that are here all the same.
    ``stopped`` is the reason why the batch was cancelled before its items were used up, else None.
    ``allowed`` holds the exceptions that a fleet has declared to be failures to live with.
    Like any sequence it is true when it holds something; ``ok`` says whether all went well.
    """

    name: str
    results: tuple[TaskResult[T], ...] = field(default=(), repr=False)
    seconds: float = 0.0
    error: BaseException | None = None
    stopped: str | None = None
    allowed: tuple[type[BaseException], ...] = ()

    @overload
    def __getitem__(self, index: int) -> TaskResult[T]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TaskResult[T], ...]: ...
    def __getitem__(self, index: int | slice) -> TaskResult[T] | tuple[TaskResult[T], ...]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[TaskResult[T]]:
        return iter(self.results)

    @cached_property
    def succeeded(self) -> tuple[TaskResult[T], ...]:
        """The tasks that returned."""
        return tuple(result for result in self.results if result.ok)

    @cached_property
    def failed(self) -> tuple[TaskResult[T], ...]:
        """The tasks that raised, timed out, were lost or quarantined."""
        return tuple(result for result in self.results if result.status.is_failure)

    @cached_property
    def cancelled(self) -> tuple[TaskResult[T], ...]:
        """The tasks that were taken back before they had an outcome."""
        return tuple(result for result in self.results if result.status is TaskStatus.CANCELLED)

    @property
    def counts(self) -> Mapping[TaskStatus, int]:
        """How many tasks ended in each status; statuses that did not occur count 0."""
        counted = Counter(result.status for result in self.results)
        return {status: counted[status] for status in TaskStatus}

    @cached_property
    def statistics(self) -> RunStatistics:
        """Counts and times of this batch."""
        return RunStatistics.of(self.results, self.seconds)

    @property
    def values(self) -> list[T]:
        """What the succeeded tasks returned, in the order of the items."""
        return [result.value for result in self.succeeded]

    @property
    def complete(self) -> bool:
        """Whether every item came to an end of its own: nothing cancelled, no items left untaken."""
        return self.error is None and self.stopped is None and not self.cancelled

    @property
    def ok(self) -> bool:
        """Whether every item succeeded, or failed as it is allowed to."""
        return self.complete and not self._held_against

    def raise_for_failures(self) -> None:
        """Do nothing if the batch is ``ok``.

        Raises:
            BaseExceptionGroup: the errors of its tasks and items; an ``ExceptionGroup`` unless a task was told to exit.
        """
        if self.ok:
            return
        bad = self._held_against + self.cancelled
        errors = [result.error for result in bad if result.error is not None]
        if self.error is not None:
            errors.append(self.error)
        if not errors:
            errors.append(CancelledError(self.stopped))
        raise BaseExceptionGroup(f"{len(bad)} of {len(self)} tasks of batch {self.name!r} did not succeed", errors)

    @cached_property
    def _held_against(self) -> tuple[TaskResult[T], ...]:
        return tuple(result for result in self.failed if not isinstance(result.error, self.allowed))


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What became of a step of a fleet.

    ``status`` is SUCCEEDED, FAILED (``error`` is what it raised) or CANCELLED (``reason`` tells why it was not run).
    """

    name: str
    status: TaskStatus
    returned: Any = field(default=None, repr=False)
    error: BaseException | None = None
    reason: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the step ran and returned."""
        return self.status is TaskStatus.SUCCEEDED


@dataclass(frozen=True, eq=False)
class RunResult(Mapping[str, BatchResult[Any]]):
    """What became of one run of a fleet: a mapping of batch names to ``BatchResult``s, and its steps.

    ``skipped`` maps the names of batches that were never started to the reason, ``services`` those of services to their
    states when the run ended. ``stopped`` is the reason why the run was cancelled, else None; ``failure`` says which
    services have failed, or which one has ended the run.
    """

    fleet: str
    run_id: str = "default"
    batches: Mapping[str, BatchResult[Any]] = field(default_factory=dict)
    steps: Mapping[str, StepResult] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str | None = None
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    failure: str | None = None

    def __getitem__(self, name: str) -> BatchResult[Any]:
        return self.batches[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    @cached_property
    def statistics(self) -> RunStatistics:
        """Counts and times of all batches together."""
        return RunStatistics.total((batch.statistics for batch in self.batches.values()), self.seconds)

    @property
    def ok(self) -> bool:
        """Whether every batch and step ran and succeeded."""
        parts: tuple[BatchResult[Any] | StepResult, ...] = (*self.batches.values(), *self.steps.values())
        whole = self.stopped is None and self.failure is None and not self.skipped
        return whole and all(part.ok for part in parts)

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 if some work failed, 130 if the run was stopped before its end."""
        if self.stopped is not None:
            return 130
        return 0 if self.ok else 1


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker at the moment of a snapshot.

    ``task`` names what it executes and ``service`` the service that it runs, else None. ``started`` is in seconds
    since the epoch. ``rss`` is its resident memory in bytes, None where that is not known.
    """

    id: str
    pid: int | None
    state: str
    task: str | None = None
    service: str | None = None
    started: float | None = None
    rss: int | None = None


@dataclass(frozen=True, slots=True)
class KeeperStatus:
    """A keeper at one moment; it does not change afterwards.

    ``queued`` and ``running`` count tasks; ``uptime`` is in seconds; ``metrics`` maps names to counters.
    """

    name: str | None
    run_id: str
    pid: int
    uptime: float
    queued: int = 0
    running: int = 0
    workers: tuple[WorkerStatus, ...] = ()
    services: tuple[ServiceStatus, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def _describe(item: object) -> str:
    """Return a one-line text for ``item``: strings and paths as they are, the rest as a bounded ``repr``."""
    if isinstance(item, str):
        text = item
    elif isinstance(item, PathLike):
        text = _safely(lambda: str(fspath(item)))
    else:
        text = _safely(lambda: reprlib.repr(item))
    text = " ".join(text.split())
    return text if len(text) <= _LABEL_WIDTH else f"{text[: _LABEL_WIDTH - 1]}…"


def _safely(describe: Any) -> str:
    """Return ``describe()``, or a note where the user's own ``__str__`` or ``__repr__`` raises: reports never fail."""
    try:
        return str(describe())
    except Exception as error:
        return f"<no text: {type(error).__name__}>"
