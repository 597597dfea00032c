"""The states of a worker and what moves it between them, as a table keyed by enums; and how long one may be away.

A worker whose link is broken, while its process lives, calls back within milliseconds, as a rule. One that cannot (the
socket is gone, there is no descriptor to be had) is nudged, and at last counts as lost. Never for its silence: as long
as its page says that it is in the midst of a task it may be in a long call of C code that knows nothing of links.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["LEAVE_SECONDS", "Absence", "IllegalTransition", "WorkerEvent", "WorkerState", "advance"]

LEAVE_SECONDS = 5.0
"""How long workers get to leave when the keeper ends, before they are killed."""

FIRST_LOOK = 0.2
LONGEST_LOOK = 10.0
"""A worker that is away is looked at after so many seconds at first, then less and less often."""


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


class Absence:
    """The time of one worker without a link, from ``now`` on."""

    __slots__ = ("_pause", "_since")

    def __init__(self, now: float) -> None:
        self._since = now
        self._pause = FIRST_LOOK

    def is_too_long(self, now: float, grace: float, *, at_work: bool) -> bool:
        """Whether it has been away for ``grace`` seconds; those that it was ``at_work`` do not count."""
        if at_work:
            self._since = now
        return now - self._since >= grace

    def next_look(self, now: float, grace: float) -> float:
        """Return when to look again."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_LOOK)
        return min(now + pause, max(now, self._since + grace))
