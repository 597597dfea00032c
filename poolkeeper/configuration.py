"""The arguments of ``Keeper`` to settings: checked, with defaults, each error naming the argument and the remedy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .descriptors import PER_PROCESS, RESERVE, make_room
from .errors import PayloadError
from .fields import memory_size, whole_number
from .limits import Limits
from .payload import dumps_in_band
from .settings import Keeping, Settings

if TYPE_CHECKING:
    from .policy import WorkerPolicy

__all__ = ["keeping_for", "settings_for"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
START_METHODS = ("forkserver", "loky", "inline")


def settings_for(
    *,
    max_workers: int | None,
    mp_context: Any,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks: int | None,
    start_method: str,
    preload: Iterable[str],
    threads_per_worker: int | None,
    worker: WorkerPolicy | None,
    queue_memory: int | str | None,
    inherit_output: bool,
    resume: str = "interrupted",
    durability: str = "process",
    keep_runs: int = 10,
    orphan_grace: float = 300.0,
    reconnect_grace: float = 60.0,
) -> Settings:
    """Return the settings of a keeper; raises as ``Keeper`` documents."""
    if start_method not in START_METHODS:
        raise ValueError(f"start_method={start_method!r} must be one of {', '.join(map(repr, START_METHODS))}")
    if mp_context is not None and not hasattr(mp_context, "get_start_method"):
        raise TypeError(f"mp_context={mp_context!r} must be a context, as multiprocessing.get_context() returns")
    _check_policy(worker)
    if mp_context is not None and mp_context.get_start_method() in ("spawn", "loky") and start_method == "forkserver":
        start_method = "loky"
    workers = _workers(max_workers, start_method)
    keeping = keeping_for(durability, keep_runs, orphan_grace, reconnect_grace)
    return Settings(
        max_workers=workers,
        max_tasks=_max_tasks(max_tasks, worker),
        start_method=start_method,
        preload=_preload(preload),
        environment=_environment(workers, threads_per_worker, worker),
        initializer=_initializer(initializer, initargs),
        max_memory=None if worker is None else worker.max_memory,
        max_age=None if worker is None else worker.max_age,
        inherit_output=inherit_output,
        queue_bytes=_queue_bytes(queue_memory),
        limits=Limits() if worker is None else Limits.of(worker),
        # As many workers as cpus, if none were asked for: loky has counted them, with what cgroups allow.
        max_starting=2 * (_cpus() if max_workers is not None else workers),
        resume=_one_of("resume", resume, ("interrupted", "failed", "never")),
        durability=keeping.durability,
        keep_runs=keeping.keep_runs,
        orphan_grace=keeping.orphan_grace,
        reconnect_grace=keeping.reconnect_grace,
    )


def keeping_for(durability: Any, keep_runs: Any, orphan_grace: Any, reconnect_grace: Any) -> Keeping:
    """Return how durable a keeper or a fleet is to be; raises ValueError or TypeError, naming the argument."""
    return Keeping(
        _one_of("durability", durability, ("process", "power")),
        _keep_runs(keep_runs),
        _grace("orphan_grace", orphan_grace),
        _grace("reconnect_grace", reconnect_grace),
    )


def _check_policy(worker: object) -> None:
    if worker is None:
        return
    from .policy import WorkerPolicy

    if not isinstance(worker, WorkerPolicy):
        raise TypeError(f"worker={worker!r} must be a WorkerPolicy")


def _one_of(name: str, given: Any, words: tuple[str, ...]) -> Any:
    if given not in words:
        raise ValueError(f"{name}={given!r} must be one of {', '.join(map(repr, words))}")
    return given


def _keep_runs(given: Any) -> int:
    try:
        return whole_number(1)(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"keep_runs={given!r} {error}") from None


def _grace(name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name}={given!r} must be a number of seconds")
    if not 0 <= given < float("inf"):
        raise ValueError(f"{name}={given!r} must be a number of seconds")
    return float(given)


def _workers(given: int | None, start_method: str) -> int:
    if given is None:
        import loky

        return int(loky.cpu_count())
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"max_workers={given!r} must be an integer or None")
    if given < 1:
        raise ValueError(f"max_workers must be greater than 0, not {given}")
    if start_method != "inline":
        _check_descriptors(given)
    return given


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_descriptors(workers: int) -> None:
    """A keeper holds some descriptors for each worker: say so now rather than fail in the midst of the work."""
    most = make_room(workers)
    if most is not None:
        raise ValueError(
            f"max_workers={workers} needs about {PER_PROCESS * workers + RESERVE} open files, which is more than this "
            f"process may have (ulimit -Hn); at most {most} workers fit"
        )


def _max_tasks(given: int | None, worker: WorkerPolicy | None) -> int | None:
    if given is None:
        return None if worker is None else worker.max_tasks
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"max_tasks_per_child={given!r} must be an integer or None")
    if given < 1:
        raise ValueError(f"max_tasks_per_child={given} must be greater than 0")
    return given


def _preload(modules: Iterable[str]) -> tuple[str, ...]:
    if isinstance(modules, str):
        raise TypeError(f"preload={modules!r} must be a list of module names, as [{modules!r}]")
    names = tuple(modules)
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(f"preload={list(names)!r} must be a list of module names")
        missing = _missing_module(name)
        if missing is not None:
            raise ModuleNotFoundError(f"preload={list(names)!r}: there is no module named {missing!r}", name=missing)
    return names


def _missing_module(name: str) -> str | None:
    """Return the first part of a dotted name that cannot be found, without importing any of them."""
    from importlib.machinery import PathFinder
    from importlib.util import find_spec

    path: Any = None
    so_far = ""
    for part in name.split("."):
        so_far = f"{so_far}.{part}" if so_far else part
        if so_far in sys.modules:
            path = getattr(sys.modules[so_far], "__path__", None)
            continue
        spec = find_spec(part) if path is None and so_far == part else PathFinder.find_spec(so_far, path)
        if spec is None:
            return so_far
        path = spec.submodule_search_locations
    return None


def _environment(workers: int, threads_per_worker: int | None, worker: WorkerPolicy | None) -> dict[str, str]:
    if threads_per_worker is None:
        threads_per_worker = max(1, _cpus() // workers)
    elif isinstance(threads_per_worker, bool) or not isinstance(threads_per_worker, int):
        raise TypeError(f"threads_per_worker={threads_per_worker!r} must be an integer or None")
    elif threads_per_worker < 1:
        raise ValueError(f"threads_per_worker={threads_per_worker} must be greater than 0")
    environment = {name: str(threads_per_worker) for name in THREAD_VARIABLES if name not in os.environ}
    if worker is not None:
        environment.update(worker.env or {})
    return environment


def _initializer(function: Callable[..., object] | None, args: tuple[Any, ...]) -> bytes | None:
    if function is None:
        return None
    if not callable(function):
        raise TypeError(f"initializer={function!r} must be a callable")
    if not isinstance(args, Iterable):
        raise TypeError(f"initargs={args!r} must be a tuple of arguments")
    try:
        return dumps_in_band((function, tuple(args)))
    except PayloadError as error:
        raise PayloadError(f"the initializer {function!r} or its arguments {error}") from error.__cause__


def _queue_bytes(given: int | str | None) -> int:
    if given is None:
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
        except (ValueError, OSError):
            return 1 << 30
    try:
        return memory_size(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"queue_memory={given!r}: {error}") from None
