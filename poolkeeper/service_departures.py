"""How replicas go: stopped, or succeeded by another one that gets ready beside them. Pure."""

from __future__ import annotations

from .launch_queue import LaunchQueue
from .replica import Ending, Replica
from .service_changes import Changes
from .service_model import ServiceState
from .service_replicas import Replicas
from .service_states import Step
from .service_stopping import Stopping
from .timers import Timers

__all__ = ["Departures"]


class Departures:
    """Decides what becomes of a replica that is not to go on, and of those around it."""

    def __init__(
        self, changes: Changes, timers: Timers, queue: LaunchQueue, stopping: Stopping, replicas: Replicas
    ) -> None:
        self._changes = changes
        self._timers = timers
        self._queue = queue
        self._stopping = stopping
        self._replicas = replicas

    def stop(self, replica: Replica, now: float, reason: str) -> None:
        """End a replica's process when its turn has come; without one, it is down at once."""
        replica.up = False
        self.call_off(replica, now, reason)
        if replica.state in (ServiceState.STARTING, ServiceState.RUNNING):
            self._stopping.request(replica, Ending.STOP, reason)
        elif replica.state is ServiceState.STOPPING:
            self._stopping.recheck()
        else:
            self._timers.cancel(replica.id)
            self._changes.move(replica, Step.STOP, now, reason)
            self._replicas.drop_if_removed(replica)

    def succeed(self, replica: Replica, now: float, reason: str) -> None:
        """Start another process beside that of ``replica``."""
        successor = replica.successor = self._replicas.new(replica.service, replica.number)
        successor.incumbent = replica
        successor.attempt = successor.used = max(replica.attempt, replica.used)
        successor.up = True
        replica.service.extras.append(successor)
        self._changes.move(successor, Step.START, now, reason)

    def take_place(self, successor: Replica, replica: Replica) -> None:
        """A successor is ready, or its incumbent has ended: from now on it stands for the service."""
        service = replica.service
        service.extras.remove(successor)
        service.replicas[service.replicas.index(replica)] = successor
        service.extras.append(replica)
        replica.successor = successor.incumbent = None
        successor.restarts, successor.record = replica.restarts, replica.record
        successor.exits.extend(replica.exits)
        replica.up, replica.removed = False, True
        self._changes.touched.add(service)
        if replica.state in (ServiceState.STARTING, ServiceState.RUNNING):
            self._stopping.request(replica, Ending.UPGRADE, "its successor is ready")
        self._queue.recheck()

    def call_off(self, replica: Replica, now: float, reason: str) -> None:
        """No successor is wanted any more."""
        successor = replica.successor
        if successor is not None:
            replica.successor = successor.incumbent = None
            successor.removed = True
            self.stop(successor, now, reason)
