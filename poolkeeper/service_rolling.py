"""A rolling upgrade: processes that run code which has changed are replaced, one after the other. Pure.

It goes in the order in which services are declared, so that what others are after comes before them. The next one is
replaced when the one before is ready. Where the service says that its processes may overlap, a successor is started
first, a replica beside the one that it is to replace, and takes that one's place when it is ready. One that does not
become ready ends the upgrade: those that are left go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .replica import Ending, Replica, Service
from .service_changes import Changes
from .service_model import ServiceState
from .service_stopping import Stopping

__all__ = ["Rolling"]

CHANGED = "its code has changed"


class Rolling:
    """Whose turn it is.

    ``obstacle`` says what keeps a replica from starting, None if nothing does; ``succeed`` starts a successor.
    """

    def __init__(
        self,
        changes: Changes,
        stopping: Stopping,
        obstacle: Callable[[Replica], str | None],
        succeed: Callable[[Replica, float, str], None],
    ) -> None:
        self._changes = changes
        self._stopping = stopping
        self._obstacle = obstacle
        self._succeed = succeed
        self._outdated: dict[Replica, int] = {}
        self._fresh = False
        self._turn: Replica | None = None
        self._heir: Replica | None = None
        self._before = 0
        self._done = 0

    def __bool__(self) -> bool:
        return bool(self._outdated)

    @property
    def due(self) -> bool:
        """Whether ``advance`` has not seen all that has happened yet."""
        return self._fresh

    def add(self, replica: Replica) -> None:
        """The process that a replica has runs code that has changed."""
        self._outdated[replica] = replica.attempt
        self._fresh = True

    def advance(self, services: Iterable[Service], now: float) -> None:
        """Replace the next one, if it is time."""
        self._fresh = False
        if self._turn is not None and not self._is_over(self._turn, now):
            return
        self._turn = self._heir = None
        self._outdated = {one: attempt for one, attempt in self._outdated.items() if _is_left(one, attempt)}
        for service in services:
            for replica in service.replicas:
                if replica in self._outdated and self._is_free(replica):
                    self._replace(replica, now)
                    return
        if self._done and not self._outdated:
            done, self._done = self._done, 0
            self._changes.tell("upgrade.completed", "", now, f"{done} process{'es' * (done != 1)} replaced")

    def _is_free(self, replica: Replica) -> bool:
        """Whether a replica can be replaced now; it will be heard of if that changes."""
        runs = replica.state is ServiceState.RUNNING or (replica.mute and replica.state is ServiceState.STARTING)
        return runs and not self._stopping.requested(replica) and not self._obstacle(replica)

    def _replace(self, replica: Replica, now: float) -> None:
        del self._outdated[replica]
        self._turn, self._before = replica, replica.attempt
        if replica.spec.overlap:
            self._succeed(replica, now, CHANGED)
            self._heir = replica.successor
        else:
            self._stopping.request(replica, Ending.UPGRADE, CHANGED)

    def _is_over(self, replica: Replica, now: float) -> bool:
        """Whether the one whose turn it is has been replaced, or never will be."""
        heir = self._heir
        if heir is not None and (heir.removed or heir.incumbent is not None):
            if not (heir.removed and heir.state.at_rest):
                return False
            if heir.incumbent is not None:
                self._fail(heir, now)
            else:  # it has been called off
                self._put_back(replica)
            return True
        if heir is not None:
            if not replica.state.at_rest:
                return False
            replica = heir
        state, replaced = replica.state, replica.attempt > self._before
        if replaced and state in (ServiceState.BACKOFF, ServiceState.FAILED):
            self._fail(replica, now)
        elif replaced and replica.satisfied:
            self._done += 1
        elif replica.up and not replica.removed and state is not ServiceState.BACKOFF:
            return False
        else:
            self._put_back(replica)
        return True

    def _put_back(self, replica: Replica) -> None:
        """It has been stopped by others; if it goes on after all, it still runs the old code."""
        self._outdated[replica] = self._before

    def _fail(self, replica: Replica, now: float) -> None:
        why = replica.exits[-1].describe() if replica.exits else replica.detail
        self._changes.tell("upgrade.failed", replica.name, now, f"its new process has not become ready: {why}")
        for other, attempt in self._outdated.items():
            if _is_left(other, attempt):
                other.detail = f"{CHANGED}, and the upgrade has stopped at {replica.name}"
        if replica.incumbent is not None:
            replica.incumbent.detail = f"{CHANGED}, and its new process has not become ready: {why}"
        self._outdated.clear()
        self._done = 0


def _is_left(replica: Replica, attempt: int) -> bool:
    """Whether a replica still has the process of ``attempt``; it may be about to end."""
    return replica.attempt == attempt and replica.state.has_process
