"""What there is to run: tasks, calls and the chunks of a map. Pure.

A *call* is one callable under one set of options; it learns how long its tasks take. A *task* is one call with its
arguments. A *segment* is a stretch of a map's items from which chunks are cut at the moment a worker can take one,
so that their size follows from what the call has learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .messages import WINDOW_LIMIT, Code

if TYPE_CHECKING:
    from .policy import RetryPolicy

__all__ = ["WINDOW_LIMIT", "Call", "Chunk", "Code", "History", "Options", "Segment", "Task"]

HORIZON = 0.010
"""Seconds of work that a worker is fed ahead: enough to outlast a keeper that waits for the interpreter lock."""

CHUNK_SECONDS = 0.005
"""Seconds of run time that a chunk of a map aims at."""

TASK_OVERHEAD = 2e-6
"""Seconds that even an empty task costs a worker."""

CHUNK_LIMIT = 32768
"""Items in a chunk at most, which bounds what one frame carries."""

EVIDENCE = 8
"""The window grows by at most this factor over what has been observed: one fast task promises nothing."""

DEATHS = 3
"""Worker deaths at which a task is given up where no policy says otherwise."""

LATENCY_BOUND = 0.050
"""Tasks shorter than this have one more waiting behind them, for the way to the keeper and back would show."""


class Options(NamedTuple):
    """What ``Keeper.options`` sets: priority (higher first), seconds per attempt, retries, and what cancel reaches.

    Without a retry policy things are as with ``RetryPolicy()``, which most programs need not load.
    """

    priority: int = 0
    timeout: float | None = None
    retry: RetryPolicy | None = None
    kill_on_cancel: bool = False

    @property
    def retries_failures(self) -> bool:
        """Whether an exception or a timeout may lead to another attempt."""
        return self.retry is not None and not self.retry.is_default

    @property
    def deaths(self) -> int:
        """The number of worker deaths at which a task is given up; see ``RetryPolicy``."""
        return DEATHS if self.retry is None else self.retry.deaths

    @property
    def at_most_once(self) -> bool:
        """Whether a task that may have run already must not run again."""
        return self.retry is not None and self.retry.at_most_once

    def allows_death(self, deaths: int) -> bool:
        """Whether a task may run again after its ``deaths``-th worker death."""
        return deaths < DEATHS if self.retry is None else self.retry.allows_death(deaths)


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


class History:
    """What a retry policy is told of earlier attempts: when the first began, when each failed, the seconds waited."""

    __slots__ = ("began", "failures", "waited")

    def __init__(self, began: float) -> None:
        self.began = began
        self.failures: list[float] = []
        self.waited = 0.0


class Task:
    """One call with its arguments, and how far it has come.

    ``payload`` is a tuple (arguments that cannot change, as they are), bytes (pickled arguments) or an object of the
    I/O layer that becomes one of these when the task is fed. ``worker`` and ``index`` say where it was fed.
    ``attempts`` counts runs including the present one, ``deaths`` workers that died of it; ``history`` is there from
    the first failure on. ``returns`` is there from the first time on that its worker died when it had just finished.
    ``origin`` says where its first attempt ran, as that worker knows it: what it has saved is found by that name.
    """

    __slots__ = (
        "attempts", "call", "deaths", "history", "index", "key", "origin", "payload", "returns", "withdrawn", "worker",
    )  # fmt: skip

    items = 1
    careful = False
    together = True
    """Whether it may be fed in one go with others of its call."""

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

    def attempted(self, place: str) -> None:
        """An attempt has ended without success at a worker's ``place``, and there may be another."""
        if self.first_place is None:
            self.origin: str = f"{place}.{self.index}"

    @property
    def first_place(self) -> str | None:
        """Where the first attempt ran, None as long as that was the only one."""
        return getattr(self, "origin", None)

    def returned(self) -> int:
        """Count that its worker has died when it had just finished; return how often that was."""
        self.returns: int = getattr(self, "returns", 0) + 1
        return self.returns


class Gathers(Protocol):
    """Whoever takes in the pieces of a map."""

    withdrawn: bool
    number: int
    """Tells the maps of one keeper apart."""


class Chunk(Task):
    """Consecutive items of a map, run as one task; ``start`` is the position of the first in the whole map.

    ``careful`` makes the worker mark each item on its page, which tells which item kills (see ``blame``).
    """

    __slots__ = ("_withdrawn", "careful", "items", "segment", "start")

    together = False

    def __init__(self, segment: Segment, items: Sequence[Any], start: int) -> None:
        self._withdrawn = False
        self.segment = segment
        super().__init__(segment.call, items)
        self.items = len(items)
        self.start = start
        self.careful = self.items > 1 and segment.call.options.deaths <= 2

    @property
    def withdrawn(self) -> bool:  # over a slot of Task, which is there for speed
        """Whether nobody waits for it any more."""
        return self._withdrawn or self.segment.withdrawn

    @withdrawn.setter
    def withdrawn(self, value: bool) -> None:
        self._withdrawn = value

    def split(self, at: int) -> tuple[Chunk, Chunk, Chunk]:
        """Return what lies before the item at position ``at`` of this chunk, that item, and what lies behind it."""
        return self._part(0, at), self._part(at, at + 1), self._part(at + 1, self.items)

    def halves(self) -> tuple[Chunk, Chunk]:
        """Return the two halves of this chunk."""
        middle = self.items // 2
        return self._part(0, middle), self._part(middle, self.items)

    def _part(self, start: int, stop: int) -> Chunk:
        return Chunk(self.segment, self.payload[start:stop], self.start + start)


class Segment:
    """A stretch of a map's items that chunks are cut from, at least ``chunksize`` items each.

    More travel together where they are short; ``single`` items never do. It is withdrawn with the map (``job``).
    ``starred`` items are tuples of arguments. ``plain`` items cannot change and travel as they are; others are pickled.
    ``counted`` is for the backlog: what the segment counts for there.
    """

    __slots__ = ("call", "chunksize", "counted", "items", "job", "plain", "position", "single", "starred", "start")

    together = False

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
        self.counted = 0

    @property
    def withdrawn(self) -> bool:
        """Whether nobody waits for its items any more."""
        return self.job.withdrawn

    @property
    def remaining(self) -> int:
        """How many items have not been cut yet."""
        return len(self.items) - self.position

    def cut(self, workers: int) -> Chunk:
        """Return the next chunk, small enough that ``workers`` stay busy to the end (guided self-scheduling)."""
        fitting = min(self.call.chunk(), -(-self.remaining // (2 * workers)))
        size = 1 if self.single else max(self.chunksize, fitting)
        stop = min(self.position + size, len(self.items))
        chunk = Chunk(self, self.items[self.position : stop], self.start + self.position)
        self.position = stop
        return chunk
