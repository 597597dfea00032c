"""Restarts under a supervisor are tenacity's retries: the same waits, the same end, on a clock that the test turns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from hypothesis import example, given
from hypothesis import strategies as st

from poolkeeper.policy import RestartPolicy, stop_after_burst
from poolkeeper.service_model import ServiceState
from tests.service_driver import Driver

seconds = st.floats(0.01, 20)
waits = st.one_of(
    st.builds(tenacity.wait_none),
    st.builds(tenacity.wait_fixed, seconds),
    st.builds(tenacity.wait_random, seconds, st.floats(20, 30)),
    st.builds(tenacity.wait_incrementing, seconds, seconds),
    st.builds(tenacity.wait_exponential, multiplier=st.floats(0.1, 5), max=st.floats(1, 60)),
    st.builds(tenacity.wait_exponential_jitter, multiplier=st.floats(0.1, 5), max=st.floats(1, 60), jitter=seconds),
    st.builds(lambda times: tenacity.wait_chain(*map(tenacity.wait_fixed, times)), st.lists(seconds, min_size=1)),
)
simple_stops = st.one_of(
    st.builds(tenacity.stop_after_attempt, st.integers(1, 8)),
    st.builds(tenacity.stop_after_delay, st.floats(0, 100)),
    st.builds(tenacity.stop_before_delay, st.floats(0, 100)),
    st.builds(stop_after_burst, st.integers(1, 6), st.floats(0.1, 100)),
    st.just(tenacity.stop_never),
)
stops = st.one_of(
    simple_stops,
    st.builds(lambda one, two: one | two, simple_stops, simple_stops),
    st.builds(lambda one, two: one & two, simple_stops, simple_stops),
)
scripts = st.lists(seconds, min_size=1, max_size=10)


def starts_of_tenacity(script: Sequence[float], seed: int, stop: Any, wait: Any) -> list[float]:
    """When tenacity's own loop makes its attempts, each of which lasts as the script says and fails."""
    clock = SimpleNamespace(now=0.0)
    starts: list[float] = []

    def work() -> None:
        starts.append(clock.now)
        clock.now += script[len(starts) - 1]
        raise OSError(f"attempt {len(starts)}")

    def sleep(duration: float) -> None:
        clock.now += duration
        if len(starts) == len(script):
            raise EOFError

    def asked(state: tenacity.RetryCallState) -> bool:
        for part in getattr(stop, "stops", ()):
            part(state)  # what & would not ask: here a burst knows only of the failures at which it is asked
        return bool(stop(state))

    random.seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: clock.now))
        with pytest.raises((EOFError, OSError)):
            tenacity.Retrying(stop=asked, wait=wait, sleep=sleep, reraise=True)(work)
    return starts


@given(scripts, stops, waits, st.integers(0, 1000))
@example([1.0] * 3, tenacity.stop_after_attempt(2) & stop_after_burst(2, 1.0), tenacity.wait_none(), 0)
def test_a_service_starts_when_tenacitys_loop_would(script: list[float], stop: Any, wait: Any, seed: int) -> None:
    expected = starts_of_tenacity(script, seed, stop, wait)
    driver = Driver()
    driver.add("web", restart=RestartPolicy(stop=stop, wait=wait, reset_after=None))
    driver.start()
    random.seed(seed)
    for number in range(len(expected)):
        driver.wait(script[number])
        driver.end("web")
        if driver.state("web") is ServiceState.BACKOFF and number + 1 < len(script):
            driver.wait(driver["web"].due - driver.now)  # type: ignore[operator]
            assert driver.state("web") is ServiceState.RUNNING
    starts = [when for when, kind, _ in driver.events if kind == "service.starting"]
    assert starts[: len(script)] == pytest.approx(expected)
    if len(expected) < len(script):  # tenacity has given up
        assert driver.state("web") is ServiceState.FAILED


@given(st.integers(0, 6), st.floats(0, 10), st.lists(st.sampled_from([0, 1, -9, None]), min_size=1, max_size=12))
def test_on_failure_means_one_start_and_so_many_restarts(retries: int, delay: float, codes: list[int | None]) -> None:
    driver = Driver()
    driver.add("web", restart=RestartPolicy.on_failure(retries, delay, reset_after=None))
    driver.start()
    for code in codes:
        if driver.state("web") is ServiceState.RUNNING:
            driver.end("web", code)
            driver.wait(delay)
    ends = codes[: codes.index(0)] if 0 in codes else codes
    assert driver["web"].attempt == 1 + min(retries, len(ends))
    if len(ends) > retries:
        assert driver.state("web") is ServiceState.FAILED
    else:
        assert driver.state("web") is (ServiceState.COMPLETED if 0 in codes else ServiceState.RUNNING)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200)), min_size=1, max_size=12))
def test_healthy_running_alone_resets(runs: list[tuple[bool, int]]) -> None:
    """A second opinion about ``reset_after=60`` with three attempts: brief runs in a row are counted."""
    driver = Driver()
    policy = RestartPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none(), reset_after=60)
    driver.add("web", ready="notify", start_timeout=None, restart=policy)
    driver.slow.add("web")
    driver.start()
    brief = 0
    for gets_ready, lasts in runs:
        if gets_ready:
            driver.ready("web")
        driver.wait(lasts)
        healthy = gets_ready and lasts >= 60
        brief = 1 if healthy else brief + 1
        driver.end("web")
        expected = ServiceState.FAILED if brief == 3 else ServiceState.STARTING
        assert driver.state("web") is expected
        if brief == 3:
            return


@given(st.integers(1, 8), st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_at_most_so_many_start_at_once_and_all_get_there(limit: int, priorities: list[int], rng: Any) -> None:
    driver = Driver(max_starting=limit)
    for number, priority in enumerate(priorities):
        driver.add(f"s{number}", ready="notify", priority=priority, restart=RestartPolicy(wait=tenacity.wait_fixed(1)))
    driver.slow.update(driver.supervisor.services)
    driver.start()
    for _ in range(1000):
        starting = [name for name, state in driver.states().items() if state == "starting"]
        assert len(starting) == driver.supervisor.starting <= limit
        if not starting and set(driver.states().values()) == {"running"}:
            break
        waiting = [driver[name].spec.priority for name, state in driver.states().items() if state == "waiting"]
        assert not waiting or len(starting) == limit
        if starting and rng.random() < 0.8:
            driver.ready(rng.choice(starting))
        elif starting and rng.random() < 0.3:
            driver.end(rng.choice(starting))
        else:
            driver.wait(1)
    assert set(driver.states().values()) == {"running"}
