"""The states of a worker and what moves it between them, as a table keyed by enums."""

from __future__ import annotations

from enum import Enum

__all__ = ["IllegalTransition", "WorkerEvent", "WorkerState", "advance"]


class WorkerState(Enum):
    """Where a worker is in its life.

    STARTING: asked of the fork server, not yet heard from. READY: takes tasks. DETACHED: its link is lost and its
    process lives; it is calling back. RETIRING: finishes what it has and leaves. KILLED: signalled, its exit is
    awaited. DEAD: gone.
    """

    STARTING = "starting"
    READY = "ready"
    DETACHED = "detached"
    RETIRING = "retiring"
    KILLED = "killed"
    DEAD = "dead"


class WorkerEvent(Enum):
    """What happens to a worker."""

    HELLO = "hello"
    LINK_LOST = "link lost"
    RETIRE = "retire"
    KILL = "kill"
    EXIT = "exit"


class IllegalTransition(Exception):
    """An event reached a worker in a state where it cannot happen; a defect of poolkeeper."""


_S, _E = WorkerState, WorkerEvent

_TABLE: dict[WorkerState, dict[WorkerEvent, WorkerState]] = {
    _S.STARTING: {
        _E.HELLO: _S.READY,
        _E.LINK_LOST: _S.STARTING,
        _E.RETIRE: _S.RETIRING,
        _E.KILL: _S.KILLED,
        _E.EXIT: _S.DEAD,
    },
    _S.READY: {
        _E.HELLO: _S.READY,  # it has called again before the end of its old link was seen
        _E.LINK_LOST: _S.DETACHED,
        _E.RETIRE: _S.RETIRING,
        _E.KILL: _S.KILLED,
        _E.EXIT: _S.DEAD,
    },
    _S.DETACHED: {
        _E.HELLO: _S.READY,
        _E.LINK_LOST: _S.DETACHED,
        _E.RETIRE: _S.RETIRING,
        _E.KILL: _S.KILLED,
        _E.EXIT: _S.DEAD,
    },
    _S.RETIRING: {
        _E.HELLO: _S.RETIRING,
        _E.LINK_LOST: _S.RETIRING,
        _E.RETIRE: _S.RETIRING,
        _E.KILL: _S.KILLED,
        _E.EXIT: _S.DEAD,
    },
    _S.KILLED: {
        _E.HELLO: _S.KILLED,
        _E.LINK_LOST: _S.KILLED,
        _E.RETIRE: _S.KILLED,
        _E.KILL: _S.KILLED,
        _E.EXIT: _S.DEAD,
    },
    _S.DEAD: {},
}


def advance(state: WorkerState, event: WorkerEvent) -> WorkerState:
    """Return the state that ``event`` leads to from ``state``; raises IllegalTransition where the table has none."""
    try:
        return _TABLE[state][event]
    except KeyError:
        raise IllegalTransition(f"a {state.value} worker cannot see {event.value}") from None
