"""The keeper's decisions: what happened goes in as method calls, what to do comes out as commands. Pure.

The runtime tells the core what it has seen (work submitted, a worker's hello, results, deaths, time) and then asks
``decide(now)`` for commands. Nothing here knows a clock, a socket, a thread or a process; a worker's page is seen
through the ``Page`` protocol, which a test implements with three integers.

Blame (guarantee 1): on a death the page tells which index was started last and which had finished. Only a task that
was started and had not finished is blamed; what was fed ahead, and what had finished without its result having
arrived, goes back to the queue without blame.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from .errors import ProtocolError
from .ledger import CHUNK_SECONDS, Call, Chunk, Code, Queue, Segment, Task
from .lifecycle import WorkerEvent, WorkerState, advance

__all__ = [
    "Core",
    "Decide",
    "Fail",
    "Failure",
    "Feed",
    "Kill",
    "KillReason",
    "Nudge",
    "Page",
    "Progress",
    "Retire",
    "Settle",
    "Spawn",
    "Worker",
]

LATE = 0.05
"""Seconds after which a worker that holds more than it runs is looked at."""

REPORT_WAIT = 0.25
"""Seconds that a final verdict waits for the exit status that explains it. Requeueing waits for nothing."""

START_ATTEMPTS = 3
"""Workers in a row that may fail to start before what is queued fails with the reason."""

STEAL_SECONDS = 0.001
"""Seconds of waiting work below which moving it to an idle worker does not pay."""


class Progress(NamedTuple):
    """What a worker's page says: index started last, index finished last, item within a careful chunk, start time."""

    started: int
    finished: int
    item: int
    started_at: float


class Page(Protocol):
    """The memory that a worker shares with the keeper."""

    def observe(self) -> Progress:
        """Return what the worker has marked."""

    def revoke(self, index: int) -> bool:
        """Forbid the worker to start ``index``; return False if it has started already."""


class KillReason(Enum):
    """Why the keeper itself killed a worker."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


class Failure(Enum):
    """How a task can end without a result or exception of its own."""

    LOST = "lost"
    QUARANTINED = "quarantined"
    TIMEOUT = "timeout"
    NO_WORKERS = "no workers"


class Worker:
    """What the core knows of one worker.

    ``inflight`` holds what was fed and not answered, None where it was revoked; its first entry has index ``base``.
    """

    __slots__ = (
        "alone", "base", "budget", "check_at", "exit", "id", "inflight", "kill", "known", "mourned", "page", "pid",
        "slot", "state", "target",
    )  # fmt: skip

    def __init__(self, id: int, slot: int, budget: int | None) -> None:
        self.id = id
        self.slot = slot
        self.state = WorkerState.STARTING
        self.page: Page | None = None
        self.pid: int | None = None
        self.inflight: deque[Task | None] = deque()
        self.base = 1
        self.known: set[int] = set()
        self.alone = False
        self.budget = budget
        self.target = 1
        self.check_at: float | None = None
        self.kill: tuple[KillReason, int] | None = None
        self.exit: Exit | None = None
        self.mourned: list[Task] = []

    @property
    def next_index(self) -> int:
        return self.base + len(self.inflight)


class Exit(NamedTuple):
    """How a worker's process ended: exit code (negative for a signal) and peak memory in bytes, None if unknown."""

    code: int | None
    peak_memory: int | None


@dataclass(slots=True)
class Spawn:
    """Start this worker."""

    worker: Worker


@dataclass(slots=True)
class Feed:
    """Send these tasks, all of one call, to this worker; the first gets index ``first``."""

    worker: Worker
    first: int
    tasks: list[Task]


@dataclass(slots=True)
class Retire:
    """Tell this worker to leave when it has done what it holds."""

    worker: Worker


@dataclass(slots=True)
class Kill:
    """Kill this worker and all that it started."""

    worker: Worker


@dataclass(slots=True)
class Nudge:
    """Make this worker send the results that it holds back."""

    worker: Worker


@dataclass(slots=True)
class Settle:
    """These tasks have these results; ``codes`` None means that all are plain values. An entry may be None (revoked).

    ``seconds`` is the mean run time. The values of a chunk are one piece that the map understands.
    """

    worker: Worker
    tasks: list[Task | None]
    codes: Sequence[int] | None
    values: Any
    seconds: float | None


@dataclass(slots=True)
class Decide:
    """Ask the task's retry policy, away from the keeper's thread, and come back with ``decided``.

    ``outcome`` is the pickled exception, None after a timeout; ``seconds`` is how long the attempt ran.
    """

    task: Task
    outcome: Any
    worker: Worker
    seconds: float


@dataclass(slots=True)
class Fail:
    """This task has ended for the given reason; ``worker`` is the one that it took down, if any."""

    task: Task | Segment
    failure: Failure
    worker: Worker | None = None
    detail: str = ""


Command = Spawn | Feed | Retire | Kill | Nudge | Settle | Decide | Fail


@dataclass
class Core:
    """All decisions of one keeper.

    ``max_workers`` bounds the workers that take tasks; ``max_tasks`` is how many a worker may run before it is
    replaced, None for no bound.
    """

    max_workers: int
    max_tasks: int | None = None
    queue: Queue = field(default_factory=Queue)
    workers: dict[int, Worker] = field(default_factory=dict)
    closing: bool = False

    def __post_init__(self) -> None:
        self._commands: list[Command] = []
        self._idle: dict[int, Worker] = {}
        self._open: dict[int, Worker] = {}
        self._ahead: dict[int, Worker] = {}
        self._dead: dict[int, Worker] = {}
        self._timers: list[tuple[float, int]] = []
        self._next_worker = 1
        self._alive = 0
        self._starting = 0
        self._failed_starts = 0
        self._spawn_after = 0.0
        self._start_error = ""
        self._deciding = 0

    # -- what the application does ------------------------------------------------------------------------------

    def submit(self, tasks: Iterable[Task | Segment]) -> None:
        """Take on fresh work."""
        self.queue.submit(tasks)

    def cancel(self, task: Task) -> bool:
        """Withdraw ``task``; return False if it runs already and its options do not allow to kill it."""
        if task.withdrawn:
            return True
        worker = self.workers.get(task.worker) if task.worker is not None else None
        if worker is None or worker.page is None:
            task.withdrawn = True
            return True
        if self._revoke(worker, task.index):
            task.withdrawn = True
            return True
        if not task.call.options.kill_on_cancel:
            return False
        task.withdrawn = True
        self._kill(worker, KillReason.CANCELLED, task.index)
        return True

    def close(self) -> None:
        """Take no more work; once all is done the workers are retired."""
        self.closing = True

    def abandon(self) -> list[Task | Segment]:
        """Empty the queue and return what had not been fed."""
        return self.queue.clear()

    # -- what workers do ----------------------------------------------------------------------------------------

    def hello(self, worker: Worker) -> None:
        """The worker's link is up (again)."""
        if worker.state is WorkerState.STARTING:
            self._starting -= 1
            self._failed_starts = 0
        self._move(worker, WorkerEvent.HELLO)
        self._refresh(worker)

    def link_lost(self, worker: Worker) -> None:
        """The worker's link is gone, its process is not known to be; nothing is fed until it calls back."""
        self._move(worker, WorkerEvent.LINK_LOST)
        self._forget(worker)

    def results(
        self, worker: Worker, first: int, codes: Sequence[int] | None, values: Sequence[Any], seconds: float
    ) -> None:
        """Results of consecutive indices have arrived; ``seconds`` is their total run time.

        Raises ProtocolError when they are not what the worker was fed.
        """
        inflight = worker.inflight
        number = len(values)
        if first != worker.base or number > len(inflight):
            raise ProtocolError(f"worker {worker.id} answers {first}+{number} where {worker.base} is due")
        popleft = inflight.popleft
        tasks = [popleft() for _ in range(number)]
        worker.base += number
        ran = number if codes is None else number - codes.count(Code.SKIPPED)
        if ran:
            learner = next(task for task in reversed(tasks) if task is not None)
            learner.call.learn(ran, seconds)
            seconds /= ran
        self._took(worker, tasks)
        if codes is not None:
            self._divert(worker, tasks, codes, values, seconds)
        self._commands.append(Settle(worker, tasks, codes, values, seconds))

    def chunk_result(self, worker: Worker, index: int, codes: Sequence[int] | None, values: Any, seconds: float) -> None:
        """The outcome of a chunk has arrived; ``values`` is opaque here, ``codes`` marks items that raised."""
        if index != worker.base or not worker.inflight:
            raise ProtocolError(f"worker {worker.id} answers chunk {index} where {worker.base} is due")
        chunk = worker.inflight.popleft()
        worker.base += 1
        if chunk is not None and chunk.items:
            chunk.call.learn(chunk.items, seconds)
        self._took(worker, [chunk])
        if chunk is not None and chunk.items == 1 and codes and codes[0] == Code.EXCEPTION and chunk.call.options.retries_failures:
            self._ask(chunk, values[0], worker, seconds)
            return
        self._commands.append(Settle(worker, [chunk], codes, values, seconds))

    def recycle(self, worker: Worker) -> None:
        """The worker asks to be replaced (its memory has grown); what it has not started goes elsewhere."""
        if worker.state is WorkerState.READY:
            self.queue.put_back(self._revoke_tail(worker, len(worker.inflight)))
            self._retire(worker)

    def start_failed(self, worker: Worker, why: str) -> None:
        """The worker's initializer raised, or it could not be forked; ``why`` says so to a person."""
        self._start_error = why

    def died(self, worker: Worker, now: float, exit: Exit | None = None) -> None:
        """The worker's process is gone and its link is drained. ``exit`` is what is known of its end."""
        if exit is not None:
            worker.exit = exit
        if worker.state is WorkerState.DEAD:
            self._bury(worker)
            return
        if worker.state is WorkerState.STARTING:
            self._starting -= 1
            self._start_has_failed(worker, now)
        self._move(worker, WorkerEvent.EXIT)
        self._forget(worker)
        self._ahead.pop(worker.id, None)
        del self.workers[worker.id]
        self._settle_inflight(worker, now)
        if worker.exit is not None:
            self._bury(worker)
        elif worker.mourned:
            self._dead[worker.id] = worker
            heapq.heappush(self._timers, (now + REPORT_WAIT, worker.id))

    def decided(self, decision: Decide, delay: float | None, now: float) -> None:
        """The retry policy has spoken: another attempt after ``delay`` seconds, or None for none."""
        self._deciding -= 1
        task = decision.task
        if delay is not None and not task.withdrawn:
            task.attempts += 1
            self.queue.delay(task, now + delay)
        elif decision.outcome is None:
            self._commands.append(Fail(task, Failure.TIMEOUT, decision.worker))
        else:
            values = [decision.outcome]
            self._commands.append(Settle(decision.worker, [task], [Code.EXCEPTION], values, decision.seconds))

    # -- time and decisions -------------------------------------------------------------------------------------

    def decide(self, now: float) -> list[Command]:
        """Return what is to be done now."""
        if self._timers:
            self._run_timers(now)
        queue = self.queue
        queue.release(now)
        if queue.runnable:
            self._dispatch(now)
            if queue.runnable:
                self._spawn(now)
        elif self._idle and self._ahead:
            self._steal(now)
            if queue.runnable:
                self._dispatch(now)
        if self.closing:
            self._retire_idle()
        commands = self._commands
        self._commands = []
        return commands

    def next_deadline(self) -> float | None:
        """Return when ``decide`` must be called next even if nothing happens, None if never."""
        earliest = self._timers[0][0] if self._timers else None
        due = self.queue.next_due
        if due is not None and (earliest is None or due < earliest):
            earliest = due
        if self._failed_starts and self.queue.runnable and self._alive < self.max_workers:
            earliest = self._spawn_after if earliest is None else min(earliest, self._spawn_after)
        return earliest

    @property
    def outstanding(self) -> bool:
        """Whether any work is queued, fed or being decided on."""
        if len(self.queue) or self._deciding or self._dead:
            return True
        return any(worker.inflight for worker in self.workers.values())

    @property
    def running(self) -> int:
        """How many workers hold work."""
        return sum(1 for worker in self.workers.values() if worker.inflight)

    # -- dispatch -----------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        queue = self.queue
        for worker in list(self._idle.values()):
            suspect = queue.take_suspect()
            if suspect is None:
                break
            worker.alone = True
            self._feed(worker, [suspect], now)
        live = max(1, self._alive)
        share = -(-queue.depth // live)
        full = self._alive >= self.max_workers
        for worker in [*self._idle.values(), *self._open.values()]:
            while queue.runnable:
                call = queue.head_call()
                if call is None:
                    return
                target = 1 if worker.budget == 0 else self._target(call, full)
                worker.target = target
                room = min(target, share) - len(worker.inflight)
                if worker.budget is not None:
                    room = min(room, worker.budget)
                if room <= 0:
                    break
                tasks = queue.take(room, live)
                if not tasks:
                    return
                self._feed(worker, tasks, now)

    def _target(self, call: Call, full: bool) -> int:
        window = call.window()
        if window > 1 and not full and call.cost is not None and call.cost > STEAL_SECONDS:
            return 1
        return window

    def _feed(self, worker: Worker, tasks: list[Task], now: float) -> None:
        first = index = worker.next_index
        id = worker.id
        for task in tasks:
            task.worker = id
            task.index = index
            index += 1
        worker.inflight.extend(tasks)
        self._commands.append(Feed(worker, first, tasks))
        self._idle.pop(id, None)
        held = len(worker.inflight)
        if tasks[0].items > 1 and held > 1:
            worker.target = 1
        if worker.alone or held >= worker.target:
            self._open.pop(id, None)
        else:
            self._open[id] = worker
        if held > 1:
            self._ahead[id] = worker
        if worker.budget is not None:
            worker.budget -= len(tasks)
            if worker.budget <= 0:
                self._retire(worker)
        call = tasks[0].call
        wait = call.options.timeout
        if held > 1:
            late = LATE + 4 * held * (call.cost or 0.0)
            wait = late if wait is None else min(wait, late)
        if wait is not None:
            self._check_by(worker, now + wait)

    def _took(self, worker: Worker, tasks: Sequence[Task | None]) -> None:
        """Book what a worker has answered: it may have room again."""
        for task in tasks:
            if task is not None and (task.deaths or worker.alone):
                self.queue.cleared(task)
        held = len(worker.inflight)
        if held <= 1:
            self._ahead.pop(worker.id, None)
        if not held:
            worker.alone = False
        if worker.state is WorkerState.READY:
            self._refresh(worker)

    def _refresh(self, worker: Worker) -> None:
        """File a worker by the room that it has."""
        if worker.state is not WorkerState.READY or worker.alone:
            return
        held = len(worker.inflight)
        if not held:
            self._open.pop(worker.id, None)
            self._idle[worker.id] = worker
        elif held * 2 <= max(2, worker.target):
            self._open[worker.id] = worker

    def _forget(self, worker: Worker) -> None:
        self._idle.pop(worker.id, None)
        self._open.pop(worker.id, None)

    # -- fed-ahead work that is better off elsewhere --------------------------------------------------------------

    def _steal(self, now: float) -> None:
        for victim in list(self._ahead.values()):
            assert victim.page is not None
            progress = victim.page.observe()
            waiting = victim.next_index - 1 - max(progress.started, victim.base - 1)
            last = victim.inflight[-1] if victim.inflight else None
            if waiting <= 0 or last is None:
                continue
            cost = last.call.cost or 0.0
            length = cost * last.items
            busy = now - progress.started_at if progress.started > progress.finished else 0.0
            if busy > max(CHUNK_SECONDS, 4 * length):
                number = waiting
            elif waiting * length > STEAL_SECONDS:
                number = -(-waiting // 2)
            else:
                continue
            self.queue.put_back(self._revoke_tail(victim, number))

    def _revoke_tail(self, worker: Worker, number: int) -> list[Task]:
        """Take back up to ``number`` tasks that the worker has not started, the last first; return them in order."""
        taken: list[Task] = []
        for index in range(worker.next_index - 1, worker.next_index - 1 - number, -1):
            if index < worker.base:
                break
            task = worker.inflight[index - worker.base]
            if task is None:
                continue
            if not self._revoke(worker, index):
                break
            taken.append(task)
        taken.reverse()
        return taken

    def _revoke(self, worker: Worker, index: int) -> bool:
        position = index - worker.base
        if not 0 <= position < len(worker.inflight) or worker.page is None or not worker.page.revoke(index):
            return False
        worker.inflight[position] = None
        return True

    # -- deaths and failures --------------------------------------------------------------------------------------

    def _settle_inflight(self, worker: Worker, now: float) -> None:
        entries, worker.inflight = worker.inflight, deque()
        if not entries:
            return
        progress = worker.page.observe() if worker.page is not None else Progress(0, 0, 0, 0.0)
        back: list[Task] = []
        for index, task in enumerate(entries, worker.base):
            if task is None:
                continue
            self.queue.cleared(task)
            if index <= progress.finished and task.call.options.retry.deaths == 0:
                self._mourn(worker, task)
            elif index == progress.started and index > progress.finished:
                self._blame(worker, task, progress)
            elif not task.withdrawn:
                back.append(task)
        self.queue.put_back(back)

    def _blame(self, worker: Worker, task: Task, progress: Progress) -> None:
        if task.withdrawn:
            return
        if worker.kill is not None and worker.kill == (KillReason.TIMEOUT, task.index):
            if task.call.options.retries_failures:
                self._ask(task, None, worker, task.call.options.timeout or 0.0)
            else:
                self._commands.append(Fail(task, Failure.TIMEOUT, worker))
            return
        allowed = max(1, task.call.options.retry.deaths)
        if isinstance(task, Chunk) and task.items > 1 and allowed > 1:
            self._divide(worker, task, progress, allowed)
            return
        task.deaths += 1
        if task.deaths >= allowed:
            self._mourn(worker, task)
        else:
            self.queue.suspect(task)

    def _divide(self, worker: Worker, chunk: Chunk, progress: Progress, allowed: int) -> None:
        """Find the item that kills: run the chunk again with each item marked, then split it at the mark."""
        if not chunk.careful:
            chunk.careful = True
            self.queue.suspect(chunk)
            return
        at = min(progress.item, chunk.items - 1)
        killer = chunk.part(at, at + 1)
        killer.deaths = 2
        rest = [part for part in (chunk.part(0, at), chunk.part(at + 1, chunk.items)) if part.items]
        self.queue.put_back(rest)
        if killer.deaths >= allowed:
            self._mourn(worker, killer)
        else:
            self.queue.suspect(killer)

    def _mourn(self, worker: Worker, task: Task) -> None:
        worker.mourned.append(task)

    def _bury(self, worker: Worker) -> None:
        """The verdicts are final, and what is known of the death is known."""
        for task in worker.mourned:
            final = Failure.QUARANTINED if task.call.options.retry.deaths else Failure.LOST
            self._commands.append(Fail(task, final, worker))
        worker.mourned = []
        self._dead.pop(worker.id, None)

    def _divert(
        self, worker: Worker, tasks: list[Task | None], codes: Sequence[int], values: Sequence[Any], seconds: float
    ) -> None:
        """Take out what is not to be settled: tasks that were skipped, failures that may be retried."""
        for position, code in enumerate(codes):
            task = tasks[position]
            if code == Code.SKIPPED and task is not None:
                # The mark was seen although the revocation had been given up: it never ran.
                tasks[position] = None
                self.queue.put_back([task])
            elif task is not None and code == Code.EXCEPTION and task.call.options.retries_failures and not task.withdrawn:
                tasks[position] = None
                self._ask(task, values[position], worker, seconds)

    def _ask(self, task: Task, outcome: Any, worker: Worker, seconds: float) -> None:
        self._deciding += 1
        task.worker = None
        self._commands.append(Decide(task, outcome, worker, seconds))

    # -- workers --------------------------------------------------------------------------------------------------

    def _spawn(self, now: float) -> None:
        if now < self._spawn_after:
            return
        needed = self.queue.depth - len(self._idle) - self._starting
        number = min(needed, self.max_workers - self._alive)
        slots = {worker.slot for worker in self.workers.values()} if number > 0 else set()
        slot = 0
        for _ in range(number):
            while slot in slots:
                slot += 1
            slots.add(slot)
            worker = Worker(self._next_worker, slot, self.max_tasks)
            self._next_worker += 1
            self.workers[worker.id] = worker
            self._alive += 1
            self._starting += 1
            self._commands.append(Spawn(worker))

    def _start_has_failed(self, worker: Worker, now: float) -> None:
        if worker.kill is not None:
            return
        self._failed_starts += 1
        self._spawn_after = now + 0.05 * 2 ** min(self._failed_starts - 1, 7)
        if self._failed_starts >= START_ATTEMPTS and self._alive - 1 <= self._starting:
            detail = self._start_error or "new processes end before they take their first task"
            for task in self.abandon():
                self._commands.append(Fail(task, Failure.NO_WORKERS, worker, detail))
            self._failed_starts = 0
            self._start_error = ""

    def _retire(self, worker: Worker) -> None:
        self._forget(worker)
        if worker.state is WorkerState.STARTING:
            self._starting -= 1
        self._move(worker, WorkerEvent.RETIRE)
        self._commands.append(Retire(worker))

    def _retire_idle(self) -> None:
        if self.queue.runnable or self._deciding or len(self.queue):
            return
        for worker in list(self.workers.values()):
            if not worker.inflight and worker.state in (WorkerState.READY, WorkerState.STARTING):
                self._retire(worker)

    def _kill(self, worker: Worker, reason: KillReason, index: int) -> None:
        if worker.state is WorkerState.STARTING:
            self._starting -= 1
        worker.kill = (reason, index)
        self._forget(worker)
        self._move(worker, WorkerEvent.KILL)
        self._commands.append(Kill(worker))

    def _move(self, worker: Worker, event: WorkerEvent) -> None:
        takes_tasks = (WorkerState.STARTING, WorkerState.READY, WorkerState.DETACHED)
        before = worker.state in takes_tasks
        worker.state = advance(worker.state, event)
        self._alive += (worker.state in takes_tasks) - before

    # -- timers ---------------------------------------------------------------------------------------------------

    def _check_by(self, worker: Worker, when: float) -> None:
        if worker.check_at is None or when < worker.check_at:
            worker.check_at = when
            heapq.heappush(self._timers, (when, worker.id))

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            when, id = heapq.heappop(self._timers)
            dead = self._dead.get(id)
            if dead is not None:
                self._bury(dead)
                continue
            worker = self.workers.get(id)
            if worker is not None and worker.check_at is not None and worker.check_at <= when:
                worker.check_at = None
                self._check(worker, now)

    def _check(self, worker: Worker, now: float) -> None:
        """Look at a worker that is late: is an attempt beyond its timeout, are results held back?"""
        if not worker.inflight or worker.page is None or worker.state is WorkerState.KILLED:
            return
        progress = worker.page.observe()
        executing = progress.started if progress.started > progress.finished else None
        if executing is not None and executing >= worker.base:
            task = worker.inflight[executing - worker.base]
            timeout = task.call.options.timeout if task is not None else None
            if timeout is not None:
                ends = progress.started_at + timeout
                if ends <= now:
                    self._kill(worker, KillReason.TIMEOUT, executing)
                    return
                self._check_by(worker, ends)
        if progress.finished >= worker.base:
            self._commands.append(Nudge(worker))
        if len(worker.inflight) > 1:
            self._check_by(worker, now + 2 * LATE)
        waiting = [task.call.options.timeout for task in worker.inflight if task is not None and task.call.options.timeout]
        if waiting and worker.check_at is None:
            self._check_by(worker, now + min(waiting))
