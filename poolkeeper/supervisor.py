"""All decisions about services: what happened goes in as method calls, what to do comes out as commands. Pure.

Rules:

- A replica has one process at most. What is heard of an earlier one is recognised by its attempt and ignored.
- A service starts when all that it is ``after`` is ready, and is asked to stop when all that is after it is down.
- At most ``max_starting`` processes are not ready yet at any time, the rest waits by priority, then age.
- An end that nobody asked for, or that was forced on a process that hung, goes to the restart policy; its delay counts
  from that end. An end that was asked for does not.
- Whoever does not stop in time has its stacks written down, and is killed.
- A timer that is far too late says that this process, or the whole machine, has slept: watchdogs get another period.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .launch_queue import LaunchQueue
from .policy import RestartRecord
from .replica import Ending, Force, Replica, Service
from .service_commands import Announce, Ask, Collapse, Consult, Destroy, Dump, Launch, Sample, ServiceCommand
from .service_exits import LastWords, judge_exit
from .service_groups import Group, Groups
from .service_model import ExitReason, ServiceEvent, ServiceExit, ServiceState
from .service_spec import DeclarationError, ServiceSpec
from .service_states import Step, advance_service
from .timers import Timers

__all__ = ["Supervisor"]

DUMP_SECONDS = 0.25
"""How long a hanging process gets to write down its stacks."""

KILL_AGAIN_SECONDS = 5.0
"""After this a process that was killed and is still there is killed once more."""

SAMPLE_SECONDS = 1.0
"""Seconds between two looks at the memory of services that have a limit."""

FIRST_PAUSE = 0.05
"""Seconds without further starts after the system has refused a process; doubled each time, up to seven times."""

LATE_SECONDS = 1.0
"""A watchdog's timer that is later than this, or half its period, says nothing about the service."""

AGE_JITTER = 0.1
"""By how much of ``max_age`` replicas differ, so that those started together are not all replaced together."""

_SAMPLING = 0  # the number of the timer for memory; replicas count from 1


class Supervisor:
    """Owns the state of all services of one keeper.

    ``max_starting`` bounds the processes that are not ready yet. ``epoch`` is what makes seconds of the monotonic clock
    seconds since the epoch.
    """

    def __init__(self, max_starting: int, epoch: float = 0.0) -> None:
        self.services: dict[str, Service] = {}
        self.epoch = epoch
        self.starting = 0
        self._max_starting = max_starting
        self._groups = Groups()
        self._queue = LaunchQueue(self._obstacle)
        self._timers = Timers()
        self._replicas: dict[int, Replica] = {}
        self._next_id = 1
        self._to_stop: dict[Replica, Ending] = {}
        self._commands: list[ServiceCommand] = []
        self._refused = 0
        self._launch_after = 0.0

    # -- what people ask for ------------------------------------------------------------------------------------------

    def add(self, spec: ServiceSpec) -> Service:
        """Take on a service, not started yet.

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
        service = Service(spec)
        before = [self.services[name] for name in spec.after]
        if spec.group is not None and spec.group.strategy == "rest_for_one":
            last = self._groups.last_before(spec.group)
            if last is not None and last not in before:
                before.append(last)
        self._groups.join(service)
        service.after = before
        for other in before:
            other.dependents.append(service)
        self.services[spec.name] = service
        for number in range(spec.replicas):
            self._add_replica(service, number)
        return service

    def start(self, service: Service, now: float) -> None:
        """Start what is at rest, and what it is after; what runs goes on, what stops starts again afterwards."""
        for other in service.after:
            if not other.satisfied and other.state.at_rest:
                self.start(other, now)
        for replica in service.replicas:
            self._start(replica, now, "started by hand" if replica.attempt else "")

    def stop(self, service: Service, now: float) -> None:
        """Stop all its replicas."""
        for replica in service.replicas:
            self._stop(replica, Ending.STOP, now, "stopped by hand")

    def restart(self, service: Service, now: float) -> None:
        """Replace the process of each replica by a new one; start what is at rest."""
        for replica in service.replicas:
            if replica.state in (ServiceState.STARTING, ServiceState.RUNNING):
                self._stop(replica, Ending.RESTART, now, "restarted by hand")
            else:
                self._start(replica, now, "restarted by hand")

    def scale(self, service: Service, number: int, now: float) -> None:
        """Have ``number`` replicas of a service: start more, or stop those with the highest numbers."""
        up = any(replica.up for replica in service.replicas) or not service.replicas
        staying = [replica for replica in service.replicas if not replica.removed]
        for replica in staying[number:]:
            replica.removed = True
            self._stop(replica, Ending.STOP, now, "scaled down")
            self._drop_if_removed(replica)
        taken = {replica.number for replica in service.replicas}
        free = (candidate for candidate in range(number + len(taken)) if candidate not in taken)
        for _ in range(number - len(staying)):
            replica = self._add_replica(service, next(free))
            if up:
                self._start(replica, now, "scaled up")
        self._queue.recheck()

    def stop_all(self, now: float, reason: str = "") -> None:
        """Stop everything, what depends on others first."""
        for service in reversed(self.services.values()):
            for replica in service.replicas:
                if not replica.state.at_rest:
                    self._stop(replica, Ending.STOP, now, reason)

    def kill_all(self, now: float) -> None:
        """Stop everything at once."""
        self.stop_all(now, "killed")
        for replica in list(self._to_stop):
            self._ask(replica, self._to_stop.pop(replica), now)
        for replica in self._replicas.values():
            if replica.state is ServiceState.STOPPING:
                self._destroy(replica, now)

    @property
    def down(self) -> bool:
        """Whether no process is left and none is to come."""
        return all(replica.state.at_rest for replica in self._replicas.values())

    # -- what processes do --------------------------------------------------------------------------------------------

    def spawned(self, replica: Replica, attempt: int, pid: int) -> None:
        """The process exists."""
        if attempt == replica.attempt:
            replica.pid = pid
            self._refused = 0

    def refused(self, replica: Replica, attempt: int, now: float, why: str) -> None:
        """The process could not be made, for no fault of the service: it waits for its turn again."""
        if attempt != replica.attempt or not replica.state.has_process:
            return
        self._launch_after = now + FIRST_PAUSE * 2 ** min(self._refused, 7)
        self._refused += 1
        self._forget_process(replica)
        self._to_stop.pop(replica, None)
        if replica.up:
            self._move(replica, Step.RELAUNCH, now, why)
        else:
            self._move(replica, Step.DOWN, now)
            self._drop_if_removed(replica)
        self._gone(replica)

    def started(self, replica: Replica, attempt: int, now: float) -> None:
        """The callable is about to be called, or the program has been executed."""
        if attempt == replica.attempt and replica.spec.ready == "start":
            self.ready(replica, attempt, now)

    def ready(self, replica: Replica, attempt: int, now: float) -> None:
        """The service says that it is ready."""
        if attempt != replica.attempt or not replica.state.has_process or replica.told_ready:
            return
        replica.told_ready = True
        self._move(replica, Step.READY, now)
        if replica.state is ServiceState.RUNNING:
            replica.ready_at = now
            self._timers.cancel(replica.id)
            self._watch(replica, now)

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
        ending = replica.ending or self._to_stop.get(replica)
        started = replica.launched
        replica.exits.append(exit)
        self._to_stop.pop(replica, None)
        self._forget_process(replica)
        if not replica.up:
            self._move(replica, Step.DOWN, now, replica.detail or exit.describe(), exit)
            self._drop_if_removed(replica)
        elif ending is Ending.GROUP:
            self._move(replica, Step.END, now, exit.describe(), exit)
            self._delay(replica, replica.hold or now)
        elif ending is Ending.STOP or (ending is not None and ending.again):
            self._move(replica, Step.AGAIN, now, exit.describe(), exit)
        else:
            self._move(replica, Step.END, now, exit.describe(), exit)
            error = exit.describe() if exit.failure else None
            self._commands.append(Consult(replica, attempt, started, now, error))
        self._gone(replica)

    def decided(self, consult: Consult, delay: float | None, record: RestartRecord, now: float, why: str = "") -> None:
        """The restart policy has spoken: start again after ``delay`` seconds, or None for no more."""
        replica = consult.replica
        if consult.attempt != replica.attempt or replica.state is not ServiceState.BACKOFF or replica.due is not None:
            return
        replica.record = record
        if delay is not None:
            replica.restarts += 1
            due = consult.ended + delay
            self._delay(replica, due)
            self._restart_group(replica, due, now)
        elif consult.error is None:
            self._move(replica, Step.COMPLETE, now)
        else:
            self._fail(replica, why or _exhausted(replica), now)
            if replica.spec.on_give_up == "stop-fleet":
                self._commands.append(Collapse(f"service {replica.name} has failed: {consult.error}"))

    def sampled(self, replica: Replica, memory: int | None, now: float) -> None:
        """The replica's process has ``memory`` bytes resident."""
        limits = replica.spec.worker
        if memory is None or replica.state not in (ServiceState.STARTING, ServiceState.RUNNING):
            return
        if limits.hard_memory is not None and memory > limits.hard_memory:
            self._ask(replica, Ending.MEMORY, now, quietly=True)
            self._destroy(replica, now)
        elif limits.max_memory is not None and memory > limits.max_memory:
            self._stop(replica, Ending.RECYCLE, now, f"memory of {memory} bytes exceeds max_memory={limits.max_memory}")

    # -- time and decisions -------------------------------------------------------------------------------------------

    def decide(self, now: float) -> list[ServiceCommand]:
        """Return what is to be done now."""
        for number in self._timers.take(now):
            if number == _SAMPLING:
                self._sample(now)
            elif number in self._replicas:
                self._look(self._replicas[number], now)
        if self._to_stop:
            self._stop_in_order(now)
        if self._queue and now >= self._launch_after:
            self._launch(now)
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """Return when ``decide`` must be called next even if nothing happens, None if never."""
        if self._commands:
            return 0.0
        deadline = self._timers.earliest
        if self._queue and self.starting < self._max_starting:
            deadline = self._launch_after if deadline is None else min(deadline, self._launch_after)
        return deadline

    # -- starting -----------------------------------------------------------------------------------------------------

    def _start(self, replica: Replica, now: float, reason: str) -> None:
        replica.up = True
        if self._to_stop.get(replica) is Ending.STOP:
            del self._to_stop[replica]  # it has not been asked yet
        if replica.state.at_rest or replica.state is ServiceState.BACKOFF:
            replica.record = RestartRecord()
            self._timers.cancel(replica.id)
            self._move(replica, Step.START, now, reason)

    def _launch(self, now: float) -> None:
        while self.starting < self._max_starting:
            replica = self._queue.take()
            if replica is None:
                return
            replica.attempt += 1
            replica.told_ready = False
            replica.launched = now
            self._move(replica, Step.LAUNCH, now)
            if replica.spec.start_timeout is not None:
                self._timers.set(replica.id, now + replica.spec.start_timeout)
            self._commands.append(Launch(replica, replica.attempt))

    def _obstacle(self, replica: Replica) -> str | None:
        for other in replica.service.after:
            if not other.satisfied:
                return f"waits for {other.name}, which is {other.state.value}"
        for group in self._groups.around(replica.service):
            if group.leaving:
                return f"waits for group {group.name} to stop"
        return None

    # -- running ------------------------------------------------------------------------------------------------------

    def _watch(self, replica: Replica, now: float) -> None:
        """Set the timers of a replica that runs."""
        spec, ready_at = replica.spec, replica.ready_at
        assert ready_at is not None
        if spec.watchdog is not None:
            beat = replica.pulse.beat() if replica.pulse is not None else 0.0
            self._timers.set(replica.id, max(beat, ready_at) + spec.watchdog)
        if spec.worker.max_age is not None:
            self._timers.set(replica.id, ready_at + _age(spec.worker.max_age, replica.id))
        if spec.worker.max_memory is not None or spec.worker.hard_memory is not None:
            self._timers.set(_SAMPLING, now + SAMPLE_SECONDS)

    def _look(self, replica: Replica, now: float) -> None:
        """A timer of this replica is due."""
        spec, state = replica.spec, replica.state
        if state is ServiceState.BACKOFF:
            if replica.due is not None and now >= replica.due:
                self._move(replica, Step.DUE, now)
            elif replica.due is not None:
                self._timers.set(replica.id, replica.due)
        elif state is ServiceState.STARTING:
            self._dump(replica)
            self._ask(replica, Ending.START_TIMEOUT, now)
        elif state is ServiceState.RUNNING:
            assert replica.ready_at is not None
            if spec.worker.max_age is not None and now >= replica.ready_at + _age(spec.worker.max_age, replica.id):
                self._stop(replica, Ending.RECYCLE, now, f"it has reached max_age={spec.worker.max_age:g} s")
            elif not self._is_overdue(replica, now):
                self._watch(replica, now)
        elif state is ServiceState.STOPPING and replica.force_at is not None and now >= replica.force_at:
            self._force(replica, now)

    def _is_overdue(self, replica: Replica, now: float) -> bool:
        """Look for the heartbeat; whoever has missed it is ended."""
        watchdog = replica.spec.watchdog
        if watchdog is None or replica.ready_at is None:
            return False
        beat = replica.pulse.beat() if replica.pulse is not None else 0.0
        late = now - (max(beat, replica.ready_at) + watchdog)
        if late < 0:
            return False
        if late > max(LATE_SECONDS, watchdog / 2):
            replica.ready_at = now  # nobody has looked in time: was it only we who slept?
            return False
        self._ask(replica, Ending.WATCHDOG, now, quietly=True)
        self._dump(replica)
        replica.force, replica.force_at = Force.DUMPED, now + DUMP_SECONDS
        self._timers.cancel(replica.id)
        self._timers.set(replica.id, replica.force_at)
        return True

    def _sample(self, now: float) -> None:
        limited = [
            replica
            for replica in self._replicas.values()
            if replica.state in (ServiceState.STARTING, ServiceState.RUNNING)
            and (replica.spec.worker.max_memory is not None or replica.spec.worker.hard_memory is not None)
        ]
        if limited:
            self._commands.append(Sample(limited))
            self._timers.set(_SAMPLING, now + SAMPLE_SECONDS)

    # -- stopping -----------------------------------------------------------------------------------------------------

    def _stop(self, replica: Replica, ending: Ending, now: float, reason: str = "") -> None:
        """End a replica's process when its turn has come; without one, it is down at once."""
        if ending is Ending.STOP:
            replica.up = False
        if replica.state in (ServiceState.STARTING, ServiceState.RUNNING):
            replica.detail = reason
            self._to_stop[replica] = ending
        elif ending is Ending.STOP and replica.state is not ServiceState.STOPPING:
            self._timers.cancel(replica.id)
            self._move(replica, Step.STOP, now, reason)
            self._drop_if_removed(replica)

    def _stop_in_order(self, now: float) -> None:
        for replica, ending in list(self._to_stop.items()):
            held = any(
                dependent in self._to_stop or dependent.state is ServiceState.STOPPING
                for service in replica.service.dependents
                for dependent in service.replicas
            )
            if not held:
                del self._to_stop[replica]
                self._ask(replica, ending, now)

    def _ask(self, replica: Replica, ending: Ending, now: float, *, quietly: bool = False) -> None:
        """Ask a process to end, or ``quietly`` only take note that it will."""
        replica.ending = ending
        self._move(replica, Step.STOP, now, replica.detail or ending.value.value)
        replica.force, replica.force_at = Force.ASKED, now + replica.spec.stop_timeout
        self._timers.cancel(replica.id)
        self._timers.set(replica.id, replica.force_at)
        if not quietly:
            self._commands.append(Ask(replica))

    def _force(self, replica: Replica, now: float) -> None:
        """A process has not ended in time: first its stacks, then its life."""
        if replica.force is Force.ASKED:
            self._dump(replica)
            replica.force, replica.force_at = Force.DUMPED, now + DUMP_SECONDS
            self._timers.set(replica.id, replica.force_at)
        else:
            self._destroy(replica, now)

    def _dump(self, replica: Replica) -> None:
        self._commands.append(Dump(replica))

    def _destroy(self, replica: Replica, now: float) -> None:
        self._commands.append(Destroy(replica))
        replica.force, replica.force_at = Force.KILLED, now + KILL_AGAIN_SECONDS
        self._timers.cancel(replica.id)
        self._timers.set(replica.id, replica.force_at)

    # -- after an end -------------------------------------------------------------------------------------------------

    def _delay(self, replica: Replica, due: float) -> None:
        replica.due = due
        self._timers.cancel(replica.id)
        self._timers.set(replica.id, due)

    def _fail(self, replica: Replica, reason: str, now: float) -> None:
        replica.up = False
        self._timers.cancel(replica.id)
        self._move(replica, Step.GIVE_UP, now, reason)

    def _restart_group(self, replica: Replica, due: float, now: float) -> None:
        """Take along whom the replica's groups say; see ``Group`` for when a group fails."""
        child: Service | Group = replica.service
        group = self._groups.of(replica.service)
        while group is not None:
            if group.stands(now):
                self._take_along(group, group.affected(child), replica, due, now)
                return
            spec = group.spec
            reason = f"group {group.name}: more than {spec.max_restarts} restarts within {spec.within:g} s"
            self._tell("group.failed", group.name, now, reason)
            group.forget()
            if group.parent is None:
                self._give_up_group(group, replica, reason, now)
                return
            child, group = group, group.parent

    def _take_along(self, group: Group, services: Iterable[Service], cause: Replica, due: float, now: float) -> None:
        for replica in _replicas_of(services):
            if replica is cause:
                continue
            if replica.state is ServiceState.BACKOFF:
                self._delay(replica, due)
            elif replica.state in (ServiceState.STARTING, ServiceState.RUNNING):
                replica.hold = due
                group.leaving.add(replica)
                self._stop(replica, Ending.GROUP, now, f"{cause.name} restarts")

    def _give_up_group(self, group: Group, cause: Replica, reason: str, now: float) -> None:
        self._fail(cause, reason, now)
        for replica in _replicas_of(group.services()):
            if not replica.state.at_rest:
                self._stop(replica, Ending.STOP, now, reason)
        if group.spec.on_give_up == "stop-fleet":
            self._commands.append(Collapse(reason))

    def _gone(self, replica: Replica) -> None:
        for group in self._groups.around(replica.service):
            group.leaving.discard(replica)
        self._queue.recheck()

    # -- book-keeping -------------------------------------------------------------------------------------------------

    def _add_replica(self, service: Service, number: int) -> Replica:
        replica = Replica(self._next_id, service, number)
        self._next_id += 1
        self._replicas[replica.id] = replica
        service.replicas.append(replica)
        return replica

    def _drop_if_removed(self, replica: Replica) -> None:
        if replica.removed and replica.state.at_rest and replica.id in self._replicas:
            del self._replicas[replica.id]
            replica.service.replicas.remove(replica)
            self._timers.cancel(replica.id)
            self._queue.recheck()

    def _forget_process(self, replica: Replica) -> None:
        self._timers.cancel(replica.id)
        replica.pid = None
        replica.pulse = None
        replica.ready_at = None
        replica.due = None
        replica.ending = None
        replica.force, replica.force_at = Force.ASKED, None

    def _move(
        self, replica: Replica, step: Step, now: float, reason: str = "", exit: ServiceExit | None = None
    ) -> None:
        before = replica.state
        after = replica.state = advance_service(before, step)
        if after is before:
            return
        replica.detail = reason
        self.starting += (after is ServiceState.STARTING) - (before is ServiceState.STARTING)
        if after is ServiceState.WAITING:
            replica.due = replica.hold = None
            replica.waiting_since = now
            self._queue.add(replica)
        self._queue.recheck()
        self._commands.append(
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

    def _tell(self, kind: str, name: str, now: float, reason: str) -> None:
        self._commands.append(Announce(ServiceEvent(time=now + self.epoch, kind=kind, name=name, reason=reason)))


def _replicas_of(services: Iterable[Service]) -> Iterator[Replica]:
    for service in services:
        yield from list(service.replicas)


def _age(max_age: float, id: int) -> float:
    """Return a replica's own share of ``max_age``: spread evenly, and the same each time."""
    return max_age * (1 - AGE_JITTER * (id * 0.6180339887 % 1))


def _exhausted(replica: Replica) -> str:
    last = replica.exits[-1].describe() if replica.exits else ""
    number = len([exit for exit in replica.exits if exit.reason is not ExitReason.STOPPED])
    return f"its restart policy is exhausted after {number} runs; the last one: {last}"
