"""How often a process may replace itself."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.handover import PastReexec
from poolkeeper.reexec_pace import AUTOMATIC, FLOOR, REMEMBERED, WINDOW, delay_before, remembered


def history(*moments: float, automatic: bool = True) -> tuple[PastReexec, ...]:
    return tuple(PastReexec(at, automatic) for at in moments)


def test_the_first_is_free() -> None:
    assert delay_before((), 100.0, automatic=True) == 0.0


def test_the_next_waits_for_the_floor_whoever_asks() -> None:
    for automatic in (True, False):
        assert delay_before(history(100.0), 100.0 + FLOOR / 2, automatic=automatic) == FLOOR / 2
        assert delay_before(history(100.0), 100.0 + FLOOR, automatic=automatic) == 0.0


def test_too_many_that_nobody_has_asked_for_are_refused_until_the_window_has_passed() -> None:
    past = history(*range(1000, 1000 + AUTOMATIC))
    assert delay_before(past, 1010.0, automatic=True) is None
    assert delay_before(past, 1010.0, automatic=False) == 0.0, "who asks is heard"
    assert delay_before(past, 1000.0 + WINDOW, automatic=True) == 0.0


def test_those_that_were_asked_for_do_not_count_against_the_others() -> None:
    assert delay_before(history(*range(100), automatic=False), 100.0, automatic=True) == 0.0


def test_moments_that_lie_ahead_come_from_another_clock() -> None:
    assert delay_before(history(*[1e9] * 10), 100.0, automatic=True) == 0.0


@given(st.lists(st.floats(0, 1000), max_size=200), st.booleans())
def test_a_loop_is_stopped_and_its_history_stays_short(steps: list[float], automatic: bool) -> None:
    now, past, done = 1e6, (), 0
    moments = []
    for step in steps:
        now += step
        delay = delay_before(past, now, automatic=automatic)
        if delay is None:
            continue
        now += delay
        past = remembered(past, now, automatic=automatic)
        moments.append(now)
        done += 1
    assert len(past) <= REMEMBERED
    for at in moments:
        within = [other for other in moments if at <= other < at + WINDOW]
        assert not automatic or len(within) <= AUTOMATIC
    assert all(later - earlier >= FLOOR - 1e-6 for earlier, later in pairwise(moments))
