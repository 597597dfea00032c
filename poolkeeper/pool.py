"""``Keeper``: the executor that applications use."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from . import startup  # noqa: F401 - which notes how this process was started, as long as it is as it was
from .calls import CallRegistry, callable_name
from .configuration import settings_for
from .errors import NotReexecable, PoolkeeperError, UnsupportedPlatform
from .home import Home
from .keeper import KeeperRuntime
from .ledger import Options
from .living import KEEPERS
from .view import KeeperView

if TYPE_CHECKING:
    from .fleet import Fleet
    from .model import KeeperStatus, RunResult
    from .policy import RestartPolicy, WorkerPolicy
    from .recovered import Recovered
    from .service_model import ServiceEvent
    from .service_spec import ServiceGroup, ServiceSpec
    from .services import ServiceHandle

__all__ = ["Keeper", "KeeperView"]

T = TypeVar("T")
Key = str | Callable[..., str] | None


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
        orphan_grace: seconds that the idle worker of a durable keeper waits for another one when its own is lost.
        reconnect_grace: seconds that a worker may be away whose link to this keeper is broken; time in which it is at
            work does not count. Then it is killed and replaced, and what it had finished runs again.
        resume: what a durable keeper takes over of the last run: "interrupted": all of it if that was interrupted, and
            nothing if it was finished; "failed": all but its failures, which run again; "never": nothing.
        durability: what the journal of a durable keeper survives: "process": whatever becomes of processes; "power":
            also of the machine, at the price of waiting for the disk.
        keep_runs: how many runs the journal keeps.
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
        reconnect_grace: float = 60.0,
        resume: Literal["interrupted", "failed", "never"] = "interrupted",
        durability: Literal["process", "power"] = "process",
        keep_runs: int = 10,
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
            worker=worker,
            queue_memory=queue_memory,
            inherit_output=name is None,
            resume=resume,
            durability=durability,
            keep_runs=keep_runs,
            orphan_grace=orphan_grace,
            reconnect_grace=reconnect_grace,
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
        KEEPERS.add(runtime)
        weakref.finalize(self, runtime.close).atexit = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._runtime.leave_unfinished(f"{kind.__name__} left the with block")
        self.shutdown(wait=True)

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
        overlap: bool = False,
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
            overlap: whether, when its code has changed, the new process gets ready before the old one is stopped.

        Raises:
            ValueError, TypeError: for an argument that makes no sense, a name that is taken, an unknown ``after``.
            PayloadError: when the target or its arguments cannot be pickled.
            RuntimeError: after ``shutdown``.
        """
        from .policy import WorkerPolicy
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
            overlap=overlap,
        )
        return self.declare_service(spec)

    def declare_service(self, spec: ServiceSpec) -> ServiceHandle:
        """Start a service that is declared elsewhere, as in a fleet; raises as ``service``."""
        from .services import declare

        if not isinstance(self._runtime, KeeperRuntime):
            raise PoolkeeperError('start_method="inline" runs tasks only: a service needs a process of its own')
        return declare(self._runtime, spec)

    def disown_services(self) -> None:
        """Stop what an earlier keeper has left of services that are not declared: none will be any more."""
        runtime = self._runtime
        if isinstance(runtime, KeeperRuntime) and runtime.has_services:
            runtime.ask(lambda: runtime.supervision.disown())  # noqa: PLW0108 - the one that there is then

    def on(self, kind: str, callback: Callable[[ServiceEvent], object]) -> None:
        """Call ``callback(event)`` for each event of a kind, in another thread.

        Args:
            kind: such as ``"service.failed"``; ``*`` stands for anything, as in ``"service.*"``.
            callback: is called with one ServiceEvent after the other; what it raises is logged.
        """
        if not isinstance(self._runtime, KeeperRuntime):
            raise PoolkeeperError('start_method="inline" has no services, and so no events')
        self._runtime.news.listen(kind, callback)

    def on_shutdown(self, callback: Callable[[str], object]) -> None:
        """Call ``callback(reason)`` when ``poolkeeper shutdown`` asks this keeper to end, in place of ending it."""
        if isinstance(self._runtime, KeeperRuntime):
            self._runtime.on_shutdown(callback)

    def publish(self, progress: Callable[[], dict[str, Any]]) -> None:
        """Have ``poolkeeper attach`` show what ``progress()`` returns: plain data, quickly; see ``progress``."""
        if isinstance(self._runtime, KeeperRuntime):
            self._runtime.publish(progress)

    def reexec(self, *, timeout: float = 60.0) -> NoReturn:
        """Replace this process by a new one of the same program, with the code that is on disk now.

        The pid stays, the instance lock is held all the time, and the program starts from its beginning: the ``Keeper``
        of this name that it makes goes on with the run. Interpreter, its options, arguments, environment, umask and
        working directory are those of the start. What the program had in memory is gone: futures, other threads, and
        what was registered with ``atexit``. A child process loads the new code first. Any thread may call it.

        Args:
            timeout: seconds that loading the new code may take.

        Raises:
            NotReexecable: where there is nothing that could be started again: an ephemeral keeper or an inline one, an
                interactive session, a program from ``python -c`` or standard input, or one whose file is gone.
            ReexecRefused: when the new code cannot be loaded, or in time; the message says why, and all goes on.
            PoolkeeperError: when the system has refused at the very end; the keeper has ended then.
        """
        if not isinstance(self._runtime, KeeperRuntime):
            raise NotReexecable(
                "this process cannot be replaced by a new one: an inline keeper has nothing to hand over"
            )
        from .reexec import PROCESS

        PROCESS.perform(self._runtime.departure, timeout=timeout)

    def kill(self) -> None:
        """Have every process of this keeper killed at once, for a program that ends and waits for nothing."""
        if isinstance(self._runtime, KeeperRuntime):
            self._runtime.kill()

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` when this keeper has ended, by whatever cause; at once if it has already."""
        if isinstance(self._runtime, KeeperRuntime):
            self._runtime.when_ended(callback)

    def detach(self) -> None:
        """End this keeper and leave all that it has made running, for a later ``Keeper`` of this name to take over.

        Tasks that run go on, and their outcomes wait; so do services. What is pending here fails with PoolkeeperError;
        submitted again to the later keeper, a task with a key is not run twice. The keeper is shut down afterwards.
        Idle workers, and outcomes, wait for ``orphan_grace`` seconds.

        Raises:
            PoolkeeperError: for a keeper that is ephemeral or inline: nobody could find what it leaves.
            RuntimeError: after ``shutdown``.
        """
        if not isinstance(self._runtime, KeeperRuntime):
            raise PoolkeeperError('start_method="inline" has no processes that could go on')
        self._runtime.detach()

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

    @property
    def recovered(self) -> Recovered | None:
        """What this keeper has found of an earlier one that was lost; None for nothing."""
        return self._runtime.recovered() if isinstance(self._runtime, KeeperRuntime) else None

    def status(self) -> KeeperStatus:
        """Return an immutable snapshot of this keeper, its queue and its workers."""
        from .status import keeper_status

        return keeper_status(self.name, self.run_id, self._runtime)

    def __repr__(self) -> str:
        state = "open" if self._runtime.refusal is None else "closed"
        return f"<Keeper {self.name or 'ephemeral'}: at most {self.max_workers} workers, {state}>"


def _finish_all() -> None:
    """At interpreter exit: as the standard executor, finish what was submitted."""
    error = getattr(sys, "last_value", None)  # what has ended the program, if anything has
    for runtime in list(KEEPERS):
        if error is not None:
            runtime.leave_unfinished(f"{type(error).__name__} ended the program")
        runtime.close()
    for runtime in list(KEEPERS):
        runtime.join()


def _forget_all() -> None:
    for runtime in list(KEEPERS):
        runtime.abandon_in_child()
    KEEPERS.clear()


# Before threads are joined, as concurrent.futures does: atexit proper would come too late to start any.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
