"""Each change of a service's state: by the table, counted, queued where it is to start, and announced. Pure."""

from __future__ import annotations

from .launch_queue import ITS_TURN, LaunchQueue
from .replica import Replica
from .service_commands import Announce, ServiceCommand
from .service_model import ServiceEvent, ServiceExit, ServiceState
from .service_states import Step, advance_service

__all__ = ["Changes"]


class Changes:
    """The only one who changes the state of a replica, and who hands out commands.

    ``epoch`` is what makes seconds of the monotonic clock seconds since the epoch; ``starting`` counts the processes
    that are not ready yet.
    """

    def __init__(self, queue: LaunchQueue, epoch: float) -> None:
        self.epoch = epoch
        self.starting = 0
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
        before = replica.state
        after = replica.state = advance_service(before, step)
        if after is before:
            return
        replica.detail = reason
        self.starting += (after is ServiceState.STARTING) - (before is ServiceState.STARTING)
        if before is ServiceState.WAITING:
            self._queue.discard(replica)
        if after is ServiceState.WAITING or after.at_rest:
            replica.due = replica.hold = None
        if after is ServiceState.WAITING:
            if step is not Step.RELAUNCH:
                replica.waiting_since = now
                replica.detail = ITS_TURN
            self._queue.add(replica)
        self._queue.recheck()
        self.command(
            Announce(
                ServiceEvent(
                    time=now + self.epoch,
                    kind=f"service.{after.value}",
                    name=replica.name,
                    state=after.value,
                    previous=before.value,
                    reason=reason,
                    pid=replica.pid if exit is None else exit.pid,
                    attempt=replica.attempt,
                    exitcode=None if exit is None else exit.exitcode,
                )
            )
        )
