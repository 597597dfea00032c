"""Executors on a keeper's workers: ``submit``, ``map``, ``batch``, and views with other options."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .calls import CallRegistry, callable_name
from .errors import PayloadError, PoolkeeperError
from .futures import TaskFuture
from .keeper import KeeperRuntime
from .ledger import Call, Options, Segment
from .mapping import MapJob
from .payload import SCALARS, dumps, dumps_arguments, is_plain
from .store import Entry, Recalled

if TYPE_CHECKING:
    from .batch import Batch
    from .cancellation import CancellationToken
    from .inline import InlineRuntime
    from .policy import ExecutionPolicy, RetryPolicy
    from .store import Store

__all__ = ["KeeperView"]

T = TypeVar("T")
Key = str | Callable[..., str] | None


class KeeperView(Executor):
    """An executor on a keeper's workers with options of its own; made by ``Keeper.options``."""

    _runtime: KeeperRuntime | InlineRuntime
    _options: Options
    _key: Key
    _registry: CallRegistry
    _parent: KeeperView | None = None

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Schedule ``fn(*args, **kwargs)`` and return its future; never blocks.

        What cannot be pickled fails the future, with PayloadError. Raises RuntimeError after ``shutdown``.
        """
        runtime = self._runtime
        if runtime.refusal is not None:
            raise RuntimeError(runtime.refusal)
        return self._submit(runtime, None, self._key, fn, args, kwargs)

    def submit_as(self, entry: Entry, key: str | None, fn: Callable[..., T], /, *args: Any) -> TaskFuture:
        """Submit a task of a batch, whose outcome is to be recorded under ``entry``; raises as ``submit``."""
        runtime = self._runtime
        if runtime.refusal is not None:
            raise RuntimeError(runtime.refusal)
        return self._submit(runtime, entry, self._key if key is None else key, fn, args, {})

    def _submit(
        self,
        runtime: KeeperRuntime | InlineRuntime,
        entry: Entry | None,
        key: Key,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> TaskFuture:
        try:
            recorder = runtime.recorder
            if key is None or entry is not None or recorder is None:
                call = self._registry.call(fn)
                if key is not None and not isinstance(key, str):
                    key = _checked_key(key(*args, **kwargs))
            else:
                outline = self._registry.outline(fn)
                shelf = recorder.keyed_unpickled(fn, outline.name)
                if shelf is None:
                    outline = self._registry.call(fn)
                    shelf = recorder.keyed(outline, fn)
                if not isinstance(key, str):
                    key = _checked_key(key(*args, **kwargs))
                entry = shelf.entry(key, args, kwargs)
                recalled = shelf.recall(entry)
                if recalled is not None:  # it was not pickled for this, which takes longer than all else
                    return _recalled(TaskFuture(outline, None, key, runtime), recalled)
                call = self._registry.call(fn)
            if not kwargs and (SCALARS.issuperset(map(type, args)) or all(map(is_plain, args))):
                payload: Any = args
            else:
                payload = runtime.stowage.stow(*dumps_arguments(args, kwargs))
        except Exception as error:
            return _failed(fn, self._options, error, runtime)
        future = TaskFuture(call, payload, key, runtime)
        if entry is not None:
            future.entry = entry
            entry.shelf.expect()
        runtime.submit(future)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]:
        """Apply ``fn`` to the items of ``iterables``, as ``Executor.map`` does.

        Args:
            fn: takes as many arguments as there are iterables.
            iterables: read at once; with ``buffersize``, as results are consumed.
            timeout: seconds from this call within which each next result must be there.
            chunksize: items that travel together at least; more do as long as they are short, by measured run time.
            buffersize: how many items may be submitted whose results have not been yielded (Python 3.14).
            ordered: whether results come in the order of the items, or as they end.

        Raises:
            ValueError: for a chunksize or buffersize below 1.
            TypeError: when the view's key is one string for all tasks.
        """
        if isinstance(self._key, str):
            raise TypeError(f"key={self._key!r} names one task; give a callable of the item to map over many")
        _check_count("chunksize", chunksize)
        _check_count("buffersize", buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        runtime = self._runtime
        if runtime.refusal is not None:
            raise RuntimeError(runtime.refusal)
        starred = len(iterables) != 1
        source = zip(*iterables, strict=False) if starred else iter(*iterables)
        if self._key is not None or not isinstance(runtime, KeeperRuntime):
            return _map_by_submit(self, fn, source, starred, deadline, buffersize, ordered)
        options = self._options
        job = MapJob(
            _Mapper(runtime, self),
            self._registry.call(fn),
            starred=starred,
            chunksize=chunksize or 1,
            # what is decided task by task must run task by task
            single=options.retries_failures or options.timeout is not None or options.deaths < 2,
            ordered=ordered,
        )
        if buffersize is None:
            job.submit(iterables[0] if not starred and type(iterables[0]) is range else list(source))
            return job.results(None, 0, deadline, timeout)
        results = job.results(source, buffersize, deadline, timeout)
        return _started(results, job, source, buffersize)

    def options(
        self,
        *,
        priority: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | int | None = None,
        key: Key = None,
        resources: Mapping[str, int] | None = None,
        cancel: Literal["queued", "kill"] | None = None,
    ) -> KeeperView:
        """Return a view with these options on top of this view's; what is not given stays.

        Args:
            priority: higher goes first.
            timeout: seconds for each attempt, from its start; then the worker is killed and the attempt has failed.
            retry: a RetryPolicy, or an int that means ``attempts``.
            key: names a task across attempts and runs; a callable is given the task's arguments.
            resources: counted tokens; reserved for a later release.
            cancel: "queued": ``Future.cancel`` reaches what has not started; "kill": running tasks too.
        """
        if resources:
            raise PoolkeeperError(f"resources={resources!r}: counted resources are not available yet")
        if cancel not in (None, "queued", "kill"):
            raise ValueError(f'cancel={cancel!r} must be "queued" or "kill"')
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise TypeError(f"timeout={timeout!r} must be a positive number of seconds")
        if timeout is not None and not 0 < timeout < float("inf"):
            raise ValueError(f"timeout={timeout!r} must be a positive number of seconds")
        if priority is not None and not isinstance(priority, int):
            raise TypeError(f"priority={priority!r} must be an int")
        if key is not None and not isinstance(key, str) and not callable(key):
            raise TypeError(f"key={key!r} must be a string or a callable of the task's arguments")
        ours = self._options
        options = Options(
            priority=ours.priority if priority is None else priority,
            timeout=ours.timeout if timeout is None else timeout,
            retry=ours.retry if retry is None else _retry_policy(retry),
            kill_on_cancel=ours.kill_on_cancel if cancel is None else cancel == "kill",
        )
        view = KeeperView()
        view._runtime = self._runtime
        view._options = options
        view._parent = self  # a keeper lives as long as its views
        view._key = self._key if key is None else key
        # Views that differ in nothing else share what is known of calls.
        view._registry = self._registry if options == ours else CallRegistry(options)
        return view

    def batch(
        self,
        fn: Callable[[Any], T],
        items: Iterable[Any],
        *,
        name: str | None = None,
        key: Callable[[Any], str] | None = None,
        policy: ExecutionPolicy | None = None,
        cancel: CancellationToken | None = None,
    ) -> Batch[T]:
        """Run ``fn(item)`` for each item under ``policy``; see ``Batch``."""
        from .batch import Batch

        return Batch(self, fn, items, name=name, key=key, policy=policy, cancel=cancel, store=self.store)

    @property
    def store(self) -> Store | None:
        """Where outcomes are recorded: the journal of a named keeper."""
        return self._runtime.recorder

    @property
    def max_workers(self) -> int:
        """How many workers there may be at once."""
        return self._runtime.settings.max_workers

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the keeper down, and with it all its views; as ``Executor.shutdown``."""
        if cancel_futures:
            self._runtime.withdraw_pending()
        self._runtime.close()
        if wait:
            self._runtime.join()


class _Mapper:
    """What a map needs of the keeper, and its hold on it: with a ``buffersize`` it submits more as it is read."""

    def __init__(self, runtime: KeeperRuntime, view: KeeperView) -> None:
        self._runtime = runtime
        self._view = view

    def submit(self, segment: Segment) -> None:
        self._runtime.submit(segment)

    def encode_item(self, item: Any) -> Any:
        return self._runtime.stowage.stow(*dumps(item))

    def forget(self, segments: list[Segment]) -> None:
        self._runtime.forget(segments)


def _started(results: Iterator[T], job: MapJob, source: Iterator[Any], buffersize: int) -> Iterator[T]:
    """Submit the first ``buffersize`` items now, as ``map`` promises; the generator would wait for its first reader."""
    from itertools import islice

    job.submit(list(islice(source, buffersize)))
    return results


def _map_by_submit(
    view: KeeperView,
    fn: Callable[..., Any],
    source: Iterator[Any],
    starred: bool,
    deadline: float | None,
    buffersize: int | None,
    ordered: bool,
) -> Iterator[Any]:
    """``map`` task by task: each has a key, or runs in this process."""
    from itertools import islice

    def submit(items: Iterable[Any]) -> list[TaskFuture]:
        return [view.submit(fn, *item) if starred else view.submit(fn, item) for item in items]

    pending = submit(source if buffersize is None else islice(source, buffersize))

    def results() -> Iterator[Any]:
        pending.reverse()
        try:
            while pending:
                if buffersize is not None:
                    pending[:0] = submit(islice(source, 1))
                if not ordered:
                    _bring_forward(pending, deadline)
                yield pending.pop().result(None if deadline is None else deadline - time.monotonic())
        finally:
            for future in pending:
                future.cancel()

    return results()


def _bring_forward(pending: list[TaskFuture], deadline: float | None) -> None:
    from concurrent.futures import FIRST_COMPLETED, wait

    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    done = wait(pending, left, FIRST_COMPLETED).done
    if done:
        first = next(future for future in reversed(pending) if future in done)
        pending.remove(first)
        pending.append(first)


def _recalled(future: TaskFuture, recalled: Recalled) -> TaskFuture:
    future.settle_recalled(recalled)
    return future


def _failed(fn: Any, options: Options, error: Exception, runtime: Any) -> TaskFuture:
    name = callable_name(fn)
    if isinstance(error, PayloadError) and not str(error).startswith("the callable"):
        failure: Exception = PayloadError(f"an argument of {name} {error}")
        failure.__cause__ = error.__cause__
    else:
        failure = error
    future = TaskFuture(Call(name, b"", options), (), None, runtime)
    future.settle_exception(failure)
    return future


def _retry_policy(given: RetryPolicy | int) -> RetryPolicy:
    from .policy import RetryPolicy

    return RetryPolicy.of(given)


def _checked_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key of a task must be a string, not {key!r}")
    return key


def _check_count(name: str, value: int | None) -> None:
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{name} must be an integer or None, not {value!r}")
    if value is not None and value < 1:
        raise ValueError(f"{name} must be None or > 0, not {value}")
