"""All decisions about services: what happened goes in as method calls, what to do comes out as commands. Pure.

Rules:

- A replica has one process at most. What is heard of an earlier one is recognised by its attempt and ignored.
- A service starts when all that it is ``after`` is ready. Of those that are to stop, each is asked when all that is
  after it is down.
- At most ``max_starting`` processes are not ready yet at any time, the rest waits by priority, then age.
- An end that nobody asked for, or that was forced on a process that hung, goes to the restart policy; its delay counts
  from that end. An end that was asked for does not.
- A member that ends while its group restarts comes back with the group, whatever it ended of; so it is with OTP.
- Once its fleet ends, or the keeper, a service is not started any more, whoever asks.
- Whoever does not stop in time has its stacks written down, and is killed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice

from .errors import FleetStopping
from .launch_queue import LaunchQueue
from .policy import RestartRecord
from .replica import Ending, Replica, Service
from .service_adoption import Adoption
from .service_changes import Changes
from .service_commands import Consult, ServiceCommand
from .service_departures import Departures
from .service_ends import Ends
from .service_exits import LastWords
from .service_groups import Groups
from .service_handover import GroupRecord, ReplicaRecord, ServiceRecord
from .service_model import ServiceState
from .service_replicas import Replicas
from .service_rolling import Rolling
from .service_spec import DeclarationError, ServiceSpec
from .service_starting import Starting, needed_by
from .service_states import Step
from .service_stopping import DUMP_SECONDS, Stopping
from .service_watch import LATE_SECONDS, SAMPLING, Watch
from .timers import Timers

__all__ = ["Supervisor"]


class Supervisor:
    """Owns the state of all services of one keeper.

    ``max_starting`` bounds the processes that are not ready yet. ``epoch`` is what makes seconds of the monotonic clock
    seconds since the epoch.
    """

    def __init__(self, max_starting: int, epoch: float = 0.0) -> None:
        if max_starting < 1:
            raise ValueError(f"max_starting={max_starting}: nothing would ever start")
        self.services: dict[str, Service] = {}
        self._groups = Groups()
        self._queue = LaunchQueue(self._obstacle)
        self._changes = Changes(self._queue, epoch)
        self._timers = Timers()
        self._stopping = Stopping(self._changes, self._timers)
        self._watch = Watch(self._changes, self._timers, self._stopping)
        self._adoption = Adoption(self._changes, self._timers, self._stopping, self._watch, self._groups)
        self._starting = Starting(max_starting, self._changes, self._timers, self._queue, self._stopping, self._watch)
        self._replicas = Replicas(self._timers, self._queue, SAMPLING + 1)
        self._departures = Departures(self._changes, self._timers, self._queue, self._stopping, self._replicas)
        self._ends = Ends(
            self._changes,
            self._timers,
            self._queue,
            self._stopping,
            self._adoption,
            self._groups,
            self._replicas,
            self._departures,
        )
        self._rolling = Rolling(self._changes, self._stopping, self._obstacle, self._departures.succeed)
        self._rolling_waits = False
        self._is_ending = False
        self._is_closed = False
        self._held: float | None = None

    @property
    def starting(self) -> int:
        """How many processes are not ready yet."""
        return self._changes.starting

    @property
    def epoch(self) -> float:
        """What makes seconds of the monotonic clock seconds since the epoch."""
        return self._changes.epoch

    @epoch.setter
    def epoch(self, seconds: float) -> None:
        self._changes.epoch = seconds

    # -- what people ask for ------------------------------------------------------------------------------------------

    def add(self, spec: ServiceSpec, code: str = "") -> Service:
        """Take on a service, not started yet; ``code`` is the fingerprint of what its processes are made from.

        Raises DeclarationError for a name that is taken, and for an ``after`` that is not there yet (so that there can
        be no circles).
        """
        if spec.name in self.services:
            raise DeclarationError(f"there is a service named {spec.name!r} already")
        unknown = [name for name in spec.after if name not in self.services]
        if unknown:
            known = ", ".join(self.services) or "none"
            raise DeclarationError(
                f"service {spec.name!r} is after {unknown[0]!r}, which is no service (there are: {known})"
            )
        service = Service(spec, code)
        others = [self.services[name] for name in spec.after]
        service.after = list(dict.fromkeys([*others, *self._groups.join(service)]))
        for other in service.after:
            other.dependents.append(service)
        self.services[spec.name] = service
        self._replicas.add(service, range(spec.replicas))
        return service

    def start(self, service: Service, now: float) -> None:
        """Start what is at rest, and what it is after; what runs goes on, what stops starts again afterwards.

        Raises FleetStopping, as ``restart`` and ``scale`` do where they would start something.
        """
        self.admit(service)
        self._is_ending = False
        for needed in needed_by(service):
            self._starting.start(needed, now)
        self._starting.start(service, now, again=True)

    def admit(self, service: Service) -> None:
        """Raise FleetStopping where a service is not to be started any more, or something that it is after."""
        if self._is_closed or any(one.ending for one in (service, *needed_by(service))):
            raise FleetStopping("the fleet is stopping: nothing is started any more")

    def stop(self, service: Service, now: float) -> None:
        """Stop all its replicas, until it is started."""
        self._let_go(service, for_good=True)
        for replica in list(service.replicas):
            self._departures.stop(replica, now, "stopped by hand")

    def end(self, service: Service, now: float) -> None:
        """Stop it, for its fleet ends, until the next keeper or ``readmit``; what is at rest stays as it is."""
        service.ending = True
        self._wind_down(service, now, "its fleet ends")

    def readmit(self, service: Service) -> None:
        """Its fleet has ended: it may be started again."""
        service.ending = False

    def _let_go(self, service: Service, *, for_good: bool) -> None:
        service.resumes = not for_good and (service.wanted or service.resumes)
        service.wanted = False
        self._changes.touched.add(service)
        for replica in service.replicas:
            replica.resumes = not for_good and (replica.up or replica.resumes)

    def restart(self, service: Service, now: float) -> None:
        """Replace the process of each replica by a new one; start what is at rest, as ``start`` does."""
        self.admit(service)
        self._changes.touched.add(service)
        for replica in service.replicas:
            if replica.state in (ServiceState.STARTING, ServiceState.RUNNING) and not replica.removed:
                self._stopping.request(replica, Ending.RESTART, "restarted by hand")
        self.start(service, now)

    def scale(self, service: Service, number: int, now: float) -> None:
        """Have ``number`` replicas of a service: start more, or stop those with the highest numbers."""
        if number < 0:
            raise ValueError(f"service {service.name!r} cannot have {number} replicas")
        staying = [replica for replica in service.replicas if not replica.removed]
        if number > len(staying):
            self.admit(service)
        self._changes.touched.add(service)
        for replica in staying[number:]:
            replica.removed = True
            self._departures.stop(replica, now, "scaled down")
            self._replicas.drop_if_removed(replica)
        missing = number - len(staying)
        leaving = [replica for replica in service.replicas if replica.removed]
        more = leaving[: max(0, missing)]
        for replica in more:
            replica.removed = False
        taken = {replica.number for replica in service.replicas}
        free = (candidate for candidate in range(number + len(taken)) if candidate not in taken)
        more += self._replicas.add(service, islice(free, max(0, missing - len(more))))
        if service.wanted:
            for replica in more:
                self._starting.start_replica(replica, now, "scaled up")
        self._queue.recheck()

    def stop_all(self, now: float, reason: str = "") -> None:
        """Stop everything, what depends on others first; the next keeper starts it again."""
        self._is_ending = True
        for service in reversed(self.services.values()):
            self._wind_down(service, now, reason)

    def close(self, now: float, reason: str) -> None:
        """Stop everything, for the keeper ends: nothing is started any more."""
        self._is_closed = True
        self.stop_all(now, reason)

    def _wind_down(self, service: Service, now: float, reason: str) -> None:
        self._let_go(service, for_good=False)
        for replica in list(service.replicas):
            if not replica.state.at_rest:
                self._departures.stop(replica, now, reason)

    def kill_all(self, now: float) -> None:
        """Stop everything at once."""
        self.stop_all(now, "killed")
        self._stopping.ask_all(now)
        for replica in self._replicas.all():
            if replica.state is ServiceState.STOPPING:
                self._stopping.kill(replica, Ending.STOP, now)

    def stop_seconds(self, services: Collection[Service]) -> float:
        """Return within how many seconds these are down once they are to stop, one after the other where they must."""
        seconds: dict[Service, float] = {}
        for service in reversed(self.services.values()):  # so that those come first that are after it
            own = service.spec.stop_timeout + DUMP_SECONDS if service in services else 0.0
            seconds[service] = own + max((seconds[other] for other in service.dependents), default=0.0)
        return max(seconds.values(), default=0.0)

    @property
    def size(self) -> int:
        """How many processes there may be."""
        return len(self._replicas)

    @property
    def down(self) -> bool:
        """Whether no process is left and none is to come."""
        return all(replica.state.at_rest for replica in self._replicas.all())

    # -- from keeper to keeper ----------------------------------------------------------------------------------------

    def describe(self, now: float) -> list[ServiceRecord]:
        """Return what the next keeper should know of the services that have changed since this was asked last."""
        touched, self._changes.touched = self._changes.touched, set()
        return [self._adoption.describe(service, now) for service in self.services.values() if service in touched]

    def leave(self, service: Service, now: float) -> tuple[ServiceRecord, bool]:
        """Return what is known of a service, and whether it is stopped, but not for good."""
        return self._adoption.describe(service, now), service.resumes

    def describe_groups(self) -> tuple[GroupRecord, ...]:
        """Return what the next keeper should know of groups."""
        return self._adoption.describe_groups()

    def inherit_groups(self, left: tuple[GroupRecord, ...]) -> None:
        """Keep what an earlier keeper has left of groups until their members are declared."""
        self._adoption.inherit_groups(left)

    def adopt(
        self, service: Service, left: ServiceRecord, now: float, processes: Mapping[int, int], *, same_boot: bool
    ) -> None:
        """Go on with a service, which was just added, where an earlier keeper has left it.

        What was at rest stays so. Replicas that are not wanted any more end if they have a process. Of one that had a
        process, ``ended`` is to be said if it has none any more.

        Args:
            service: not started.
            left: what is known of it.
            now: in seconds of the monotonic clock.
            processes: the attempts whose processes have been found, by the numbers of their replicas.
            same_boot: whether the monotonic clock is the earlier keeper's.
        """
        service.wanted = left.wanted
        self._changes.touched.add(service)
        self._adoption.restore_groups(service, now, same_boot=same_boot)
        epoch = self._adoption.epoch_of(left, same_boot=same_boot)
        count = left.count if left.declared == service.spec.replicas else service.spec.replicas
        records = {record.number: record for record in left.replicas}
        numbers = sorted({*range(count), *records, *processes, *range(service.spec.replicas)})
        there = {replica.number for replica in service.replicas}
        self._replicas.add(service, (number for number in numbers if number not in there))
        for replica in list(service.replicas):  # all are there by now, for their names depend on how many there are
            number = replica.number
            record, attempt = records.get(number), processes.get(number, 0)
            stays, known = number < count, record is not None or number in processes
            if record is None:
                record = ReplicaRecord(number, up=service.wanted)
            if not (stays or attempt > record.attempt or record.state.has_process):
                record, known = ReplicaRecord(number), False
            elif stays and record.removed:  # the declaration wants it again
                record = replace(record, up=service.wanted, ending=record.ending if record.forced else None)
            if known:
                self._adoption.restore(replica, record, epoch, now, attempt)
            elif stays and service.wanted:
                self._starting.start_replica(replica, now, "")
            if not stays:
                replica.removed = True
                self._departures.stop(replica, now, "scaled down")
                self._replicas.drop_if_removed(replica)
            if replica.state.has_process and replica.code and service.code and replica.code != service.code:
                self._rolling.add(replica)
        self._queue.recheck()

    def outdated(self, replica: Replica, attempt: int) -> None:
        """The process runs code that has changed: it is replaced in its turn."""
        if attempt == replica.attempt and replica.state.has_process:
            self._rolling.add(replica)

    def muted(self, replica: Replica, attempt: int) -> None:
        """The process is of another version, and nothing that it says will be heard: it is replaced in its turn.

        Until then neither heartbeats nor readiness are expected of it.
        """
        if attempt == replica.attempt and replica.state.has_process:
            replica.mute = True
            self.presume(replica, attempt)
            self.outdated(replica, attempt)

    def found(self, service: Service, number: int, attempt: int, now: float) -> Replica | None:
        """A process of an earlier keeper exists that nobody knew of; return whose it is, None if it is one too many."""
        replica = self.replica(service, number)
        if replica is None:
            return None
        replica.used = max(replica.used, attempt)
        if replica.removed or replica.state.has_process or attempt <= replica.attempt:
            return None
        service.wanted = True
        self._adoption.give_process(replica, attempt, now)
        if self._is_ending:
            self._let_go(service, for_good=False)
            self._departures.stop(replica, now, "its fleet ends")
        return replica

    def replica(self, service: Service, number: int) -> Replica | None:
        """Return the replica of ``service`` that has a number."""
        return self._replicas.find(service, number)

    def hold(self, until: float | None) -> None:
        """Launch nothing before ``until``, for it is not known yet which processes there are; None: it is known."""
        self._held = until
        if until is None:
            self._queue.open()
        else:
            self._queue.close(until)

    def _look_at_hold(self, now: float) -> None:
        """Nobody may have been heard where this process, or the whole machine, has slept until long after ``hold``."""
        if self._held is not None and now >= self._held:
            self.hold(now + LATE_SECONDS if now - self._held > LATE_SECONDS else None)

    # -- what processes do --------------------------------------------------------------------------------------------

    def spawned(self, replica: Replica, attempt: int, pid: int) -> None:
        """The process exists."""
        if attempt == replica.attempt and replica.state.has_process:
            replica.pid = pid
            self._queue.granted()
            self._adoption.seen(replica)

    def refused(self, replica: Replica, attempt: int, now: float, why: str) -> None:
        """The process could not be made, for no fault of the service: it waits for its turn again."""
        if attempt == replica.attempt and replica.state.has_process and not replica.told_ready:
            self._queue.refused(now)
            self._ends.vacate(replica, Step.RELAUNCH, now, why)

    def started(self, replica: Replica, attempt: int, now: float) -> None:
        """The callable is about to be called, or the program has been executed."""
        if replica.spec.ready == "start":
            self.ready(replica, attempt, now)

    def ready(self, replica: Replica, attempt: int, now: float) -> None:
        """The service says that it is ready."""
        if attempt != replica.attempt or not replica.state.has_process or replica.told_ready:
            return
        replica.told_ready = True
        self._changes.move(replica, Step.READY, now)
        if replica.state is ServiceState.RUNNING:
            self._watch.ready(replica, now)
            if replica.incumbent is not None:
                self._departures.take_place(replica, replica.incumbent)

    def presume(self, replica: Replica, attempt: int) -> None:
        """What this process says it says once, and its keeper has crashed: that it is ready may never be heard.

        Rather than end what may be in use, it is taken for ready after ``start_timeout``.
        """
        if attempt == replica.attempt and not replica.told_ready:
            replica.presumed = True

    def dumped(self, replica: Replica, attempt: int, now: float) -> None:
        """What a ``Dump`` has asked for is done as far as it can be."""
        if attempt == replica.attempt:
            self._stopping.dumped(replica, now)

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
        self._ends.ended(replica, attempt, now, code=code, words=words, stacks=stacks, out_of_memory=out_of_memory)

    def decided(self, consult: Consult, delay: float | None, record: RestartRecord, now: float, why: str = "") -> None:
        """The restart policy has spoken: start again after ``delay`` seconds, or None for no more."""
        self._ends.decided(consult, delay, record, now, why)

    def sampled(self, replica: Replica, memory: int | None, now: float) -> None:
        """The replica's process has ``memory`` bytes resident."""
        if memory is not None and replica.state.has_process:
            self._watch.sampled(replica, memory, now)

    # -- time and decisions -------------------------------------------------------------------------------------------

    def decide(self, now: float) -> list[ServiceCommand]:
        """Return what is to be done now."""
        self._look_at_hold(now)
        for number in self._timers.take(now):
            if number == SAMPLING:
                self._watch.sample(self._replicas.all(), now)
            elif (replica := self._replicas.get(number)) is not None:
                self._look(replica, now)
        self._rolling_waits = bool(self._rolling) and not self._queue.is_open(now)
        if not self._rolling_waits:
            self._rolling.advance(self.services.values(), now)
        self._stopping.ask_in_order(now)
        self._starting.launch(now)
        self._queue.review()
        return self._changes.take()

    def next_deadline(self) -> float | None:
        """Return when ``decide`` must be called next even if nothing happens, None if never."""
        if self._changes or self._stopping.due or (self._rolling.due and not self._rolling_waits):
            return 0.0
        opens = self._queue.opens if self._starting.is_open else None
        if self._rolling_waits:
            opens = self._queue.opens_at
        return min((when for when in (self._timers.earliest, opens) if when is not None), default=None)

    def _look(self, replica: Replica, now: float) -> None:
        """A timer of this replica is due."""
        state = replica.state
        if state is ServiceState.BACKOFF:
            if replica.due is not None:
                self._changes.move(replica, Step.DUE, now)
        elif state is ServiceState.STOPPING:
            self._stopping.look(replica, now)
        elif state.has_process and self._watch.look(replica, now):
            self.ready(replica, replica.attempt, now)
            replica.detail = "taken for ready: it may have said so while nobody was there to hear it"

    # -- starting -----------------------------------------------------------------------------------------------------

    def _obstacle(self, replica: Replica) -> str | None:
        for other in replica.service.after:
            if not other.satisfied:
                return f"waits for {other.name}, which is {other.state.value}"
            if any(self._stopping.requested(one) and not one.removed for one in other.replicas):
                return f"waits for {other.name}, which is about to stop"
        return self._groups.obstacle(replica.service)
