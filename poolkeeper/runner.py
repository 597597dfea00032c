"""Running a fleet: its parts in order on an executor, and what became of them.

Services start first. Each batch that is ready runs in a thread of its own, so that a slow reader of one list of items
holds up no other. Steps run in the thread that called ``run_fleet``. All threads have ended when it returns, and all
services are down.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from graphlib import TopologicalSorter
from queue import Empty, SimpleQueue
from typing import Any

from .batch import Batch, Submitter
from .cancellation import CancellationToken
from .fleet import BatchSpec, Fleet, StepSpec
from .fleet_services import FleetServices
from .model import BatchResult, RunResult, StepResult, TaskResult, TaskStatus
from .service_model import ServiceState
from .service_spec import ServiceSpec

__all__ = ["RunObserver", "run_fleet"]


class RunObserver:
    """What a run tells while it goes on; this one ignores it all. Override what is of interest.

    ``batch_started``, ``task_ended`` and ``batch_ended`` of one batch are called in that batch's thread, the others in
    the thread that runs the fleet. A call that blocks holds up the part that it tells about.
    """

    def run_started(self, fleet: Fleet) -> None:
        """The fleet has been checked, and its first parts are about to start."""

    def batch_started(self, name: str, total: int | None) -> None:
        """A batch of ``total`` items (None: unknown) has started."""

    def task_ended(self, name: str, result: TaskResult[Any]) -> None:
        """A task of batch ``name`` has come to its end."""

    def batch_ended(self, result: BatchResult[Any]) -> None:
        """A batch has come to its end."""

    def step_started(self, name: str) -> None:
        """A step is about to be called; until it ends, the standard streams are its own."""

    def step_ended(self, result: StepResult) -> None:
        """A step has returned, has raised, or is not run at all."""

    def batch_skipped(self, name: str, reason: str) -> None:
        """A batch is not run."""


def run_fleet(
    fleet: Fleet,
    executor: Submitter,
    *,
    run_id: str | None = None,
    observer: RunObserver | None = None,
    cancel: CancellationToken | None = None,
) -> RunResult:
    """Run ``fleet`` to its end and return what became of it; what its tasks and steps raise is reported, not raised.

    Args:
        fleet: what to run.
        executor: what runs the tasks, such as a ``Keeper``.
        run_id: the name of this run, for the report; None: that of the executor, else "default".
        observer: is told of everything as it happens.
        cancel: stops the run when it is cancelled: nothing new starts, what runs goes on to its end.

    Raises:
        FleetError: if the fleet's declaration is wrong; nothing has run then.
        BaseException: an interrupt of the calling thread, after what runs has ended.
    """
    order = fleet.plan()
    token = CancellationToken() if cancel is None else cancel.child()
    if run_id is None:
        run_id = getattr(executor, "run_id", "default")
    return _Run(fleet, executor, run_id, observer or RunObserver(), token).through(order)


class _Run:
    """One run of a fleet. All but ``_drive`` happens in the thread that runs the fleet."""

    def __init__(
        self, fleet: Fleet, executor: Submitter, run_id: str, observer: RunObserver, token: CancellationToken
    ) -> None:
        self._fleet = fleet
        self._executor = executor
        self._run_id = run_id
        self._observer = observer
        self._token = token
        self._ended: SimpleQueue[_Ending] = SimpleQueue()
        self._threads: dict[str, threading.Thread] = {}
        self._batches: dict[str, BatchResult[Any]] = {}
        self._steps: dict[str, StepResult] = {}
        self._skipped: dict[str, str] = {}
        self._services = FleetServices(fleet, executor, token) if fleet.services else None

    def through(self, order: TopologicalSorter[str]) -> RunResult:
        """Run all parts in ``order``."""
        started = time.monotonic()
        self._observer.run_started(self._fleet)
        try:
            if self._services is not None:
                self._services.start()
            self._run_parts(order)
            if self._services is not None and self._services.are_all:
                self._services.wait()
        except BaseException:
            self._token.cancel("the run was interrupted")
            raise
        finally:
            for thread in list(self._threads.values()):
                thread.join()
            services = self._services.stop() if self._services is not None else {}
        self._leave_unfinished()
        failed = [name for name, state in services.items() if state is ServiceState.FAILED]
        collapse = self._services.collapse if self._services is not None else None
        return RunResult(
            self._fleet.name,
            self._run_id,
            {name: self._batches[name] for name in self._fleet.parts if name in self._batches},
            {name: self._steps[name] for name in self._fleet.parts if name in self._steps},
            self._skipped,
            services=services,
            seconds=time.monotonic() - started,
            stopped=None if collapse else self._reason_of_stop(),
            failure=collapse or (f"{', '.join(failed)} failed" if failed else None),
        )

    def _leave_unfinished(self) -> None:
        """Have the next run go on with this one unless every part of it has come to its end."""
        store = getattr(self._executor, "store", None)
        if store is None:
            return
        failed = [name for name, step in self._steps.items() if not step.ok]
        short = [name for name, batch in self._batches.items() if not batch.complete]
        if self._token.cancelled and (failed or short or self._skipped):
            store.leave(self._token.reason or "cancelled")
        elif failed or short or self._skipped:
            store.leave(f"{', '.join((*short, *failed, *self._skipped))} did not come to a good end")

    def _run_parts(self, order: TopologicalSorter[str]) -> None:
        steps: deque[StepSpec] = deque()
        while order.is_active():
            for name in order.get_ready():
                spec = self._fleet.parts[name]
                if isinstance(spec, StepSpec):
                    steps.append(spec)
                elif isinstance(spec, ServiceSpec) or not self._start(spec):
                    order.done(name)
            for name in self._take_ended(wait=bool(self._threads) and not steps):
                order.done(name)
            if steps:
                step = steps.popleft()
                self._run_step(step)
                order.done(step.name)

    def _start(self, spec: BatchSpec) -> bool:
        """Start a batch, or skip it; return whether it was started."""
        reason = self._obstacle(spec)
        if reason is not None:
            self._skipped[spec.name] = reason
            self._observer.batch_skipped(spec.name, reason)
            return False
        # A daemon: a second interrupt must be able to leave while an iterator of the user's blocks.
        thread = threading.Thread(target=self._drive, args=(spec,), name=f"poolkeeper-batch-{spec.name}", daemon=True)
        self._threads[spec.name] = thread
        thread.start()
        return True

    def _drive(self, spec: BatchSpec) -> None:
        """Run one batch to its end, in its own thread."""
        started = time.monotonic()
        batch: Batch[Any] | None = None
        error: BaseException | None = None
        try:
            outcomes = [self._outcome(name) for name in spec.after]
            batch = Batch(
                self._executor,
                spec.function,
                spec.make_items(outcomes),
                name=spec.name,
                key=spec.key,
                policy=spec.policy,
                cancel=self._token,
                store=getattr(self._executor, "store", None),
            )
            self._observer.batch_started(spec.name, batch.total)
            for result in batch:
                self._observer.task_ended(spec.name, result)
        except BaseException as caught:  # also sys.exit() in an iterator: it is told, not lost
            error = caught
        if batch is not None and error is not None:
            batch.cancel(f"stopped by {type(error).__name__}")
        collected = (
            BatchResult(spec.name, seconds=time.monotonic() - started, error=error)
            if batch is None
            else replace(batch.collected, error=error)
        )
        collected = replace(collected, allowed=spec.allow_failures)
        try:
            self._observer.batch_ended(collected)
        finally:
            self._ended.put((spec.name, collected))

    def _take_ended(self, *, wait: bool) -> list[str]:
        """Note the batches that have ended and return their names; with ``wait``, at least one."""
        names = []
        try:
            ending = self._ended.get(block=wait)
            while True:
                name, result = ending
                self._threads.pop(name).join()
                self._batches[name] = result
                names.append(name)
                ending = self._ended.get_nowait()
        except Empty:
            return names

    def _run_step(self, spec: StepSpec) -> None:
        reason = self._obstacle(spec)
        if reason is not None:
            result = StepResult(spec.name, TaskStatus.CANCELLED, reason=reason)
        else:
            self._observer.step_started(spec.name)
            result = _call(spec, [self._outcome(name) for name in spec.after])
        self._steps[spec.name] = result
        self._observer.step_ended(result)

    def _outcome(self, name: str) -> Any:
        if name in self._fleet.services:
            assert self._services is not None
            return self._services.handles[name]
        return self._batches[name] if name in self._batches else self._steps[name].returned

    def _obstacle(self, spec: BatchSpec | StepSpec) -> str | None:
        """Return why ``spec`` cannot run, None if it can."""
        if self._token.cancelled:
            return f"stopped: {self._token.reason}"
        for name in spec.after:
            if self._services is not None and name in self._services.handles:
                if not self._services.wait_for(name):
                    return f"service {name} is {self._services.handles[name].state.value}"
            elif name in self._skipped:
                return f"{name} did not run"
            elif name in self._steps and not self._steps[name].ok:
                return f"{name} {self._steps[name].status.value}"
            elif name in self._batches and not self._batches[name].complete:
                return f"{name} was cut short"
        return None

    def _reason_of_stop(self) -> str | None:
        """Return why the run was stopped; None if the token came too late to keep anything from running."""
        if not self._token.cancelled:
            return None
        if self._services is not None and self._services.are_all:
            return self._token.reason or "cancelled"
        whole = all(batch.complete for batch in self._batches.values())
        whole = whole and not self._skipped
        whole = whole and all(step.status is not TaskStatus.CANCELLED for step in self._steps.values())
        return None if whole else self._token.reason or "cancelled"


_Ending = tuple[str, BatchResult[Any]]


def _call(spec: StepSpec, outcomes: list[Any]) -> StepResult:
    started = time.monotonic()
    try:
        returned = spec.function(*outcomes)
    except (Exception, SystemExit) as error:  # whatever a step raises is its outcome
        return StepResult(spec.name, TaskStatus.FAILED, error=error, seconds=time.monotonic() - started)
    return StepResult(spec.name, TaskStatus.SUCCEEDED, returned=returned, seconds=time.monotonic() - started)
