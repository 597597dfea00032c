"""The moving part of a batch: pulls items, submits tasks within limits, and collects what became of them.

The readers of a batch hold its feed, and nothing else does: neither the futures nor the cancellation token. So a batch
that nobody reads any more ends by reference counting, and takes back what has not started.
"""

from __future__ import annotations

import _thread
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from .cancellation import CancellationToken
from .model import TaskResult, TaskStatus
from .policy import ExecutionPolicy, RateLimit
from .ratelimit import TokenBucket
from .store import Entry, Recalled, Shelf

__all__ = ["Feed", "Kept", "Limits", "Window"]

T = TypeVar("T")


class Kept(list[TaskResult[T]]):
    """The results that a Batch keeps; a class of its own because a list cannot be referred to weakly."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which item a future stands for."""

    index: int
    item: Any
    key: str | None


class _Next(NamedTuple):
    """An item that has been pulled and not submitted, and what its outcome is to be recorded under."""

    ticket: Ticket
    entry: Entry | None


class Window:
    """How many tasks may be in flight or unread; it doubles while they are quick and halves while they are slow."""

    QUICK = 0.1
    SLOW = 1.0
    WIDEST = 4096

    def __init__(self, narrowest: int) -> None:
        self._narrowest = narrowest
        self.size = narrowest
        self._ended = 0
        self._since: float | None = None

    def ended(self, count: int, now: float) -> None:
        """Note that ``count`` tasks came to an end by ``now``."""
        if self._since is None:
            self._since = now
        self._ended += count
        if self._ended < self.size:
            return
        if now - self._since < self.QUICK:
            self.size = max(self._narrowest, min(2 * self.size, self.WIDEST))
        elif now - self._since > self.SLOW:
            self.size = max(self._narrowest, self.size // 2)
        self._ended, self._since = 0, now


class _Gate:
    """A token bucket that several batches may ask, from several threads."""

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._bucket = TokenBucket(limit)
        self._lock = threading.Lock()

    def acquire(self, now: float) -> float:
        """Take a token and return 0.0; or take none, and return the seconds after which to ask again."""
        with self._lock:
            return self._bucket.acquire(now)


class _Gates:
    """The gates in use, one for each named limit and one for each use of a nameless limit."""

    def __init__(self) -> None:
        self._named: weakref.WeakValueDictionary[str, _Gate] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def of(self, limit: RateLimit) -> _Gate:
        """Return the gate of ``limit``; raises ValueError if its name stands for another limit at the moment."""
        if limit.name is None:
            return _Gate(limit)
        with self._lock:
            gate = self._named.setdefault(limit.name, _Gate(limit))
        if gate.limit != limit:
            raise ValueError(f"{limit!r}: a limit of this name is in use with other values: {gate.limit!r}")
        return gate


_GATES = _Gates()


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds a batch back."""

    concurrency: int | None
    gate: _Gate | None
    window: Window

    @classmethod
    def of(cls, policy: ExecutionPolicy, workers: int) -> Limits:
        """Return the limits of a new batch with ``policy`` on an executor with so many ``workers``."""
        # Twice the workers: each has a next task waiting while the reader is busy elsewhere.
        narrowest = 2 * max(workers, policy.concurrency or 0)
        gate = None if policy.rate_limit is None else _GATES.of(policy.rate_limit)
        return cls(policy.concurrency, gate, Window(narrowest))

    def allow(self, in_flight: int, unread: int) -> bool:
        """Whether one more task may be submitted, as far as numbers go."""
        if self.concurrency is not None and in_flight >= self.concurrency:
            return False
        return in_flight + unread < self.window.size


class Feed(Generic[T]):
    """The moving part of a batch: pulls, submits, collects. The readers of the batch hold it, futures do not."""

    def __init__(
        self,
        *,
        name: str,
        submit: Callable[[Entry | None, str | None, Callable[..., T], Any], Future[T]],
        fn: Callable[..., T],
        items: Iterator[Any],
        key: Callable[[Any], str] | None,
        limits: Limits,
        token: CancellationToken,
        kept: Kept[T],
        shelf: Shelf | None = None,
    ) -> None:
        self.error: Exception | None = None
        self.stopped: str | None = None
        self.in_flight: dict[Future[T], Ticket] = {}
        self._name = name
        self._submit = submit
        self._fn = fn
        self._items = items
        self._key = key
        self._limits = limits
        self._token = token
        self._kept = weakref.ref(kept)
        self._shelf = shelf
        self._next: _Next | None = None
        # A future has one simple way to say that it is done: to put itself here. None wakes a reader.
        self._done: SimpleQueue[Future[T] | None] = SimpleQueue()
        self._unread: deque[TaskResult[T]] = deque()
        self._pulled = 0
        self._exhausted = False
        self._error_is_due = False
        self._started = time.monotonic()
        self._ended: float | None = None
        self._reading = threading.RLock()
        stop = _Stopper(self.in_flight, self._done)
        self._forget = token.on_cancel(stop)
        self._finalizer = weakref.finalize(self, _abandon, stop, self._forget)
        self._finalizer.atexit = False

    @property
    def seconds(self) -> float:
        """Wall-clock time from the start to the end, or to now."""
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def start(self) -> None:
        """Submit the first window."""
        with self._reading:
            self._refill()

    def read(self) -> TaskResult[T] | None:
        """Return the next result, waiting for it; None at the end.

        Raises:
            Exception: what ended the batch early, once, after everything else has been read.
        """
        with self._reading:
            try:
                return self._read()
            except BaseException:
                # An interrupt may have fallen between taking a future and reporting it: offer all of them again.
                for future in list(self.in_flight):
                    if future.done():
                        self._done.put(future)
                raise

    def _read(self) -> TaskResult[T] | None:
        while True:
            self._collect(wait=None)
            delay = self._refill()
            if self._unread:
                return self._unread.popleft()
            if not self.in_flight and delay is None:
                self._end()
                return None
            self._collect(wait=delay if delay is not None else -1.0)

    def _end(self) -> None:
        if self._ended is None:
            self._ended = time.monotonic()
            if self._shelf is not None and self.error is None and self.stopped is None:
                self._shelf.completed()
            self._finalizer.detach()
            self._forget()
        if self._error_is_due and self.error is not None:
            self._error_is_due = False
            raise self.error

    def _collect(self, wait: float | None) -> None:
        """Report the futures that are done.

        Args:
            wait: seconds to wait for the first one, negative: as long as it takes; None: do not wait.
        """
        count = 0
        try:
            future = self._done.get_nowait() if wait is None else self._done.get(timeout=None if wait < 0 else wait)
            while True:
                ticket = None if future is None else self.in_flight.get(future)
                if future is not None and ticket is not None:
                    self._report(_result_of(future, ticket))
                    del self.in_flight[future]
                    count += 1
                future = self._done.get_nowait()
        except Empty:
            pass
        if count:
            self._limits.window.ended(count, time.monotonic())

    def _report(self, result: TaskResult[T]) -> None:
        if result.status is TaskStatus.CANCELLED:
            self._note_cancellation()
        self._unread.append(result)
        kept = self._kept()
        if kept is not None:
            kept.append(result)

    def _refill(self) -> float | None:
        """Submit what the limits allow; return the seconds after which to try again, None: after the next result."""
        while self._next is not None or not self._exhausted:
            if self._token.cancelled:
                self._note_cancellation()
                self._stop_pulling()
                break
            if not self._limits.allow(len(self.in_flight), len(self._unread)):
                break
            if self._shelf is not None and self._next is None:
                self._look_up(self._shelf)  # what is recorded is not run, and so not held back by a rate limit
                if self._next is None:
                    continue
            if self._limits.gate is not None:
                delay = self._limits.gate.acquire(time.monotonic())
                if delay > 0:
                    return delay
            upcoming, self._next = self._next or self._pull(), None
            if upcoming is not None:
                self._take(upcoming)
        return None

    def _pull(self) -> _Next | None:
        """Return the next item, None if there is none or its key makes no sense."""
        try:
            item = next(self._items)
        except StopIteration:
            self._stop_pulling()
            return None
        except Exception as error:
            error.add_note(f"raised by the items of batch {self._name!r}, after {self._pulled} of them")
            self._fail(error)
            return None
        index, self._pulled = self._pulled, self._pulled + 1
        key: str | None = None
        try:
            if self._key is not None:
                key = self._key(item)
                if not isinstance(key, str):
                    raise TypeError(f"the key of an item must be a string, not {key!r}")
        except Exception as error:
            self._reject(Ticket(index, item, key), error)
            return None
        return _Next(Ticket(index, item, key), None)

    def _look_up(self, shelf: Shelf) -> None:
        """Pull an item, and report its recorded outcome if there is one; else it is the next to be submitted."""
        upcoming = self._pull()
        if upcoming is None:
            return
        ticket = upcoming.ticket
        entry = shelf.entry(ticket.index if ticket.key is None else ticket.key, (ticket.item,))
        recalled = shelf.recall(entry)
        if recalled is None:
            self._next = _Next(ticket, entry)
        else:
            self._report(_result_of_recalled(recalled, ticket))

    def _take(self, upcoming: _Next) -> None:
        """Submit one item; what makes this impossible for this item alone is its result."""
        ticket = upcoming.ticket
        try:
            future = self._submit(upcoming.entry, ticket.key, self._fn, ticket.item)
        except Exception as error:
            self._reject(ticket, error)
        else:
            self.in_flight[future] = ticket
            future.add_done_callback(self._done.put)
            if self._token.cancelled:
                future.cancel()

    def _reject(self, ticket: Ticket, error: Exception) -> None:
        self._report(TaskResult(TaskStatus.FAILED, ticket.index, ticket.item, ticket.key, error=error, attempts=0))
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
            self._fail(error)  # shut down or broken: no later item would fare better

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._error_is_due = True
        self._stop_pulling()

    def _note_cancellation(self) -> None:
        if self._token.cancelled:
            self.stopped = self._token.reason or "cancelled"

    def _stop_pulling(self) -> None:
        self._exhausted = True
        self._next = None
        self._items = iter(())  # closes a generator here and now


class _Stopper:
    """Takes back what has not started, and wakes the reader. It refers to no feed, so that one can be abandoned."""

    def __init__(self, in_flight: dict[Future[Any], Ticket], done: SimpleQueue[Any]) -> None:
        self._in_flight = in_flight
        self._done = done

    def __call__(self) -> None:
        for future in list(self._in_flight):
            future.cancel()
        self._done.put(None)


def _abandon(stop: _Stopper, forget: Callable[[], object]) -> None:
    """Stop a feed that nobody refers to any more.

    A finalizer runs wherever the garbage collector does, perhaps in the midst of code that holds the very lock that
    taking back a task needs; so this happens in a thread, and one that takes no lock of ``threading`` to start.
    """

    def act() -> None:
        forget()
        stop()

    with suppress(RuntimeError):  # the interpreter is going down, and takes everything back by itself
        _thread.start_new_thread(act, ())


def _result_of(future: Future[T], ticket: Ticket) -> TaskResult[T]:
    """Return the report of a future that is done."""
    error: BaseException | None
    if future.cancelled():
        status, error = TaskStatus.CANCELLED, CancelledError()
    else:
        error = future.exception()
        status = TaskStatus.of(error)
        if status is TaskStatus.CANCELLED:
            status = TaskStatus.FAILED  # the task itself raised CancelledError
    return TaskResult(
        status,
        ticket.index,
        ticket.item,
        ticket.key,
        returned=future.result() if error is None else None,
        error=error,
        attempts=getattr(future, "attempts", 0 if future.cancelled() else 1),
        deaths=getattr(future, "deaths", 0),
        seconds=getattr(future, "run_seconds", None),
        worker_pid=getattr(future, "worker_pid", None),
        reused=getattr(future, "reused", False),
    )


def _result_of_recalled(recalled: Recalled, ticket: Ticket) -> TaskResult[Any]:
    """Return the report of an item whose outcome was recorded by an earlier part of the run."""
    status = TaskStatus.of(recalled.error)
    return TaskResult(
        TaskStatus.FAILED if status is TaskStatus.CANCELLED else status,
        ticket.index,
        ticket.item,
        ticket.key,
        returned=recalled.value,
        error=recalled.error,
        attempts=recalled.attempts,
        deaths=recalled.deaths,
        seconds=recalled.seconds,
        reused=True,
    )
