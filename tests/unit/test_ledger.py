"""Calls learn, segments are cut, chunks are split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.ledger import CHUNK_LIMIT, CHUNK_SECONDS, EVIDENCE, WINDOW_LIMIT, Chunk, Options
from poolkeeper.policy import RetryPolicy
from tests.scripted import Job, call, keys, segment


def test_a_call_learns_a_running_mean() -> None:
    learner = call()
    assert learner.cost is None
    learner.learn(10, 1.0)
    assert learner.cost == pytest.approx(0.1)
    learner.learn(1, 1.1)
    assert learner.cost == pytest.approx(0.1 + 0.3 * 1.0)
    assert learner.seen == 11


@pytest.mark.parametrize(
    ("cost", "seen", "window"),
    [
        (None, 0, 1),  # nothing is known: one at a time
        (1.0, 1000, 1),  # long tasks: nothing behind them
        (0.020, 1000, 2),  # one more, for the way to the keeper and back would show
        (0.001, 1000, 9),
        (0.0, 1, EVIDENCE),  # one fast task promises little
        (0.0, 10**6, WINDOW_LIMIT),
    ],
)
def test_how_far_ahead_a_worker_is_fed(cost: float | None, seen: int, window: int) -> None:
    assert call(cost, seen=seen).window() == window


@pytest.mark.parametrize(
    ("cost", "seen", "items"),
    [
        (None, 0, 1),
        (1.0, 1000, 1),
        (CHUNK_SECONDS / 10, 1000, 9),
        (0.0, 1, EVIDENCE),
        (0.0, 10**6, CHUNK_LIMIT),
    ],
)
def test_how_many_items_make_a_chunk(cost: float | None, seen: int, items: int) -> None:
    assert call(cost, seen=seen).chunk() == items


def test_default_options_make_exceptions_final() -> None:
    assert not Options().retries_failures
    assert not Options(retry=RetryPolicy(deaths=1)).retries_failures
    assert Options(retry=RetryPolicy(attempts=2)).retries_failures


def test_without_a_policy_deaths_count_as_with_the_default_one() -> None:
    assert Options().deaths == RetryPolicy().deaths == 3
    assert not Options().at_most_once
    assert Options(retry=RetryPolicy(deaths=0)).at_most_once


@given(
    number=st.integers(1, 2000),
    workers=st.integers(1, 40),
    cost=st.none() | st.floats(0, 1),
    chunksize=st.integers(1, 300),
    single=st.booleans(),
)
def test_chunks_are_the_segment_without_a_gap(
    number: int, workers: int, cost: float | None, chunksize: int, single: bool
) -> None:
    whole = segment(call(cost), number, chunksize=chunksize, single=single)
    chunks: list[Chunk] = []
    while whole.remaining:
        before = whole.remaining
        chunks.append(whole.cut(workers))
        assert chunks[-1].items == before - whole.remaining
        assert chunks[-1].items >= (1 if single else min(chunksize, before))
        assert chunks[-1].start == sum(chunk.items for chunk in chunks[:-1])
    assert [item for chunk in chunks for item in chunk.payload] == list(range(number))
    if single:
        assert {chunk.items for chunk in chunks} == {1}


def test_the_last_chunks_are_small_so_that_nobody_waits_for_one() -> None:
    whole = segment(call(0.0, seen=10**6), 1000)
    sizes = []
    while whole.remaining:
        sizes.append(whole.cut(2).items)
    assert sizes[0] == 250
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


@given(st.integers(2, 50), st.data())
def test_a_chunk_splits_at_an_item(number: int, data: st.DataObject) -> None:
    whole = segment(call(), number, chunksize=number)
    chunk = whole.cut(1)
    at = data.draw(st.integers(0, number - 1))
    before, item, behind = chunk.split(at)
    assert keys([before, item, behind]) == [list(range(at)), [at], list(range(at + 1, number))]
    assert (before.start, item.start, behind.start) == (0, at, at + 1)
    assert {part.segment for part in (before, item, behind)} == {whole}


@pytest.mark.parametrize(("deaths", "careful"), [(1, True), (2, True), (3, False)])
def test_where_a_guess_could_be_final_chunks_are_careful_from_the_start(deaths: int, careful: bool) -> None:
    of = call(deaths=deaths)
    assert segment(of, 5, chunksize=5).cut(1).careful is careful
    assert not segment(of, 5, single=True).cut(1).careful, "one item needs no mark"


def test_chunks_are_withdrawn_one_by_one_or_with_their_map() -> None:
    whole = segment(call(), 2, single=True)
    first, second = whole.cut(1), whole.cut(1)
    first.withdrawn = True
    assert (first.withdrawn, second.withdrawn, whole.withdrawn) == (True, False, False)
    assert isinstance(whole.job, Job)
    whole.job.withdrawn = True
    assert (second.withdrawn, whole.withdrawn) == (True, True)
