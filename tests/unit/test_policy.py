"""Policies: what they accept, and what they decide."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.errors import TaskTimeout
from poolkeeper.policy import (
    ExecutionPolicy,
    RateLimit,
    RestartPolicy,
    RestartRecord,
    RetryPolicy,
    WorkerPolicy,
    stop_after_burst,
)

NO_WAIT = tenacity.wait_none()
ERROR = ValueError("bad input")


def attempts_made(policy: RetryPolicy, error: BaseException = ERROR, lasts: float = 1.0, limit: int = 50) -> int:
    """How many attempts ``policy`` allows a task that always raises ``error`` after ``lasts`` seconds."""
    now, waited, earlier = 0.0, 0.0, []
    for attempt in range(1, limit + 1):
        now += lasts
        delay = policy.delay_after_failure(attempt, now, error, waited=waited, earlier=earlier)
        if delay is None:
            return attempt
        earlier.append(now)
        now += delay
        waited += delay
    return limit


# RetryPolicy --------------------------------------------------------------------------------------------------------


def test_by_default_exceptions_are_final_and_the_third_death_too() -> None:
    policy = RetryPolicy()
    assert policy.is_default
    assert attempts_made(policy) == 1
    assert [policy.allows_death(deaths) for deaths in (1, 2, 3, 4)] == [True, True, False, False]


@pytest.mark.parametrize("attempts", [1, 2, 3, 10])
def test_attempts_include_the_first(attempts: int) -> None:
    policy = RetryPolicy(attempts=attempts, wait=NO_WAIT)
    assert attempts_made(policy) == attempts
    assert policy.is_default == (attempts == 1)


def test_a_stop_alone_governs() -> None:
    assert attempts_made(RetryPolicy(stop=tenacity.stop_after_attempt(4), wait=NO_WAIT)) == 4
    assert attempts_made(RetryPolicy(stop=tenacity.stop_after_delay(10), wait=NO_WAIT), lasts=3.0) == 4
    assert attempts_made(RetryPolicy(stop=tenacity.stop_never, wait=NO_WAIT), limit=50) == 50
    assert not RetryPolicy(stop=tenacity.stop_never).is_default


def test_stop_is_asked_after_wait() -> None:
    # a next attempt at 3 + 5 seconds is too late, one at 3 + 4 is not
    before = tenacity.stop_before_delay(8)
    assert RetryPolicy(stop=before, wait=tenacity.wait_fixed(5)).delay_after_failure(1, 3.0, ERROR) is None
    assert RetryPolicy(stop=before, wait=tenacity.wait_fixed(4)).delay_after_failure(1, 3.0, ERROR) == 4.0


def test_a_burst_stops_a_task() -> None:
    policy = RetryPolicy(stop=stop_after_burst(4, within=10), wait=NO_WAIT)
    assert attempts_made(policy, lasts=1.0) == 4
    assert attempts_made(policy, lasts=5.0, limit=20) == 20


def test_attempts_and_stop_together_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        RetryPolicy(attempts=3, stop=tenacity.stop_after_attempt(3))


def test_deaths_are_counted_apart() -> None:
    assert RetryPolicy(attempts=5, deaths=1).allows_death(1) is False
    assert RetryPolicy(deaths=2).allows_death(1) is True
    assert RetryPolicy(deaths=0).allows_death(1) is False
    assert RetryPolicy(deaths=0).at_most_once
    assert not RetryPolicy(deaths=1).at_most_once


def test_timeouts_are_attempts() -> None:
    assert attempts_made(RetryPolicy(attempts=3, wait=NO_WAIT), TaskTimeout("too long")) == 3


def test_only_exceptions_of_the_given_kind_deserve_another_attempt() -> None:
    policy = RetryPolicy(attempts=3, wait=NO_WAIT, retry=tenacity.retry_if_exception_type(OSError))
    assert attempts_made(policy, OSError()) == 3
    assert attempts_made(policy, ValueError()) == 1


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_what_is_no_exception_is_final(error: BaseException) -> None:
    assert attempts_made(RetryPolicy(attempts=3, wait=NO_WAIT), error) == 1


def test_a_task_may_ask_for_another_attempt_as_in_tenacity() -> None:
    policy = RetryPolicy(attempts=3, wait=NO_WAIT, retry=tenacity.retry_never)
    assert attempts_made(policy, tenacity.TryAgain()) == 3
    assert attempts_made(RetryPolicy(), tenacity.TryAgain()) == 1


@given(st.integers(1, 60))
def test_the_default_wait_grows_and_is_bounded(attempt: int) -> None:
    delay = RetryPolicy(attempts=100).delay_after_failure(attempt, 1.0, ERROR)
    assert delay is not None
    least = 0.1 * 2 ** (attempt - 1)
    assert min(30.0, least) <= delay <= min(30.0, least + 0.1)


def test_an_int_in_the_place_of_a_policy_means_attempts() -> None:
    assert RetryPolicy.of(3) == RetryPolicy(attempts=3)
    assert RetryPolicy.of(None) == RetryPolicy()
    policy = RetryPolicy(deaths=1)
    assert RetryPolicy.of(policy) is policy
    with pytest.raises(ValueError, match="at least 1"):
        RetryPolicy.of(0)
    for wrong in ("3", 3.0, True):
        with pytest.raises(TypeError, match="RetryPolicy or a number of attempts"):
            RetryPolicy.of(wrong)  # type: ignore[arg-type]


def test_a_policy_is_a_value() -> None:
    policy = RetryPolicy(attempts=3, deaths=1)
    assert policy == RetryPolicy(3, 1)
    assert hash(policy) == hash(RetryPolicy(3, 1))
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert replace(policy, deaths=2) == RetryPolicy(3, 2)
    with pytest.raises(FrozenInstanceError):
        policy.attempts = 4  # type: ignore[misc]


def test_a_policy_of_tenacity_strategies_decides_alike_after_pickle() -> None:
    policy = RetryPolicy(stop=tenacity.stop_after_attempt(3) | stop_after_burst(5, 60), wait=tenacity.wait_fixed(2))
    again = pickle.loads(pickle.dumps(policy))
    assert [again.delay_after_failure(n, 1.0, ERROR) for n in (1, 2, 3)] == [2.0, 2.0, None]


# ExecutionPolicy ----------------------------------------------------------------------------------------------------


def test_an_execution_policy_has_harmless_defaults() -> None:
    policy = ExecutionPolicy()
    assert (policy.concurrency, policy.timeout, policy.rate_limit, policy.priority) == (None, None, None, 0)
    assert policy.retry == RetryPolicy()
    assert policy.resources == {}


def test_an_execution_policy_coerces_and_copies() -> None:
    tokens = {"gpu": 1}
    policy = ExecutionPolicy(concurrency=8, timeout=30, retry=3, rate_limit=RateLimit(50), resources=tokens)
    tokens["gpu"] = 99
    assert policy.retry == RetryPolicy(attempts=3)
    assert policy.timeout == 30.0
    assert policy.resources == {"gpu": 1}
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(replace(policy))
    assert policy != replace(policy, resources={"gpu": 2})
    assert replace(policy, retry=None).retry == RetryPolicy()


# RestartPolicy ------------------------------------------------------------------------------------------------------


def delays(policy: RestartPolicy, runs: Sequence[tuple[float, BaseException | None]]) -> list[float | None]:
    """What ``policy`` decides about a service whose runs last and end as given, until it stays down."""
    record, now, decided = RestartRecord(), 1000.0, []
    for lasts, error in runs:
        started, now = now, now + lasts
        delay, record = policy.after_exit(record, started=started, now=now, error=error)
        decided.append(delay)
        if delay is None:
            break
        now += delay
    return decided


def test_on_failure_means_one_start_and_at_most_three_restarts() -> None:
    policy = RestartPolicy.on_failure(max_retries=3, delay=3.0)
    assert delays(policy, [(1.0, ERROR)] * 10) == [3.0, 3.0, 3.0, None]
    assert delays(policy, [(1.0, ERROR), (1.0, None)]) == [3.0, None]
    assert delays(RestartPolicy.on_failure(max_retries=0), [(1.0, ERROR)]) == [None]
    assert policy == RestartPolicy.on_failure()
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_when_says_which_exits_are_final() -> None:
    fixed = tenacity.wait_fixed(1)
    assert delays(RestartPolicy("always", wait=fixed), [(1.0, None), (1.0, ERROR)]) == [1.0, 1.0]
    assert delays(RestartPolicy("on-failure", wait=fixed), [(1.0, ERROR), (1.0, None)]) == [1.0, None]
    assert delays(RestartPolicy("never", wait=fixed), [(1.0, ERROR)]) == [None]
    assert delays(RestartPolicy("never", wait=fixed), [(1.0, None)]) == [None]


def test_healthy_running_forgets_earlier_failures() -> None:
    policy = RestartPolicy(wait=tenacity.wait_incrementing(1, 1), stop=tenacity.stop_after_attempt(3), reset_after=60)
    brief, healthy = (1.0, ERROR), (60.0, ERROR)
    assert delays(policy, [brief, brief, healthy, brief, brief]) == [1.0, 2.0, 1.0, 2.0, None]
    assert delays(replace(policy, reset_after=None), [brief, healthy, healthy]) == [1.0, 2.0, None]


def test_a_delay_counts_from_the_first_start_since_healthy_running() -> None:
    policy = RestartPolicy(wait=NO_WAIT, stop=tenacity.stop_after_delay(5), reset_after=60)
    assert delays(policy, [(2.0, ERROR), (100.0, ERROR)]) == [0.0, None]
    assert delays(policy, [(100.0, ERROR)]) == [None]
    assert delays(policy, [(2.0, ERROR)] * 3) == [0.0, 0.0, None]


def test_the_window_of_a_burst_outlasts_healthy_running() -> None:
    policy = RestartPolicy(wait=NO_WAIT, stop=stop_after_burst(3, within=300), reset_after=60)
    assert delays(policy, [(100.0, ERROR)] * 5) == [0.0, 0.0, None]
    assert delays(policy, [(200.0, ERROR)] * 5) == [0.0] * 5


def test_what_is_remembered_is_bounded_and_can_be_handed_over() -> None:
    policy = RestartPolicy(wait=NO_WAIT)
    record = RestartRecord()
    for now in range(1500):
        _, record = policy.after_exit(record, started=now, now=now + 0.5, error=ERROR)
    assert record.exits == 1500
    assert len(record.times) == 1000
    assert pickle.loads(pickle.dumps(record)) == record


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=12),
    st.integers(1, 12),
    st.floats(1, 300),
    st.integers(0, 1000),
)
def test_restarts_are_tenacitys_retries(runs: list[float], count: int, limit: float, seed: int) -> None:
    stop = tenacity.stop_after_attempt(count) | tenacity.stop_before_delay(limit)
    wait: Any = tenacity.wait_exponential_jitter(multiplier=0.1, max=30)
    retried: list[float | None] = []
    now, waited = 0.0, 0.0
    random.seed(seed)
    for attempt, lasts in enumerate(runs, start=1):
        now += lasts
        delay = RetryPolicy(stop=stop, wait=wait).delay_after_failure(attempt, now, ERROR, waited=waited)
        retried.append(delay)
        if delay is None:
            break
        now, waited = now + delay, waited + delay
    random.seed(seed)
    restarted = delays(RestartPolicy(stop=stop, wait=wait, reset_after=None), [(lasts, ERROR) for lasts in runs])
    assert restarted == retried


def test_the_default_restart_waits_and_never_gives_up() -> None:
    decided = delays(RestartPolicy(), [(0.5, ERROR)] * 100)
    assert len(decided) == 100
    assert all(delay is not None and 0.1 <= delay <= 30.0 for delay in decided)


# WorkerPolicy -------------------------------------------------------------------------------------------------------


def test_a_worker_policy_keeps_bytes_and_plain_values() -> None:
    variables = {"MODE": "fast"}
    policy = WorkerPolicy(
        max_memory="512MiB", hard_memory="2GiB", affinity=[3, 1, 1], cwd=Path("work"), env=variables, umask=0o077
    )
    variables["MODE"] = "slow"
    assert (policy.max_memory, policy.hard_memory) == (512 * 2**20, 2 * 2**30)
    assert policy.affinity == (1, 3)
    assert policy.cwd == "work"
    assert policy.env == {"MODE": "fast"}
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(replace(policy))


def test_by_default_a_worker_has_no_limits() -> None:
    assert set(vars(WorkerPolicy()).values()) == {None}


def test_the_soft_limit_is_not_above_the_hard_one() -> None:
    assert WorkerPolicy(max_memory="1GiB", hard_memory="1GiB").max_memory == 2**30
    with pytest.raises(ValueError, match="soft limit is above the hard one"):
        WorkerPolicy(max_memory="2GiB", hard_memory="1GiB")


# Bad values ---------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        (RetryPolicy, {"attempts": 0}),
        (RetryPolicy, {"attempts": -1}),
        (RetryPolicy, {"deaths": -1}),
        (ExecutionPolicy, {"concurrency": 0}),
        (ExecutionPolicy, {"timeout": 0}),
        (ExecutionPolicy, {"timeout": -1.0}),
        (ExecutionPolicy, {"timeout": NAN}),
        (ExecutionPolicy, {"timeout": INF}),
        (ExecutionPolicy, {"retry": 0}),
        (ExecutionPolicy, {"resources": {"gpu": 0}}),
        (RestartPolicy, {"when": "sometimes"}),
        (RestartPolicy, {"when": None}),
        (RestartPolicy, {"reset_after": 0}),
        (RestartPolicy, {"reset_after": NAN}),
        (WorkerPolicy, {"max_tasks": 0}),
        (WorkerPolicy, {"max_age": -1}),
        (WorkerPolicy, {"max_memory": "lots"}),
        (WorkerPolicy, {"hard_memory": 0}),
        (WorkerPolicy, {"cpu_seconds": NAN}),
        (WorkerPolicy, {"open_files": 31}),
        (WorkerPolicy, {"nice": 20}),
        (WorkerPolicy, {"nice": -21}),
        (WorkerPolicy, {"affinity": []}),
        (WorkerPolicy, {"affinity": [-1]}),
        (WorkerPolicy, {"env": {"": "x"}}),
        (WorkerPolicy, {"env": {"A=B": "x"}}),
        (WorkerPolicy, {"env": {"A": "x\0"}}),
        (WorkerPolicy, {"cwd": ""}),
        (WorkerPolicy, {"umask": 0o1000}),
        (WorkerPolicy, {"umask": -1}),
    ],
)
def test_impossible_values_are_refused_by_name(policy: Any, arguments: dict[str, object]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"^{policy.__name__}\({name}="):
        policy(**arguments)


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        (RetryPolicy, {"attempts": "3"}),
        (RetryPolicy, {"attempts": 2.5}),
        (RetryPolicy, {"deaths": None}),
        (RetryPolicy, {"stop": 5}),
        (RetryPolicy, {"wait": 1.5}),
        (RetryPolicy, {"wait": None}),
        (RetryPolicy, {"retry": ValueError}),
        (ExecutionPolicy, {"timeout": "30"}),
        (ExecutionPolicy, {"rate_limit": 50}),
        (ExecutionPolicy, {"priority": "high"}),
        (ExecutionPolicy, {"resources": ["gpu"]}),
        (RestartPolicy, {"wait": tenacity.wait_none}),
        (WorkerPolicy, {"max_memory": 1.5}),
        (WorkerPolicy, {"affinity": "01"}),
        (WorkerPolicy, {"affinity": 3}),
        (WorkerPolicy, {"env": ["A=B"]}),
        (WorkerPolicy, {"env": {"A": 1}}),
        (WorkerPolicy, {"cwd": 3}),
    ],
)
def test_wrong_types_are_refused_by_name(policy: Any, arguments: dict[str, object]) -> None:
    (name,) = arguments
    with pytest.raises(TypeError, match=rf"^{policy.__name__}\({name}="):
        policy(**arguments)


@pytest.mark.parametrize("arguments", [{"max_retries": -1}, {"delay": -1.0}, {"delay": NAN}])
def test_impossible_restarts_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="on_failure"):
        RestartPolicy.on_failure(**arguments)
