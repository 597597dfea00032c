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

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from operator import attrgetter

from .errors import FleetStopping
from .launch_queue import LaunchQueue
from .policy import RestartRecord
from .replica import Ending, Replica, Service
from .service_adoption import Adoption
from .service_changes import Changes
from .service_commands import Collapse, Consult, Launch, ServiceCommand
from .service_exits import LastWords, judge_exit
from .service_groups import Group, Groups, GroupVerdict
from .service_handover import GroupRecord, ReplicaRecord, ServiceRecord
from .service_model import ServiceExit, ServiceState
from .service_rolling import Rolling
from .service_spec import DeclarationError, ServiceSpec
from .service_states import Step
from .service_stopping import DUMP_SECONDS, Stopping
from .service_watch import SAMPLING, Watch
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
        self._max_starting = max_starting
        self._groups = Groups()
        self._queue = LaunchQueue(self._obstacle)
        self._changes = Changes(self._queue, epoch)
        self._timers = Timers()
        self._stopping = Stopping(self._changes, self._timers)
        self._watch = Watch(self._changes, self._timers, self._stopping)
        self._adoption = Adoption(self._changes, self._timers, self._stopping, self._watch, self._groups)
        self._rolling = Rolling(self._changes, self._stopping, self._obstacle, self._start_successor)
        self._rolling_waits = False
        self._ends = False
        self._closed = False
        self._replicas: dict[int, Replica] = {}
        self._next_id = SAMPLING + 1

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
        self._add_replicas(service, range(spec.replicas))
        return service

    def start(self, service: Service, now: float) -> None:
        """Start what is at rest, and what it is after; what runs goes on, what stops starts again afterwards.

        Raises FleetStopping, as ``restart`` and ``scale`` do where they would start something.
        """
        needed = _needed(service)
        self._admit(service, *needed)
        self._ends = False
        for other in needed:
            self._start(other, now)
        self._start(service, now, again=True)

    def _admit(self, *services: Service) -> None:
        if self._closed or any(service.ending for service in services):
            raise FleetStopping("the fleet is stopping: nothing is started any more")

    def stop(self, service: Service, now: float) -> None:
        """Stop all its replicas, until it is started."""
        self._let_go(service, for_good=True)
        for replica in list(service.replicas):
            self._stop(replica, now, "stopped by hand")

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
        self._admit(service, *_needed(service))
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
            self._admit(service)
        self._changes.touched.add(service)
        for replica in staying[number:]:
            replica.removed = True
            self._stop(replica, now, "scaled down")
            self._drop_if_removed(replica)
        missing = number - len(staying)
        leaving = [replica for replica in service.replicas if replica.removed]
        more = leaving[: max(0, missing)]
        for replica in more:
            replica.removed = False
        taken = {replica.number for replica in service.replicas}
        free = (candidate for candidate in range(number + len(taken)) if candidate not in taken)
        more += self._add_replicas(service, islice(free, max(0, missing - len(more))))
        if service.wanted:
            for replica in more:
                self._start_replica(replica, now, "scaled up")
        self._queue.recheck()

    def stop_all(self, now: float, reason: str = "") -> None:
        """Stop everything, what depends on others first; the next keeper starts it again."""
        self._ends = True
        for service in reversed(self.services.values()):
            self._wind_down(service, now, reason)

    def close(self, now: float, reason: str) -> None:
        """Stop everything, for the keeper ends: nothing is started any more."""
        self._closed = True
        self.stop_all(now, reason)

    def _wind_down(self, service: Service, now: float, reason: str) -> None:
        self._let_go(service, for_good=False)
        for replica in list(service.replicas):
            if not replica.state.at_rest:
                self._stop(replica, now, reason)

    def kill_all(self, now: float) -> None:
        """Stop everything at once."""
        self.stop_all(now, "killed")
        self._stopping.ask_all(now)
        for replica in self._replicas.values():
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
        return all(replica.state.at_rest for replica in self._replicas.values())

    # -- from keeper to keeper ----------------------------------------------------------------------------------------

    def describe(self, now: float) -> list[ServiceRecord]:
        """Return what the next keeper should know of the services that have changed since this was asked last."""
        touched, self._changes.touched = self._changes.touched, set()
        return [self._adoption.describe(service, now) for service in self.services.values() if service in touched]

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
        self._add_replicas(service, (number for number in numbers if number not in there))
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
                self._start_replica(replica, now, "")
            if not stays:
                replica.removed = True
                self._stop(replica, now, "scaled down")
                self._drop_if_removed(replica)
            if replica.state.has_process and replica.code and service.code and replica.code != service.code:
                self._rolling.add(replica)
        self._queue.recheck()

    def outdated(self, replica: Replica, attempt: int) -> None:
        """The process runs code that has changed: it is replaced in its turn."""
        if attempt == replica.attempt and replica.state.has_process:
            self._rolling.add(replica)

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
        if self._ends:
            self._let_go(service, for_good=False)
            self._stop(replica, now, "its fleet ends")
        return replica

    def replica(self, service: Service, number: int) -> Replica | None:
        """Return the replica of ``service`` that has a number."""
        return next((replica for replica in service.replicas if replica.number == number), None)

    def hold(self, until: float | None) -> None:
        """Launch nothing before ``until``, for it is not known yet which processes there are; None: it is known."""
        if until is None:
            self._queue.open()
        else:
            self._queue.close(until)

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
            self._vacate(replica, Step.RELAUNCH, now, why)

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
                self._take_place(replica, replica.incumbent)

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
        if attempt != replica.attempt or not replica.state.has_process:
            return
        exit = judge_exit(replica, now, self.epoch, code=code, words=words, stacks=stacks, out_of_memory=out_of_memory)
        replica.exits.append(exit)
        if replica.incumbent is not None:  # it has not become ready: the incumbent goes on
            replica.incumbent.exits.append(exit)
            replica.incumbent.successor = None
            replica.up, replica.removed = False, True
        elif replica.successor is not None:
            self._take_place(replica.successor, replica)
        asked = replica.ending
        again = asked is Ending.STOP or (asked is not None and asked.again)
        if self._stopping.requested(replica) is Ending.RESTART:  # people want a new process, however the old one ends
            again = True
        error = exit.describe() if exit.failure else None
        replica.healthy = 0.0 if replica.ready_at is None else now - replica.ready_at
        consult = Consult(replica, attempt, replica.launched, now, error, replica.healthy)
        self._vacate(replica, Step.AGAIN if again else Step.END, now, exit.describe(), exit)
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

    def sampled(self, replica: Replica, memory: int | None, now: float) -> None:
        """The replica's process has ``memory`` bytes resident."""
        if memory is not None and replica.state.has_process:
            self._watch.sampled(replica, memory, now)

    # -- time and decisions -------------------------------------------------------------------------------------------

    def decide(self, now: float) -> list[ServiceCommand]:
        """Return what is to be done now."""
        for number in self._timers.take(now):
            if number == SAMPLING:
                self._watch.sample(self._replicas.values(), now)
            elif number in self._replicas:
                self._look(self._replicas[number], now)
        self._rolling_waits = bool(self._rolling) and not self._queue.is_open(now)
        if not self._rolling_waits:
            self._rolling.advance(self.services.values(), now)
        self._stopping.ask_in_order(now)
        self._launch(now)
        self._queue.review()
        return self._changes.take()

    def next_deadline(self) -> float | None:
        """Return when ``decide`` must be called next even if nothing happens, None if never."""
        if self._changes or self._stopping.due or (self._rolling.due and not self._rolling_waits):
            return 0.0
        opens = self._queue.opens if self.starting < self._max_starting else None
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
        elif state.has_process:
            self._watch.look(replica, now)

    # -- starting -----------------------------------------------------------------------------------------------------

    def _start(self, service: Service, now: float, *, again: bool = False) -> None:
        """Start a service; ``again`` cuts a delay short and runs again what is completed."""
        service.wanted = True
        self._changes.touched.add(service)
        for replica in service.replicas:
            if not replica.removed and (again or not (replica.up or replica.state is ServiceState.COMPLETED)):
                self._start_replica(replica, now, "started by hand" if replica.attempt else "")

    def _start_replica(self, replica: Replica, now: float, reason: str) -> None:
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

    def _launch(self, now: float) -> None:
        while self.starting < self._max_starting:
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

    def _obstacle(self, replica: Replica) -> str | None:
        for other in replica.service.after:
            if not other.satisfied:
                return f"waits for {other.name}, which is {other.state.value}"
            if any(self._stopping.requested(one) and not one.removed for one in other.replicas):
                return f"waits for {other.name}, which is about to stop"
        return self._groups.obstacle(replica.service)

    # -- stopping -----------------------------------------------------------------------------------------------------

    def _stop(self, replica: Replica, now: float, reason: str) -> None:
        """End a replica's process when its turn has come; without one, it is down at once."""
        replica.up = False
        self._rolling.recheck()
        self._call_off(replica, now, reason)
        if replica.state in (ServiceState.STARTING, ServiceState.RUNNING):
            self._stopping.request(replica, Ending.STOP, reason)
        elif replica.state is not ServiceState.STOPPING:
            self._timers.cancel(replica.id)
            self._changes.move(replica, Step.STOP, now, reason)
            self._drop_if_removed(replica)

    # -- successors ---------------------------------------------------------------------------------------------------

    def _start_successor(self, replica: Replica, now: float, reason: str) -> None:
        """Start another process beside that of ``replica``."""
        successor = replica.successor = self._new_replica(replica.service, replica.number)
        successor.incumbent = replica
        successor.attempt = successor.used = max(replica.attempt, replica.used)
        successor.up = True
        replica.service.extras.append(successor)
        self._changes.move(successor, Step.START, now, reason)

    def _take_place(self, successor: Replica, replica: Replica) -> None:
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

    def _call_off(self, replica: Replica, now: float, reason: str) -> None:
        """No successor is wanted any more."""
        successor = replica.successor
        if successor is not None:
            replica.successor = successor.incumbent = None
            successor.removed = True
            self._stop(successor, now, reason)

    # -- after an end -------------------------------------------------------------------------------------------------

    def _vacate(self, replica: Replica, step: Step, now: float, reason: str, exit: ServiceExit | None = None) -> None:
        """A replica has no process any more; ``step`` follows unless it is down, or its group restarts."""
        why = replica.why
        self._stopping.gone(replica)
        self._adoption.gone(replica)
        replica.pid = replica.pulse = replica.ready_at = replica.due = None
        if not replica.up:
            self._changes.move(replica, Step.DOWN, now, why or reason, exit)
            self._drop_if_removed(replica)
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

    # -- groups -------------------------------------------------------------------------------------------------------

    def _take_along(self, verdict: GroupVerdict, group: Group, cause: Replica, due: float, now: float) -> None:
        """Restart those that share the fate of ``cause``."""
        for replica in _replicas_of(verdict):
            if replica is cause:
                continue
            if replica.state.has_process:
                self._call_off(replica, now, f"{cause.name} restarts")
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
                self._stop(replica, now, reason)
        if group.spec.on_give_up == "stop-fleet":
            self._changes.command(Collapse(reason))

    # -- book-keeping -------------------------------------------------------------------------------------------------

    def _new_replica(self, service: Service, number: int) -> Replica:
        replica = Replica(self._next_id, service, number)
        self._next_id += 1
        self._replicas[replica.id] = replica
        return replica

    def _add_replicas(self, service: Service, numbers: Iterable[int]) -> list[Replica]:
        added = [self._new_replica(service, number) for number in numbers]
        service.replicas.extend(added)
        service.replicas.sort(key=attrgetter("number"))
        return added

    def _drop_if_removed(self, replica: Replica) -> None:
        if replica.removed and replica.state.at_rest and replica.id in self._replicas:
            del self._replicas[replica.id]
            service = replica.service
            (service.extras if replica in service.extras else service.replicas).remove(replica)
            self._timers.cancel(replica.id)
            self._queue.recheck()


def _needed(service: Service) -> list[Service]:
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


def _replicas_of(verdict: GroupVerdict) -> Iterator[Replica]:
    for service in verdict.along:
        yield from list(service.replicas)
