"""The keeper's runtime: what applications and other programs ask of a keeper, from any thread.

User code never runs on the keeper's own thread: results are unpickled by who asks for them, callbacks and retry
policies run on the delivery thread.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .commands import Decide
from .errors import PoolkeeperError
from .foundation import Foundation
from .futures import TaskFuture
from .home import Home
from .incarnation import WorkerRow
from .ledger import Segment, Task
from .loop import Loop
from .mainloop import Mainloop
from .page import CANCEL
from .reporting import report
from .settings import Settings

if TYPE_CHECKING:
    from .recovered import Recovered
    from .service_model import ServiceStatus
    from .supervision import Supervision

__all__ = ["KeeperRuntime"]


class KeeperRuntime(Mainloop):
    """One keeper, as its applications know it."""

    def __init__(self, settings: Settings, home: Home) -> None:
        self.settings = settings
        self.started, self.born = time.time(), time.monotonic()
        self.name = None if home.ephemeral else home.path.parent.name
        self.run_id = home.path.name
        self._on_shutdown: Callable[[str], object] | None = None
        self._progress: Callable[[], dict[str, Any]] | None = None
        with contextlib.ExitStack() as undo:
            loop = Loop(self)
            undo.callback(loop.selector.close)
            undo.callback(loop.close)
            super().__init__(Foundation(self, settings, home, loop, undo))
            undo.pop_all()
        self._thread.start()

    # -- what applications call, from any thread ----------------------------------------------------------------------

    def cancel(self, task: TaskFuture) -> bool:
        """Withdraw a task; see ``TaskFuture.cancel``."""
        try:
            return self._cancel(task)
        except BaseException:  # of a signal handler: what is withdrawn is in no table any more, its end must be told
            with self._lock:
                if task.withdrawn:
                    self._settlement.withdraw(task)
            self.wake()
            raise

    def _cancel(self, task: TaskFuture) -> bool:
        with self._loop.uninterrupted(), self._lock:
            if task.done():
                return task.cancelled()
            if task.answered:
                return False
            withdrawn = self.incarnation.core.cancel(task)
            if withdrawn:
                has_callbacks = task.settle_cancelled()
                self._settlement.drop_payload(task)
            else:
                self._ask_to_stop(task)
        if withdrawn:
            self.wake()
            if has_callbacks:
                task.run_callbacks()
        return withdrawn

    def _ask_to_stop(self, task: Task) -> None:
        peer = self.incarnation.workforce.get(task.worker)
        if peer is not None and peer.page is not None:
            peer.page.words[CANCEL] = task.index
            peer.signal(signal.SIGURG)

    def forget(self, segments: list[Segment]) -> None:
        """Give up what is left of ``segments``: their map is read no further."""
        if not self._ended.is_set():
            self.call_soon(partial(self._settlement.forget, segments))

    @property
    def supervision(self) -> Supervision:
        """What looks after services now; made when the first is declared, for most keepers have none."""
        if not self.has_services:
            with self._lock:
                return self.incarnation.supervision
        return self.incarnation.supervision

    @property
    def has_services(self) -> bool:
        """Whether any service has been declared."""
        return self.incarnation.has_services

    def recovered(self) -> Recovered | None:
        """Return what was found of an earlier keeper; does not wait for the keeper, who may have much to do."""
        recovery = self.incarnation.recovery
        return None if recovery is None else recovery.recovered()

    def service_rows(self) -> list[ServiceStatus]:
        """Return what every service is doing."""
        with self._lock:
            return self.supervision.rows() if self.has_services else []

    def expect_callbacks(self) -> None:
        """Start the thread that runs callbacks while that is still possible."""
        self._settlement.delivery.start()

    def is_running(self, task: TaskFuture) -> bool:
        """Whether a worker executes ``task`` now, by the worker's page."""
        with self._lock:
            peer = self.incarnation.workforce.get(task.worker)
            return peer is not None and peer.worker.observe().started == task.index

    def withdraw_pending(self) -> None:
        """Cancel all that no worker has started; what a worker is being started for counts as started."""
        with self._lock:
            self._take_inbox()
            for task in self.incarnation.withdraw_pending():
                self._settlement.withdraw(task)
        self.wake()

    def publish(self, progress: Callable[[], dict[str, Any]]) -> None:
        """Have ``progress``, called on the keeper's thread, say how far the run has come when others ask for it."""
        self._progress = progress

    def progress(self) -> dict[str, Any]:
        """Return what is published, nothing where nothing is."""
        return {} if self._progress is None else self._progress()

    def on_shutdown(self, callback: Callable[[str], object]) -> None:
        """Have ``callback`` called, on the delivery thread, when another program asks this keeper to end."""
        self._on_shutdown = callback

    def kill(self) -> None:
        """Have the fork servers end, and with them all that they have made; from any thread."""
        self.incarnation.nursery.kill()

    def request_shutdown(self, reason: str) -> None:
        """Another program asks this keeper to end."""
        callback = self._on_shutdown
        if callback is not None:
            self._settlement.delivery.post(lambda: (callback(reason), None)[1])
        else:
            self.refusal = f"this keeper was shut down from outside: {reason}"
            self.close()

    def request_reexec(self, answer: Callable[[str], None]) -> None:
        """Another program asks for a re-exec; ``answer`` is called, on the keeper's thread, with why it is refused."""
        threading.Thread(target=self._reexec, args=(answer,), name="poolkeeper-reexec", daemon=True).start()

    def _reexec(self, answer: Callable[[str], None]) -> None:
        from .reexec import PROCESS

        try:
            PROCESS.perform(self.departure)
        except Exception as error:
            why = str(error) if isinstance(error, PoolkeeperError) else repr(error)
            report("WARNING", f"re-exec: {why}")
            self.call_soon(partial(answer, why))

    def snapshot(self) -> tuple[int, int, list[WorkerRow]]:
        """Return how many tasks wait and how many run, and the workers."""
        with self._lock:
            queued, running, rows = self.incarnation.snapshot()
            return queued + len(self._inbox), running, rows

    def ask_policy(self, command: Decide) -> None:
        """Have a retry policy decide, on the delivery thread, for its strategies are user code."""
        self._settlement.delivery.post(partial(self._ask_policy_now, command))

    def _ask_policy_now(self, command: Decide) -> None:
        from .retrying import decide

        delay = decide(command, time.monotonic())
        self.call_soon(lambda: self.incarnation.core.decided(command, delay, time.monotonic()))
