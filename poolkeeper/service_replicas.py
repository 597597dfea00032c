"""All replicas of a supervisor, by the numbers of their timers. Pure."""

from __future__ import annotations

from collections.abc import Collection

from .launch_queue import LaunchQueue
from .replica import Replica, Service
from .timers import Timers

__all__ = ["Replicas"]


class Replicas:
    """Makes replicas, and forgets those that are removed and at rest; ``first`` is the number of the first one."""

    def __init__(self, timers: Timers, queue: LaunchQueue, first: int) -> None:
        self._timers = timers
        self._queue = queue
        self._by_id: dict[int, Replica] = {}
        self._next_id = first

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> Collection[Replica]:
        """Return all of them, successors and those that have been succeeded too."""
        return self._by_id.values()

    def get(self, id: int) -> Replica | None:
        """Return the one that has an id."""
        return self._by_id.get(id)

    def find(self, service: Service, number: int) -> Replica | None:
        """Return the one of ``service`` that has a number."""
        return next((replica for replica in service.replicas if replica.number == number), None)

    def new(self, service: Service, number: int) -> Replica:
        """Make one that is in none of the service's lists."""
        replica = Replica(self._next_id, service, number)
        self._next_id += 1
        self._by_id[replica.id] = replica
        return replica

    def add(self, service: Service, number: int) -> Replica:
        """Make one more of the service's."""
        replica = self.new(service, number)
        service.replicas.append(replica)
        service.replicas.sort(key=lambda replica: replica.number)
        return replica

    def drop_if_removed(self, replica: Replica) -> None:
        """Forget one if it is removed and at rest."""
        if replica.removed and replica.state.at_rest and replica.id in self._by_id:
            del self._by_id[replica.id]
            service = replica.service
            (service.extras if replica in service.extras else service.replicas).remove(replica)
            self._timers.cancel(replica.id)
            self._queue.recheck()
