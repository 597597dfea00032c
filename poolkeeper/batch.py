"""Batches: many tasks of one function, pulled lazily, reported one by one.

Rules:

- Whoever reads a batch drives it: items are pulled, and keys and limits asked, on the thread that makes the batch and
  on those that read it. There is no thread behind a batch, so none can be left behind.
- At most a window of tasks is in flight or unread. The window follows the speed of the tasks: wide enough that short
  ones travel together, narrow enough that slow ones do not pull items hours ahead.
- What a task raises is a result. Only the items themselves, or an executor that takes no more work, end a batch early;
  the error is raised once all that was submitted has been reported.
- Results are kept for ``result()`` only while somebody holds the batch: ``for result in keeper.batch(...)`` runs in
  constant memory.
- A batch that nobody holds any more takes back what has not started.

It knows a ``concurrent.futures`` executor and, where there is one, a store of outcomes, and no more. What it reports
beyond the outcome it reads from attributes that the futures of a ``Keeper`` have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from .cancellation import CancellationToken
from .feed import Feed, Kept, Limits
from .model import BatchResult, TaskResult
from .policy import ExecutionPolicy, RetryPolicy
from .store import Entry, Store

__all__ = ["Batch", "Submitter"]

T = TypeVar("T")


class Submitter(Protocol):
    """What a batch needs of an executor: any ``concurrent.futures.Executor`` has it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule ``fn(*args, **kwargs)``."""
        ...


class Batch(Generic[T]):
    """Tasks ``fn(item)`` for each of ``items`` on ``executor``; iterating yields their results as they end.

    Made by ``Keeper.batch``. It starts at once. Each result is handed out by iteration once; ``result()`` has them all.
    It can be awaited, and used from several threads.

    Args:
        executor: what runs the tasks.
        fn: called with one item.
        items: any iterable; it is read as far ahead as needed, by the threads that use the batch.
        name: how reports call it; None: the function's name.
        key: gives an item's key, a string that stays the same from run to run.
        policy: limits and retries; see ``ExecutionPolicy``.
        cancel: a token that cancels this batch with all else that it governs.
        store: where outcomes are recorded and, if the run goes on after an interruption, found again; the executor
            must take tasks under the entries of this store (``submit_as``), as a ``Keeper`` does.

    Raises:
        TypeError: for an argument of the wrong type, or a policy that needs a ``Keeper`` on an executor that is none.
    """

    def __init__(
        self,
        executor: Submitter,
        fn: Callable[..., T],
        items: Iterable[Any],
        *,
        name: str | None = None,
        key: Callable[[Any], str] | None = None,
        policy: ExecutionPolicy | None = None,
        cancel: CancellationToken | None = None,
        store: Store | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"batch of {fn!r}: the function must be callable")
        if key is not None and not callable(key):
            raise TypeError(f"key={key!r}: a batch needs a callable that gives each item's key")
        if policy is None:
            policy = ExecutionPolicy()
        elif not isinstance(policy, ExecutionPolicy):
            raise TypeError(f"policy={policy!r}: must be an ExecutionPolicy")
        self.name = name if name is not None else getattr(fn, "__name__", type(fn).__name__)
        self.total = len(items) if isinstance(items, Sized) else None
        self._token = CancellationToken() if cancel is None else cancel.child()
        self._kept: Kept[T] = Kept()
        if store is not None and not hasattr(executor, "submit_as"):
            raise TypeError(f"a {type(executor).__name__} does not record outcomes: use a Keeper, or no store")
        self._feed: Feed[T] = Feed(
            name=self.name,
            submit=_with_policy(executor, policy),
            fn=fn,
            items=iter(items),
            key=key,
            limits=Limits.of(policy, _worker_count(executor)),
            token=self._token,
            kept=self._kept,
            shelf=None if store is None else store.shelf(self.name, fn),
        )
        self._feed.start()

    def __repr__(self) -> str:
        return f"<Batch {self.name!r}: {len(self._kept)} ended, {len(self._feed.in_flight)} in flight>"

    def __iter__(self) -> Iterator[TaskResult[T]]:
        return _stream(self._feed)

    def __await__(self) -> Generator[Any, None, BatchResult[T]]:
        return self._awaited().__await__()

    async def _awaited(self) -> BatchResult[T]:
        import asyncio

        try:
            return await asyncio.to_thread(self.result)
        except asyncio.CancelledError:
            self.cancel("nobody awaits it any more")
            raise

    def result(self) -> BatchResult[T]:
        """Run the batch to its end and return all its results, those that iteration has handed out included.

        Raises:
            Exception: what the items raised, or why the executor took no more work; ``collected`` has what was done.
        """
        for _ in self:
            pass
        return self.collected

    @property
    def collected(self) -> BatchResult[T]:
        """What has ended so far, as a ``BatchResult`` in the order of the items."""
        feed = self._feed
        return BatchResult(
            self.name,
            tuple(sorted(self._kept, key=lambda result: result.index)),
            seconds=feed.seconds,
            error=feed.error,
            stopped=feed.stopped,
        )

    def cancel(self, reason: str = "cancelled") -> None:
        """Pull no more items and take back what has not started; what runs goes on to its end and is reported."""
        self._token.cancel(reason)


def _stream(feed: Feed[T]) -> Iterator[TaskResult[T]]:
    while (result := feed.read()) is not None:
        yield result


def _with_policy(
    executor: Any, policy: ExecutionPolicy
) -> Callable[[Entry | None, str | None, Callable[..., T], Any], Future[T]]:
    """Return ``submit(entry, key, fn, item)`` that carries what of ``policy`` is the executor's to carry out."""
    wanted: dict[str, Any] = {
        "priority": policy.priority,
        "timeout": policy.timeout,
        "retry": policy.retry,
        "resources": policy.resources,
    }
    defaults: dict[str, Any] = {"priority": 0, "timeout": None, "retry": RetryPolicy(), "resources": {}}
    options = {name: value for name, value in wanted.items() if value != defaults[name]}
    if not hasattr(executor, "options"):
        if options:
            raise TypeError(f"a {type(executor).__name__} cannot carry out {', '.join(options)}: use a Keeper")
        return lambda entry, key, fn, item: executor.submit(fn, item)
    view = executor.options(**options) if options else executor

    def submit(entry: Entry | None, key: str | None, fn: Callable[..., T], item: Any) -> Future[T]:
        if entry is not None:
            return view.submit_as(entry, key, fn, item)  # type: ignore[no-any-return]
        return (view if key is None else view.options(key=key)).submit(fn, item)  # type: ignore[no-any-return]

    return submit


def _worker_count(executor: object) -> int:
    """Return how many tasks ``executor`` runs at once, as far as it tells."""
    for name in ("max_workers", "_max_workers"):  # the latter is what the standard executors have
        count = getattr(executor, name, None)
        if isinstance(count, int):
            return count
    return os.cpu_count() or 1
