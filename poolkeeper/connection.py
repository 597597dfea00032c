"""Where a caller stands with its keeper, and when it calls again. Pure: a table, and the times that go with it.

======== ======== ======== ======== ========
state    LOSE     CALL     ANSWER   FAIL
======== ======== ======== ======== ========
LINKED   LOST     CALLING  LINKED   LOST
LOST     LOST     CALLING  LINKED   LOST
CALLING  LOST     CALLING  LINKED   LOST
======== ======== ======== ======== ========

END leads from each to ENDED, which nothing leaves. A call may be made over a link that still stands, and gives it up.
REFUSE leads to REFUSED: the keeper has no use for this process, as their versions differ, and calling again makes no
sense until another keeper summons it.

A signal that a keeper is there (``summon``) may come at any moment, in the midst of a call to the one before it too; it
never changes the state, and makes the next call due at once. There is no heartbeat: on one machine the kernel tells of
a dead peer at once, by the end of the link, and a stopped one is no reason to do anything but go on (guarantee 9).
"""

from __future__ import annotations

from enum import Enum, auto

from .backoff import Backoff

__all__ = ["Connection", "ConnectionEvent", "ConnectionState"]


class ConnectionState(Enum):
    """Where a caller stands."""

    LINKED = auto()
    LOST = auto()
    CALLING = auto()
    REFUSED = auto()
    ENDED = auto()


class ConnectionEvent(Enum):
    """What happens to a connection."""

    LOSE = auto()
    CALL = auto()
    ANSWER = auto()
    FAIL = auto()
    REFUSE = auto()
    END = auto()


_S, _E = ConnectionState, ConnectionEvent

_LEADS_TO = {
    _E.LOSE: _S.LOST,
    _E.CALL: _S.CALLING,
    _E.ANSWER: _S.LINKED,
    _E.FAIL: _S.LOST,
    _E.REFUSE: _S.REFUSED,
    _E.END: _S.ENDED,
}

TRANSITIONS = {
    (state, event): _S.ENDED if state is _S.ENDED else following
    for state in _S
    for event, following in _LEADS_TO.items()
}


_APART = frozenset({_S.LOST, _S.CALLING})  # a call that ends by anything else than an answer may be made again


class Connection:
    """One caller's standing with its keeper.

    Args:
        backoff: between calls that nobody answers.
        share: a call that fails is followed by a pause of at least so many times its length.
        linked: whether it begins with a link.
    """

    def __init__(self, backoff: Backoff, share: float = 0.0, *, linked: bool = False) -> None:
        self.state = _S.LINKED if linked else _S.LOST
        self._backoff = backoff
        self._share = share
        self._call_at = 0.0
        self._began = 0.0
        self._lost_at: float | None = None
        self._summons = 0
        self._heard = 0

    @property
    def ended(self) -> bool:
        """Whether there is nobody to call any more."""
        return self.state is _S.ENDED

    @property
    def refused(self) -> bool:
        """Whether the last keeper that was called has no use for this process."""
        return self.state is _S.REFUSED

    def lose(self, now: float) -> None:
        """The link has broken."""
        if self._lost_at is None:
            self._lost_at = now
        self._happens(_E.LOSE)

    def begin_call(self, now: float) -> None:
        """A call is made."""
        self._began = now
        self._heard = self._summons
        self._happens(_E.CALL)

    def answered(self) -> None:
        """The keeper, or another one, has answered, or the link is one that this process is born with."""
        self._backoff.reset()
        self._call_at = 0.0
        self._lost_at = None
        self._happens(_E.ANSWER)

    def unanswered(self, now: float, draw: float) -> None:
        """Nobody has; ``draw`` is a random number from 0 to 1."""
        self._call_at = now + max(self._backoff.next(draw), self._share * (now - self._began))
        if self._lost_at is None:
            self._lost_at = now
        self._happens(_E.FAIL)
        if self._summons != self._heard:
            self._call_at = 0.0  # who has summoned is not who was called

    def refuse(self, now: float) -> None:
        """The keeper has no use for this process."""
        if self._lost_at is None:
            self._lost_at = now
        self._happens(_E.REFUSE)

    def summon(self) -> None:
        """A keeper may be there: the next call need not wait. Safe in a signal's handler."""
        self._summons += 1
        self._call_at = 0.0

    def end(self) -> None:
        """The keeper has said that it ends, or there can be no other one."""
        self._happens(_E.END)

    def is_due(self, now: float) -> bool:
        """Whether to call."""
        if self.state is _S.REFUSED:
            return self._summons != self._heard
        return self.state in _APART and now >= self._call_at

    def wait(self, now: float) -> float | None:
        """Return the seconds until a call is due, None: none will be by itself."""
        if self.is_due(now):
            return 0.0
        return self._call_at - now if self.state in _APART else None

    def lost_for(self, now: float) -> float:
        """Return for how many seconds there has been no keeper."""
        return 0.0 if self._lost_at is None else now - self._lost_at

    def _happens(self, event: ConnectionEvent) -> None:
        self.state = TRANSITIONS[self.state, event]
