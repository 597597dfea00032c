"""The token bucket: what any window may hold, waiting as told, and clocks that jump."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.ratelimit import RateLimit, TokenBucket

limits = st.builds(
    RateLimit,
    rate=st.floats(0.01, 10_000),
    per=st.floats(0.1, 3600),
    burst=st.integers(1, 20),
)
steps = st.lists(st.floats(0, 100), min_size=1, max_size=60)


def test_a_burst_comes_at_once_and_then_one_by_one() -> None:
    bucket = TokenBucket(RateLimit(2, per=1.0, burst=3))
    assert [bucket.acquire(10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.acquire(10.25) == 0.25
    assert bucket.acquire(10.5) == 0.0
    assert bucket.acquire(10.5) == 0.5


def test_a_pause_saves_up_no_more_than_the_burst() -> None:
    bucket = TokenBucket(RateLimit(10, burst=2))
    assert bucket.acquire(0.0) == 0.0
    assert [bucket.acquire(1e9) == 0.0 for _ in range(3)] == [True, True, False]


def test_looking_takes_nothing() -> None:
    bucket = TokenBucket(RateLimit(1))
    assert [bucket.delay(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.acquire(0.0) == 0.0
    assert [bucket.delay(0.0), bucket.delay(0.5), bucket.acquire(1.0)] == [1.0, 0.5, 0.0]


def test_a_clock_that_jumps_backwards_neither_gives_nor_takes() -> None:
    bucket = TokenBucket(RateLimit(1))
    assert bucket.acquire(1000.0) == 0.0
    assert bucket.acquire(0.0) == 1.0
    assert bucket.acquire(0.5) == 0.5
    assert bucket.acquire(1.0) == 0.0


@given(limits, steps, st.floats(-1e6, 1e6))
def test_no_window_holds_more_than_burst_and_rate_allow(limit: RateLimit, pauses: list[float], start: float) -> None:
    bucket = TokenBucket(limit)
    now, starts = start, []
    for pause in pauses:
        now += pause / limit.per_second  # a pause of 1 refills one token
        starts += [now for _ in range(3) if bucket.acquire(now) == 0.0]
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            allowed = limit.burst + (starts[last] - starts[first]) * limit.per_second
            assert last - first + 1 <= allowed + 0.01  # one rounding, not one for each start


@given(limits, st.floats(0, 1e6), st.integers(1, 60))
def test_waiting_as_told_is_enough_and_keeps_the_rate(limit: RateLimit, now: float, count: int) -> None:
    bucket = TokenBucket(limit)
    starts = []
    for _ in range(count):
        now += bucket.delay(now)
        assert bucket.acquire(now) == 0.0
        starts.append(now)
    assert all(one <= two for one, two in pairwise(starts))
    owed = (count - limit.burst) / limit.per_second
    assert starts[-1] - starts[0] == pytest.approx(max(0.0, owed), rel=0.01, abs=0.01 / limit.per_second + 1e-9)


@given(limits, st.lists(st.floats(-1e6, 1e6), max_size=50))
def test_any_clock_leaves_a_sane_answer(limit: RateLimit, times: list[float]) -> None:
    bucket = TokenBucket(limit)
    for now in times:
        assert 0.0 <= bucket.acquire(now) <= 1.001 / limit.per_second


@pytest.mark.parametrize(
    "arguments",
    [
        {"rate": 0},
        {"rate": -1},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"rate": 1, "per": 0},
        {"rate": 1, "per": float("nan")},
        {"rate": 1, "burst": 0},
        {"rate": 1e308, "per": 1e-308},
        {"rate": 5e-324, "per": 1e10},
    ],
)
def test_impossible_limits_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="RateLimit"):
        RateLimit(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [{"rate": "5"}, {"rate": True}, {"rate": 1, "burst": 1.5}, {"rate": 1, "name": 7}]
)
def test_what_is_no_number_is_a_type_error(arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="RateLimit"):
        RateLimit(**arguments)  # type: ignore[arg-type]


def test_a_limit_is_a_value() -> None:
    limit = RateLimit(50, per=60.0, burst=5, name="api")
    assert limit == RateLimit(50.0, 60, 5, "api")
    assert hash(limit) == hash(RateLimit(50.0, 60, 5, "api"))
    assert pickle.loads(pickle.dumps(limit)) == limit
    assert repr(limit) == "RateLimit(rate=50.0, per=60.0, burst=5, name='api')"
    with pytest.raises(FrozenInstanceError):
        limit.rate = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="rate"):
        RateLimit()
