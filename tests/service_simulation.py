"""All services of a keeper in virtual time: the real supervisor, simulated processes, faults drawn from a seed.

What the keeper hears may come late, out of order or twice; the keeper may sleep; people change their minds at any
moment. Everything random comes from one generator, so that a seed tells the whole story:
``python -m tests.service_simulation SEED`` tells it again.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import tenacity

from poolkeeper.policy import RestartPolicy, WorkerPolicy, stop_after_burst
from poolkeeper.replica import Ending, Replica, Service
from poolkeeper.service_commands import Announce, Ask, Collapse, Consult, Destroy, Dump, Launch, Sample, ServiceCommand
from poolkeeper.service_exits import LastWords
from poolkeeper.service_handover import Handover, ReplicaRecord, ServiceRecord
from poolkeeper.service_model import ExitReason, ServiceState
from poolkeeper.service_spec import ServiceGroup, ServiceSpec
from poolkeeper.supervisor import Supervisor

BEGINNING = 1000.0
STEP_LIMIT = 20_000
CALM = 120.0
"""Seconds without commands before the end, in which all that is under way comes to its end."""
PATIENCE = 400.0
"""Seconds within which everything is down after ``stop_all``."""

BUSY = (ServiceState.STARTING, ServiceState.RUNNING)


ROLL_CALL = 2.0
"""Seconds for which a keeper that takes over launches nothing."""


class Violation(AssertionError):
    """Something happened that must never happen."""


class Left(NamedTuple):
    """What a keeper has written down: its services, and which processes there are."""

    handover: str
    processes: dict[tuple[str, int], int]


class Process:
    """What a service's process does if nobody interferes, and what it has done."""

    def __init__(self, world: ServiceSimulation, replica: Replica, attempt: int) -> None:
        rng = world.random
        self.world = world
        self.replica = replica
        self.attempt = attempt
        self.pid = next(world.pids)
        self.exists = self.ended = False
        self.waiting_signals: list[Callable[[], None]] = []
        self.words: LastWords | None = None
        self.said: list[str] = []
        self.code: int | None = None
        self.silent_from = rng.choice([float("inf"), float("inf"), rng.expovariate(0.05)]) + world.now
        self.beats_every = (replica.spec.watchdog or 1.0) * rng.choice([0.3, 0.9])
        self.memory = rng.choice([10, 10, 10, 60, 200]) if world.happens("large") else 10

    def beat(self) -> float:
        """Return the last heartbeat."""
        until = min(self.world.now, self.silent_from)
        return until - until % self.beats_every

    def signal(self, act: Callable[[], None]) -> None:
        """Have a signal arrive, as soon as there is a process."""
        if self.exists:
            act()
        else:
            self.waiting_signals.append(act)

    def asked(self) -> None:
        """The stop signal has arrived."""
        if not self.world.happens("hang"):
            seconds = self.world.random.choice([0.0, 0.01, 1.0])
            self.world.after(seconds, lambda: self.end(self.world.random.choice([0, 0, -15, 1])))

    def end(self, code: int | None) -> None:
        """The process ends; the keeper hears of it sooner or later."""
        if self.ended:
            return
        self.ended = True
        world, words = self.world, self.words
        world.told(f"{self} ends ({code})")
        if world.happens("unknown end"):
            code = None
        self.code = code

        def hear() -> None:
            if self.replica.hold is not None and self.attempt == self.replica.attempt:
                world.may_start.add(self.replica)  # its group restarts
            world.supervisor.ended(self.replica, self.attempt, world.now, code=code, words=words)

        world.hear(hear)

    def __str__(self) -> str:
        return f"{self.replica.name}#{self.attempt}"


class ServiceSimulation:
    """The services of one keeper, from their declaration until they are down."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.tell = tell
        self.random = rng = random.Random(seed)
        random.seed(seed)  # tenacity's jitter comes from there
        self.now = BEGINNING
        self.max_starting = rng.choice([1, 1, 2, 3, 8])
        self.supervisor = Supervisor(self.max_starting, epoch=5e8)
        self.pids = count(100)
        self.processes: dict[Replica, Process] = {}
        self.not_before: dict[Replica, float] = {}
        self.may_start: set[Replica] = set()
        self.consulted: dict[Replica, Consult] = {}
        self.stopping_all = self.closing = False
        self.woke = 0.0
        self.keepers = 1
        """How many there have been; one that dies counts twice, for while it is away nobody hears anything."""
        self.found = 0
        self.again: set[Replica] = set()
        self.left = Left("{}", {})
        self.specs: list[ServiceSpec] = []
        self.seen: set[str] = set()
        self._tick = count()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._heard: list[Callable[[], object]] = []
        # Each seed has faults of its own kind, for all of them together would hide much of what one alone can do.
        self._odds = {
            fault: rng.choice([0.0, 0.0, odds])
            for fault, odds in {
                "refused": rng.choice([0.2, 0.8]),
                "hang": rng.choice([0.3, 1.0]),
                "never ready": rng.choice([0.2, 0.9]),
                "slow start": 0.5,
                "crash": rng.choice([0.3, 0.9, 1.0]),
                "end well": rng.choice([0.1, 0.5]),
                "unknown end": 0.2,
                "late": 0.3,
                "again": 0.1,
                "sleep": 0.03,
                "large": 0.5,
                "slow policy": 0.3,
                "decide first": 0.5,
                "keeper dies": rng.choice([0.2, 0.8]),
                "reboot": 0.3,
                "clock jumps": 0.5,
                "late writes": 0.95,
                "spawn is lost": 0.3,
            }.items()
        }
        self._records: dict[str, ServiceRecord] = {}
        self._declare()
        self._plan()

    # -- the scenario -------------------------------------------------------------------------------------------------

    def _declare(self) -> None:
        rng = self.random
        groups: list[ServiceGroup | None] = [None]
        for number in range(rng.choice([0, 0, 1, 2, 3])):
            groups.append(
                ServiceGroup(
                    f"group{number}",
                    strategy=rng.choice(["one_for_one", "one_for_all", "rest_for_one"]),
                    max_restarts=rng.choice([0, 1, 3, 10, None]),
                    within=rng.choice([1.0, 5.0, 60.0]),
                    parent=rng.choice(groups),
                    on_give_up=rng.choice(["ignore", "stop-fleet"]),
                )
            )
        names: list[str] = []
        for number in range(rng.choice([1, 2, 3, 4, 6])):
            name = f"s{number}"
            spec = ServiceSpec(
                name,
                print,
                restart=self._policy(),
                replicas=rng.choice([1, 1, 1, 2, 3, 0]),
                ready=rng.choice(["start", "notify"]),
                watchdog=rng.choice([None, None, 2.0, 10.0]),
                start_timeout=rng.choice([1.0, 5.0, 30.0]),
                stop_timeout=rng.choice([0.5, 10.0]),
                after=rng.sample(names, rng.choice([0, 0, 1, 2]) % (len(names) + 1)),
                priority=rng.choice([0, 0, 5, -1]),
                worker=WorkerPolicy(
                    max_age=rng.choice([None, None, 20.0]),
                    max_memory=rng.choice([None, None, 50]),
                    hard_memory=rng.choice([None, None, 100]),
                ),
                on_give_up=rng.choice(["ignore", "ignore", "ignore", "stop-fleet"]),
                group=rng.choice(groups),
            )
            names.append(name)
            self.specs.append(spec)
            self.supervisor.add(spec)

    def _policy(self) -> RestartPolicy:
        rng = self.random
        wait: Any = rng.choice(
            [tenacity.wait_none(), tenacity.wait_fixed(3), tenacity.wait_exponential_jitter(multiplier=0.1, max=30)]
        )
        stop: Any = rng.choice([tenacity.stop_never, tenacity.stop_after_attempt(3), stop_after_burst(3, 10)])
        when: Any = rng.choice(["always", "always", "on-failure", "never"])
        reset_after = rng.choice([None, 5.0, 60.0])
        if rng.random() < 0.2:
            return RestartPolicy.on_failure(max_retries=rng.choice([0, 1, 3]), delay=1.0)
        return RestartPolicy(when, stop=stop, wait=wait, reset_after=reset_after)

    def _plan(self) -> None:
        rng = self.random
        span = rng.choice([1.0, 30.0, 300.0])
        for service in self.supervisor.services.values():
            if rng.random() < 0.9:
                self.after(0.0, lambda service=service: self._start(service))  # type: ignore[misc]
        for _ in range(10):
            if self.happens("keeper dies"):
                self.after(0.001 + rng.random() * span, self._die)
        for _ in range(rng.choice([0, 3, 10, 30])):
            self.after(rng.random() * span, rng.choice([self._command, self._command, self._command, self._accident]))
        if rng.random() < 0.2:
            self.after(rng.random() * span, self._stop_all)
        self.end_at = self.now + span + CALM

    def _command(self) -> None:
        if not self.supervisor.services:  # no keeper is there to be asked
            return
        service = self.random.choice(list(self.supervisor.services.values()))
        self.random.choice([self._start, self._start, self._stop, self._stop, self._restart, self._scale])(service)

    def _start(self, service: Service) -> None:
        self.told(f"start {service.name}")
        self._permit(service)
        self.supervisor.start(service, self.now)
        self._hold(all(one.up for one in _staying(service)), f"{service.name} was started and is not to be up")

    def _stop(self, service: Service) -> None:
        self.told(f"stop {service.name}")
        self.supervisor.stop(service, self.now)
        self._hold(not any(one.up for one in service.replicas), f"{service.name} was stopped and is to be up")

    def _restart(self, service: Service) -> None:
        self.told(f"restart {service.name}")
        self._permit(service)
        self.supervisor.restart(service, self.now)
        for replica in _staying(service):
            self._hold(replica.up, f"{service.name} was restarted and is not to be up")
            known = self.supervisor._stopping.requested(replica)
            self._hold(replica.state not in BUSY or known is not None, f"{replica.name} was restarted and just goes on")

    def _scale(self, service: Service) -> None:
        number = self.random.choice([0, 1, 2, 4])
        self.told(f"scale {service.name} to {number}")
        self._permit(service)
        self.supervisor.scale(service, number, self.now)
        self._permit(service)
        staying = list(_staying(service))
        self._hold(len(staying) == number, f"{service.name} has {len(staying)} replicas in the place of {number}")
        numbers = [replica.number for replica in service.replicas]
        self._hold(numbers == sorted(set(numbers)), f"two replicas of {service.name} have one number: {numbers}")

    def _stop_all(self) -> None:
        self.told("stop all")
        self.stopping_all = True
        self.supervisor.stop_all(self.now, "by hand")

    def _permit(self, service: Service) -> None:
        """What a person starts needs no policy, nor does what it depends on."""
        self.stopping_all = False
        for one in [service, *_transitive(service, "after")]:
            for replica in one.replicas:
                self.not_before.pop(replica, None)
                self.may_start.add(replica)

    def _accident(self) -> None:
        living = [process for process in self.processes.values() if process.exists and not process.ended]
        for process in self.random.sample(living, self.random.choice([1, len(living)]) if living else 0):
            process.end(-9)

    # -- chance -------------------------------------------------------------------------------------------------------

    def happens(self, fault: str) -> bool:
        return self.random.random() < self._odds[fault]

    def latency(self) -> float:
        return self.random.choice([0.0, 0.001, 0.05])

    def after(self, delay: float, call: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._tick), call))

    def tell_keeper(self, delay: float, call: Callable[[], object]) -> None:
        """Have this keeper hear something, and no later one."""
        keeper = self.keepers
        if self.supervisor.services:  # else nobody is there
            self.after(delay, lambda: self.keepers != keeper or call())

    def hear(self, call: Callable[[], object]) -> None:
        """Have the keeper hear something: late, perhaps, and perhaps again much later."""
        self.tell_keeper(1.0 if self.happens("late") else self.latency(), call)
        if self.happens("again"):
            self.tell_keeper(self.random.expovariate(0.1), call)

    # -- processes ----------------------------------------------------------------------------------------------------

    def _launch(self, command: Launch) -> None:
        replica, attempt, supervisor = command.replica, command.attempt, self.supervisor
        earlier = self.processes.get(replica)
        self._hold(earlier is None or earlier.ended, f"two processes for {replica.name}")
        self._hold(not self.closing, f"{replica.name} starts after the end")
        due = self.not_before.pop(replica, None)
        self._hold(due is None or self.now >= due, f"{replica.name} starts {(due or 0.0) - self.now:g} s too early")
        self._hold(replica in self.may_start, f"nobody has called for {replica.name}")
        self.may_start.discard(replica)
        process = self.processes[replica] = Process(self, replica, attempt)
        self.told(f"launch {process}")
        if self.happens("refused"):
            process.ended = True
            self.may_start.add(replica)
            refused = partial(supervisor.refused, replica, attempt)
            self.tell_keeper(self.latency(), lambda: refused(self.now, "no more processes"))
        else:
            replica.pulse = process
            self.after(self.latency(), lambda: self._spawn(process))

    def _spawn(self, process: Process) -> None:
        if process.exists or process.ended:
            return
        rng = self.random
        process.exists = True
        self.hear(lambda: self.supervisor.spawned(process.replica, process.attempt, process.pid))
        for act in process.waiting_signals:
            act()
        seconds = rng.choice([0.0, 0.02]) + (rng.random() * 8.0 if self.happens("slow start") else 0.0)
        self.after(seconds, lambda: self._say(process, "started"))
        if not self.happens("never ready"):
            self.after(seconds + rng.random() * 0.1, lambda: self._say(process, "ready"))
        if self.happens("crash"):
            self.after(rng.choice([0.0, rng.random(), rng.expovariate(0.05)]), lambda: self._crash(process))
        elif self.happens("end well"):
            self.after(rng.expovariate(0.1), lambda: process.end(0))

    def _say(self, process: Process, word: str) -> None:
        if not process.ended:
            process.said.append(word)
            self.hear(lambda: getattr(self.supervisor, word)(process.replica, process.attempt, self.now))

    def _crash(self, process: Process) -> None:
        code = self.random.choice([-9, -11, 1, 3])
        if code == 1 and not process.ended:
            process.words = LastWords(ExitReason.RAISED, "ValueError: no", "Traceback")
        process.end(code)

    # -- the keeper's loop --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Simulate to the end; raises Violation, or whatever the supervisor raises."""
        for _ in range(STEP_LIMIT):
            if self.now >= self.end_at and not self.closing:
                self.closing, self.end_at = True, self.now
                self._stop_all()
            if self.closing and self.supervisor.down and not self._events:
                self._look_back()
                return
            deadline = self.supervisor.next_deadline()
            times = [when for when in (self._events[0][0] if self._events else None, deadline) if when is not None]
            if not self.closing:
                times.append(self.end_at)
            if not times:
                raise Violation("nothing will ever happen again, and not all is down")
            self._stays_quiet(min(times))
            self.now = max(self.now, min(times))
            if self.happens("sleep") and not self.closing:
                self.now += self.random.choice([1.0, 10.0, 1000.0])
                self.woke = self.now
                self.told("the keeper wakes")
            if self.closing and self.now > self.end_at + PATIENCE:
                break
            if not (self._odds["decide first"] and self.happens("decide first")):
                self._hear()
            self._decide()
            self._hear()
        raise Violation("there is no end to it")

    def _hear(self) -> None:
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[-1]()

    def _stays_quiet(self, until: float) -> None:
        """Nothing is to be done before the time that the supervisor has given."""
        moment = self.now + (until - self.now) * 0.999
        if self.now < moment < until:
            commands = self.supervisor.decide(moment)
            self._hold(not commands, f"{commands} would have been done too late")

    def _decide(self) -> None:
        while self.supervisor.next_deadline() is not None and (self.supervisor.next_deadline() or 0.0) <= self.now:
            commands = self.supervisor.decide(self.now)
            for command in commands:
                if isinstance(command, Ask):
                    self._check_order(command.replica)
                elif isinstance(command, Launch):
                    self._check_obstacles(command.replica)
            for command in commands:
                self._carry_out(command)
        self._look_around()
        self._write_down()

    def _carry_out(self, command: ServiceCommand) -> None:
        match command:
            case Launch():
                self._launch(command)
            case Ask(replica):
                process = self.processes[replica]
                self.after(self.latency(), lambda: process.signal(process.asked))
            case Destroy(replica):
                process = self.processes[replica]
                self.after(self.latency(), lambda: process.signal(lambda: process.end(-9)))
            case Dump(replica):
                self._hold(replica.state.has_process, f"{replica.name} has no stacks")
            case Consult(replica):
                self.consulted[replica] = command
                slow = self.random.expovariate(0.1) if self.happens("slow policy") else self.latency()
                self.tell_keeper(slow, lambda: self._answer(command))
            case Sample(replicas):
                for replica in replicas:
                    process = self.processes[replica]
                    self.supervisor.sampled(replica, process.memory if not process.ended else None, self.now)
            case Announce(event):
                self.seen.add(f"{event.previous} -> {event.state}" if event.state else event.kind)
                self.told(f"{event.kind} {event.name} {event.reason}")
                self._justify(event)
            case Collapse(reason):
                self.seen.add("collapse")
                self.told(f"collapse: {reason}")
                self.supervisor.stop_all(self.now, reason)

    def _justify(self, event: Any) -> None:
        """An end that was asked for, or by a group, is a reason to start again."""
        for replica in self.processes:
            if replica.name == event.name and event.state in ("waiting", "backoff") and replica.exits:
                reason = replica.exits[-1].reason
                asked = (ExitReason.RECYCLED, ExitReason.RESTARTED, ExitReason.STOPPED, ExitReason.GROUP)
                if reason in asked:
                    self.may_start.add(replica)

    def _answer(self, consult: Consult) -> None:
        replica = consult.replica
        error = RuntimeError(consult.error) if consult.error is not None else None
        delay, record = replica.spec.restart.after_exit(
            replica.record, started=consult.started, now=consult.ended, error=error, healthy=consult.healthy
        )
        valid = replica.state is ServiceState.BACKOFF and replica.due is None and consult.attempt == replica.attempt
        if valid and delay is not None:
            self.not_before[replica] = consult.ended + delay
            self.may_start.add(replica)
        self.told(f"the policy of {replica.name} says {delay}{'' if valid else ', too late'}")
        self.supervisor.decided(consult, delay, record, self.now)
        if valid and delay is None:
            self._hold(replica.state.at_rest, f"{replica.name} goes on without its policy")
        if self.happens("again"):
            self.tell_keeper(1.0, lambda: self.supervisor.decided(consult, delay, record, self.now))

    # -- one keeper after the other -----------------------------------------------------------------------------------

    def _write_down(self) -> None:
        """Write what the next keeper should know; a crash may come first."""
        if not self.supervisor.services or self.happens("late writes"):
            return
        for record in self.supervisor.describe(self.now):
            self._records[record.name] = record
        handover = Handover(tuple(self._records.values()), self.supervisor.describe_groups())
        processes = {
            (replica.service.name, replica.number): process.attempt
            for replica, process in self.processes.items()
            if process.exists and not process.ended and replica.pid == process.pid
        }
        self.left = Left(json.dumps(handover.to_data()), processes)

    def _die(self) -> None:
        away = self.random.choice([0.0, 0.1, 5.0, 100.0])
        if self.closing or not self.supervisor.services or self.now + away >= self.end_at - CALM / 2:
            return
        self.told(f"the keeper dies for {away} s")
        self.seen.add("the keeper dies")
        self.keepers += 1
        for process in self.processes.values():
            if not process.exists and self.happens("spawn is lost"):
                process.ended = True
        epoch = self.supervisor.epoch + (
            self.random.choice([-1e6, -50.0, 3.0, 1e6]) if self.happens("clock jumps") else 0.0
        )
        self.supervisor = Supervisor(self.max_starting, epoch=epoch)  # that of nobody
        if reboot := self.happens("reboot"):
            for process in self.processes.values():
                process.end(-9)
        self.after(away, lambda: self._take_over(reboot))

    def _take_over(self, reboot: bool) -> None:
        self.told("another keeper takes over" + (" after a reboot" if reboot else ""))
        self.keepers += 1
        self.stopping_all = False
        self.woke = self.now
        self.found = 0
        supervisor = self.supervisor
        left = Handover.from_data(json.loads(self.left.handover))
        self._hold(
            left.to_data() == json.loads(self.left.handover or "{}") or not left.services, "much is lost in writing"
        )
        records = {record.name: record for record in left.services}
        earlier = {(replica.service.name, replica.number): one for replica, one in self.processes.items()}
        for process in earlier.values():
            self._spawn(process)  # what was asked for is done
        living = {key: process for key, process in earlier.items() if process.exists and not process.ended}
        self.processes, self.not_before, self.may_start, self.consulted = {}, {}, set(), {}
        self.again = set()
        supervisor.inherit_groups(left.groups)
        supervisor.hold(self.now + ROLL_CALL)
        for spec in self.specs:
            service = supervisor.add(spec)
            record = records.get(spec.name)
            if record is None:  # nothing was written down before the crash
                record = ServiceRecord(spec.name, False, spec.replicas, spec.replicas)
            known = {
                number: attempt
                for (name, number), attempt in self.left.processes.items()
                if name == spec.name and (name, number) in living and living[name, number].attempt == attempt
            }
            supervisor.adopt(service, record, self.now, known, same_boot=not reboot)
            for replica in service.replicas:
                self._resume(replica, earlier.get((spec.name, replica.number)), record, reboot)
        self._records = dict(records)
        self.after(self.random.random() * ROLL_CALL * 0.9, lambda: self._call_roll(living))

    def _resume(self, replica: Replica, process: Process | None, left: ServiceRecord, reboot: bool) -> None:
        """Check one replica that was taken over, and tell what becomes of its process."""
        records = {record.number: record for record in left.replicas}
        record = records.get(replica.number, ReplicaRecord(replica.number))
        self._check_restored(replica, record, left, reboot)
        if replica.state in (ServiceState.WAITING, ServiceState.BACKOFF):
            self.may_start.add(replica)
        if replica.state is ServiceState.STOPPING:
            self.again.add(replica)
        if process is not None:
            process.replica = replica
            self.processes[replica] = process
        if not replica.state.has_process:
            return
        self.may_start.add(replica)  # if it turns out to have ended meanwhile
        attempt = replica.attempt
        if process is not None and process.attempt == attempt and process.exists and not process.ended:
            replica.pulse = process
            self.hear(lambda: self.supervisor.spawned(replica, attempt, process.pid))
            for word in process.said:
                self.hear(lambda word=word: getattr(self.supervisor, word)(replica, attempt, self.now))  # type: ignore[misc]
        else:
            code = process.code if process is not None and process.attempt == attempt else None
            self.tell_keeper(self.random.choice([0.0, 0.1, 5.0]), lambda: self._ended(replica, attempt, code))

    def _ended(self, replica: Replica, attempt: int, code: int | None) -> None:
        if replica.attempt == attempt and replica.hold is not None:
            self.may_start.add(replica)
        self.supervisor.ended(replica, attempt, self.now, code=code)

    def _check_restored(self, replica: Replica, record: ReplicaRecord, left: ServiceRecord, reboot: bool) -> None:
        hold, name, state = self._hold, replica.name, replica.state
        hold(replica.attempt >= record.attempt, f"{name} counts its processes anew")
        hold(replica.restarts == record.restarts, f"{name} has forgotten {record.restarts} restarts")
        if replica.attempt > record.attempt or replica.removed or record.removed:
            return
        if record.state.at_rest:
            waits = record.up or (left.wanted and not left.replicas)
            hold(
                waits or state is record.state or replica.number not in {one.number for one in left.replicas},
                f"{name} was {record.state} and is {state}",
            )
        else:
            hold(state is record.state, f"{name} was {record.state} and is {state}")
        if record.due is not None and state is ServiceState.BACKOFF:
            assert replica.due is not None
            assert left.epoch is not None
            hold(self.now <= replica.due <= self.now + record.due_in, f"{name} waits for {replica.due - self.now} s")
            if not reboot:
                due = max(self.now, record.due - left.epoch)
                hold(abs(replica.due - due) < 1e-4, f"{name} has forgotten its deadline: {due}, {replica.due}")
            self.not_before[replica] = replica.due

    def _call_roll(self, living: dict[tuple[str, int], Process]) -> None:
        """The fork server tells which processes there are."""
        supervisor = self.supervisor
        for (name, number), process in living.items():
            service = supervisor.services.get(name)
            replica = None if service is None else supervisor.replica(service, number)
            if process.ended or (
                replica is not None and replica.attempt == process.attempt and replica.state.has_process
            ):
                continue
            if replica is not None and replica.state.has_process and replica.attempt < process.attempt:
                supervisor.ended(replica, replica.attempt, self.now, code=None)
            heir = None if service is None else supervisor.found(service, number, process.attempt, self.now)
            if heir is None:
                self.told(f"{process} is one too many")
                process.end(-15)
                continue
            self.told(f"{process} is found")
            self.seen.add("found")
            self.found += 1
            process.replica = heir
            self.processes[heir] = process
            heir.pulse = process
            self.not_before.pop(heir, None)
            self.hear(lambda process=process: supervisor.spawned(process.replica, process.attempt, process.pid))  # type: ignore[misc]
            for word in process.said:
                self.hear(
                    lambda word=word, process=process: getattr(supervisor, word)(  # type: ignore[misc]
                        process.replica, process.attempt, self.now
                    )
                )
        supervisor.hold(None)

    # -- what must always hold ----------------------------------------------------------------------------------------

    def _check_obstacles(self, replica: Replica) -> None:
        for other in replica.service.after:
            self._hold(other.satisfied, f"{replica.name} starts before {other.name} is ready")
        for group in self.supervisor._groups.around(replica.service):
            self._hold(not group.leaving, f"{replica.name} starts before {group.name} has stopped")

    def _check_order(self, replica: Replica) -> None:
        """Of those that are to end, who is after others goes first."""
        if replica.ending in (Ending.START_TIMEOUT, Ending.WATCHDOG, Ending.MEMORY) or replica in self.again:
            return
        requested = self.supervisor._stopping.requested
        for other in _transitive(replica.service, "dependents", far=False):
            ends = [one for one in other.replicas if one.state is ServiceState.STOPPING or requested(one)]
            self._hold(not ends, f"{replica.name} is asked to end before {ends}")
        if self.stopping_all:
            for other in _transitive(replica.service, "dependents"):
                for one in other.replicas:
                    self._hold(not one.state.has_process, f"{replica.name} is asked to end before {one.name}")

    def _look_around(self) -> None:
        """After every decision."""
        supervisor, hold = self.supervisor, self._hold
        replicas = [replica for service in supervisor.services.values() for replica in service.replicas]
        starting = sum(replica.state is ServiceState.STARTING for replica in replicas)
        hold(supervisor.starting == starting, f"{starting} start, {supervisor.starting} are counted")
        hold(starting <= self.max_starting + self.found, f"{starting} start at once")
        open_for_starts = starting < self.max_starting and self.now >= supervisor._queue._opens
        for replica in replicas:
            state, request = replica.state, supervisor._stopping.requested(replica)
            if state.at_rest:
                hold(not replica.up, f"{replica.name} is {state.value} and to be up")
                hold(not replica.removed, f"{replica.name} is still here")
            elif not state.has_process:
                hold(replica.up, f"{replica.name} is {state.value} and not to be up")
            elif state is not ServiceState.STOPPING:
                hold(replica.up or request is not None, f"{replica.name} is not to be up, and nobody ends it")
            hold(request is None or state in BUSY, f"{replica.name} is {state.value} and to be asked to end")
            if state is ServiceState.WAITING:
                hold(bool(replica.detail), f"{replica.name} waits, and nobody knows for what")
                blocked = supervisor._obstacle(replica) is not None
                hold(blocked or not open_for_starts, f"{replica.name} waits for nothing: {replica.detail}")
            if state is ServiceState.BACKOFF and replica.due is None:
                hold(
                    self.consulted[replica].attempt == replica.attempt,
                    f"{replica.name} waits for an answer to no question",
                )
            if state is ServiceState.BACKOFF and replica.due is not None:
                hold(replica.due > self.now, f"{replica.name} should have started {self.now - replica.due} s ago")
            if state is ServiceState.STOPPING:
                hold(replica.force_at is not None and replica.force_at > self.now, f"{replica.name} may stop for ever")
            self._check_watch(replica)
            group = supervisor._groups.of(replica.service)
            while group is not None:
                hold(all(one.state.has_process for one in group.leaving), f"{group.name} waits for nobody to leave")
                group = group.parent

    def _check_watch(self, replica: Replica) -> None:
        spec, now = replica.spec, self.now
        if replica in self.supervisor._adoption._unseen:  # it may be gone, and somebody will say so
            return
        if replica.state is ServiceState.STARTING and spec.start_timeout is not None:
            late = now - max(replica.launched, self.woke) - spec.start_timeout
            self._hold(late < spec.start_timeout + 2.0, f"{replica.name} starts for ever")
        if replica.state is ServiceState.RUNNING and spec.watchdog is not None:
            process, ready_at = self.processes[replica], replica.ready_at
            assert ready_at is not None
            late = now - max(process.silent_from, ready_at, self.woke) - spec.watchdog
            self._hold(late < 2 * spec.watchdog + 2.0, f"{replica.name} is silent for {late} s")
        if replica.ending is Ending.WATCHDOG:
            assert spec.watchdog is not None
            self._hold(now - self.processes[replica].beat() >= spec.watchdog, f"{replica.name} was not silent")

    def _look_back(self) -> None:
        """At the end."""
        supervisor, hold = self.supervisor, self._hold
        hold(all(process.ended for process in self.processes.values()), "a process is left")
        supervisor.decide(self.now + 10.0)
        hold(not len(supervisor._timers), f"timers are left: {supervisor._timers._due}")
        hold(len(supervisor._timers._heap) < 40, "timers pile up")
        hold(not len(supervisor._queue), "somebody is left in the queue")
        hold(not supervisor._stopping._requests, "somebody is still to stop")
        hold(supervisor.next_deadline() is None, "there is a deadline, and nothing to do")
        known = {replica for service in supervisor.services.values() for replica in service.replicas}
        for replica in supervisor._replicas.values():
            self.seen.update(f"exit: {exit.reason.value}" for exit in replica.exits)
        hold(set(supervisor._replicas.values()) == known, "a replica of no service is left")
        for group in supervisor._groups._by_name.values():
            hold(not group.leaving, "somebody is still leaving")

    def _hold(self, condition: bool, what: str) -> None:
        if not condition:
            raise Violation(what)

    def told(self, what: str) -> None:
        if self.tell is not None:
            self.tell(f"{self.now - BEGINNING:12.6f} {what}")


def _staying(service: Service) -> Iterator[Replica]:
    return (replica for replica in service.replicas if not replica.removed)


def _transitive(service: Service, relation: str, *, far: bool = True) -> list[Service]:
    found: dict[Service, None] = {}
    todo: list[Service] = list(getattr(service, relation))
    while todo:
        other = todo.pop()
        if other not in found:
            found[other] = None
            todo.extend(getattr(other, relation) if far else ())
    return list(found)


def simulate(seed: int, tell: Callable[[str], None] | None = None) -> ServiceSimulation:
    """Run the simulation of ``seed``, telling ``tell`` what happens; raises Violation, which names the seed."""
    state = random.getstate()
    try:
        simulation = ServiceSimulation(seed, tell)
        try:
            simulation.run()
        except Exception as error:
            when = simulation.now - BEGINNING
            raise Violation(f"python -m tests.service_simulation {seed}: at {when:.6f} s: {error!r}") from error
    finally:
        random.setstate(state)
    return simulation


if __name__ == "__main__":
    simulate(int(sys.argv[1]), print)
