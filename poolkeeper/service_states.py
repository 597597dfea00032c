"""What moves a service from one state to the next, as a table keyed by enums.

One row is one replica of a service: one process at most. ``END`` asks the restart policy; ``DOWN`` and ``AGAIN`` are
ends that the keeper has asked for.
"""

from __future__ import annotations

from enum import Enum

from .lifecycle import IllegalTransition
from .service_model import ServiceState

__all__ = ["Step", "advance_service"]


class Step(Enum):
    """What happens to a service."""

    START = "start"
    """Somebody wants it up."""
    LAUNCH = "launch"
    """It is its turn: a process is asked for."""
    RELAUNCH = "relaunch"
    """The process could not be made, for no fault of the service."""
    READY = "ready"
    STOP = "stop"
    """Its process, if there is one, is asked to end."""
    END = "end"
    """Its process is gone, and the restart policy decides."""
    DOWN = "down"
    """Its process is gone, as was asked for."""
    AGAIN = "again"
    """Its process is gone, and the next one starts without a word of the policy."""
    DUE = "due"
    """Its delay is over."""
    COMPLETE = "complete"
    GIVE_UP = "give up"


_S, _T = ServiceState, Step

_TABLE: dict[ServiceState, dict[Step, ServiceState]] = {
    _S.STOPPED: {_T.START: _S.WAITING, _T.STOP: _S.STOPPED},
    _S.WAITING: {_T.START: _S.WAITING, _T.LAUNCH: _S.STARTING, _T.STOP: _S.STOPPED},
    _S.STARTING: {
        _T.START: _S.STARTING,
        _T.RELAUNCH: _S.WAITING,
        _T.READY: _S.RUNNING,
        _T.STOP: _S.STOPPING,
        _T.END: _S.BACKOFF,
        _T.DOWN: _S.STOPPED,
        _T.AGAIN: _S.WAITING,
    },
    _S.RUNNING: {
        _T.START: _S.RUNNING,
        _T.READY: _S.RUNNING,
        _T.STOP: _S.STOPPING,
        _T.END: _S.BACKOFF,
        _T.DOWN: _S.STOPPED,
        _T.AGAIN: _S.WAITING,
    },
    _S.STOPPING: {
        _T.START: _S.STOPPING,
        _T.READY: _S.STOPPING,
        _T.STOP: _S.STOPPING,
        _T.RELAUNCH: _S.WAITING,
        _T.END: _S.BACKOFF,
        _T.DOWN: _S.STOPPED,
        _T.AGAIN: _S.WAITING,
    },
    _S.BACKOFF: {
        _T.START: _S.WAITING,
        _T.STOP: _S.STOPPED,
        _T.DUE: _S.WAITING,
        _T.COMPLETE: _S.COMPLETED,
        _T.GIVE_UP: _S.FAILED,
    },
    _S.COMPLETED: {_T.START: _S.WAITING, _T.STOP: _S.STOPPED},
    _S.FAILED: {_T.START: _S.WAITING, _T.STOP: _S.STOPPED},
}


def advance_service(state: ServiceState, step: Step) -> ServiceState:
    """Return the state that ``step`` leads to from ``state``; raises IllegalTransition where the table has none."""
    try:
        return _TABLE[state][step]
    except KeyError:
        raise IllegalTransition(f"a service that is {state.value} cannot see {step.value!r}") from None
