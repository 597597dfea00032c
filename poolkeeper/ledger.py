"""What there is to run: tasks, calls and the chunks of a map, and the queue that orders them. Pure.

A *call* is one callable under one set of options; it learns how long its tasks take. A *task* is one call with its
arguments. A *segment* is a stretch of a map's items from which chunks are cut at the moment a worker can take one,
so that their size follows from what the call has learnt.

The queue hands out work in this order: suspects (tasks that may have killed a worker: alone, one at a time, never
fed ahead), tasks that are due again after a failure, then fresh work by priority, first in first out.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Any, Protocol

from .policy import RetryPolicy

__all__ = ["Call", "Chunk", "Code", "History", "Options", "Queue", "Segment", "Task", "WINDOW_LIMIT"]

HORIZON = 0.010
"""Seconds of work that a worker is fed ahead: enough to outlast a keeper that waits for the interpreter lock."""

CHUNK_SECONDS = 0.005
"""Seconds of run time that a chunk of a map aims at."""

TASK_OVERHEAD = 2e-6
"""Seconds that even an empty task costs a worker."""

WINDOW_LIMIT = 2048
"""Tasks fed ahead at most; the page has two revocation marks for each, so that marks are never reused too early."""

CHUNK_LIMIT = 32768
"""Items in a chunk at most, which bounds what one frame carries."""

EVIDENCE = 8
"""The window grows by at most this factor over what has been observed: one fast task promises nothing."""

LATENCY_BOUND = 0.050
"""Tasks shorter than this have one more waiting behind them, for the way to the keeper and back would show."""


class Code(IntEnum):
    """How a value travels in a result: as itself, pickled, in an arena, or as an exception."""

    VALUE = 0
    PICKLED = 1
    ARENA = 2
    EXCEPTION = 3
    SKIPPED = 4


@dataclass(frozen=True, slots=True)
class Options:
    """What ``Keeper.options`` sets: priority (higher first), seconds per attempt, retries, and what cancel reaches."""

    priority: int = 0
    timeout: float | None = None
    retry: RetryPolicy = RetryPolicy()
    kill_on_cancel: bool = False

    @property
    def retries_failures(self) -> bool:
        """Whether an exception or a timeout may lead to another attempt."""
        return not self.retry.is_default


class Call:
    """One callable under one set of options.

    ``blob`` is its pickle, ``name`` what messages call it. ``cost`` is the running mean of its tasks' run time in
    seconds, None before the first; ``seen`` counts them.
    """

    __slots__ = ("blob", "cost", "id", "name", "options", "path", "seen")

    _ids = count(1)

    def __init__(self, name: str, blob: bytes, options: Options, path: tuple[str, ...] | None = None) -> None:
        self.id = next(Call._ids)
        self.name = name
        self.blob = blob
        self.options = options
        self.path = path
        self.cost: float | None = None
        self.seen = 0

    def learn(self, tasks: int, seconds: float) -> None:
        """Take note that ``tasks`` of this call ran for ``seconds`` in all."""
        mean = seconds / tasks
        self.cost = mean if self.cost is None else self.cost + 0.3 * (mean - self.cost)
        self.seen += tasks

    def window(self) -> int:
        """How many tasks a worker may hold while another could take none of them."""
        if self.cost is None:
            return 1
        ahead = min(int(HORIZON / (self.cost + TASK_OVERHEAD)), EVIDENCE * self.seen, WINDOW_LIMIT)
        return max(ahead, 2 if self.cost < LATENCY_BOUND else 1)

    def chunk(self) -> int:
        """How many items of a map make a chunk of the right length."""
        if self.cost is None:
            return 1
        return max(1, min(int(CHUNK_SECONDS / (self.cost + 1e-8)), EVIDENCE * self.seen, CHUNK_LIMIT))


@dataclass(slots=True)
class History:
    """What a retry policy is told of earlier attempts: when the first began, when each failed, the seconds waited."""

    began: float
    failures: list[float]
    waited: float = 0.0


class Task:
    """One call with its arguments, and how far it has come.

    ``payload`` is a tuple (arguments that cannot change, as they are), bytes (pickled arguments) or an object of the
    I/O layer that becomes one of these when the task is fed. ``worker`` and ``index`` say where it was fed.
    ``attempts`` counts runs including the present one, ``deaths`` workers that died of it; ``history`` is there from
    the first failure on.
    """

    __slots__ = ("attempts", "call", "deaths", "history", "index", "key", "payload", "withdrawn", "worker")

    items = 1

    def __init__(self, call: Call, payload: Any, key: str | None = None) -> None:
        self.call = call
        self.payload = payload
        self.key = key
        self.worker: int | None = None
        self.index = 0
        self.attempts = 1
        self.deaths = 0
        self.history: History | None = None
        self.withdrawn = False


class Gathers(Protocol):
    """Whoever takes in the pieces of a map."""

    withdrawn: bool


class Chunk(Task):
    """Consecutive items of a map, run as one task; ``start`` is the position of the first in the whole map.

    ``careful`` makes the worker mark each item on its page: set after a first death, it tells which item kills.
    """

    __slots__ = ("careful", "items", "segment", "start")

    def __init__(self, segment: Segment, items: Sequence[Any], start: int) -> None:
        super().__init__(segment.call, items)
        self.segment = segment
        self.items = len(items)
        self.start = start
        self.careful = False

    def part(self, start: int, stop: int) -> Chunk:
        """Return the items from ``start`` to ``stop`` (positions within this chunk) as a chunk of their own."""
        return Chunk(self.segment, self.payload[start:stop], self.start + start)


class Segment:
    """A stretch of a map's items that chunks are cut from, at least ``chunksize`` items each.

    More travel together where they are short; ``single`` items never do.
    ``starred`` items are tuples of arguments. ``plain`` items cannot change and travel as they are; others are payloads.
    """

    __slots__ = ("call", "chunksize", "items", "job", "plain", "position", "single", "starred", "start")

    def __init__(
        self,
        job: Gathers,
        call: Call,
        items: Sequence[Any],
        start: int,
        *,
        starred: bool,
        plain: bool,
        chunksize: int = 1,
        single: bool = False,
    ) -> None:
        self.job = job
        self.call = call
        self.items = items
        self.start = start
        self.starred = starred
        self.plain = plain
        self.chunksize = chunksize
        self.single = single
        self.position = 0

    @property
    def remaining(self) -> int:
        """How many items have not been cut yet."""
        return len(self.items) - self.position

    def cut(self, workers: int) -> Chunk:
        """Return the next chunk, small enough that ``workers`` stay busy to the end (guided self-scheduling)."""
        if self.single:
            size = 1
        else:
            size = max(self.chunksize, min(self.call.chunk(), -(-self.remaining // (2 * workers))))
        stop = min(self.position + size, len(self.items))
        chunk = Chunk(self, self.items[self.position : stop], self.start + self.position)
        self.position = stop
        return chunk


class Queue:
    """The work that no worker has, in the order in which it is to be handed out."""

    def __init__(self) -> None:
        self._fresh: dict[int, deque[Task | Segment]] = {0: deque()}
        self._priorities = [0]
        self._again: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._delayed: list[tuple[float, int, Task]] = []
        self._tick = count()
        self._suspect_out: Task | None = None

    def submit(self, tasks: Iterable[Task | Segment]) -> None:
        """Append fresh work."""
        fresh = self._fresh
        for task in tasks:
            priority = task.call.options.priority
            try:
                fresh[priority].append(task)
            except KeyError:
                fresh[priority] = deque((task,))
                self._priorities = sorted(fresh, reverse=True)

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Return tasks that were fed and never ran to the front, in their order and without blame."""
        for task in reversed(tasks):
            task.worker = None
            if task.attempts > 1 or task.deaths:
                self._again.appendleft(task)
            else:
                self._fresh[task.call.options.priority].appendleft(task)

    def suspect(self, task: Task) -> None:
        """Queue a task whose worker died of it; it will run alone."""
        task.worker = None
        if self._suspect_out is task:
            self._suspect_out = None
        self._suspects.append(task)

    def delay(self, task: Task, due: float) -> None:
        """Queue a task for another attempt at ``due``."""
        task.worker = None
        heapq.heappush(self._delayed, (due, next(self._tick), task))

    def cleared(self, task: Task) -> None:
        """Take note that ``task`` has ended or left its worker, so that the next suspect may run."""
        if self._suspect_out is task:
            self._suspect_out = None

    def release(self, now: float) -> None:
        """Move what is due to the front."""
        while self._delayed and self._delayed[0][0] <= now:
            self._again.append(heapq.heappop(self._delayed)[2])

    @property
    def next_due(self) -> float | None:
        """When the earliest delayed task is due."""
        return self._delayed[0][0] if self._delayed else None

    def __len__(self) -> int:
        """How many tasks wait, delayed ones included; a segment counts its items."""
        waiting = len(self._again) + len(self._suspects) + len(self._delayed)
        for queue in self._fresh.values():
            waiting += len(queue)
            if queue and type(queue[0]) is Segment:
                waiting += sum(entry.remaining - 1 for entry in queue if type(entry) is Segment)
        return waiting

    @property
    def runnable(self) -> bool:
        """Whether there is work that a worker could start now."""
        if self._again or (self._suspects and self._suspect_out is None):
            return True
        return any(self._fresh.values())

    @property
    def depth(self) -> int:
        """How many entries could start now; a segment counts for many. An estimate, for sharing out and for spawning."""
        total = len(self._again) + (1 if self._suspects and self._suspect_out is None else 0)
        for queue in self._fresh.values():
            if queue:
                total += len(queue)
                head = queue[0]
                if type(head) is Segment:
                    total += head.remaining
        return total

    def take_suspect(self) -> Task | None:
        """Return the next suspect for an empty worker, None where there is none or one runs already."""
        while self._suspects and self._suspect_out is None:
            task = self._suspects.popleft()
            if not _withdrawn(task):
                self._suspect_out = task
                return task
        return None

    def take(self, limit: int, workers: int) -> list[Task]:
        """Return up to ``limit`` tasks of one call to be fed together; chunks and repeated attempts come singly."""
        while self._again:
            task = self._again.popleft()
            if not _withdrawn(task):
                return [task]
        for priority in self._priorities:
            queue = self._fresh[priority]
            while queue:
                head = queue[0]
                if type(head) is Segment:
                    if not head.job.withdrawn and head.remaining:
                        return [head.cut(workers)]
                    queue.popleft()
                elif isinstance(head, Chunk):
                    queue.popleft()
                    if not head.segment.job.withdrawn:
                        return [head]
                else:
                    tasks = self._take_plain(queue, limit)
                    if tasks:
                        return tasks
        return []

    @staticmethod
    def _take_plain(queue: deque[Any], limit: int) -> list[Task]:
        call = queue[0].call
        tasks: list[Task] = []
        while queue and len(tasks) < limit:
            task = queue[0]
            if task.call is not call or type(task) is Chunk:
                break
            queue.popleft()
            if not task.withdrawn:
                tasks.append(task)
        return tasks

    def head_call(self) -> Call | None:
        """The call of the work that would be handed out next."""
        if self._again:
            return self._again[0].call
        for priority in self._priorities:
            if self._fresh[priority]:
                return self._fresh[priority][0].call
        return None

    def clear(self) -> list[Task | Segment]:
        """Empty the queue and return what it held."""
        held: list[Task | Segment] = [*self._suspects, *self._again, *(task for _, _, task in self._delayed)]
        for queue in self._fresh.values():
            held.extend(queue)
            queue.clear()
        self._suspects.clear()
        self._again.clear()
        self._delayed.clear()
        return held


def _withdrawn(task: Task) -> bool:
    return task.segment.job.withdrawn if isinstance(task, Chunk) else task.withdrawn
