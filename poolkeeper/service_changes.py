"""Each change of a service's state: by the table, counted, queued where it is to start, and announced. Pure."""

from __future__ import annotations

from .launch_queue import ITS_TURN, LaunchQueue
from .replica import Replica, Service
from .service_commands import Announce, ServiceCommand
from .service_model import ServiceEvent, ServiceExit, ServiceState
from .service_states import Step, advance_service

__all__ = ["Changes"]


class Changes:
    """The only one who changes the state of a replica, and who hands out commands.

    ``epoch`` is what makes seconds of the monotonic clock seconds since the epoch; ``starting`` counts the processes
    that are not ready yet; ``touched`` are the services of which the next keeper should know something new.
    """

    def __init__(self, queue: LaunchQueue, epoch: float) -> None:
        self.epoch = epoch
        self.starting = 0
        self.touched: set[Service] = set()
        self._queue = queue
        self._commands: list[ServiceCommand] = []

    def __bool__(self) -> bool:
        return bool(self._commands)

    def take(self) -> list[ServiceCommand]:
        """Return and forget the commands."""
        commands, self._commands = self._commands, []
        return commands

    def command(self, command: ServiceCommand) -> None:
        """Ask the runtime to do something."""
        self._commands.append(command)

    def tell(self, kind: str, name: str, now: float, reason: str) -> None:
        """Announce what is not the change of one replica."""
        self.command(Announce(ServiceEvent(time=now + self.epoch, kind=kind, name=name, reason=reason)))

    def move(self, replica: Replica, step: Step, now: float, reason: str = "", exit: ServiceExit | None = None) -> None:
        """Have ``step`` happen to ``replica``; raises IllegalTransition where the table does not know it."""
        told = reason
        before, after = replica.state, advance_service(replica.state, step)
        if after is before:
            return
        if after is ServiceState.WAITING or after.at_rest:
            replica.due = replica.hold = None
        if after is ServiceState.WAITING and step is not Step.RELAUNCH:
            replica.waiting_since = now
            reason = ITS_TURN
        self._enter(replica, after, reason)
        self.command(
            Announce(
                ServiceEvent(
                    time=now + self.epoch,
                    kind=f"service.{after.value}",
                    name=replica.name,
                    state=after.value,
                    previous=before.value,
                    reason=told,
                    pid=replica.pid if exit is None else exit.pid,
                    attempt=replica.attempt,
                    exitcode=None if exit is None else exit.exitcode,
                )
            )
        )

    def restore(self, replica: Replica, state: ServiceState, now: float, detail: str = "") -> None:
        """Have ``replica`` be in ``state``, where an earlier keeper has left it."""
        if state is ServiceState.WAITING:
            replica.waiting_since = now
            detail = ITS_TURN
        self._enter(replica, state, detail)
        event = ServiceEvent(
            time=now + self.epoch,
            kind="service.adopted",
            name=replica.name,
            state=state.value,
            reason=state.value,
            pid=replica.pid,
            attempt=replica.attempt,
        )
        self.command(Announce(event))

    def _enter(self, replica: Replica, state: ServiceState, detail: str) -> None:
        before, replica.state = replica.state, state
        replica.detail = detail
        self.touched.add(replica.service)
        self.starting += (state is ServiceState.STARTING) - (before is ServiceState.STARTING)
        if before is ServiceState.WAITING:
            self._queue.discard(replica)
        if state is ServiceState.WAITING:
            self._queue.add(replica)
        self._queue.recheck()
