"""The services that are to start: by priority, then by how long they wait, and not before what they are after. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from .replica import Replica
from .service_model import ServiceState

__all__ = ["LaunchQueue"]


class LaunchQueue:
    """Hands out the next replica to start.

    ``obstacle`` says what keeps a replica from starting now, None if nothing does; those that it holds back are looked
    at again after ``recheck``.
    """

    def __init__(self, obstacle: Callable[[Replica], str | None]) -> None:
        self._obstacle = obstacle
        self._heap: list[tuple[int, float, int, Replica]] = []
        self._blocked: dict[Replica, None] = {}
        self._stale = False

    def add(self, replica: Replica) -> None:
        """Take in a replica that is WAITING."""
        heapq.heappush(self._heap, (-replica.spec.priority, replica.waiting_since, replica.id, replica))

    def recheck(self) -> None:
        """Look at the blocked ones again: something that they may be waiting for has changed."""
        self._stale = bool(self._blocked)

    def take(self) -> Replica | None:
        """Return the next one that may start, None if there is none."""
        if self._stale:
            self._stale = False
            blocked, self._blocked = self._blocked, {}
            for replica in blocked:
                self.add(replica)
        heap = self._heap
        while heap:
            replica = heapq.heappop(heap)[-1]
            if replica.state is not ServiceState.WAITING or replica in self._blocked:
                continue
            obstacle = self._obstacle(replica)
            if obstacle is None:
                replica.detail = ""
                return replica
            replica.detail = obstacle
            self._blocked[replica] = None
        return None

    def __bool__(self) -> bool:
        return bool(self._heap) or self._stale
