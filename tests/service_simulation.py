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
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from poolkeeper.service_rolling import CHANGED
from poolkeeper.service_spec import ServiceGroup, ServiceSpec
from poolkeeper.supervisor import Supervisor
from tests.service_promises import BUSY, Promises, Tag, Violation, staying, transitive

BEGINNING = 1000.0
STEP_LIMIT = 20_000
CALM = 120.0
"""Seconds without commands before the end, in which all that is under way comes to its end."""
PATIENCE = 400.0
"""Seconds within which everything is down after ``stop_all``."""

ASKED = (ExitReason.RECYCLED, ExitReason.RESTARTED, ExitReason.STOPPED, ExitReason.GROUP, ExitReason.UPGRADED)

ROLL_CALL = 2.0
"""Seconds for which a keeper that takes over launches nothing."""


class Left(NamedTuple):
    """What a keeper has written down: its services, and which processes there are."""

    handover: str
    processes: frozenset[Tag]


class Process:
    """What a service's process does if nobody interferes, and what it has done."""

    def __init__(self, world: ServiceSimulation, replica: Replica, attempt: int) -> None:
        rng = world.random
        self.world = world
        self.replica = replica
        self.attempt = attempt
        self.tag = (replica.service.name, replica.number, attempt)
        self.code = replica.code
        self.pid = next(world.pids)
        self.exists = self.ended = self.mute = False
        self.waiting_signals: list[Callable[[], None]] = []
        self.words: LastWords | None = None
        self.said: list[str] = []
        self.exitcode: int | None = None
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
        self.exitcode = code

        def hear() -> None:
            if self.replica.hold is not None and self.attempt == self.replica.attempt:
                world.may_start.add(self.replica)  # its group restarts
            world.supervisor.ended(self.replica, self.attempt, world.now, code=code, words=words)

        world.hear_of(self, hear)

    def __str__(self) -> str:
        return f"{self.replica.name}#{self.attempt}"


class ServiceSimulation(Promises):
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
        self.all: dict[Tag, Process] = {}
        """Every process that there has been, whichever keeper has had it made; the last one of each tag."""
        self.not_before: dict[Replica, float] = {}
        self.may_start: set[Replica] = set()
        self.consulted: dict[Replica, Consult] = {}
        self.stopping_all = self.closing = False
        self.woke = 0.0
        self.keepers = 1
        """How many there have been; one that dies counts twice, for while it is away nobody hears anything."""
        self.found = 0
        self.again: set[Replica] = set()
        self.left = Left("{}", frozenset())
        self.specs: list[ServiceSpec] = []
        self.codes: dict[str, str] = {}
        """The fingerprint of each service's code, as the next keeper will find it."""
        self.names = count()
        self.upgrade_failed = False
        self.restarts: dict[tuple[str, int], int] = {}
        """Of each replica, as its keeper has counted them so far."""
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
        self._odds["upgrade"] = rng.choice([0.0, 0.1, 0.4])
        self._odds["other version"] = rng.choice([0.0, 0.2, 0.8])
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
        self.groups = groups
        for _ in range(rng.choice([1, 2, 3, 4, 6])):
            spec = self._new_spec()
            self.specs.append(spec)
            self.supervisor.add(spec, self.codes[spec.name])

    def _new_spec(self) -> ServiceSpec:
        rng, names = self.random, [spec.name for spec in self.specs]
        name = f"s{next(self.names)}"
        self.codes[name] = "0"
        return ServiceSpec(
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
            group=rng.choice(self.groups),
            overlap=rng.choice([False, True]),
        )

    def _change_program(self) -> None:
        """The next keeper runs another version: services have changed, come or gone."""
        rng = self.random
        self.seen.add("upgrade")
        if self.specs and rng.random() < 0.2:
            gone = rng.choice(self.specs)
            self.specs.remove(gone)
            self.specs = [
                replace(spec, after=[name for name in spec.after if name != gone.name]) for spec in self.specs
            ]
        for index, spec in enumerate(self.specs):
            if rng.random() < 0.6:
                self.codes[spec.name] = str(int(self.codes[spec.name]) + 1)
            if rng.random() < 0.2:
                self.specs[index] = replace(spec, replicas=rng.choice([0, 1, 2, 3]))
        if rng.random() < 0.2 or not self.specs:
            self.specs.append(self._new_spec())
        self.told(f"new version: {[(spec.name, self.codes[spec.name]) for spec in self.specs]}")

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
            if self.happens("upgrade"):
                self.after(0.001 + rng.random() * span, partial(self._die, reload=rng.random() < 0.8))
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
        self._hold(all(one.up for one in staying(service)), f"{service.name} was started and is not to be up")

    def _stop(self, service: Service) -> None:
        self.told(f"stop {service.name}")
        self.supervisor.stop(service, self.now)
        self._hold(not any(one.up for one in service.replicas), f"{service.name} was stopped and is to be up")

    def _restart(self, service: Service) -> None:
        self.told(f"restart {service.name}")
        self._permit(service)
        self.supervisor.restart(service, self.now)
        for replica in staying(service):
            self._hold(replica.up, f"{service.name} was restarted and is not to be up")
            known = self.supervisor._stopping.requested(replica)
            self._hold(replica.state not in BUSY or known is not None, f"{replica.name} was restarted and just goes on")

    def _scale(self, service: Service) -> None:
        number = self.random.choice([0, 1, 2, 4])
        self.told(f"scale {service.name} to {number}")
        self.restarts = {key: restarts for key, restarts in self.restarts.items() if key[0] != service.name}
        self._permit(service)
        self.supervisor.scale(service, number, self.now)
        self._permit(service)
        there = list(staying(service))
        self._hold(len(there) == number, f"{service.name} has {len(there)} replicas in the place of {number}")
        numbers = [replica.number for replica in service.replicas]
        self._hold(numbers == sorted(set(numbers)), f"two replicas of {service.name} have one number: {numbers}")

    def _stop_all(self) -> None:
        self.told("stop all")
        self.stopping_all = True
        self.supervisor.stop_all(self.now, "by hand")

    def _permit(self, service: Service) -> None:
        """What a person starts needs no policy, nor does what it depends on."""
        self.stopping_all = False
        for one in [service, *transitive(service, "after")]:
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

    def hear_of(self, process: Process, call: Callable[[], object]) -> None:
        """The same of a process, unless it is nobody's, or not known yet."""
        if self.processes.get(process.replica) is process:
            self.hear(call)

    # -- processes ----------------------------------------------------------------------------------------------------

    def _launch(self, command: Launch) -> None:
        replica, attempt, supervisor = command.replica, command.attempt, self.supervisor
        self._check_alone(replica, attempt)
        self._hold(not self.closing, f"{replica.name} starts after the end")
        due = self.not_before.pop(replica, None)
        self._hold(due is None or self.now >= due, f"{replica.name} starts {(due or 0.0) - self.now:g} s too early")
        self._hold(replica in self.may_start, f"nobody has called for {replica.name}")
        self.may_start.discard(replica)
        process = self.processes[replica] = Process(self, replica, attempt)
        self.all[process.tag] = process
        self._hold(process.code == self.codes[replica.service.name], f"{process} runs code that is not the newest")
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
        self.hear_of(process, lambda: self.supervisor.spawned(process.replica, process.attempt, process.pid))
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
        if not (process.ended or process.mute):
            self.hear_of(process, lambda: getattr(self.supervisor, word)(process.replica, process.attempt, self.now))

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
                self._ask(replica)
            case Destroy(replica):
                self._signal(replica, lambda process: process.end(-9))
            case Dump(replica):
                self._hold(replica.state.has_process, f"{replica.name} has no stacks")
            case Consult(replica):
                self.consulted[replica] = command
                slow = self.random.expovariate(0.1) if self.happens("slow policy") else self.latency()
                self.tell_keeper(slow, lambda: self._answer(command))
            case Sample(replicas):
                self._sample(replicas)
            case Announce(event):
                self.seen.add(f"{event.previous} -> {event.state}" if event.state else event.kind)
                self.told(f"{event.kind} {event.name} {event.reason}")
                self.upgrade_failed |= event.kind == "upgrade.failed"
                self._justify(event)
            case Collapse(reason):
                self.seen.add("collapse")
                self.told(f"collapse: {reason}")
                self.supervisor.stop_all(self.now, reason)

    def _ask(self, replica: Replica) -> None:
        process = self.processes.get(replica)
        if process is not None and replica.ending is Ending.UPGRADE and replica not in self.again:
            replaced = process.mute or process.code != self.codes[replica.service.name]
            self._hold(replaced, f"{process} is replaced, and runs the newest code")
        self._signal(replica, Process.asked)

    def _signal(self, replica: Replica, act: Callable[[Process], None]) -> None:
        process = self.processes.get(replica)
        if process is not None:  # else it is of an earlier keeper, and gone
            self.after(self.latency(), lambda: process.signal(lambda: act(process)))

    def _sample(self, replicas: Sequence[Replica]) -> None:
        for replica in replicas:
            process = self.processes.get(replica)
            memory = None if process is None or process.ended else process.memory
            self.supervisor.sampled(replica, memory, self.now)

    def _justify(self, event: Any) -> None:
        """An end that was asked for, or by a group, is a reason to start again; so is code that has changed."""
        if event.state == "waiting" and event.reason == CHANGED:
            self.may_start.update(one for one in self.supervisor._replicas.all() if one.name == event.name)
        for replica in self.processes:
            if replica.name == event.name and event.state in ("waiting", "backoff") and replica.exits:
                reason = replica.exits[-1].reason
                if reason in ASKED:
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
        if self.supervisor.services and not self.happens("late writes"):
            self._hand_over()

    def _hand_over(self) -> None:
        for record in self.supervisor.describe(self.now):
            self._records[record.name] = record
        handover = Handover(tuple(self._records.values()), self.supervisor.describe_groups())
        processes = {
            process.tag
            for replica, process in self.processes.items()
            if process.exists and not process.ended and replica.pid == process.pid
        }
        self.left = Left(json.dumps(handover.to_data()), frozenset(processes))

    def _die(self, *, reload: bool | None = None) -> None:
        """The keeper ends, for a ``reload`` of changed code if that is True; False: it dies, and the code changes."""
        away = self.random.choice([0.0, 0.1, 5.0, 100.0])
        if self.closing or not self.supervisor.services or self.now + away >= self.end_at - CALM / 2:
            return
        if reload:
            away = 0.0
            self._hand_over()
        if reload is not None:
            self._change_program()
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
        self.processes = {}
        if reboot := self.happens("reboot") and bool(away):
            for process in self.all.values():
                process.end(-9)
        self.after(away, lambda: self._take_over(reboot))

    def _take_over(self, reboot: bool) -> None:
        self.told("another keeper takes over" + (" after a reboot" if reboot else ""))
        self.keepers += 1
        self.stopping_all = self.upgrade_failed = False
        self.woke = self.now
        supervisor = self.supervisor
        left = Handover.from_data(json.loads(self.left.handover))
        self._hold(
            left.to_data() == json.loads(self.left.handover or "{}") or not left.services, "much is lost in writing"
        )
        records = {record.name: record for record in left.services}
        for process in self.all.values():
            self._spawn(process)  # what was asked for is done
        living = {tag: process for tag, process in self.all.items() if not process.ended}
        if self.happens("other version"):
            self.seen.add("other version")
            self.told("it is of another version")
            for process in living.values():
                process.mute = True
        self.processes, self.not_before, self.may_start, self.consulted = {}, {}, set(), {}
        self.again = set()
        self.restarts = {}  # what has been written down is compared with what is restored
        supervisor.inherit_groups(left.groups)
        supervisor.hold(self.now + ROLL_CALL)
        for spec in self.specs:
            service = supervisor.add(spec, self.codes[spec.name])
            record = records.get(spec.name)
            if record is None:  # nothing was written down before the crash, or it is a new one
                record = ServiceRecord(spec.name, wanted=True, declared=spec.replicas, count=spec.replicas)
            listed = sorted(tag for tag in self.left.processes if tag[0] == spec.name and tag in living)
            known = {number: attempt for _, number, attempt in listed}  # the last of those that overlap
            supervisor.adopt(service, record, self.now, known, same_boot=not reboot)
            for replica in service.replicas:
                self._resume(replica, record, reboot)
            for tag in listed:
                if living[tag] not in self.processes.values():
                    self._dismiss(living[tag])
        self.found = supervisor.starting
        self._records = {name: record for name, record in records.items() if name in supervisor.services}
        self.tell_keeper(self.random.random() * ROLL_CALL * 0.9, lambda: self._call_roll(list(living.values())))

    def _resume(self, replica: Replica, left: ServiceRecord, reboot: bool) -> None:
        """Check one replica that was taken over, and tell what becomes of its process."""
        records = {record.number: record for record in left.replicas}
        record = records.get(replica.number, ReplicaRecord(replica.number))
        self._check_restored(replica, record, left, reboot)
        if replica.state in (ServiceState.WAITING, ServiceState.BACKOFF):
            self.may_start.add(replica)
        if replica.state is ServiceState.STOPPING:
            self.again.add(replica)
        if not replica.state.has_process:
            return
        self.may_start.add(replica)  # if it turns out to have ended meanwhile
        attempt = replica.attempt
        process = self.all.get((replica.service.name, replica.number, attempt))
        if process is not None and not process.ended:
            self._give(process, replica)
        else:
            code = None if process is None else process.exitcode
            self.tell_keeper(self.random.choice([0.0, 0.1, 5.0]), lambda: self._ended(replica, attempt, code))

    def _give(self, process: Process, replica: Replica) -> None:
        """An earlier keeper's process is this replica's: it tells how it fares."""
        process.replica = replica
        self.processes[replica] = process
        replica.pulse = None if process.mute else process
        self.hear(lambda: self.supervisor.spawned(replica, process.attempt, process.pid))
        if process.mute:
            self.hear(lambda: self.supervisor.muted(replica, process.attempt))
            return
        for word in process.said:
            self.hear(lambda word=word: getattr(self.supervisor, word)(replica, process.attempt, self.now))  # type: ignore[misc]
        if process.code != self.codes[replica.service.name]:
            self.hear(lambda: self.supervisor.outdated(replica, process.attempt))

    def _dismiss(self, process: Process) -> None:
        """Nobody wants this process: it is stopped, and no supervisor hears of it."""
        self.told(f"{process} is one too many")
        self.after(self.random.choice([0.0, 1.0]), lambda: process.end(-15))

    def _ended(self, replica: Replica, attempt: int, code: int | None) -> None:
        if replica.attempt == attempt and replica.hold is not None:
            self.may_start.add(replica)
        self.supervisor.ended(replica, attempt, self.now, code=code)

    def _call_roll(self, living: list[Process]) -> None:
        """The fork server tells which processes there are."""
        supervisor = self.supervisor
        for process in sorted(living, key=lambda process: process.tag):
            if process.ended or process in self.processes.values():
                continue
            name, number, attempt = process.tag
            service = supervisor.services.get(name)
            replica = None if service is None else supervisor.replica(service, number)
            if (
                replica is not None
                and replica not in self.processes
                and replica.state.has_process
                and replica.attempt < attempt
            ):
                supervisor.ended(replica, replica.attempt, self.now, code=None)
            heir = None if service is None else supervisor.found(service, number, attempt, self.now)
            if heir is None:
                self._dismiss(process)
                continue
            self.told(f"{process} is found")
            self.seen.add("found")
            self.found += 1
            self.not_before.pop(heir, None)
            self._give(process, heir)
        supervisor.hold(None)

    def told(self, what: str) -> None:
        if self.tell is not None:
            self.tell(f"{self.now - BEGINNING:12.6f} {what}")


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
