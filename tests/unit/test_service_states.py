"""The service's state table, entry by entry: every state, every step."""

from __future__ import annotations

import itertools

import pytest

from poolkeeper.lifecycle import IllegalTransition
from poolkeeper.service_model import ServiceState
from poolkeeper.service_states import Step, advance_service

STOPPED, WAITING, STARTING, RUNNING, STOPPING, BACKOFF, COMPLETED, FAILED = ServiceState
START, LAUNCH, RELAUNCH, READY, STOP, END, DOWN, AGAIN, DUE, COMPLETE, GIVE_UP = Step
NO = None

# Written out by hand, as a second opinion: a row for each state, a column for each step. NO: cannot happen.
COLUMNS = (START, LAUNCH, RELAUNCH, READY, STOP, END, DOWN, AGAIN, DUE, COMPLETE, GIVE_UP)
# fmt: off
EXPECTED = {
    #          START     LAUNCH    RELAUNCH READY     STOP      END      DOWN     AGAIN    DUE      COMPLETE   GIVE_UP
    STOPPED:   (WAITING,  NO,       NO,      NO,       STOPPED,  NO,      NO,      NO,      NO,      NO,        NO),
    WAITING:   (WAITING,  STARTING, NO,      NO,       STOPPED,  NO,      NO,      NO,      NO,      NO,        NO),
    STARTING:  (STARTING, NO,       WAITING, RUNNING,  STOPPING, BACKOFF, STOPPED, WAITING, NO,      NO,        NO),
    RUNNING:   (RUNNING,  NO,       NO,      RUNNING,  STOPPING, BACKOFF, STOPPED, WAITING, NO,      NO,        NO),
    STOPPING:  (STOPPING, NO,       WAITING, STOPPING, STOPPING, BACKOFF, STOPPED, WAITING, NO,      NO,        NO),
    BACKOFF:   (WAITING,  NO,       NO,      NO,       STOPPED,  NO,      NO,      NO,      WAITING, COMPLETED, FAILED),
    COMPLETED: (WAITING,  NO,       NO,      NO,       STOPPED,  NO,      NO,      NO,      NO,      NO,        NO),
    FAILED:    (WAITING,  NO,       NO,      NO,       STOPPED,  NO,      NO,      NO,      NO,      NO,        NO),
}
# fmt: on
CASES = [(state, step, after) for state, row in EXPECTED.items() for step, after in zip(COLUMNS, row, strict=True)]


@pytest.mark.parametrize(("state", "step", "after"), CASES)
def test_every_step_in_every_state(state: ServiceState, step: Step, after: ServiceState | None) -> None:
    if after is not None:
        assert advance_service(state, step) is after
    else:
        with pytest.raises(IllegalTransition, match=f"a service that is {state.value} cannot see '{step.value}'"):
            advance_service(state, step)


def test_the_table_is_whole() -> None:
    assert {(state, step) for state, step, _ in CASES} == set(itertools.product(ServiceState, Step))


def test_whoever_is_at_rest_starts_and_nothing_else() -> None:
    for state, step, after in CASES:
        if state.at_rest and after not in (None, STOPPED):
            assert (step, after) == (START, WAITING)


def test_a_process_comes_by_launch_alone_and_from_waiting_alone() -> None:
    """So there is one process at most: whoever has one must lose it before the next is launched."""
    for state, step, after in CASES:
        if after is not None and after.has_process and not state.has_process:
            assert (state, step, after) == (WAITING, LAUNCH, STARTING)
        if after is not None and state.has_process and not after.has_process:
            assert step in (RELAUNCH, END, DOWN, AGAIN)
