"""How replicas start: what they are after first, in turn, and not too many at once. Pure."""

from __future__ import annotations

from .launch_queue import LaunchQueue
from .policy import RestartRecord
from .replica import Ending, Replica, Service
from .service_changes import Changes
from .service_commands import Launch
from .service_model import ServiceState
from .service_states import Step
from .service_stopping import Stopping
from .service_watch import Watch
from .timers import Timers

__all__ = ["Starting", "needed_by"]


class Starting:
    """Queues replicas and launches them; ``max_starting`` bounds the processes that are not ready yet."""

    def __init__(
        self,
        max_starting: int,
        changes: Changes,
        timers: Timers,
        queue: LaunchQueue,
        stopping: Stopping,
        watch: Watch,
    ) -> None:
        self._max_starting = max_starting
        self._changes = changes
        self._timers = timers
        self._queue = queue
        self._stopping = stopping
        self._watch = watch

    @property
    def is_open(self) -> bool:
        """Whether one more may start."""
        return self._changes.starting < self._max_starting

    def start(self, service: Service, now: float, *, again: bool = False) -> None:
        """Start a service; ``again`` cuts a delay short and runs again what is completed."""
        service.wanted = True
        self._changes.touched.add(service)
        for replica in service.replicas:
            if not replica.removed and (again or not (replica.up or replica.state is ServiceState.COMPLETED)):
                self.start_replica(replica, now, "started by hand" if replica.attempt else "")

    def start_replica(self, replica: Replica, now: float, reason: str) -> None:
        """Have one run that is not to leave; ``reason`` is for whoever hears of it."""
        replica.up, replica.resumes = True, False
        if self._stopping.requested(replica) is Ending.STOP:
            self._stopping.withdraw(replica)
            if replica.hold is not None:  # its group restarts nevertheless
                self._stopping.request(replica, Ending.GROUP, "its group restarts")
            self._timers.set(replica.id, now)  # it is watched for its age again
            self._queue.recheck()
        if replica.state.at_rest or replica.state is ServiceState.BACKOFF:
            replica.record = RestartRecord()
            self._timers.cancel(replica.id)
            self._changes.move(replica, Step.START, now, reason)

    def launch(self, now: float) -> None:
        """Ask for the processes whose turn it is."""
        while self.is_open:
            replica = self._queue.take(now)
            if replica is None:
                return
            replica.attempt = replica.used = max(replica.attempt, replica.used) + 1
            if replica.incumbent is not None:
                replica.incumbent.used = replica.attempt
            replica.code = replica.service.code
            self._changes.move(replica, Step.LAUNCH, now)
            self._watch.launched(replica, now)
            self._changes.command(Launch(replica, replica.attempt))


def needed_by(service: Service) -> list[Service]:
    """Return all that ``service`` is after, near and far, and that does not stand firm: those farthest away first."""
    needed: dict[Service, None] = {}
    todo = list(service.after)
    while todo:
        other = todo.pop()
        firm = other.satisfied and all(one.up or one.state is ServiceState.COMPLETED for one in other.replicas)
        if other not in needed and not firm:
            needed[other] = None
            todo.extend(other.after)
    return list(reversed(needed))
