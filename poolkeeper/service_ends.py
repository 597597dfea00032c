"""What follows the end of a process: its restart policy, its group, or nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from .launch_queue import LaunchQueue
from .policy import RestartRecord
from .replica import Ending, Replica
from .service_adoption import Adoption
from .service_changes import Changes
from .service_commands import Collapse, Consult
from .service_departures import Departures
from .service_exits import LastWords, judge_exit
from .service_groups import Group, Groups, GroupVerdict
from .service_model import ServiceExit, ServiceState
from .service_replicas import Replicas
from .service_states import Step
from .service_stopping import Stopping
from .timers import Timers

__all__ = ["Ends"]


class Ends:
    """Takes replicas from the end of one process to the start of the next, or to rest."""

    def __init__(
        self,
        changes: Changes,
        timers: Timers,
        queue: LaunchQueue,
        stopping: Stopping,
        adoption: Adoption,
        groups: Groups,
        replicas: Replicas,
        departures: Departures,
    ) -> None:
        self._changes = changes
        self._timers = timers
        self._queue = queue
        self._stopping = stopping
        self._adoption = adoption
        self._groups = groups
        self._replicas = replicas
        self._departures = departures

    def ended(
        self,
        replica: Replica,
        attempt: int,
        now: float,
        *,
        code: int | None,
        words: LastWords | None = None,
        stacks: str = "",
        out_of_memory: str = "no",
    ) -> None:
        """The process is gone; see ``judge_exit`` for what is known of its end."""
        if attempt != replica.attempt or not replica.state.has_process:
            return
        exit = judge_exit(
            replica, now, self._changes.epoch, code=code, words=words, stacks=stacks, out_of_memory=out_of_memory
        )
        replica.exits.append(exit)
        if replica.incumbent is not None:  # it has not become ready: the incumbent goes on
            replica.incumbent.exits.append(exit)
            replica.incumbent.successor = None
            replica.up, replica.removed = False, True
        elif replica.successor is not None:
            self._departures.take_place(replica.successor, replica)
        asked = replica.ending
        again = asked is Ending.STOP or (asked is not None and asked.again)
        if self._stopping.requested(replica) is Ending.RESTART:  # people want a new process, however the old one ends
            again = True
        error = exit.describe() if exit.failure else None
        replica.healthy = 0.0 if replica.ready_at is None else now - replica.ready_at
        consult = Consult(replica, attempt, replica.launched, now, error, replica.healthy)
        self.vacate(replica, Step.AGAIN if again else Step.END, now, exit.describe(), exit)
        if replica.state is ServiceState.BACKOFF and replica.due is None:
            self._changes.command(consult)

    def decided(self, consult: Consult, delay: float | None, record: RestartRecord, now: float, why: str = "") -> None:
        """The restart policy has spoken: start again after ``delay`` seconds, or None for no more."""
        replica = consult.replica
        if consult.attempt != replica.attempt or replica.state is not ServiceState.BACKOFF or replica.due is not None:
            return
        replica.record = record
        self._changes.touched.add(replica.service)
        if delay is None:
            self._finish(replica, consult.error, why, now)
        elif replica.hold is not None:  # its group restarts already, on account of another
            replica.restarts += 1
            self._delay(replica, max(replica.hold, consult.ended + delay))
        else:
            due = consult.ended + delay
            verdict = self._groups.restart(replica.service, now)
            for group, reason in verdict.failed:
                self._changes.tell("group.failed", group.name, now, reason)
            if verdict.failed and verdict.group is None:
                self._give_up(verdict, replica, now)
                return
            replica.restarts += 1
            self._delay(replica, due)
            if verdict.group is not None:
                self._take_along(verdict, verdict.group, replica, due, now)

    def vacate(self, replica: Replica, step: Step, now: float, reason: str, exit: ServiceExit | None = None) -> None:
        """A replica has no process any more; ``step`` follows unless it is down, or its group restarts."""
        why = replica.why
        self._stopping.gone(replica)
        self._adoption.gone(replica)
        replica.pid = replica.pulse = replica.ready_at = replica.due = None
        if not replica.up:
            self._changes.move(replica, Step.DOWN, now, why or reason, exit)
            self._replicas.drop_if_removed(replica)
        elif replica.hold is not None:
            self._changes.move(replica, Step.END, now, reason, exit)
            self._delay(replica, replica.hold)
        else:
            self._changes.move(replica, step, now, reason, exit)
        self._groups.gone(replica)
        self._queue.recheck()

    def _delay(self, replica: Replica, due: float) -> None:
        replica.due = due
        self._changes.touched.add(replica.service)
        self._timers.cancel(replica.id)
        self._timers.set(replica.id, due)

    def _finish(self, replica: Replica, error: str | None, why: str, now: float) -> None:
        """The restart policy does not start a replica again."""
        when = replica.spec.restart.when
        if error is None and when != "always" and not why:
            replica.up = False
            self._changes.move(replica, Step.COMPLETE, now)
            return
        last = replica.exits[-1].describe()
        if not why and when == "never":
            why = f"{last}; its policy is never to restart it"
        elif not why:
            runs = replica.record.exits
            why = f"its restart policy is exhausted after {runs} run{'s' * (runs != 1)}; the last one: {last}"
        self._fail(replica, why, now)
        if replica.spec.on_give_up == "stop-fleet":
            self._changes.command(Collapse(f"service {replica.name} has failed: {why}"))

    def _fail(self, replica: Replica, reason: str, now: float) -> None:
        replica.up = False
        self._timers.cancel(replica.id)
        self._changes.move(replica, Step.GIVE_UP, now, reason)

    def _take_along(self, verdict: GroupVerdict, group: Group, cause: Replica, due: float, now: float) -> None:
        """Restart those that share the fate of ``cause``."""
        for replica in _replicas_of(verdict):
            if replica is cause:
                continue
            if replica.state.has_process:
                self._departures.call_off(replica, now, f"{cause.name} restarts")
                replica.hold = max(due, replica.hold or due)
                self._changes.touched.add(replica.service)
                group.leaving.add(replica)
                if replica.spec.restart.when == "never" and self._groups.of(replica.service) is group:
                    replica.up = False  # as OTP's temporary children, who do not come back with their siblings
                if replica.state is not ServiceState.STOPPING:
                    self._stopping.request(replica, Ending.GROUP, f"{cause.name} restarts")
            elif replica.state is ServiceState.BACKOFF and replica.due is None:  # its own policy is still being asked
                replica.hold = due
            elif replica.state is ServiceState.BACKOFF and replica.due is not None:
                self._delay(replica, max(due, replica.due))

    def _give_up(self, verdict: GroupVerdict, cause: Replica, now: float) -> None:
        """The outermost group has failed: all that is in it goes down."""
        group, reason = verdict.failed[-1]
        self._fail(cause, reason, now)
        for service in verdict.along:
            service.wanted = False
        for replica in _replicas_of(verdict):
            if not replica.state.at_rest:
                self._departures.stop(replica, now, reason)
        if group.spec.on_give_up == "stop-fleet":
            self._changes.command(Collapse(reason))


def _replicas_of(verdict: GroupVerdict) -> Iterator[Replica]:
    for service in verdict.along:
        yield from list(service.replicas)
