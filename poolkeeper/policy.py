"""Policies: what is retried, restarted, limited and recycled, and when enough is enough.

They are frozen data that is checked when it is made. Decisions are pure functions of what the caller counts: no clock,
no sleep. A delay is a number of seconds that the keeper turns into a deadline, so backing off holds no worker.

Rules:

- ``attempts`` counts runs that ended in an exception or a timeout, the first included. None means 1: exceptions are
  final. A ``stop`` in its place governs alone.
- ``deaths`` counts workers that died while they executed the task. It has nothing to do with ``attempts``.
- Strategies are tenacity's, asked in tenacity's order (see ``strategies``).
- ``reset_after`` seconds of healthy running forget a service's earlier exits, but not the moments at which they
  happened: the window of ``stop_after_burst`` has a length of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from .fields import (
    Checked,
    Converted,
    counts_by_name,
    duration,
    memory_size,
    optional,
    positive_duration,
    whole_number,
)
from .ratelimit import RateLimit
from .strategies import (
    HISTORY,
    Outcome,
    Retry,
    Stop,
    Wait,
    callable_strategy,
    decide,
    is_known,
    looks_back,
    named,
    stop_after_burst,
)

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "ExecutionPolicy",
    "RateLimit",
    "RestartPolicy",
    "RestartRecord",
    "RetryPolicy",
    "WorkerPolicy",
    "stop_after_burst",
]

When = Literal["always", "on-failure", "never"]

# tenacity's own default: exceptions that are no Exception (SystemExit, KeyboardInterrupt) are final
FEWEST_FILES = 32
"""What a worker needs to serve at all, and its interpreter to import something."""

_ANY_EXCEPTION = named("retry_if_exception_type")
_RETRY_WAIT = named("wait_exponential_jitter", multiplier=0.1, max=30.0, jitter=0.1)
_RESTART_WAIT = named("wait_exponential_jitter", multiplier=0.1, max=30.0)  # and up to a second of jitter


def _when(value: Any) -> When:
    if value not in get_args(When):
        raise ValueError(f"must be one of {', '.join(map(repr, get_args(When)))}")
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RetryPolicy:
    """Whether, and after how long, a task runs again.

    Args:
        attempts: runs that may end in an exception or timeout, the first included; None means 1.
        deaths: worker deaths while executing at which the task is quarantined; 3: the third is final,
            0: at most once, so that it never runs again if it may have run before.
        stop: a tenacity stop strategy in the place of ``attempts``.
        wait: a tenacity wait strategy, in seconds.
        retry: a tenacity retry strategy that says which exceptions deserve another attempt; None means every
            ``Exception``. It is asked about exceptions, never about results.

    Raises:
        ValueError: for attempts below 1, negative deaths, or attempts and stop together.
    """

    attempts: Checked[int | None] = Checked(optional(whole_number(1)), None)
    deaths: Checked[int] = Checked(whole_number(0), 3)
    stop: Checked[Stop | None] = Checked(optional(callable_strategy), None)
    wait: Checked[Wait] = Checked(callable_strategy, _RETRY_WAIT)
    retry: Checked[Retry | None] = Checked(optional(callable_strategy), None)

    def __post_init__(self) -> None:
        if self.attempts is not None and self.stop is not None:
            raise ValueError(
                f"RetryPolicy(attempts={self.attempts}, stop={self.stop!r}): give one of them; "
                "to combine both, give stop=stop_after_attempt(...) | ..."
            )

    @classmethod
    def of(cls, value: RetryPolicy | int | None) -> RetryPolicy:
        """Coerce ``value``: an int means ``attempts``, None the default policy."""
        if isinstance(value, RetryPolicy):
            return value
        if value is None:
            return _DEFAULT_RETRY
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"must be a RetryPolicy or a number of attempts, not {value!r}")
        return cls(attempts=value)

    @property
    def is_default(self) -> bool:
        """Whether exceptions are final, as they are by default; no strategy needs to be asked then."""
        return self.stop is None and (self.attempts is None or self.attempts == 1)

    @property
    def at_most_once(self) -> bool:
        """Whether a task that may have run already must not run again."""
        return self.deaths == 0

    def allows_death(self, deaths: int) -> bool:
        """Whether the task may run again after its ``deaths``-th worker death."""
        return deaths < self.deaths

    def delay_after_failure(
        self,
        attempt: int,
        elapsed: float,
        error: BaseException,
        *,
        waited: float = 0.0,
        earlier: Sequence[float] = (),
    ) -> float | None:
        """Return the seconds to wait before the next attempt, or None if this failure is final.

        Args:
            attempt: the number of the attempt that failed, from 1; worker deaths are not counted.
            elapsed: seconds from the start of the first attempt to this failure.
            error: what the attempt raised, or the ``TaskTimeout``.
            waited: how many of the elapsed seconds were spent between attempts.
            earlier: ``elapsed`` of the earlier failures, oldest first; only ``stop_after_burst`` looks at them.

        Raises:
            Exception: whatever a strategy raises; the failure is then final, and this error says why.
        """
        if self.is_default:
            return None
        stop = self.stop if self.attempts is None else named("stop_after_attempt", max_attempt_number=self.attempts)
        outcome = Outcome(attempt, elapsed, error, waited, (*earlier[1 - HISTORY :], elapsed))
        retry = _ANY_EXCEPTION if self.retry is None else self.retry
        return decide(outcome, stop=stop, wait=self.wait, retry=retry)


_DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True)
class ExecutionPolicy:
    """How the tasks of a batch are run.

    Args:
        concurrency: how many of them run at once; None: as many as there are workers.
        timeout: seconds for each attempt, from its start; the attempt is killed and counts as a failed one.
        retry: a RetryPolicy, or an int that means ``attempts``.
        rate_limit: how many may start per unit of time.
        priority: higher goes first.
        resources: counted tokens that each task holds while it runs, such as ``{"gpu": 1}``.

    Raises:
        ValueError: for a concurrency below 1, a timeout that is not positive and finite, or counts below 1.
    """

    concurrency: Checked[int | None] = Checked(optional(whole_number(1)), None)
    timeout: Checked[float | None] = Checked(optional(positive_duration), None)
    retry: Converted[RetryPolicy | int | None, RetryPolicy] = Converted(RetryPolicy.of, _DEFAULT_RETRY)
    rate_limit: RateLimit | None = None
    priority: Checked[int] = Checked(whole_number(), 0)
    resources: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.rate_limit is not None and not isinstance(self.rate_limit, RateLimit):
            raise TypeError(f"ExecutionPolicy(rate_limit={self.rate_limit!r}): must be a RateLimit, as RateLimit(50)")
        try:
            object.__setattr__(self, "resources", counts_by_name(self.resources))
        except (TypeError, ValueError) as error:
            raise type(error)(f"ExecutionPolicy(resources={self.resources!r}): {error}") from None


@dataclass(frozen=True, slots=True)
class RestartRecord:
    """What a restart policy remembers of one service between its exits; plain numbers, so that it can be handed over.

    ``exits`` counts those since the last healthy run, ``since`` is the first start after it and ``waited`` the seconds
    of backing off in between; ``times`` are the moments of all remembered exits. All on one monotonic clock.
    """

    exits: int = 0
    since: float | None = None
    waited: float = 0.0
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class RestartPolicy:
    """Whether, and after how long, a service starts again when it ends by itself.

    Args:
        when: "always", "on-failure" (a clean exit is final) or "never".
        stop: a tenacity stop strategy; None never stops. An attempt is one run of the service.
        wait: a tenacity wait strategy, in seconds.
        reset_after: seconds of running after which earlier exits are forgotten; None: they never are.

    Raises:
        ValueError: for an unknown ``when``, or a ``reset_after`` that is not positive and finite.
    """

    when: Checked[When] = Checked(_when, "always")
    stop: Checked[Stop | None] = Checked(optional(callable_strategy), None)
    wait: Checked[Wait] = Checked(callable_strategy, _RESTART_WAIT)
    reset_after: Checked[float | None] = Checked(optional(positive_duration), 60.0)

    @classmethod
    def of(cls, value: RestartPolicy | str) -> RestartPolicy:
        """Return ``value``, or the policy that a word ("always", "on-failure", "never") stands for."""
        if isinstance(value, RestartPolicy):
            return value
        if not isinstance(value, str):
            raise TypeError('must be "always", "on-failure", "never" or a RestartPolicy')
        return cls(when=_when(value))

    @classmethod
    def on_failure(cls, max_retries: int = 3, delay: float = 3.0, *, reset_after: float | None = 60.0) -> RestartPolicy:
        """Restart a failed service at most ``max_retries`` times in a row, ``delay`` seconds after each failure."""
        try:
            starts = whole_number(0)(max_retries) + 1
            seconds = duration(delay)
        except (TypeError, ValueError) as error:
            raise type(error)(f"RestartPolicy.on_failure({max_retries!r}, {delay!r}): {error}") from None
        return cls(
            when="on-failure",
            stop=named("stop_after_attempt", max_attempt_number=starts),
            wait=named("wait_fixed", wait=seconds),
            reset_after=reset_after,
        )

    @property
    def is_known(self) -> bool:
        """Whether asking it runs no code of the user's."""
        return is_known(self.stop) and is_known(self.wait)

    @property
    def looks_back(self) -> bool:
        """Whether the moments of earlier exits may matter to it."""
        return looks_back(self.stop)

    def after_exit(
        self,
        record: RestartRecord,
        *,
        started: float,
        now: float,
        error: BaseException | None,
        healthy: float | None = None,
    ) -> tuple[float | None, RestartRecord]:
        """Decide about an exit that nobody asked for.

        Args:
            record: what the previous call returned, ``RestartRecord()`` at first.
            started: when this run of the service started, in seconds of a monotonic clock.
            now: when it ended, on the same clock.
            error: why it failed; None for a clean exit.
            healthy: for how many seconds it was ready; None: all the time.

        Returns:
            The seconds to wait before the next start, or None if the service stays down; and the new record.

        Raises:
            Exception: whatever a strategy raises.
        """
        since = record.since
        healthy = now - started if healthy is None else healthy
        if since is None or (self.reset_after is not None and healthy >= self.reset_after):
            since = started
            record = replace(record, exits=0, since=since, waited=0.0)
        record = replace(record, exits=record.exits + 1, times=(*record.times[1 - HISTORY :], now))
        if self.when == "never" or (self.when == "on-failure" and error is None):
            return None, record
        times = tuple(moment - since for moment in record.times)
        outcome = Outcome(record.exits, now - since, error, record.waited, times)
        delay = decide(outcome, stop=self.stop, wait=self.wait, retry=None)
        return delay, replace(record, waited=record.waited + (delay or 0.0))


def _cpus(value: Iterable[int]) -> tuple[int, ...]:
    cpus = tuple(sorted({whole_number(0)(cpu) for cpu in value}))
    if not cpus:
        raise ValueError("must name at least one cpu")
    return cpus


def _directory(value: str | PathLike[str]) -> str:
    if not isinstance(value, str) and not hasattr(value, "__fspath__"):
        raise TypeError("must be a path")
    path = str(value)
    if not path or "\0" in path:
        raise ValueError("is not a path")
    return path


@dataclass(frozen=True)
class WorkerPolicy:
    """What a worker process may use, and when it is replaced.

    Memory is given in bytes, or as text such as ``"2GiB"``, and kept in bytes.

    Args:
        max_tasks: tasks after which the worker is replaced.
        max_age: seconds after which it is replaced, between two tasks.
        max_memory: resident memory above which it is replaced, between two tasks.
        hard_memory: memory above which an allocation fails, or the worker is killed, in the middle of a task.
        cpu_seconds: processor time after which it is killed.
        open_files: its limit of file descriptors, at least 32: some are poolkeeper's own.
        nice: its niceness, -20 to 19.
        affinity: the cpus that it may run on.
        env: environment variables to set.
        cwd: its working directory.
        umask: its file mode creation mask.

    Raises:
        ValueError: for a value out of range, or a ``max_memory`` above ``hard_memory``.
    """

    max_tasks: Checked[int | None] = Checked(optional(whole_number(1)), None)
    max_age: Checked[float | None] = Checked(optional(positive_duration), None)
    max_memory: Converted[int | str | None, int | None] = Converted(optional(memory_size), None)
    hard_memory: Converted[int | str | None, int | None] = Converted(optional(memory_size), None)
    cpu_seconds: Checked[float | None] = Checked(optional(positive_duration), None)
    open_files: Checked[int | None] = Checked(optional(whole_number(FEWEST_FILES)), None)
    nice: Checked[int | None] = Checked(optional(whole_number(-20, 19)), None)
    affinity: Converted[Iterable[int] | None, tuple[int, ...] | None] = Converted(optional(_cpus), None)
    env: Mapping[str, str] | None = field(default=None, hash=False)
    cwd: Converted[str | PathLike[str] | None, str | None] = Converted(optional(_directory), None)
    umask: Checked[int | None] = Checked(optional(whole_number(0, 0o777)), None)

    def __post_init__(self) -> None:
        if self.max_memory is not None and self.hard_memory is not None and self.max_memory > self.hard_memory:
            raise ValueError(
                f"WorkerPolicy(max_memory={self.max_memory}, hard_memory={self.hard_memory}): the soft limit "
                "is above the hard one, so the worker would die before it is ever replaced"
            )
        if self.env is not None:
            object.__setattr__(self, "env", _environment(self.env))


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(variables, Mapping):
        raise TypeError(f"WorkerPolicy(env={variables!r}): must be a mapping of names to strings")
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"WorkerPolicy(env={{{name!r}: {value!r}}}): names and values must be strings")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"WorkerPolicy(env={{{name!r}: {value!r}}}): no system accepts this variable")
    return dict(variables)
