"""A whole pool in virtual time: the real core, simulated workers, and faults that are drawn from a seed.

Between any two steps of a worker the keeper may act, the link may break, the process may die. Everything random comes
from one generator, so that a seed tells the whole story: ``python -m tests.simulation SEED`` tells it again.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from poolkeeper.commands import Command, Decide, Fail, Failure, Feed, Kill, Nudge, Retire, Settle, Spawn
from poolkeeper.core import Core
from poolkeeper.ledger import Call, Chunk, Options, Segment, Task
from poolkeeper.lifecycle import WorkerState
from poolkeeper.policy import RetryPolicy
from poolkeeper.roster import Exit, KillReason, Worker
from tests.simulated_worker import PATIENCE, Process, Violation, Work

BEGINNING = 1000.0
TIME_LIMIT = 10_000.0
STEP_LIMIT = 100_000
KEEPER_LAG = 0.005


class Job:
    """A map and its items."""

    def __init__(self, works: list[Work]) -> None:
        self.withdrawn = False
        self.works = works


class Simulation:
    """One pool from the first submission to the end of its last worker."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.tell = tell
        self.random = rng = random.Random(seed)
        self.now = BEGINNING
        self.core = Core(rng.choice([1, 1, 2, 3, 8]), rng.choice([None, None, None, 1, 2, 7]))
        self.max_workers = self.core._roster.max_workers
        self.processes: dict[int, Process] = {}
        self.tasks: list[Task] = []
        self.jobs: list[Job] = []
        self.failed_starts = 0
        self._actions = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._tick = count()
        # Each seed has faults of its own kind, for all of them together would hide much of what one alone can do.
        self._odds = {
            fault: rng.choice([0.0, 0.0, odds])
            for fault, odds in {
                "no start": rng.choice([0.2, 1.0]),
                "hesitate": 0.5,
                "recycle": 0.2,
                "crash": 0.05,
                "crash late": 0.02,
                "break": 0.05,
                "lag": 0.5,
                "no report": 0.5,
            }.items()
        }
        self._plan()

    # -- the scenario -------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        rng = self.random
        calls = [self._call(number) for number in range(rng.randint(1, 4))]
        span = rng.choice([0.001, 0.1, 5.0])
        for number in range(rng.randint(1, 6)):
            call, scale = rng.choice(calls)
            plan = self._plan_map if rng.random() < 0.4 else self._plan_tasks
            self._act(rng.random() * span, plan(f"{number}", call, scale))
        disturbances = [self._crash, self._break_link, self._cancel, self._cancel, self._withdraw]
        for _ in range(rng.choice([0, 3, 10])):
            self._act(rng.random() * span * 2, rng.choice(disturbances))
        self._act(span * rng.choice([0.5, 1.0, 3.0]), rng.choice([self._close, self._close, self._close_and_cancel]))

    def _call(self, number: int) -> tuple[Call, float]:
        rng = self.random
        retry = RetryPolicy(attempts=rng.choice([None, None, 2, 3]), deaths=rng.choice([0, 1, 2, 3, 3, 3, 4]))
        scale = rng.choice([0.0, 1e-5, 1e-5, 0.001, 0.02, 1.0])
        timeout = rng.choice([None, None, 0.1, 2 * scale or None])
        options = Options(rng.choice([0, 0, 5, -1]), timeout, retry, rng.random() < 0.5)
        return Call(f"call {number}", b"", options), scale

    def _work(self, name: str, scale: float, options: Options) -> Work:
        rng = self.random
        retries = options.retries_failures
        seconds = scale * rng.expovariate(1.0) + (rng.random() * 3.0 if rng.random() < 0.02 else 0.0)
        raises = rng.choice([0, 0, 1, 5]) if retries else rng.random() < 0.1
        kills = rng.random() < rng.choice([0.0, 0.1])
        return Work(name, seconds, int(raises), kills, once=options.at_most_once)

    def _plan_tasks(self, name: str, call: Call, scale: float) -> Callable[[], None]:
        number = self.random.choice([1, 3, 30])
        tasks = [Task(call, self._work(f"task {name}.{index}", scale, call.options)) for index in range(number)]

        def submit() -> None:
            self.tasks.extend(tasks)
            self.core.submit(tasks)

        return submit

    def _plan_map(self, name: str, call: Call, scale: float) -> Callable[[], None]:
        options = call.options
        works = [self._work(f"item {name}.{index}", scale, options) for index in range(self.random.choice([1, 10, 60]))]
        job = Job(works)
        single = options.retries_failures or options.timeout is not None or options.deaths < 2
        chunksize = self.random.choice([1, 1, 7])
        segment = Segment(job, call, works, 0, starred=False, plain=True, chunksize=chunksize, single=single)

        def submit() -> None:
            self.jobs.append(job)
            self.core.submit([segment])

        return submit

    def _act(self, delay: float, action: Callable[[], None]) -> None:
        def act() -> None:
            self._actions -= 1
            if not self.core.closing:
                self._tell(f"the application: {action.__name__}")
                action()

        self._actions += 1
        self.after(delay, act)

    def _crash(self) -> None:
        living = [process for process in self.processes.values() if not process.ended]
        for process in self.random.sample(living, self.random.choice([1, len(living)]) if living else 0):
            self.process_ends(process, -9)

    def _break_link(self) -> None:
        if self.processes:
            self.lose_link(self.random.choice(list(self.processes.values())))

    def _cancel(self) -> None:
        pending = [task for task in self.tasks if not task.payload.ends]
        for task in self.random.sample(pending, min(len(pending), self.random.choice([1, 20]))):
            if self.core.cancel(task):
                self._end(task.payload, "cancelled")
                task.payload.withdrawn = True

    def _withdraw(self) -> None:
        if self.jobs:
            job = self.random.choice(self.jobs)
            job.withdrawn = True

    def _close(self) -> None:
        self.core.close()

    def _close_and_cancel(self) -> None:
        withdrawn = self.core.abandon()
        for worker in self.core.workers.values():
            withdrawn.extend(task for task in worker.inflight if task is not None and self.core.cancel(task))
        for entry in withdrawn:
            if isinstance(entry, Segment | Chunk):
                (entry.segment if isinstance(entry, Chunk) else entry).job.withdrawn = True
                continue
            entry.withdrawn = True
            if not entry.payload.ends:
                self._end(entry.payload, "cancelled")
                entry.payload.withdrawn = True
        self.core.close()

    # -- chance -------------------------------------------------------------------------------------------------------

    def happens(self, fault: str) -> bool:
        return self.random.random() < self._odds[fault]

    def latency(self) -> float:
        return self.random.choice([0.0, 1e-5, 1e-4, 0.003])

    # -- processes and links ------------------------------------------------------------------------------------------

    def after(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._tick), call))

    def connected(self, process: Process) -> None:
        def accept() -> None:
            if process.ended or process.worker.id not in self.core.workers:
                return
            process.linked = True
            self.core.hello(process.worker)
            for _ in process.outbox:
                self.after(self.latency(), lambda: self.deliver(process))
            for _ in process.on_the_way:
                self.after(self.latency(), process.hear)

        self.after(self.latency(), accept)

    def lose_link(self, process: Process) -> None:
        """The worker calls back; sometimes it has done so before the keeper sees that the old link has ended."""
        if process.ended or not process.linked:
            return
        self._tell(f"worker {process.worker.id} loses its link")
        if self.random.random() < 0.8:
            process.linked = False
            self.core.link_lost(process.worker, self.now)
            self.after(self.latency(), lambda: self.connected(process))
        else:
            self.connected(process)

    def deliver(self, process: Process) -> None:
        if process.linked and process.outbox and process.worker.state is not WorkerState.DEAD:
            kind, *content = process.outbox.popleft()
            if kind == "recycle":
                self.core.recycle(process.worker)
                return
            answered = content[2]
            self._tell(f"worker {process.worker.id} answers {content[0]}: {len(answered)} results")
            process.unanswered = [work for work in process.unanswered if work not in answered]
            (self.core.results if kind == "results" else self.core.chunk_result)(process.worker, *content)

    def begins(self, process: Process, work: Work, timeout: float | None) -> None:
        """The user's code is entered."""
        self._tell(f"worker {process.worker.id} runs {work.name}")
        if work.withdrawn and process.worker.kill is None:
            raise Violation(f"{work.name} runs after it was cancelled")
        work.runs += 1
        if work.runs > 1 + work.excuses:
            raise Violation(f"{work.name} runs {work.runs} times, {work.excuses} repetitions were called for")
        process.unanswered.append(work)
        if timeout is not None:
            index = process.page.started
            self.after(timeout + PATIENCE, lambda: self._expect_end(process, index, work))
        if self.happens("crash"):
            self.after(self.random.random() * work.seconds, lambda: self.process_ends(process, -11))
        if self.happens("break"):
            self.after(self.random.random() * work.seconds, lambda: self.lose_link(process))

    def _expect_end(self, process: Process, index: int, work: Work) -> None:
        if not process.ended and process.page.observe().executing == index:
            raise Violation(f"{work.name} runs for longer than its timeout")

    def process_ends(self, process: Process, code: int) -> None:
        if process.ended:
            return
        self._tell(f"worker {process.worker.id} ends ({code})")
        process.ended = True
        for work in process.executing or process.just_finished:
            work.nearby += 1
            work.deaths += work is process.current
        self.after(self.latency(), lambda: self._hang_up(process))
        self.after(self.latency(), lambda: self._reap(process, code))

    def _hang_up(self, process: Process) -> None:
        """The end of the link is seen, which may be before the end of the process is, or after."""
        self._drain(process)
        if process.linked and process.worker.id in self.core.workers:
            process.linked = False
            self.core.link_lost(process.worker, self.now)

    def _drain(self, process: Process) -> None:
        while process.linked and process.outbox:
            self.deliver(process)

    def _reap(self, process: Process, code: int) -> None:
        """As the keeper does: drain the link, then tell the core; the exit status may come late, or never."""
        self._drain(process)
        for work in process.unanswered:
            work.excuses += not work.once
        worker = process.worker
        if not process.page.started:
            self.failed_starts += 1
        exit = Exit(code, None)
        if self.random.random() < 0.5:
            self.core.died(worker, self.now, exit)
        else:
            self.core.died(worker, self.now)
            if not self.happens("no report"):
                self.after(self.random.random() * 0.5, lambda: self.core.died(worker, self.now, exit))

    # -- the keeper's loop --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Simulate to the end; raises Violation, or whatever the core raises."""
        core, events = self.core, self._events
        for _ in range(STEP_LIMIT):
            if not (self._actions or core.outstanding or core.workers):
                self._look_back()
                return
            times = [when for when in (events[0][0] if events else None, core.next_deadline()) if when is not None]
            if not times:
                raise Violation("nothing will ever happen again, and work is outstanding")
            self.now = max(self.now, min(times))
            if self.now > BEGINNING + TIME_LIMIT:
                break
            self._hear()
            commands: list[Command] = []
            core.decide(self.now, commands)
            self._look_around()
            self._carry_out(commands)
        raise Violation("there is no end to it")

    def _hear(self) -> None:
        """Take in what is due; a keeper that lags takes in more at once."""
        events = self._events
        late = self.now + KEEPER_LAG
        while events and (events[0][0] <= self.now or (events[0][0] <= late and self.happens("lag"))):
            when, _, call = heapq.heappop(events)
            self.now = max(self.now, when)
            call()
            if not self.happens("lag"):
                break

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Settle():
                    self._settle(command)
                case Fail():
                    self._fail(command)
                case Decide():
                    self._decide(command)
                case Spawn(worker):
                    self._spawn(worker)
                case Feed(worker) | Retire(worker):
                    process = self.processes[worker.id]
                    self._tell(f"worker {worker.id} is sent {type(command).__name__}")
                    process.on_the_way.append(command)
                    self.after(self.latency(), process.hear)
                case Nudge(worker):
                    self.after(self.latency(), self.processes[worker.id].flush)
                case Kill(worker):
                    self._kill(worker)

    def _spawn(self, worker: Worker) -> None:
        process = self.processes[worker.id] = Process(self, worker)
        if not self.happens("no start"):
            self.after(self.latency(), process.resume)
        elif self.random.random() < 0.5:
            self.core.start_failed(worker, "refused")
            process.ended = True
            self.failed_starts += 1
            self.core.died(worker, self.now, Exit(None, None))
        else:
            self.process_ends(process, 1)

    def _kill(self, worker: Worker) -> None:
        process = self.processes[worker.id]
        assert worker.kill is not None
        reason, index = worker.kill
        target = worker.task_at(index)
        timeout = target.call.options.timeout if target is not None else None
        if reason is KillReason.TIMEOUT and (timeout is None or process.page.started_at + timeout > self.now):
            raise Violation(f"worker {worker.id} is killed before its task is beyond its timeout")

        def strike() -> None:
            page = process.page
            if process.executing and page.started != index and page.started not in page.marks:
                raise Violation(f"worker {worker.id} is killed for {index} while it runs {page.started}")
            self.process_ends(process, -9)

        self.after(self.latency(), strike)

    def _settle(self, command: Settle) -> None:
        for position, task in enumerate(command.tasks):
            if task is None:
                continue
            if isinstance(task, Chunk):
                if len(command.values) != task.items:
                    raise Violation(f"a chunk of {task.items} items has {len(command.values)} results")
                for work, value in zip(task.payload, command.values, strict=True):
                    if work is not value:
                        raise Violation(f"{work.name} is given the result of {value.name}")
                    self._end(work, "settled")
            elif command.values[position] is not task.payload:
                raise Violation(f"{task.payload.name} is given a wrong result")
            elif not task.withdrawn:
                self._end(task.payload, "settled")

    def _fail(self, command: Fail) -> None:
        task, failure = command.task, command.failure
        works: Any = task.items[task.position :] if isinstance(task, Segment) else task.payload
        deaths = task.call.options.deaths
        for work in works if isinstance(works, list) else [works]:
            seen = deaths - (deaths > 2 and isinstance(task, Chunk))  # the first may have been a guess, see ``blame``
            if failure is Failure.QUARANTINED and not (0 < deaths <= work.nearby and seen <= work.deaths):
                raise Violation(f"{work.name} is quarantined after {work.deaths} deaths of {deaths}")
            if failure is Failure.LOST and deaths:
                raise Violation(f"{work.name} is lost, though it may run again")
            if failure is Failure.NO_WORKERS and self.failed_starts < 3:
                raise Violation(f"{work.name} is given up after {self.failed_starts} failed starts")
            self._end(work, failure.value)

    def _decide(self, command: Decide) -> None:
        task = command.task
        attempts = task.call.options.retry.attempts
        assert attempts is not None
        delay = self.random.choice([0.0, 0.01, 3.0]) if task.attempts < attempts else None

        def decided() -> None:
            if delay is not None:
                for work in task.payload if isinstance(task, Chunk) else [task.payload]:
                    work.excuses += 1
            self.core.decided(command, delay, self.now)

        self.after(self.latency(), decided)

    def _end(self, work: Work, how: str) -> None:
        self._tell(f"{work.name} has ended: {how}")
        work.ends.append(how)
        if len(work.ends) > 1:
            raise Violation(f"{work.name} has ended twice: {work.ends}")

    # -- what must always hold ----------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """After every decision."""
        core, roster = self.core, self.core._roster
        states = [worker.state for worker in roster.workers.values()]
        _hold(roster.starting == states.count(WorkerState.STARTING), "the count of starting workers is wrong")
        takes = (WorkerState.STARTING, WorkerState.READY, WorkerState.DETACHED)
        _hold(roster.alive == sum(map(states.count, takes)), "the count of workers is wrong")
        at_work = {one for one in roster.workers.values() if one.state is WorkerState.RETIRING and one.inflight}
        _hold(roster.leaving == at_work, "the count of workers that leave is wrong")
        _hold(roster.alive <= self.max_workers, "there are too many workers")
        working = [worker for worker in roster.workers.values() if worker.inflight and worker.state in takes]
        _hold(len(working) + len(at_work) <= self.max_workers, "too many workers are at work")
        slots = [worker.slot for worker in roster.workers.values()]
        _hold(len(set(slots)) == len(slots), "two workers have one slot")
        suspects = 0
        for worker in roster.workers.values():
            held = [task for task in worker.inflight if task is not None]
            ready = worker.state is WorkerState.READY and not worker.alone
            _hold((worker.id in roster.idle) == (ready and not worker.inflight), f"worker {worker.id} idle or not?")
            _hold(worker.id not in roster.open or (ready and bool(worker.inflight)), f"worker {worker.id} open or not?")
            _hold(len(worker.inflight) < 2 or worker.id in roster.ahead, f"nobody can steal from worker {worker.id}")
            if any(task.deaths for task in held):
                suspects += 1
                _hold(len(held) == 1, "a suspect does not run alone")
        _hold(suspects <= 1, "two suspects run at once")
        if core.queue.runnable:
            _hold(not roster.vacancies, "an idle worker, and there is work")
            waits = roster.alive or core._dispatcher.waits_to_spawn
            _hold(bool(waits), "there is work, and nobody is coming to do it")
        _hold(len(core.queue) >= 0, "less than nothing waits")

    def _look_back(self) -> None:
        """At the end."""
        core, roster = self.core, self.core._roster
        for table in (roster.workers, roster.idle, roster.open, roster.ahead, core._mourning, core._deciding):
            _hold(not table, f"something is left: {table}")
        _hold(roster.alive == roster.starting == 0, "workers are counted that do not exist")
        _hold(len(core.queue) == 0 and not core.queue, "something is left in the queue")
        _hold(core.queue.suspect_out is None, "a suspect is still out")
        _hold(not len(core._timers), "a timer is left")
        for work in [task.payload for task in self.tasks]:
            _hold(len(work.ends) == 1, f"{work.name} has no end")
        for job in self.jobs:
            for work in job.works:
                _hold(len(work.ends) == 1 or job.withdrawn, f"{work.name} has no end")

    def _tell(self, what: str) -> None:
        if self.tell is not None:
            self.tell(f"{self.now - BEGINNING:12.6f} {what}")


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


def simulate(seed: int, tell: Callable[[str], None] | None = None) -> Simulation:
    """Run the simulation of ``seed``, telling ``tell`` what happens; raises Violation, which names the seed."""
    simulation = Simulation(seed, tell)
    try:
        simulation.run()
    except Exception as error:
        when = simulation.now - BEGINNING
        raise Violation(f"python -m tests.simulation {seed}: at {when:.6f} s: {error!r}") from error
    return simulation


if __name__ == "__main__":
    simulate(int(sys.argv[1]), print)
