"""``Keeper``: the executor that applications use, and its views with other options."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .calls import CallRegistry, callable_name
from .configuration import settings_for
from .errors import PayloadError, PoolkeeperError, UnsupportedPlatform
from .futures import TaskFuture
from .home import Home
from .keeper import KeeperRuntime
from .ledger import Call, Options, Segment
from .mapping import MapJob
from .payload import SCALARS, dumps, dumps_arguments, is_plain
from .policy import RetryPolicy, WorkerPolicy

if TYPE_CHECKING:
    from .batch import Batch
    from .cancellation import CancellationToken
    from .fleet import Fleet
    from .inline import InlineRuntime
    from .model import KeeperStatus, RunResult
    from .policy import ExecutionPolicy, RestartPolicy
    from .service_model import ServiceEvent
    from .service_spec import ServiceGroup, ServiceSpec
    from .services import ServiceHandle

__all__ = ["Keeper", "KeeperView"]

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
        try:
            call = self._registry.call(fn)
            if not kwargs and (SCALARS.issuperset(map(type, args)) or all(map(is_plain, args))):
                payload: Any = args
            else:
                payload = runtime.stowage.stow(*dumps_arguments(args, kwargs))
            key = self._key
            if key is not None and not isinstance(key, str):
                key = _checked_key(key(*args, **kwargs))
        except Exception as error:
            return _failed(fn, self._options, error, runtime)
        future = TaskFuture(call, payload, key, runtime)
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
            single=options.retries_failures or options.timeout is not None or options.retry.deaths < 2,
            ordered=ordered,
        )
        if buffersize is None:
            job.submit(list(source))
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
            retry=ours.retry if retry is None else RetryPolicy.of(retry),
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

        return Batch(self, fn, items, name=name, key=key, policy=policy, cancel=cancel)

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


class Keeper(KeeperView):
    """A worker pool that nothing kills, and a ``concurrent.futures.Executor``.

    Args:
        max_workers: processes at most, started on demand; None: ``loky.cpu_count()``, which knows affinity and cgroups.
        mp_context: a multiprocessing context, for compatibility; "spawn" means ``start_method="loky"``.
        initializer: called in each worker before its first task.
        initargs: its arguments.
        max_tasks_per_child: tasks after which a worker is replaced.
        name: of a durable keeper; None: ephemeral, with a temporary home, its workers writing to this process' output.
        run_id: tells runs of the same name apart.
        home: the directory that holds the homes of keepers; see ``POOLKEEPER_HOME``.
        start_method: "forkserver", "loky" (fork and exec) or "inline" (in this process: for pdb, coverage, unit tests).
        preload: modules to import once, before workers are forked.
        threads_per_worker: for OpenMP, OpenBLAS and MKL, where the environment does not say; None: cpus // max_workers.
        worker: limits of each worker.
        resources: counted tokens; reserved for a later release.
        orphan_grace: seconds that an idle worker waits for a lost keeper; reserved for a later release.
        resume: what a durable run takes over; reserved for a later release.
        queue_memory: bytes (or "2GiB") that queued arguments may hold in memory before they wait on disk; None: an
            eighth of the machine's.

    Raises:
        ValueError, TypeError: for an argument that makes no sense.
        HomeUnusable: when the home cannot be written to.
        ModuleNotFoundError: when a module to preload does not exist.
        UnsupportedPlatform: on Windows.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        name: str | None = None,
        run_id: str = "default",
        home: str | os.PathLike[str] | None = None,
        start_method: Literal["forkserver", "loky", "inline"] = "forkserver",
        preload: Iterable[str] = (),
        threads_per_worker: int | None = None,
        worker: WorkerPolicy | None = None,
        resources: Mapping[str, int] | None = None,
        orphan_grace: float = 300.0,
        resume: Literal["interrupted", "failed", "never"] = "interrupted",
        queue_memory: int | str | None = None,
    ) -> None:
        if resources:
            raise PoolkeeperError(f"resources={dict(resources)!r}: counted resources are not available yet")
        settings = settings_for(
            max_workers=max_workers,
            mp_context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_tasks=max_tasks_per_child,
            start_method=start_method,
            preload=preload,
            threads_per_worker=threads_per_worker,
            worker=worker if worker is not None else WorkerPolicy(),
            queue_memory=queue_memory,
            inherit_output=name is None,
        )
        self.name = name
        self.run_id = run_id
        self._options = Options()
        self._key = None
        self._registry = CallRegistry(self._options)
        if settings.start_method == "inline":
            from .inline import InlineRuntime

            self._runtime = InlineRuntime(settings)
            self.home = Path()
            return
        if sys.platform == "win32":
            raise UnsupportedPlatform(
                "Keeper needs fork and AF_UNIX sockets, which Windows does not have; policies and InstanceLock work"
            )
        place = Home.open(name, run_id, home)
        self.home = place.path
        try:
            runtime = self._runtime = KeeperRuntime(settings, place)
        except BaseException:
            place.remove()
            raise
        _living.add(runtime)
        weakref.finalize(self, runtime.close).atexit = False

    def run(self, fleet: Fleet) -> RunResult:
        """Run the batches and steps of ``fleet`` and return what came of them."""
        from .runner import run_fleet

        return run_fleet(fleet, self)

    def service(
        self,
        target: Callable[..., object],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        restart: RestartPolicy | Literal["always", "on-failure", "never"] = "always",
        replicas: int = 1,
        ready: Literal["start", "notify"] = "start",
        watchdog: float | None = None,
        start_timeout: float | None = 30.0,
        stop_timeout: float = 10.0,
        after: Iterable[str | ServiceHandle] = (),
        priority: int = 0,
        worker: WorkerPolicy | None = None,
        on_give_up: Literal["ignore", "stop-fleet"] = "ignore",
        stop_signal: int = signal.SIGTERM,
        group: ServiceGroup | None = None,
    ) -> ServiceHandle:
        """Start ``target(*args, **kwargs)`` as a service: a process of its own, restarted by policy when it ends.

        Args:
            target: a callable, or what ``command`` returns.
            args: its positional arguments.
            kwargs: its keyword arguments.
            name: letters, digits, ``_``, ``.`` and ``-``; None: the target's name.
            restart: a RestartPolicy, or its ``when``.
            replicas: how many processes run it; ``context().slot`` tells them apart.
            ready: "start": once it is called; "notify": when it says so by ``context().ready()``.
            watchdog: seconds within which each ``context().heartbeat()`` must follow the one before.
            start_timeout: seconds until it must be ready; None: no limit.
            stop_timeout: seconds from the stop signal until it is killed, with all its descendants.
            after: services that must be ready before it starts, and that stop only when it is down.
            priority: when many are to start, higher goes first.
            worker: limits of its process; None: none.
            on_give_up: when the restart policy is exhausted: "ignore", or "stop-fleet" for all services to stop.
            stop_signal: the signal that asks it to end.
            group: services that are restarted together.

        Raises:
            ValueError, TypeError: for an argument that makes no sense, a name that is taken, an unknown ``after``.
            PayloadError: when the target or its arguments cannot be pickled.
            RuntimeError: after ``shutdown``.
        """
        from .service_spec import ServiceSpec

        spec = ServiceSpec(
            name=callable_name(target).rpartition(".")[2] if name is None else name,
            target=target,
            args=args,
            kwargs=dict(kwargs or {}),
            restart=restart,
            replicas=replicas,
            ready=ready,
            watchdog=watchdog,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            after=[other if isinstance(other, str) else other.name for other in after],
            priority=priority,
            worker=WorkerPolicy() if worker is None else worker,
            on_give_up=on_give_up,
            stop_signal=int(stop_signal),
            group=group,
        )
        return self.declare_service(spec)

    def declare_service(self, spec: ServiceSpec) -> ServiceHandle:
        """Start a service that is declared elsewhere, as in a fleet; raises as ``service``."""
        from .services import declare

        if not isinstance(self._runtime, KeeperRuntime):
            raise PoolkeeperError('start_method="inline" runs tasks only: a service needs a process of its own')
        return declare(self._runtime, spec)

    def on(self, kind: str, callback: Callable[[ServiceEvent], object]) -> None:
        """Call ``callback(event)`` for each event of a kind, in another thread.

        Args:
            kind: such as ``"service.failed"``; ``*`` stands for anything, as in ``"service.*"``.
            callback: is called with one ServiceEvent after the other; what it raises is logged.
        """
        if not isinstance(self._runtime, KeeperRuntime):
            raise PoolkeeperError('start_method="inline" has no services, and so no events')
        self._runtime.supervision.listen(kind, callback)

    def on_shutdown(self, callback: Callable[[str], object]) -> None:
        """Call ``callback(reason)`` when ``poolkeeper shutdown`` asks this keeper to end, in place of ending it."""
        if isinstance(self._runtime, KeeperRuntime):
            self._runtime.on_shutdown(callback)

    def ping(self) -> None:
        """Return once the keeper's thread has answered; raises RuntimeError when it has ended."""
        if isinstance(self._runtime, KeeperRuntime):
            self._runtime.ask(lambda: None)

    @property
    def services(self) -> Mapping[str, ServiceHandle]:
        """The services by name, in the order of their declaration."""
        from .services import ServiceHandle

        runtime = self._runtime
        if not isinstance(runtime, KeeperRuntime) or not runtime.has_services:
            return {}
        declared = runtime.supervision.supervisor.services
        return {name: ServiceHandle(runtime, service) for name, service in list(declared.items())}

    def status(self) -> KeeperStatus:
        """Return an immutable snapshot of this keeper, its queue and its workers."""
        from .status import keeper_status

        return keeper_status(self.name, self.run_id, self._runtime)

    def __repr__(self) -> str:
        state = "open" if self._runtime.refusal is None else "closed"
        return f"<Keeper {self.name or 'ephemeral'}: at most {self.max_workers} workers, {state}>"


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


def _failed(fn: Any, options: Options, error: Exception, runtime: Any) -> TaskFuture:
    from .calls import callable_name

    name = callable_name(fn)
    if isinstance(error, PayloadError) and not str(error).startswith("the callable"):
        failure: Exception = PayloadError(f"an argument of {name} {error}")
        failure.__cause__ = error.__cause__
    else:
        failure = error
    future = TaskFuture(Call(name, b"", options), (), None, runtime)
    future.settle_exception(failure)
    return future


def _checked_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key of a task must be a string, not {key!r}")
    return key


def _check_count(name: str, value: int | None) -> None:
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{name} must be an integer or None, not {value!r}")
    if value is not None and value < 1:
        raise ValueError(f"{name} must be None or > 0, not {value}")


_living: weakref.WeakSet[KeeperRuntime] = weakref.WeakSet()


def _finish_all() -> None:
    """At interpreter exit: as the standard executor, finish what was submitted."""
    for runtime in list(_living):
        runtime.close()
    for runtime in list(_living):
        runtime.join()


def _forget_all() -> None:
    for runtime in list(_living):
        runtime.abandon_in_child()
    _living.clear()


# Before threads are joined, as concurrent.futures does: atexit proper would come too late to start any.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
