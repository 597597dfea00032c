"""How a keeper leaves its services to the next one, and how that one goes on with them. Pure."""

from __future__ import annotations

from dataclasses import replace

from .policy import RestartRecord
from .replica import Ending, Force, Replica, Service
from .service_changes import Changes
from .service_commands import Consult
from .service_groups import Group, Groups
from .service_handover import EXITS_LEFT, GroupRecord, ReplicaRecord, ServiceRecord
from .service_model import ServiceState
from .service_stopping import Stopping
from .service_watch import Watch
from .timers import Timers

__all__ = ["Adoption"]


class Adoption:
    """Writes down replicas, and brings them back into the states in which they were written down."""

    def __init__(self, changes: Changes, timers: Timers, stopping: Stopping, watch: Watch, groups: Groups) -> None:
        self._changes = changes
        self._timers = timers
        self._stopping = stopping
        self._watch = watch
        self._groups = groups
        self._left: dict[str, GroupRecord] = {}
        self._unseen: set[Replica] = set()

    # -- leaving ------------------------------------------------------------------------------------------------------

    def describe(self, service: Service, now: float) -> ServiceRecord:
        """Return all that the next keeper should know of ``service``."""
        spec = service.spec
        return ServiceRecord(
            name=service.name,
            wanted=service.wanted or service.resumes,
            declared=spec.replicas,
            count=sum(not replica.removed for replica in service.replicas),
            stop_signal=spec.stop_signal,
            stop_timeout=spec.stop_timeout,
            epoch=self._changes.epoch,
            replicas=tuple(self._describe(replica, now) for replica in service.replicas),
        )

    def _describe(self, replica: Replica, now: float) -> ReplicaRecord:
        epoch = self._changes.epoch
        ending = replica.ending or self._stopping.requested(replica)
        record = replica.record
        times = record.times if replica.spec.restart.looks_back else ()
        return ReplicaRecord(
            number=replica.number,
            state=replica.state,
            up=replica.up or replica.resumes,
            removed=replica.removed,
            attempt=replica.attempt,
            used=replica.used,
            restarts=replica.restarts,
            detail=replica.detail,
            launched=replica.launched + epoch if replica.attempt else None,
            ready_at=None if replica.ready_at is None else replica.ready_at + epoch,
            healthy=replica.healthy,
            due=None if replica.due is None else replica.due + epoch,
            due_in=0.0 if replica.due is None else max(0.0, replica.due - now),
            hold=None if replica.hold is None else replica.hold + epoch,
            hold_in=0.0 if replica.hold is None else max(0.0, replica.hold - now),
            ending=ending,
            forced=replica.force is not Force.ASKED,
            why=replica.why,
            leaving=next((group.name for group in self._around(replica) if replica in group.leaving), ""),
            code=replica.code,
            record=RestartRecord(
                exits=record.exits,
                since=None if record.since is None else record.since + epoch,
                waited=record.waited,
                times=tuple(round(moment + epoch, 3) for moment in times),
            ),
            exits=tuple(replica.exits)[-EXITS_LEFT:],
        )

    def describe_groups(self) -> tuple[GroupRecord, ...]:
        """Return which restarts of each group still count."""
        epoch = self._changes.epoch
        known = tuple(
            GroupRecord(group.name, epoch, tuple(round(moment + epoch, 3) for moment in group.restarts))
            for group in self._groups
            if group.restarts
        )
        return known + tuple(self._left.values())

    # -- taking over --------------------------------------------------------------------------------------------------

    def inherit_groups(self, left: tuple[GroupRecord, ...]) -> None:
        """Keep what is known of groups until their members are declared."""
        self._left.update({record.name: record for record in left})

    def restore_groups(self, service: Service, now: float, *, same_boot: bool) -> None:
        """Bring back what is known of the groups that ``service`` is in."""
        for group in self._groups.around(service):
            left = self._left.pop(group.name, None)
            if left is not None:
                epoch = self._epoch_of(left.epoch, same_boot=same_boot)
                group.restarts = tuple(min(now, moment - epoch) for moment in left.restarts)

    def restore(self, replica: Replica, left: ReplicaRecord, epoch: float, now: float, attempt: int = 0) -> None:
        """Bring back the state of a replica.

        Args:
            replica: a new one.
            left: what is known of it.
            epoch: what makes its moments ones of our monotonic clock.
            now: in seconds of that clock.
            attempt: of the process that has been found; the record may be older than that.
        """
        replica.attempt = max(left.attempt, attempt)
        replica.used = max(left.used, replica.attempt)
        replica.restarts = left.restarts
        replica.healthy = left.healthy
        replica.up = left.up
        replica.exits.extend(left.exits)
        replica.launched = _past(left.launched, epoch, now)
        record = left.record
        replica.record = replace(
            record,
            since=None if record.since is None else _past(record.since, epoch, now),
            times=tuple(_past(moment, epoch, now) for moment in record.times),
        )
        if attempt > left.attempt:
            self.give_process(replica, attempt, now)
        elif left.state.has_process:
            self._restore_process(replica, left, epoch, now)
        elif not replica.up:
            self._changes.restore(replica, left.state if left.state.at_rest else ServiceState.STOPPED, now, left.detail)
        elif left.state is ServiceState.BACKOFF and replica.exits:
            self._restore_delay(replica, left, epoch, now)
        else:
            if left.state.at_rest:  # its keeper was about to leave
                replica.record = RestartRecord()
            self._changes.restore(replica, ServiceState.WAITING, now)

    def give_process(self, replica: Replica, attempt: int, now: float) -> None:
        """A process of a replica that seemed to have none, or an earlier one, has been found."""
        self._timers.cancel(replica.id)
        replica.attempt, replica.code = attempt, ""
        replica.up = True  # for somebody has started it since
        replica.due = replica.hold = replica.ready_at = None
        replica.told_ready = replica.presumed = replica.mute = False
        replica.launched = now
        self._changes.restore(replica, ServiceState.STARTING, now)
        self._watch.resumed(replica, now)

    def seen(self, replica: Replica) -> None:
        """The process of a replica is there: from the take-over on it is watched as any other."""
        if replica in self._unseen:
            self._unseen.remove(replica)
            if replica.state is not ServiceState.STOPPING:
                self._watch.resumed(replica, replica.watched_from)

    def gone(self, replica: Replica) -> None:
        """The process of a replica has ended."""
        self._unseen.discard(replica)

    def _restore_process(self, replica: Replica, left: ReplicaRecord, epoch: float, now: float) -> None:
        replica.ready_at = None if left.ready_at is None else _past(left.ready_at, epoch, now)
        replica.told_ready = left.ready_at is not None
        replica.hold = None if left.hold is None else _future(left.hold, left.hold_in, epoch, now)
        replica.why, replica.code = left.why, left.code
        if replica.hold is not None:
            for group in self._around(replica):
                if group.name == left.leaving:
                    group.leaving.add(replica)
        if left.state is ServiceState.STOPPING:
            self._changes.restore(replica, ServiceState.STOPPING, now, left.detail)
            ending = left.ending or (Ending.RESTART if replica.up else Ending.STOP)
            self._stopping.resume(replica, ending, now, forced=left.forced)
            return
        state = ServiceState.RUNNING if replica.told_ready else ServiceState.STARTING
        self._changes.restore(replica, state, now, left.detail)
        replica.watched_from = now
        self._unseen.add(replica)
        if left.ending is not None or not replica.up:
            self._stopping.request(replica, left.ending or Ending.STOP, left.why)

    def _restore_delay(self, replica: Replica, left: ReplicaRecord, epoch: float, now: float) -> None:
        replica.hold = None if left.hold is None else _future(left.hold, left.hold_in, epoch, now)
        self._changes.restore(replica, ServiceState.BACKOFF, now, left.detail)
        if left.due is not None:
            replica.due = _future(left.due, left.due_in, epoch, now)
            self._timers.set(replica.id, replica.due)
            return
        last = replica.exits[-1]  # its policy was still being asked
        ended = _past(last.ended, epoch, now)
        error = last.describe() if last.failure else None
        launched = min(replica.launched, ended)
        self._changes.command(Consult(replica, replica.attempt, launched, ended, error, left.healthy))

    def epoch_of(self, left: ServiceRecord, *, same_boot: bool) -> float:
        """Return what makes the moments of a record ones of our monotonic clock."""
        return self._epoch_of(left.epoch, same_boot=same_boot)

    def _epoch_of(self, left: float | None, *, same_boot: bool) -> float:
        return left if same_boot and left is not None else self._changes.epoch

    def _around(self, replica: Replica) -> list[Group]:
        return list(self._groups.around(replica.service))


def _past(moment: float | None, epoch: float, now: float) -> float:
    return now if moment is None else min(now, moment - epoch)


def _future(moment: float, seconds: float, epoch: float, now: float) -> float:
    """Return when a deadline is: not before now, and not further off than it was."""
    return now + min(max(0.0, moment - epoch - now), seconds)
