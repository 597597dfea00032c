"""The worker's state table, entry by entry: every state, every event."""

from __future__ import annotations

import itertools

import pytest

from poolkeeper.lifecycle import (
    FIRST_LOOK,
    LONGEST_LOOK,
    Absence,
    IllegalTransition,
    WorkerEvent,
    WorkerState,
    advance,
)

HELLO, LINK_LOST, RETIRE, KILL, EXIT = WorkerEvent
STARTING, READY, DETACHED, RETIRING, KILLED, DEAD = WorkerState

# Written out by hand, as a second opinion: a row for each state, a column for each event.
EXPECTED = {
    #           HELLO     LINK_LOST RETIRE    KILL    EXIT
    STARTING: (READY, STARTING, RETIRING, KILLED, DEAD),
    READY: (READY, DETACHED, RETIRING, KILLED, DEAD),
    DETACHED: (READY, DETACHED, RETIRING, KILLED, DEAD),
    RETIRING: (RETIRING, RETIRING, RETIRING, KILLED, DEAD),
    KILLED: (KILLED, KILLED, KILLED, KILLED, DEAD),
}
CASES = [
    (state, event, after)
    for state, row in EXPECTED.items()
    for event, after in zip((HELLO, LINK_LOST, RETIRE, KILL, EXIT), row, strict=True)
]


@pytest.mark.parametrize(("state", "event", "after"), CASES)
def test_every_event_in_every_living_state(state: WorkerState, event: WorkerEvent, after: WorkerState) -> None:
    assert advance(state, event) is after


@pytest.mark.parametrize("event", WorkerEvent)
def test_nothing_happens_to_the_dead(event: WorkerEvent) -> None:
    with pytest.raises(IllegalTransition, match=f"a dead worker cannot see {event.value}"):
        advance(DEAD, event)


def test_the_table_is_whole() -> None:
    assert {(state, event) for state, event, _ in CASES} == set(
        itertools.product(set(WorkerState) - {DEAD}, WorkerEvent)
    )


@pytest.mark.parametrize("state", [RETIRING, KILLED])
def test_who_leaves_takes_no_more_tasks(state: WorkerState) -> None:
    reachable = {state}
    for _ in WorkerState:
        reachable |= {advance(seen, event) for seen in reachable - {DEAD} for event in WorkerEvent}
    assert not reachable & {STARTING, READY, DETACHED}


def test_an_absence_is_looked_at_less_and_less_often_and_last_when_it_has_lasted_too_long() -> None:
    absence, now, looks = Absence(100.0), 100.0, []
    while not absence.is_too_long(now, 60.0, at_work=False):
        now = absence.next_look(now, 60.0)
        looks.append(now - 100.0)
    assert looks[0] == pytest.approx(FIRST_LOOK)
    assert looks[-1] == 60.0
    assert max(after - before for before, after in itertools.pairwise(looks)) == pytest.approx(LONGEST_LOOK)


def test_time_at_work_is_no_absence() -> None:
    absence = Absence(100.0)
    assert not absence.is_too_long(1000.0, 60.0, at_work=True)
    assert not absence.is_too_long(1059.0, 60.0, at_work=False)
    assert absence.is_too_long(1060.0, 60.0, at_work=False)
