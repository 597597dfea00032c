"""A core that a test drives by hand: workers do what the script says, and nothing else happens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from poolkeeper.commands import Command, Fail, Feed, Kill, Settle, Spawn
from poolkeeper.core import Core
from poolkeeper.ledger import Call, Options, Segment, Task
from poolkeeper.messages import Code, Progress
from poolkeeper.policy import RetryPolicy
from poolkeeper.roster import Exit, Worker

C = TypeVar("C")

KILLED = Exit(-9, None)


class Page:
    """The page of a worker, as three integers, a time and the marks."""

    def __init__(self) -> None:
        self.started = self.finished = self.item = 0
        self.started_at = 0.0
        self.revoked: set[int] = set()

    def observe(self) -> Progress:
        return Progress(self.started, self.finished, self.item, self.started_at)

    def revoke(self, index: int) -> bool:
        if self.started >= index:
            return False
        self.revoked.add(index)
        return True


class Job:
    """Who gathers the pieces of a map."""

    withdrawn = False


def call(
    cost: float | None = None,
    *,
    name: str = "f",
    seen: int = 1000,
    priority: int = 0,
    timeout: float | None = None,
    attempts: int | None = None,
    deaths: int = 3,
    kill: bool = False,
) -> Call:
    """A call that has learnt that its tasks take ``cost`` seconds."""
    made = Call(name, b"", Options(priority, timeout, RetryPolicy(attempts, deaths), kill))
    if cost is not None:
        made.learn(seen, seen * cost)
    return made


def tasks(of: Call, number: int, prefix: str = "") -> list[Task]:
    """Tasks with keys to tell them apart."""
    return [Task(of, (), f"{prefix}{position}") for position in range(number)]


def segment(of: Call, number: int, **options: Any) -> Segment:
    """A map over the first ``number`` integers."""
    return Segment(Job(), of, range(number), 0, starred=False, plain=True, **options)


def keys(held: Iterable[Task | Segment | None]) -> list[Any]:
    """What tells the tasks apart: keys, the items of chunks, None for what was revoked."""
    return [(entry.key or list(entry.payload)) if isinstance(entry, Task) else entry for entry in held]


class Script:
    """One core and its workers. Every step returns the commands that follow from it."""

    def __init__(self, max_workers: int = 2, max_tasks: int | None = None, *, ready: int | None = None) -> None:
        self.core = Core(max_workers, max_tasks)
        self.now = 100.0
        self.pages: dict[int, Page] = {}
        self.log: list[Command] = []
        if ready is None:
            ready = max_workers
        if ready:
            self.submit(*tasks(call(name="start"), ready))
            for worker in list(self.core.workers.values()):
                self.hello(worker)
            for worker in list(self.core.workers.values()):
                self.run(worker)
                self.answer(worker)
            self.log.clear()

    @property
    def workers(self) -> list[Worker]:
        return list(self.core.workers.values())

    def decide(self, after: float = 0.0) -> list[Command]:
        self.now += after
        commands: list[Command] = []
        self.core.decide(self.now, commands)
        for command in commands:
            if isinstance(command, Spawn):
                page = self.pages[command.worker.id] = Page()
                command.worker.page = page
        self.log.extend(commands)
        return commands

    def submit(self, *work: Task | Segment) -> list[Command]:
        self.core.submit(work)
        return self.decide()

    def hello(self, worker: Worker) -> list[Command]:
        self.core.hello(worker)
        return self.decide()

    def start(self, worker: Worker) -> int:
        """The worker starts what is next; return its index."""
        page = self.pages[worker.id]
        page.started += 1
        while page.started in page.revoked:
            page.finished = page.started
            page.started += 1
        assert page.started < worker.next_index, "there is nothing to start"
        page.started_at = self.now
        return page.started

    def run(self, worker: Worker, number: int = 1) -> None:
        """The worker starts and finishes so many tasks, and holds their results back."""
        for _ in range(number):
            self.pages[worker.id].finished = self.start(worker)

    def answer(
        self, worker: Worker, *, seconds: float = 0.0, codes: Sequence[int] | None = None, number: int | None = None
    ) -> list[Command]:
        """The results of all that has finished arrive."""
        finished = self.pages[worker.id].finished
        number = finished - worker.base + 1 if number is None else number
        if codes is None and any(index in self.pages[worker.id].revoked for index in range(worker.base, finished + 1)):
            revoked = self.pages[worker.id].revoked
            codes = [Code.SKIPPED if index in revoked else Code.VALUE for index in range(worker.base, finished + 1)]
        self.core.results(worker, worker.base, codes, [f"result {n}" for n in range(number)], seconds)
        return self.decide()

    def answer_chunk(
        self, worker: Worker, *, seconds: float = 0.0, codes: Sequence[int] | None = None
    ) -> list[Command]:
        chunk = worker.inflight[0]
        number = chunk.items if chunk is not None else 0
        self.core.chunk_result(worker, worker.base, codes, [b"result"] * number, seconds)
        return self.decide()

    def die(self, worker: Worker, exit: Exit | None = KILLED) -> list[Command]:
        self.core.died(worker, self.now, exit)
        return self.decide()

    def replace(self, commands: Iterable[Command]) -> Worker:
        """Let the one worker that is to be started come up; return it."""
        (spawn,) = [command for command in commands if isinstance(command, Spawn)]
        self.hello(spawn.worker)
        return spawn.worker

    # -- what has come of it ------------------------------------------------------------------------------------------

    def fed(self, worker: Worker) -> list[Any]:
        """What the worker holds."""
        return keys(worker.inflight)

    def all(self, kind: type[C]) -> list[C]:
        """All commands of a kind so far."""
        return [command for command in self.log if isinstance(command, kind)]

    def failures(self) -> list[tuple[Any, str]]:
        return [(keys([command.task])[0], command.failure.value) for command in self.all(Fail)]

    def settled(self) -> list[Any]:
        return [key for command in self.all(Settle) for key in keys(task for task in command.tasks if task)]

    def killed(self) -> list[int]:
        return [command.worker.id for command in self.all(Kill)]

    def feeds(self) -> list[tuple[int, list[Any]]]:
        return [(command.worker.id, keys(command.tasks)) for command in self.all(Feed)]
