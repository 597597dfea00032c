"""A worker process in virtual time: what ``poolkeeper.worker`` does, step by step, and a page to mark it on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from poolkeeper.commands import Feed, Retire
from poolkeeper.ledger import Chunk
from poolkeeper.messages import Code, Progress
from poolkeeper.roster import Worker

FLUSH_SECONDS = 0.0005
PATIENCE = 0.5
"""Seconds within which the keeper must have seen what it has a timer for: an attempt's end, results held back."""


class Page:
    """A worker's page; what the two sides write is visible at once, the steps between are the simulation's."""

    def __init__(self) -> None:
        self.started = self.finished = self.item = 0
        self.started_at = 0.0
        self.marks: set[int] = set()
        self.hesitating = 0
        self.seen_by_both = False

    def observe(self) -> Progress:
        return Progress(self.started, self.finished, self.item, self.started_at)

    def revoke(self, index: int) -> bool:
        if self.started < index:
            self.marks.add(index)
            return True
        if self.seen_by_both and index == self.hesitating:
            self.marks.add(index)  # given up by the keeper, and yet seen by the worker
        return False


@dataclass(eq=False)
class Work:
    """One task, or one item of a map: what it will do, and what has become of it.

    The first ``raises`` attempts end in an exception; ``kills`` takes the worker down; ``once`` forbids to run it again
    after a death. ``excuses`` counts what may explain one more run, ``deaths`` the workers that died while they ran it,
    ``nearby`` those that ran its chunk.
    """

    name: str
    seconds: float
    raises: int = 0
    kills: bool = False
    once: bool = False
    runs: int = 0
    excuses: int = 0
    deaths: int = 0
    nearby: int = 0
    ends: list[str] = field(default_factory=list)
    withdrawn: bool = False


class Violation(AssertionError):
    """The core did what it must not do."""


class Surroundings(Protocol):
    """What the simulation is to a process: time, chance, and the keeper at the other end."""

    now: float
    random: Random

    def happens(self, fault: str) -> bool: ...
    def latency(self) -> float: ...
    def after(self, delay: float, call: Callable[[], None]) -> None: ...
    def connected(self, process: Process) -> None: ...
    def deliver(self, process: Process) -> None: ...
    def begins(self, process: Process, work: Work, timeout: float | None) -> None: ...
    def process_ends(self, process: Process, code: int) -> None: ...


class Process:
    """A worker's process. ``unanswered`` are the runs that the keeper has not heard of."""

    def __init__(self, pool: Surroundings, worker: Worker) -> None:
        self.pool = pool
        self.worker = worker
        self.page = Page()
        worker.page = self.page
        self.steps = self._live()
        self.on_the_way: deque[Feed | Retire] = deque()
        self.inbox: deque[Feed | Retire] = deque()
        self.outbox: deque[tuple[Any, ...]] = deque()
        self.unanswered: list[Work] = []
        self.executing: list[Work] = []
        self.just_finished: list[Work] = []
        self.current: Work | None = None
        self.expected: dict[int, float] = {}
        self.idle = False
        self.linked = False
        self.ended = False
        self.up = False
        self._held: list[tuple[int, Any]] = []
        self._first = 1
        self._began = self._flushed = 0.0

    def resume(self) -> None:
        """Go on until the next moment that takes time."""
        if self.ended:
            return
        try:
            pause = next(self.steps)
        except StopIteration:
            self.pool.process_ends(self, 0)
            return
        self.idle = pause is None
        if pause is not None:
            self.pool.after(pause, self.resume)

    def hear(self) -> None:
        """One message has come over the link, if there is one."""
        if self.linked and self.on_the_way:
            self.inbox.append(self.on_the_way.popleft())
            if self.idle:
                self.idle = False
                self.pool.after(0.0, self.resume)

    def flush(self) -> None:
        """Send what is held back; the nudge calls it too."""
        if self._held and not self.ended:
            codes = [code for code, _ in self._held]
            values = [value for _, value in self._held]
            now = self.pool.now
            self._send("results", self._first, codes if any(codes) else None, values, now - self._began)
            self._first += len(values)
            self._held = []
            self._began = self._flushed = now

    def _send(self, *message: Any) -> None:
        self.outbox.append(message)
        self.pool.after(self.pool.latency(), lambda: self.pool.deliver(self))

    def _live(self) -> Generator[float | None]:
        yield self.pool.latency()
        self.up = True
        self.pool.connected(self)
        while True:
            while not self.inbox:
                yield None
            batch, self.inbox = self.inbox, deque()
            for message in batch:
                if isinstance(message, Retire):
                    self.flush()
                    return
                if isinstance(message.tasks[0], Chunk):
                    yield from self._run_chunk(message.first, message.tasks[0])
                else:
                    yield from self._run_tasks(message)
            self.flush()
            if self.pool.happens("recycle"):
                self._send("recycle")

    def _start(self, index: int, works: list[Work]) -> Generator[float | None, None, bool]:
        """Mark the start, then look for a revocation: the keeper may act in between."""
        self.page.started_at = self.pool.now
        self.page.started = index
        self.executing = works
        self.current = works[0]
        if self.pool.happens("hesitate"):
            self.page.hesitating = index
            self.page.seen_by_both = self.pool.random.random() < 0.5
            yield self.pool.latency()
            self.page.hesitating = 0
        if index in self.page.marks:
            self.page.marks.discard(index)
            yield from self._finish(index)
            return False
        return True

    def _finish(self, index: int) -> Generator[float | None]:
        self.page.finished = index
        self.just_finished, self.executing = self.executing, []
        if self.pool.happens("crash late"):
            self.pool.process_ends(self, -9)
            yield None

    def _run_tasks(self, feed: Feed) -> Generator[float | None]:
        call = feed.tasks[0].call.id
        if self._held and self.expected.get(call, 1.0) > FLUSH_SECONDS:
            self.flush()
        if not self._held:
            self._first = feed.first
            self._began = self._flushed = self.pool.now
        began = self.pool.now
        for index, task in enumerate(feed.tasks, feed.first):
            if not (yield from self._start(index, [task.payload])):
                self._held.append((Code.SKIPPED, None))
                continue
            code = yield from self._run(task.payload, task.attempts, task.call.options.timeout)
            yield from self._finish(index)
            self.pool.after(PATIENCE, self._expect_sent(index))
            self._held.append((code, task.payload))
            if self.pool.now - self._flushed > FLUSH_SECONDS:
                self.flush()
        self.expected[call] = (self.pool.now - began) / len(feed.tasks)

    def _expect_sent(self, index: int) -> Callable[[], None]:
        def look() -> None:
            if self._held and self._first <= index and self.linked and not self.ended:
                raise Violation(f"worker {self.worker.id} holds result {index} back for too long")

        return look

    def _run(self, work: Work, attempt: int, timeout: float | None) -> Generator[float | None, None, Code]:
        self.pool.begins(self, work, timeout)
        yield work.seconds * (self.pool.random.random() if work.kills else 1.0)
        if work.kills:
            self.pool.process_ends(self, -9)
            yield None
        return Code.EXCEPTION if attempt <= work.raises else Code.VALUE

    def _run_chunk(self, index: int, chunk: Chunk) -> Generator[float | None]:
        self.flush()
        self.page.item = 0
        if not (yield from self._start(index, chunk.payload)):
            self._send("results", index, [Code.SKIPPED], [None], 0.0)
            return
        began = self.pool.now
        codes = []
        for position, work in enumerate(chunk.payload):
            self.page.item = position if chunk.careful else 0
            self.current = work
            codes.append((yield from self._run(work, chunk.attempts, chunk.call.options.timeout)))
        yield from self._finish(index)
        self._first = index + 1
        self._send("chunk", index, codes if any(codes) else None, list(chunk.payload), self.pool.now - began)
