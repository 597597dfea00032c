"""The workers as the keeper knows them, filed by the room that they have. Pure.

A worker is *idle* (holds nothing), *open* (holds something and has room for more) or neither; one that holds more than
it runs is also *ahead*, and may be relieved of what it has not started. Only READY workers are idle or open.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import NamedTuple, Protocol

from .ledger import Task
from .lifecycle import Absence, WorkerEvent, WorkerState, advance
from .messages import Progress

__all__ = ["Exit", "KillReason", "Page", "Roster", "Told", "Worker"]

START_ATTEMPTS = 3
"""Times in a row that starting workers may fail for a reason that stays before what is queued fails with it."""

UNEXPLAINED_ATTEMPTS = 7
"""The same where new processes just end, for somebody may kill them who will stop, or where there is no room."""

FIRST_BACKOFF = 0.05
"""Seconds after a failed start before the next; doubled by each further one, seven times at most."""

NO_ROUND = -1
"""The round of a worker that an earlier keeper has started."""

_TAKES_TASKS = frozenset({WorkerState.STARTING, WorkerState.READY, WorkerState.DETACHED})


class Page(Protocol):
    """The memory that a worker shares with the keeper."""

    def observe(self) -> Progress:
        """Return what the worker has marked."""

    def revoke(self, index: int) -> bool:
        """Forbid the worker to start ``index``; return False if it has started already."""


class Told(NamedTuple):
    """In the place of a page: how far a worker is that has said so, and that will begin nothing more."""

    progress: Progress

    def observe(self) -> Progress:
        """Return what it has said."""
        return self.progress

    def revoke(self, index: int) -> bool:
        """Whatever it holds it has begun."""
        return False


class KillReason(Enum):
    """Why the keeper itself killed a worker."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    CONFUSED = "answered what it was not asked"
    UNREACHABLE = "has no link, and does not come back"


class Exit(NamedTuple):
    """How a worker's process ended: exit code (negative for a signal) and peak memory in bytes, None if unknown."""

    code: int | None
    peak_memory: int | None


NOTHING_YET = Progress(0, 0, 0, 0.0)


class Worker:
    """What the core knows of one worker.

    ``inflight`` holds what was fed and not answered, None where it was revoked; its first entry has index ``base``.
    ``alone`` is a worker that is fed nothing more until it is empty. ``budget`` is how many tasks it may still be fed,
    None for any number, and ``target`` how many it may hold. ``stuck`` says that it has been seen to make no headway
    since its last answer, when ``checked`` was the index started last. ``birth`` is the incarnation of the keeper that
    has made it. What has an index below ``fed_before`` was fed by this keeper, before its loop was rebuilt. ``absence``
    counts while its link is broken; ``silent`` is one of an earlier keeper that has not called in time. ``cut_short``
    says that its fork server was killed while it was being started.
    """

    __slots__ = (
        "absence", "alone", "base", "birth", "budget", "checked", "cut_short", "exit", "fed_before", "id", "inflight",
        "kill", "known", "mourned", "page", "pid", "silent", "slot", "start_round", "state", "stuck", "target",
    )  # fmt: skip

    def __init__(self, id: int, slot: int, budget: int | None = None, start_round: int = 0, birth: str = "") -> None:
        self.id = id
        self.birth = birth
        self.slot = slot
        self.start_round = start_round
        self.state = WorkerState.STARTING
        self.page: Page | None = None
        self.pid: int | None = None
        self.inflight: deque[Task | None] = deque()
        self.base = 1
        self.fed_before = 0
        self.known: set[int] = set()
        self.alone = False
        self.budget = budget
        self.target = 1
        self.stuck = False
        self.silent = False
        self.checked = 0
        self.kill: tuple[KillReason, int] | None = None
        self.exit: Exit | None = None
        self.mourned: list[Task] = []
        self.absence: Absence | None = None
        self.cut_short = False

    @property
    def adopted(self) -> bool:
        """Whether an earlier keeper has made it."""
        return self.start_round == NO_ROUND

    @property
    def place(self) -> str:
        """What tells it from all other workers, those of earlier keepers included."""
        return f"{self.birth}.{self.id}"

    @property
    def next_index(self) -> int:
        """The index that the next task will get."""
        return self.base + len(self.inflight)

    def observe(self) -> Progress:
        """Return what the worker's page says."""
        return self.page.observe() if self.page is not None else NOTHING_YET

    def task_at(self, index: int | None) -> Task | None:
        """Return what was fed as ``index``, if it is not answered and not revoked."""
        if index is None or not self.base <= index < self.next_index:
            return None
        return self.inflight[index - self.base]

    def keeps_at(self, index: int) -> bool:
        """Return whether the worker is in the midst of ``index``, which it does not start if it has not."""
        if self.page is None:
            return True
        return not self.page.revoke(index) and self.page.observe().finished < index

    def revoke(self, index: int) -> Task | None:
        """Take back the task fed as ``index``; return it unless the worker has started it."""
        task = self.task_at(index)
        if task is None or self.page is None or not self.page.revoke(index):
            return None
        self.inflight[index - self.base] = None
        return task


class Roster:
    """All workers that are not dead, and when there may be more of them.

    ``max_workers`` bounds those that take tasks (``alive``), and those at work together with those that finish their
    last tasks (``leaving``): who is to replace one of these is started, and waits. Who is silent does not count.
    ``max_tasks`` is how many each may be fed, None for no bound. Workers are started in rounds: a round ends with the
    first of its workers that fails to start, so that many which fail for one reason at one time count once.
    """

    def __init__(self, max_workers: int, max_tasks: int | None = None, birth: str = "") -> None:
        self._birth = birth
        self.max_workers = max_workers
        self.max_tasks = max_tasks
        self.workers: dict[int, Worker] = {}
        self.idle: dict[int, Worker] = {}
        self.open: dict[int, Worker] = {}
        self.ahead: dict[int, Worker] = {}
        self.alive = 0
        self.leaving: set[Worker] = set()
        self.starting = 0
        self.failed_rounds = 0
        self.cut_rounds = 0
        self.spawn_after = 0.0
        self._round = 0
        self.next_id = 1
        self._first_own: float = math.inf
        self._inherited: set[int] = set()

    @property
    def full(self) -> bool:
        """Whether there may be no more workers."""
        return self.alive >= self.max_workers

    @property
    def vacancies(self) -> int:
        """How many of the idle workers may be given work."""
        at_work = self.alive - self.starting - len(self.idle) + len(self.leaving)
        return max(0, min(len(self.idle), self.max_workers - at_work))

    def recruit(self, number: int) -> list[Worker]:
        """Return ``number`` new workers to be started, fewer where the bound is reached."""
        recruits: list[Worker] = []
        taken = {worker.slot for worker in self.workers.values()}
        slot = 0
        self._first_own = min(self._first_own, self.next_id)
        for _ in range(min(number, self.max_workers - self.alive)):
            while slot in taken:
                slot += 1
            taken.add(slot)
            worker = Worker(self.next_id, slot, self.max_tasks, self._round, self._birth)
            self.next_id += 1
            self.workers[worker.id] = worker
            self.alive += 1
            self.starting += 1
            recruits.append(worker)
        return recruits

    def take_over(self, id: int, slot: int, birth: str) -> Worker:
        """Return a worker that an earlier keeper has made and that has not called yet.

        ``id`` stays, unless another worker has it or has had it: one that is dead may not be buried yet.
        """
        if id in self._inherited or self._first_own <= id < self.next_id:
            id = self.next_id
        self._inherited.add(id)
        self.next_id = max(self.next_id, id + 1)
        worker = Worker(id, slot, self.max_tasks, NO_ROUND, birth)
        worker.state = WorkerState.DETACHED
        self.workers[id] = worker
        self.alive += 1
        return worker

    def move(self, worker: Worker, event: WorkerEvent) -> None:
        """Take note of what has happened to ``worker``; raises IllegalTransition."""
        before, after = worker.state, advance(worker.state, event)
        worker.state = after
        if not worker.silent:
            self.alive += (after in _TAKES_TASKS) - (before in _TAKES_TASKS)
        self._note_whether_leaving(worker)
        self.starting += (after is WorkerState.STARTING) - (before is WorkerState.STARTING)
        if after is not WorkerState.READY:
            self.idle.pop(worker.id, None)
            self.open.pop(worker.id, None)
        if after is WorkerState.DEAD:
            self.ahead.pop(worker.id, None)
            del self.workers[worker.id]

    def silence(self, worker: Worker) -> None:
        """Take note that ``worker`` does not call: another one may be in its place until it does."""
        if not worker.silent:
            self.alive -= worker.state in _TAKES_TASKS
            worker.silent = True
            self._note_whether_leaving(worker)

    def heard(self, worker: Worker) -> None:
        """Take note that ``worker`` has called."""
        if worker.silent:
            worker.silent = False
            self.alive += worker.state in _TAKES_TASKS
            self._note_whether_leaving(worker)

    def _note_whether_leaving(self, worker: Worker) -> None:
        if worker.state is WorkerState.RETIRING and worker.inflight and not worker.silent:
            self.leaving.add(worker)
        else:
            self.leaving.discard(worker)

    def file(self, worker: Worker) -> None:
        """Put a worker where it belongs by what it holds; its window opens again when it is half empty."""
        held = len(worker.inflight)
        if held <= 1:
            self.ahead.pop(worker.id, None)
        if not held:
            worker.alone = False
            self.leaving.discard(worker)
        if worker.state is not WorkerState.READY or worker.alone:
            return
        if not held:
            self.open.pop(worker.id, None)
            self.idle[worker.id] = worker
        elif held * 2 <= max(2, worker.target):
            self.open[worker.id] = worker

    def start_failed(self, worker: Worker, now: float) -> None:
        """Take note that ``worker`` has ended before it has started its first task.

        Where its fork server was killed that says nothing of the next start, which waits only if this happens again.
        """
        if worker.start_round != self._round:
            return
        self._round += 1
        if worker.cut_short:
            if self.cut_rounds:
                self._back_off(now, self.cut_rounds - 1)
            self.cut_rounds += 1
        else:
            self._back_off(now, self.failed_rounds)
            self.failed_rounds += 1

    def _back_off(self, now: float, failures: int) -> None:
        self.spawn_after = now + FIRST_BACKOFF * 2 ** min(failures, 7)

    def has_worked(self, worker: Worker) -> None:
        """Take note that ``worker`` has done a task: if it was started after the last failure, starting works again."""
        if worker.start_round == self._round:
            self.failed_rounds = self.cut_rounds = 0

    def is_hopeless(self, *, explained: bool) -> bool:
        """Whether starting workers has failed so often, with none at work, that it makes no sense to wait for one."""
        attempts = START_ATTEMPTS if explained else UNEXPLAINED_ATTEMPTS
        return self.failed_rounds >= attempts and self.alive <= self.starting
