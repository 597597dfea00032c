"""The pools that are compared, each behind the same few verbs.

Adapters add as little as they can: where a pool has a bound method that fits, that method itself is called.
Defaults are used throughout, but for the start method where two of them are compared.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from bench import tasks

__all__ = ["PEERS", "Contender", "Peer"]

Handle = Any
UNFINISHED = object()


class Contender:
    """Who takes part; ``name`` is its key in results and options, ``label`` what people read.

    ``entry``, of ``module``, makes it; ``distribution`` None stands for the standard library.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    module: ClassVar[str]
    entry: ClassVar[str]
    distribution: ClassVar[str | None] = None

    @classmethod
    def version(cls) -> str | None:
        """The installed version, None where it is not installed."""
        if importlib.util.find_spec(cls.module.partition(".")[0]) is None:
            return None
        if cls.distribution is None:
            return ".".join(map(str, sys.version_info[:3]))
        try:
            return importlib.metadata.version(cls.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "(this checkout)"

    @classmethod
    def load(cls) -> Any:
        """Import what makes it."""
        return getattr(importlib.import_module(cls.module), cls.entry)


class Peer(Contender):
    """A pool of processes.

    Who runs about a thousand tasks per second gets a ``share`` of the work where rates of single tasks are measured.
    """

    map_is_default_chunksize_1: ClassVar[bool] = False
    share: ClassVar[float] = 1.0
    submit: Callable[..., Handle]

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        self.workers = workers

    def result(self, handle: Handle, timeout: float | None = None) -> Any:
        """The result of what ``submit`` returned; raises ``TimeoutError`` after ``timeout`` seconds."""
        return handle.result(timeout)

    def submit_all(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterable[Handle]:
        """Submit one call for each tuple of arguments, one by one."""
        submit = self.submit
        return [submit(function, *each) for each in arguments]

    def results(self, handles: Iterable[Handle]) -> list[Any]:
        """All results, in order."""
        return [handle.result() for handle in handles]

    def outcomes(self, handles: Iterable[Handle], deadline: float) -> Iterator[Any]:
        """Each result, or the exception in its place, or ``UNFINISHED`` at the monotonic time ``deadline``."""
        for handle in handles:
            remaining = max(0.001, deadline - time.monotonic())
            try:
                yield self.result(handle, remaining)
            except BaseException as error:
                yield UNFINISHED if time.monotonic() >= deadline else error

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        """Map over a sequence; ``chunksize=None`` takes the pool's default."""
        raise NotImplementedError

    def map_lazily(self, function: Callable[[Any], Any], items: Iterable[int], buffersize: int) -> Iterable[Any]:
        """Map over an iterable that is read no further ahead than about ``buffersize`` items."""
        raise NotImplementedError(f"{self.label} reads its whole input first")

    def warm_up(self) -> None:
        """Have every worker started and the first tasks run."""
        self.results(self.submit_all(tasks.noop, [(None,)] * (20 * self.workers)))

    def close(self) -> None:
        """End the pool and wait for it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


class ExecutorPeer(Peer):
    """What all ``concurrent.futures`` executors share."""

    executor: Any

    def use(self, executor: Any) -> None:
        """Adopt the executor."""
        self.executor = executor
        self.submit = executor.submit

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        options = {} if chunksize is None else {"chunksize": chunksize}
        results: Iterable[Any] = self.executor.map(function, items, **options)
        return results

    def close(self) -> None:
        self.executor.shutdown()


class Poolkeeper(ExecutorPeer):
    """The pool whose benchmarks these are."""

    name, label, module, distribution = "poolkeeper", "poolkeeper", "poolkeeper", "poolkeeper"
    entry = "Keeper"

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.use(self.load()(workers, preload=preload))

    def map_lazily(self, function: Callable[[Any], Any], items: Iterable[int], buffersize: int) -> Iterable[Any]:
        results: Iterable[Any] = self.executor.map(function, items, buffersize=buffersize)
        return results

    def without_retries(self) -> None:
        """Make the death of a worker final for its task, as it is with most peers."""
        from poolkeeper import RetryPolicy

        self.submit = self.executor.options(retry=RetryPolicy(deaths=0)).submit


class StandardExecutor(ExecutorPeer):
    """``ProcessPoolExecutor`` with one start method or another."""

    module, entry = "concurrent.futures.process", "ProcessPoolExecutor"
    map_is_default_chunksize_1 = True

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        from multiprocessing import get_context

        self.use(self.load()(workers, mp_context=get_context(self.name)))


class ForkExecutor(StandardExecutor):
    """The default on Linux up to Python 3.13."""

    name, label = "fork", "ProcessPoolExecutor (fork)"


class ForkserverExecutor(StandardExecutor):
    """The default on Linux from Python 3.14 on."""

    name, label = "forkserver", "ProcessPoolExecutor (forkserver)"


class MultiprocessingPool(Peer):
    """``multiprocessing.Pool``: ``map`` with its own chunksize drains the input, with a given one it is ``imap``."""

    name, label, module = "pool", "multiprocessing.Pool", "multiprocessing.pool"
    entry = "Pool"

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.pool = self.load()(workers)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        return self.pool.apply_async(function, arguments)

    def result(self, handle: Handle, timeout: float | None = None) -> Any:
        return handle.get(timeout)

    def results(self, handles: Iterable[Handle]) -> list[Any]:
        return [handle.get() for handle in handles]

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        mapped = self.pool.map(function, items) if chunksize is None else self.pool.imap(function, items, chunksize)
        results: Iterable[Any] = mapped
        return results

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Loky(ExecutorPeer):
    """joblib's executor, robust against deadlocks."""

    name, label, module, distribution = "loky", "loky", "loky", "loky"
    entry = "ProcessPoolExecutor"
    map_is_default_chunksize_1 = True

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.use(self.load()(workers))


class Pebble(Peer):
    """A pool that outlives the death of its workers."""

    name, label, module, distribution = "pebble", "pebble", "pebble", "Pebble"
    entry = "ProcessPool"
    map_is_default_chunksize_1 = True

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.pool = self.load()(workers)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        return self.pool.schedule(function, args=arguments)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        results: Iterable[Any] = self.pool.map(function, items, chunksize=chunksize or 1).result()
        return results

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Mpire(Peer):
    """A faster ``multiprocessing.Pool`` with conveniences."""

    name, label, module, distribution = "mpire", "mpire", "mpire", "mpire"
    entry = "WorkerPool"

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.pool = self.load()(workers, keep_alive=True)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        return self.pool.apply_async(function, arguments)

    def result(self, handle: Handle, timeout: float | None = None) -> Any:
        return handle.get(timeout)

    def results(self, handles: Iterable[Handle]) -> list[Any]:
        return [handle.get() for handle in handles]

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        results: Iterable[Any] = self.pool.map(function, items, chunk_size=chunksize)
        return results

    def map_lazily(self, function: Callable[[Any], Any], items: Iterable[int], buffersize: int) -> Iterable[Any]:
        chunk = max(1, buffersize // (4 * self.workers))
        results: Iterable[Any] = self.pool.imap(function, items, chunk_size=chunk, max_tasks_active=buffersize)
        return results

    def close(self) -> None:
        self.pool.stop_and_join()


class Joblib(Peer):
    """``joblib.Parallel``: no futures, so one call with ``batch_size=1`` stands for one submit per task."""

    name, label, module, distribution = "joblib", "joblib", "joblib", "joblib"
    entry = "Parallel"

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.make = self.load()
        self.delayed = importlib.import_module("joblib").delayed
        self.parallel = self.make(workers, batch_size=1, pre_dispatch="all", return_as="generator")
        self.batching = self.make(workers, return_as="generator")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        return self.parallel([self.delayed(function)(*arguments)])

    def result(self, handle: Handle, timeout: float | None = None) -> Any:
        return next(iter(list(handle)))  # to the end: one call may follow another only then

    def submit_all(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterable[Handle]:
        delayed = self.delayed
        results: Iterable[Handle] = self.parallel(delayed(function)(*each) for each in arguments)
        return results

    def results(self, handles: Iterable[Handle]) -> list[Any]:
        return list(handles)

    def outcomes(self, handles: Iterable[Handle], deadline: float) -> Iterator[Any]:
        try:
            yield from handles
        except BaseException as error:  # one error ends the whole call
            while True:
                yield error

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        delayed = self.delayed
        parallel = self.batching
        if chunksize is not None:
            parallel = self.make(self.workers, return_as="generator", batch_size=chunksize, pre_dispatch="all")
        results: Iterable[Any] = parallel(delayed(function)(item) for item in items)
        return results

    def close(self) -> None:
        importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


class Dask(ExecutorPeer):
    """``dask.distributed`` on this machine, one thread per worker process."""

    name, label, module, distribution = "dask", "dask.distributed", "distributed", "distributed"
    entry = "LocalCluster"
    share = 0.1

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.cluster = self.load()(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
        self.client = self.cluster.get_client()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        return self.client.submit(function, *arguments, pure=False)

    def results(self, handles: Iterable[Handle]) -> list[Any]:
        return list(self.client.gather(list(handles)))

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        return self.results(self.client.map(function, items, pure=False))

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


class Ray(Peer):
    """Ray on this machine, without the dashboard."""

    name, label, module, distribution = "ray", "ray", "ray", "ray"
    entry = "init"
    share = 0.1

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        super().__init__(workers)
        self.ray: Any = importlib.import_module("ray")
        self.remote: dict[Callable[..., Any], Any] = {}
        self.load()(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        if function not in self.remote:
            self.remote[function] = self.ray.remote(function)
        return self.remote[function].remote(*arguments)

    def result(self, handle: Handle, timeout: float | None = None) -> Any:
        return self.ray.get(handle, timeout=timeout)

    def results(self, handles: Iterable[Handle]) -> list[Any]:
        return list(self.ray.get(list(handles)))

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], chunksize: int | None) -> Iterable[Any]:
        pool = importlib.import_module("ray.util.multiprocessing").Pool(self.workers)
        results: Iterable[Any] = (
            pool.map(function, items) if chunksize is None else pool.imap(function, items, chunksize)
        )
        return results

    def close(self) -> None:
        self.ray.shutdown()


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Poolkeeper,
        ForkExecutor,
        ForkserverExecutor,
        MultiprocessingPool,
        Loky,
        Pebble,
        Mpire,
        Joblib,
        Dask,
        Ray,
    )
}
