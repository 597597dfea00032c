from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.timers import Timers, old_age


def test_the_earliest_deadline_counts() -> None:
    timers = Timers()
    timers.set(1, 5.0)
    timers.set(1, 3.0)
    timers.set(1, 9.0)
    assert timers.earliest == 3.0
    assert timers.take(2.9) == []
    assert timers.take(10.0) == [1]
    assert timers.earliest is None
    assert len(timers) == 0


def test_a_cancelled_deadline_wakes_nobody() -> None:
    timers = Timers()
    timers.set(1, 1.0)
    timers.set(2, 2.0)
    timers.cancel(1)
    timers.cancel(7)
    assert timers.earliest == 2.0
    assert timers.take(5.0) == [2]


def test_a_deadline_that_was_cancelled_and_set_again_comes_once() -> None:
    timers = Timers()
    timers.set(1, 1.0)
    timers.cancel(1)
    timers.set(1, 4.0)
    assert timers.take(1.0) == []
    assert timers.take(4.0) == [1]


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 20))), st.integers(0, 20))
def test_as_a_table_would_have_it(steps: list[tuple[int, int | None]], now: int) -> None:
    timers = Timers()
    table: dict[int, int] = {}
    for number, when in steps:
        if when is None:
            timers.cancel(number)
            table.pop(number, None)
        else:
            timers.set(number, when)
            table[number] = min(when, table.get(number, when))
    assert timers.earliest == min(table.values(), default=None)
    assert sorted(timers.take(now)) == sorted(number for number, when in table.items() if when <= now)
    assert len(timers) == sum(when > now for when in table.values())


def test_deadlines_that_are_set_and_cancelled_leave_nothing_behind() -> None:
    timers = Timers()
    timers.set(1, 5.0)
    for number in range(1000):
        timers.set(2, 1000.0 + number)
        timers.cancel(2)
    assert len(timers._heap) < 50
    timers.set(2, 7.0)
    assert timers.take(10.0) == [1, 2]


def test_ages_lie_apart_within_a_tenth_and_stay_the_same() -> None:
    ages = [old_age(100.0, number) for number in range(1, 21)]
    assert ages == [old_age(100.0, number) for number in range(1, 21)]
    assert all(90.0 < age <= 100.0 for age in ages)
    apart = sorted(ages)
    assert min(after - before for before, after in itertools.pairwise(apart)) > 0.1
