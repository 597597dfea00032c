"""``start_method="inline"``: tasks run at once, in the caller's own process and thread; for pdb, coverage and tests."""

from __future__ import annotations

import os
import pickle
import time
from pickle import PickleBuffer
from typing import Any

from . import task_context
from .checkpoint import MemoryStore, Store
from .errors import PayloadError, TaskExited
from .futures import TaskFuture
from .logs import emit
from .payload import loads
from .resumption import Resumption
from .settings import Settings

__all__ = ["InlineRuntime"]


class _Pickled:
    """Arguments are pickled here too, so that what works inline works in a worker."""

    __slots__ = ("buffers", "data")

    def __init__(self, data: bytes, buffers: list[PickleBuffer]) -> None:
        self.data = data
        self.buffers = buffers


class _Stowage:
    stow = _Pickled


class _Surroundings(task_context.NoService):
    worker = "inline"
    slot = 0

    def __init__(self, task: TaskFuture, store: Store) -> None:
        self.name = task.call.name
        self.attempt = task.attempts
        self.key = task.key
        self._resumption = Resumption(store, "once", self.attempt, self.notice, self.progress)

    def is_cancelled(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False

    def progress(self, done: float, total: float | None) -> None:
        pass

    def notice(self, text: str) -> None:
        emit("WARNING", f"{self.name}: {text}")

    def resumption(self) -> Resumption:
        return self._resumption


class InlineRuntime:
    """Takes the place of the runtime, without processes or threads. Timeouts cannot be kept and are ignored."""

    has_services = False
    recorder = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.refusal: str | None = None
        self.started, self.born = time.time(), time.monotonic()
        self.stowage = _Stowage()
        if settings.initializer is not None:
            initializer, args = loads(settings.initializer)
            initializer(*args)

    def submit(self, task: TaskFuture) -> None:
        """Run ``task`` to its end, retries included."""
        try:
            function = loads(task.call.blob)
        except PayloadError as error:
            task.settle_exception(error)
            return
        if task_context.wants_context(function):
            inner = function

            def function(*args: Any, **kwargs: Any) -> Any:
                return inner(task_context.context(), *args, **kwargs)

        store = MemoryStore()  # for the attempts at this task
        while True:
            around = _Surroundings(task, store)
            before = task_context.enter(around)
            began = time.monotonic()
            try:
                args, kwargs = self._arguments(task)
                value = function(*args, **kwargs)
            except SystemExit as error:
                task.settle_exception(TaskExited(f"{task.call.name} ended with SystemExit({error.code!r})", error.code))
                return
            except Exception as error:
                policy = task.call.options.retry
                elapsed = time.monotonic() - began
                delay = None if policy is None else policy.delay_after_failure(task.attempts, elapsed, error)
                if delay is None:
                    task.settle_exception(error)
                    return
                task.attempts += 1
                time.sleep(delay)
            else:
                task.settle(value)
                return
            finally:
                around.resumption().failed()
                task.run_seconds = time.monotonic() - began
                task.worker_pid = os.getpid()
                task_context.enter(before)

    @staticmethod
    def _arguments(task: TaskFuture) -> tuple[Any, Any]:
        payload = task.payload
        if type(payload) is not _Pickled:
            return payload, {}
        try:
            return pickle.loads(payload.data, buffers=payload.buffers)  # type: ignore[no-any-return]
        except Exception as error:
            raise PayloadError(f"an argument of {task.call.name} cannot be unpickled: {error}") from error

    def cancel(self, task: TaskFuture) -> bool:
        """Tasks have ended before anybody holds their future."""
        return False

    def expect_callbacks(self) -> None:
        """As ``cancel``."""

    def is_running(self, task: TaskFuture) -> bool:
        """As ``cancel``."""
        return False

    def drive(self, task: TaskFuture, timeout: float | None) -> None:
        """As ``cancel``."""

    def withdraw_pending(self) -> None:
        """Nothing is ever pending."""

    def leave_unfinished(self, reason: str) -> None:
        """Nothing is recorded."""

    def close(self) -> None:
        """Take no more tasks."""
        self.refusal = "cannot schedule new futures after shutdown"

    def join(self, timeout: float | None = None) -> bool:
        """All is done."""
        return True

    def service_rows(self) -> list[Any]:
        """Return that there are no services."""
        return []

    def snapshot(self) -> tuple[int, int, list[Any]]:
        """Return that nothing waits, nothing runs, and nobody works."""
        return 0, 0, []
