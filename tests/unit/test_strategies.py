"""Decisions are tenacity's: a real ``Retrying`` waits and stops alike on the same script of failures."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.strategies import Outcome, callable_strategy, decide, is_known, named, stop_after_burst

Script = Sequence[tuple[float, BaseException]]
"""How long each attempt takes, in seconds, and what it raises."""


class EndOfScript(Exception):
    """There is no further attempt in the script."""


seconds = st.floats(0, 20)

waits = st.one_of(
    st.builds(tenacity.wait_fixed, seconds),
    st.builds(tenacity.wait_none),
    st.builds(tenacity.wait_random, seconds, st.floats(20, 30)),
    st.builds(tenacity.wait_incrementing, seconds, seconds),
    st.builds(tenacity.wait_exponential, multiplier=st.floats(0.1, 5), max=st.floats(1, 60)),
    st.builds(tenacity.wait_random_exponential, multiplier=st.floats(0.1, 5), max=st.floats(1, 60)),
    st.builds(tenacity.wait_exponential_jitter, multiplier=st.floats(0.1, 5), max=st.floats(1, 60), jitter=seconds),
    st.builds(lambda times: tenacity.wait_chain(*map(tenacity.wait_fixed, times)), st.lists(seconds, min_size=1)),
    st.builds(tenacity.wait_exception, st.just(lambda error: len(str(error)))),
    st.builds(lambda state_seconds: lambda state: state.attempt_number * state_seconds + state.idle_for, seconds),
)
waits = st.one_of(waits, st.builds(tenacity.wait_combine, waits, waits))

attempts = st.builds(tenacity.stop_after_attempt, st.integers(1, 8))
bursts = st.builds(stop_after_burst, st.integers(1, 6), st.floats(0.1, 100))
simple_stops = st.one_of(
    attempts,
    st.builds(tenacity.stop_after_delay, st.floats(0, 100)),
    st.builds(tenacity.stop_before_delay, st.floats(0, 100)),
    st.just(tenacity.stop_never),
)
stops = st.one_of(
    simple_stops,
    bursts,
    st.builds(lambda one, two: one | two, bursts, simple_stops),
    st.builds(lambda one, two: one & two, bursts, simple_stops),
    st.builds(lambda one, two: one | two, simple_stops, simple_stops),
    st.builds(lambda one, two: one & two, simple_stops, simple_stops),
)

retries = st.sampled_from(
    [
        tenacity.retry_if_exception_type(),
        tenacity.retry_if_exception_type((ValueError, OSError)),
        tenacity.retry_if_not_exception_type(KeyError),
        tenacity.retry_if_exception_message(match="again"),
        tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_exception_message(match="again"),
        tenacity.retry_if_exception_type(OSError) & tenacity.retry_if_exception_message(match="again"),
        tenacity.retry_always,
        tenacity.retry_never,
        lambda state: state.attempt_number < 4,
    ]
)

errors = st.sampled_from([ValueError, OSError, KeyError, SystemExit, tenacity.TryAgain]).flatmap(
    lambda kind: st.builds(kind, st.sampled_from(["again", "never", ""]))
)
scripts = st.lists(st.tuples(seconds, errors), min_size=1, max_size=10)


def waits_of_tenacity(script: Script, seed: int, **policy: Any) -> list[float]:
    """Run ``script`` through tenacity, on a clock that only attempts and waits move."""
    clock = SimpleNamespace(now=0.0)
    rest = list(reversed(script))
    waited: list[float] = []

    def work() -> None:
        lasts, error = rest.pop()
        clock.now += lasts
        raise error

    def sleep(duration: float) -> None:
        waited.append(duration)
        clock.now += duration
        if not rest:
            raise EndOfScript

    random.seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: clock.now))
        with pytest.raises((EndOfScript, *(type(error) for _, error in script))):
            tenacity.Retrying(sleep=sleep, reraise=True, **policy)(work)
    return waited


def waits_of_ours(script: Script, seed: int, decide_on: Callable[[Outcome], float | None]) -> list[float]:
    """Ask ``decide_on`` about each failure of ``script``."""
    waited: list[float] = []
    times: list[float] = []
    now = 0.0
    random.seed(seed)
    for attempt, (lasts, error) in enumerate(script, start=1):
        now += lasts
        times.append(now)
        delay = decide_on(Outcome(attempt, now, error, waited=sum(waited), times=tuple(times)))
        if delay is None:
            break
        waited.append(delay)
        now += delay
    return waited


@given(scripts, stops, waits, retries, st.integers(0, 1000))
def test_decisions_are_tenacitys(script: Script, stop: Any, wait: Any, retry: Any, seed: int) -> None:
    theirs = waits_of_tenacity(script, seed, stop=stop, wait=wait, retry=retry)
    ours = waits_of_ours(script, seed, lambda outcome: decide(outcome, stop=stop, wait=wait, retry=retry))
    assert ours == pytest.approx(theirs)  # elapsed times are summed in another order


def failures(*times: float) -> Outcome:
    return Outcome(len(times), times[-1], ValueError(), times=times)


def stops_at(burst: Any, *times: float) -> int | None:
    """The number of the failure at which ``burst`` stops, in a series of failures at ``times``."""
    for count in range(1, len(times) + 1):
        if decide(failures(*times[:count]), stop=burst, wait=named("wait_none"), retry=None) is None:
            return count
    return None


def test_a_burst_is_a_number_of_failures_in_a_window() -> None:
    assert stops_at(stop_after_burst(3, within=10), 0, 5, 10) == 3
    assert stops_at(stop_after_burst(3, within=10), 0, 5, 10.1) is None
    assert stops_at(stop_after_burst(3, within=10), 0, 9, 18, 19) == 4
    assert stops_at(stop_after_burst(1, within=10), 0) == 1


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=30), st.integers(1, 10), st.floats(0.1, 100))
def test_a_burst_is_found_where_brute_force_finds_it(gaps: list[float], count: int, within: float) -> None:
    times = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    expected = next(
        (n for n in range(count, len(times) + 1) if times[n - 1] - times[n - count] <= within),
        None,
    )
    assert stops_at(stop_after_burst(count, within), *times) == expected


def test_failures_at_the_same_moment_are_as_many_failures_in_tenacity_too() -> None:
    script = [(0.0, ValueError())] * 5
    for stop in (stop_after_burst(3, within=1), stop_after_burst(3, within=1) & stop_after_burst(2, within=1)):
        waited = waits_of_tenacity(script, 0, stop=stop, wait=tenacity.wait_none(), retry=tenacity.retry_always)
        assert waited == [0.0, 0.0]
    assert stops_at(stop_after_burst(3, within=1), 0, 0, 0, 0) == 3


def test_a_burst_combines_with_tenacitys_stops_on_either_side() -> None:
    burst, attempt = stop_after_burst(3, 10), tenacity.stop_after_attempt(5)
    assert stops_at(burst | attempt, 0, 20, 40, 60, 80, 100) == 5
    assert stops_at(attempt | burst, 0, 1, 2) == 3
    assert stops_at(burst & attempt, 0, 1, 2, 3, 4) == 5
    assert stops_at(attempt & burst, 0, 1, 2, 3, 4) == 5


def test_a_burst_is_a_value() -> None:
    burst = stop_after_burst(3, within=10)
    assert burst == stop_after_burst(3, 10.0)
    assert hash(burst) == hash(stop_after_burst(3, 10.0))
    assert pickle.loads(pickle.dumps(burst)) == burst
    assert repr(burst) == "stop_after_burst(count=3, within=10.0)"


@pytest.mark.parametrize(
    ("count", "within"), [(0, 1), (1001, 1), (3, 0), (3, -1), (3, float("nan")), (3, float("inf"))]
)
def test_impossible_bursts_are_refused(count: int, within: float) -> None:
    with pytest.raises(ValueError, match="stop_after_burst"):
        stop_after_burst(count, within)


def test_a_burst_is_asked_after_an_attempt() -> None:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    with pytest.raises(RuntimeError, match="after an attempt"):
        stop_after_burst(3, 10)(state)


@pytest.mark.parametrize("delay", [float("nan"), float("inf")])
def test_a_wait_that_is_no_time_is_an_error(delay: float) -> None:
    with pytest.raises(ValueError, match="asks to wait"):
        decide(failures(1.0), stop=None, wait=lambda _state: delay, retry=None)


def test_a_negative_wait_is_none() -> None:
    assert decide(failures(1.0), stop=None, wait=lambda _state: -1.0, retry=None) == 0.0


def test_what_a_strategy_raises_passes_through() -> None:
    def broken(_state: object) -> bool:
        raise LookupError("broken strategy")

    for arguments in ({"stop": broken, "retry": None}, {"stop": None, "retry": broken}):
        with pytest.raises(LookupError, match="broken strategy"):
            decide(failures(1.0), wait=named("wait_none"), **arguments)


def test_a_strategy_sees_the_whole_call_state() -> None:
    error = ValueError("why")
    seen: list[tenacity.RetryCallState] = []

    def wait(state: tenacity.RetryCallState) -> float:
        seen.append(state)
        return 1.5

    assert decide(Outcome(3, 12.5, error, waited=4.0), stop=None, wait=wait, retry=None) == 1.5
    (state,) = seen
    assert (state.attempt_number, state.seconds_since_start, state.idle_for) == (3, 12.5, 4.0)
    assert state.outcome is not None
    assert state.outcome.failed
    assert state.outcome.exception() is error
    assert state.retry_object.wait is wait
    assert repr(state)


def test_a_named_strategy_is_a_value_that_stands_for_tenacitys() -> None:
    wait = named("wait_fixed", wait=3.0)
    assert wait == named("wait_fixed", wait=3.0)
    assert pickle.loads(pickle.dumps(wait)) == wait
    assert hash(wait) == hash(named("wait_fixed", wait=3.0))
    assert repr(wait) == "wait_fixed(wait=3.0)"
    assert decide(failures(1.0), stop=None, wait=wait, retry=None) == 3.0
    assert decide(failures(1.0), stop=None, wait=wait + tenacity.wait_fixed(1), retry=None) == 4.0


def test_a_class_is_not_a_strategy() -> None:
    with pytest.raises(TypeError, match=r"an instance of it is needed: wait_none\(\.\.\.\)"):
        callable_strategy(tenacity.wait_none)
    with pytest.raises(TypeError, match="must be a tenacity strategy"):
        callable_strategy(3)  # type: ignore[type-var]


def test_tenacity_loads_when_the_first_strategy_is_asked() -> None:
    program = """
import sys
from poolkeeper.policy import ExecutionPolicy, RestartPolicy, RetryPolicy, WorkerPolicy, stop_after_burst
policies = RetryPolicy(3), ExecutionPolicy(retry=3), RestartPolicy.on_failure(), stop_after_burst(3, 10), WorkerPolicy()
repr(policies), hash(policies[0]), policies == policies
assert RetryPolicy().delay_after_failure(1, 0.1, ValueError()) is None
assert "tenacity" not in sys.modules
assert RetryPolicy(3).delay_after_failure(1, 0.1, ValueError()) > 0
assert "tenacity" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


@pytest.mark.parametrize(
    ("strategy", "known"),
    [
        (None, True),
        (named("wait_fixed", wait=1), True),
        (tenacity.wait_none(), True),
        (tenacity.wait_exponential(max=5) + tenacity.wait_random(0, 1), True),
        (tenacity.stop_after_attempt(3) | stop_after_burst(3, 1.0), True),
        (lambda state: 1.0, False),
        (tenacity.wait_combine(tenacity.wait_fixed(1), lambda state: 1.0), False),
        (tenacity.stop_any(tenacity.stop_after_attempt(3), lambda state: False), False),
        (type("mine", (tenacity.wait.wait_base,), {"__call__": lambda self, state: 1.0})(), False),
    ],
)
def test_only_strategies_without_code_of_the_user_are_known(strategy: object, known: bool) -> None:
    assert is_known(strategy) is known
