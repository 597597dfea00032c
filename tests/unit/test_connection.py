"""When a caller calls, and when it calls again."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from poolkeeper.backoff import Backoff
from poolkeeper.connection import TRANSITIONS, Connection, ConnectionEvent, ConnectionState

SECONDS = st.floats(0.001, 100)
DRAWS = st.floats(0, 1)


def test_every_event_leads_somewhere_from_every_state() -> None:
    assert set(TRANSITIONS) == {(state, event) for state in ConnectionState for event in ConnectionEvent}


@pytest.mark.parametrize("event", ConnectionEvent)
def test_nothing_leaves_the_end(event: ConnectionEvent) -> None:
    assert TRANSITIONS[ConnectionState.ENDED, event] is ConnectionState.ENDED


@given(first=SECONDS, longest=SECONDS, draws=st.lists(DRAWS, min_size=1, max_size=30))
def test_each_delay_lies_between_nothing_and_a_bound_that_doubles(
    first: float, longest: float, draws: list[float]
) -> None:
    longest = max(first, longest)
    backoff = Backoff(first, longest)
    for attempt, draw in enumerate(draws):
        assert backoff.next(draw) == pytest.approx(draw * min(first * 2**attempt, longest))
    backoff.reset()
    assert backoff.next(1.0) == first


@given(lasted=st.floats(0, 10), draw=DRAWS)
def test_calls_that_nobody_answers_take_but_a_share_of_the_time(lasted: float, draw: float) -> None:
    connection = Connection(Backoff(0.02, 1.0), 20.0)
    assert connection.is_due(5.0)
    connection.begin_call(5.0)
    connection.unanswered(5.0 + lasted, draw)
    wait = connection.wait(5.0 + lasted)
    assert wait is not None
    assert wait >= 20 * lasted - 1e-6
    assert not connection.is_due(5.0 + lasted) or wait == 0
    assert connection.is_due(5.0 + lasted + wait + 0.001)


def test_a_summons_in_the_midst_of_a_call_is_not_forgotten() -> None:
    connection = Connection(Backoff(100.0, 100.0))
    connection.begin_call(0.0)
    connection.summon()
    connection.unanswered(5.0, 1.0)
    assert connection.is_due(5.0)
    connection.begin_call(5.0)
    connection.unanswered(5.0, 1.0)
    assert not connection.is_due(50.0), "one summons, one call"


def test_the_time_without_a_keeper_counts_from_the_first_loss() -> None:
    connection = Connection(Backoff(0.01, 0.01), linked=True)
    assert connection.wait(0.0) is None
    connection.lose(10.0)
    for now in (11.0, 12.0):
        connection.begin_call(now)
        connection.unanswered(now, 0.5)
    assert connection.lost_for(15.0) == 5.0
    connection.answered()
    assert connection.lost_for(20.0) == 0.0


def test_who_is_refused_calls_again_when_it_is_summoned_and_not_before() -> None:
    connection = Connection(Backoff(0.01, 0.01))
    connection.begin_call(0.0)
    connection.refuse(1.0)
    assert connection.refused
    assert connection.wait(100.0) is None
    assert not connection.is_due(100.0)
    connection.summon()
    assert connection.wait(100.0) == 0.0
    assert connection.is_due(100.0)
    connection.begin_call(100.0)
    connection.summon()
    connection.refuse(101.0)
    assert connection.is_due(101.0), "who has summoned is not who has refused"
    connection.begin_call(101.0)
    assert connection.lost_for(102.0) == 101.0
    connection.answered()
    assert not connection.refused


def test_nobody_calls_who_has_been_told_that_it_is_over() -> None:
    connection = Connection(Backoff(0.01, 0.01), linked=True)
    connection.end()
    connection.lose(1.0)
    connection.summon()
    assert connection.ended
    assert not connection.is_due(100.0)
    assert connection.wait(100.0) is None
