"""The keeper's runtime: waits for what happens, tells the core, carries out its commands.

One thread does all of it, or in its place the thread that waits for a result (see ``loop``). Applications only
append to ``_inbox`` and wake it; what they ask of the core itself (cancel) they ask under ``_lock``. User code never
runs here: results are unpickled by who asks for them, callbacks and retry policies run on the delivery thread.

What the application holds is here, and lasts; what the loop owns is its ``incarnation``. A loop that fails is a defect,
and is rebuilt in place: another incarnation goes on with what there is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .commands import Decide
from .departure import Departure
from .errors import PoolkeeperError
from .foundation import Foundation
from .futures import TaskFuture
from .home import Home
from .incarnation import Incarnation, WorkerRow
from .ledger import Segment, Task
from .loop import Loop, Ready
from .page import CANCEL
from .reexec import PROCESS
from .reexec_pace import delay_before, remembered
from .reporting import flush, report
from .service_model import ServiceEvent
from .settings import Settings

if TYPE_CHECKING:
    from .handover import PastReexec
    from .model import Recovered
    from .service_model import ServiceStatus
    from .supervision import Supervision

__all__ = ["KeeperRuntime"]

T = TypeVar("T")


class KeeperRuntime:
    """Owns the loop and the lock of one keeper, and through its incarnation all else."""

    def __init__(self, settings: Settings, home: Home) -> None:
        self.settings = settings
        self.refusal: str | None = None
        self.started = time.time()
        self.name = None if home.ephemeral else home.path.parent.name
        self.run_id = home.path.name
        self._home = home
        self._inbox: deque[Task | Segment] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._mourners: list[Callable[[], object]] = []
        self._on_shutdown: Callable[[str], object] | None = None
        self._progress: Callable[[], dict[str, Any]] | None = None
        self._detached = False
        self._paused = False
        self._rebuilt: tuple[PastReexec, ...] = ()
        with contextlib.ExitStack() as undo:
            self._loop = Loop(self)
            undo.callback(self._loop.selector.close)
            undo.callback(self._loop.close)
            self._base = base = Foundation(self, settings, home, self._loop, undo)
            self._settlement = base.settlement
            self.stowage, self.recorder, self.news = base.stowage, base.recorder, base.news
            self.incarnation = Incarnation(base)
            undo.pop_all()
        self.departure = Departure(self, home)
        self._thread = threading.Thread(target=self._run, name="poolkeeper", daemon=True)
        self._thread.start()

    # -- what applications call, from any thread ----------------------------------------------------------------------

    def submit(self, task: Task | Segment) -> None:
        """Take on a task; never blocks."""
        self._inbox.append(task)
        if self._loop.sleeping:
            self.wake()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have ``call`` run on the keeper's thread, under the lock."""
        self._calls.append(call)
        self.wake()

    def wake(self) -> None:
        """Make the keeper's thread look around; safe in finalizers."""
        if self._ended.is_set():
            self._refuse_late()
            return
        self._loop.wake()

    def wake_if_sleeping(self) -> None:
        """Make the keeper's thread look around if it would not by itself; safe in finalizers."""
        if self._loop.sleeping:
            self.wake()

    def _refuse_late(self) -> None:
        """A submission slipped in between the last look at the inbox and the end: it must not wait for ever."""
        while self._inbox:
            self._settlement.fail_task(self._inbox.popleft(), RuntimeError(self.refusal))
        self._settlement.announce()

    def cancel(self, task: TaskFuture) -> bool:
        """Withdraw a task; see ``TaskFuture.cancel``."""
        with self._lock:
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

    def ask(self, call: Callable[[], T]) -> T:
        """Have ``call`` run on the keeper's thread, with what follows from it; return its result or raise its error."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                result = call()
                self.incarnation.carry_out()
            except BaseException as error:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        if self.refusal is not None or self._ended.is_set():
            raise RuntimeError(self.refusal)
        self.call_soon(run)
        while True:
            try:
                return answer.result(1.0)
            except FutureTimeoutError:
                if self._ended.is_set() and not answer.done():
                    raise RuntimeError(self.refusal) from None

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
        """Return what was found of an earlier keeper."""
        with self._lock:
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
            return peer is not None and peer.page is not None and peer.page.observe().started == task.index

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

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called, on the keeper's thread, when it has ended; at once if it has already."""
        with self._lock:
            if not self._ended.is_set():
                self._mourners.append(callback)
                return
        callback()

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
        try:
            PROCESS.perform(self.departure)
        except Exception as error:
            why = str(error) if isinstance(error, PoolkeeperError) else repr(error)
            report("WARNING", f"re-exec: {why}")
            self.call_soon(partial(answer, why))

    def leave_unfinished(self, reason: str) -> None:
        """Have the next run go on with this one, whatever comes to its end in this one."""
        if self.recorder is not None:
            self.recorder.leave(reason)

    def close(self) -> None:
        """Finish what is taken on, then end; does not wait."""
        if self.refusal is None:
            self.refusal = "cannot schedule new futures after shutdown"
        if not self._ended.is_set():
            self.call_soon(lambda: self.incarnation.close_down())  # noqa: PLW0108 - the one that there is then

    def detach(self) -> None:
        """End, and leave every process as it is to a later keeper of this name; what is pending fails.

        Raises PoolkeeperError for a keeper that is ephemeral, RuntimeError for one that has been shut down.
        """
        if self._home.ephemeral:
            raise PoolkeeperError(
                "an ephemeral keeper's processes end with it, for none could find them: give it a name"
            )
        with self._lock:
            if self.refusal is not None and not self._detached:
                raise RuntimeError(self.refusal)
            self.refusal = f"{self._title} was detached"
            self.leave_unfinished("detached")
            self._detached = True
        self.wake()
        if not self._settlement.delivery.is_caller:  # a callback, for which the end itself waits
            self.join()

    @property
    def _title(self) -> str:
        return f"keeper {self.name}/{self.run_id}"

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all is done and every process is gone; return whether that is so."""
        if self.is_caller:
            return False
        return self._ended.wait(timeout)

    def snapshot(self) -> tuple[int, int, list[WorkerRow]]:
        """Return how many tasks wait and how many run, and the workers."""
        with self._lock:
            queued, running, rows = self.incarnation.snapshot()
            return queued + len(self._inbox), running, rows

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Signals are for the application's threads.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._serve():
                pass
        except BaseException as error:
            self._break(error)
        finally:
            self._end()

    def _serve(self) -> bool:
        """Do what there is to do until the end; return False if the loop has failed, and another is in its place."""
        try:
            while not self.departure.asked and not self._finished():
                self._loop.step()
        except Exception as error:
            self._mend(error)
            return False
        if self.departure.asked:
            self.departure.rest()
        return True

    def process(self, ready: Ready) -> None:
        """Deal with what has become ready, and with all else that is to be done."""
        with self._lock:
            if self._paused:
                return
            self.incarnation.hear(ready)
            while self._calls:
                self._calls.popleft()()
            self._take_inbox()
            self.incarnation.carry_out()
        self._settlement.announce()

    def _take_inbox(self) -> None:
        if self._inbox:
            self.incarnation.take_in(self._inbox)

    def has_news(self) -> bool:
        """Whether there is something to process without waiting."""
        # In the end: who drives shall leave the seat.
        return bool(self._inbox or self._calls or self.departure.asked or self._detached or self._paused)

    def runs_one_short_task(self, task: TaskFuture, limit: float) -> float | None:
        """Return how many seconds ``task`` takes if nothing else runs, and it takes less than ``limit``; else None."""
        cost = task.call.cost
        return None if cost is None or cost > limit or self.incarnation.core.running > 1 else cost

    def failed(self, error: Exception) -> None:
        """Have the keeper's own thread fail with what processing has raised in another one."""
        self._calls.append(partial(_raise, error))

    def drive(self, task: TaskFuture, timeout: float | None) -> None:
        """Do the keeper's work until ``task`` is done, if the calling thread may; ``timeout`` in seconds."""
        self._loop.drive(task, timeout)

    def timeout(self) -> float | None:
        """Return the seconds until something is due, None for nothing."""
        return self.incarnation.timeout()

    def _finished(self) -> bool:
        if self._detached:
            return True
        if self._inbox or self._calls:
            return False
        with self._lock:
            return self.incarnation.is_down(time.monotonic())

    def ask_policy(self, command: Decide) -> None:
        """Have a retry policy decide, on the delivery thread, for its strategies are user code."""
        self._settlement.delivery.post(partial(self._ask_policy_now, command))

    def _ask_policy_now(self, command: Decide) -> None:
        from .retrying import decide

        delay = decide(command, time.monotonic())
        self.call_soon(lambda: self.incarnation.core.decided(command, delay, time.monotonic()))

    # -- a loop that fails --------------------------------------------------------------------------------------------

    def _mend(self, error: Exception) -> None:
        """Have a new program, or a new incarnation, go on in place of a loop that has failed; raises where none can."""
        self._paused = True
        if self.departure.asked or self._detached:
            raise error
        if PROCESS.owned_as is not None and self.name is not None:
            _say(error, "is replaced")
            try:
                PROCESS.perform(self.departure, automatic=True)
            except Exception as refusal:
                report("ERROR", f"re-exec: {refusal}")
            raise error
        now = time.monotonic()
        delay = delay_before(self._rebuilt, now, automatic=True)
        if delay is None:
            raise error
        self._rebuilt = remembered(self._rebuilt, now + delay, automatic=True)
        _say(error, "is rebuilt in place")
        time.sleep(delay)
        self._rebuild(f"its loop had failed: {error!r}")

    def _rebuild(self, reason: str) -> None:
        self._loop.leave()
        self._settlement.announce()
        with self._lock:
            fallen = self.incarnation.fall()
            try:
                self._loop.renew()
                self.incarnation = Incarnation(self._base, fallen)
            except BaseException:
                self._detached = not self._home.ephemeral  # what lives is for a later keeper to find
                raise
            self._paused = False
            self.news.tell(ServiceEvent(time.time(), "keeper.rebuilt", self.name or "", reason=reason))
        report("WARNING", "the keeper is rebuilt: what was not finished goes on")

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""
        return self._ended.is_set()

    @property
    def is_caller(self) -> bool:
        """Whether this is the keeper's own thread."""
        return threading.current_thread() is self._thread

    @property
    def listener(self) -> int:
        """The descriptor of the listening socket."""
        return self.incarnation.board.listener.fileno()

    def come_to_rest(self, reason: str) -> None:
        """Let nothing happen any more, with everything recorded; a new program takes this one's place."""
        self._loop.leave()
        self._settlement.announce()
        self.leave_unfinished(reason)
        self._base.rest()
        if self._home.ephemeral:
            self.incarnation.board.close()
            self.incarnation.nursery.close()
            self._home.remove()
        flush()

    def _break(self, error: BaseException) -> None:
        """The loop has failed for good: nothing may hang, so all that is pending fails with the reason."""
        _say(error, "ends")
        self.refusal = f"the keeper has failed: {error!r}"
        self.leave_unfinished(self.refusal)
        failure = PoolkeeperError(f"{self.refusal}; this is a defect of poolkeeper")
        failure.__cause__ = error
        self._fail_pending(failure)

    def _fail_pending(self, failure: PoolkeeperError) -> None:
        with self._lock:
            pending = [*self.incarnation.pending(), *self._inbox]
            self._inbox.clear()
            for task in pending:
                self._settlement.fail_task(task, failure)
        self._settlement.announce()

    def _end(self) -> None:
        """Leave nothing behind, no process, no descriptor, no file that should not stay; unless detached."""
        self._paused = True
        self._loop.leave()
        self._settlement.announce()
        if self._detached:
            self._base.part()
            why = f"{self._title} was detached: what runs goes on, and a later keeper of this name has its outcome"
            self._fail_pending(PoolkeeperError(why))
        self.incarnation.close(leave=self._detached)
        self._base.close(leave=self._detached)
        flush()
        with self._lock:
            self._loop.close()  # whoever submits now calls wake, which refuses
            self._ended.set()
        self.news.notify_all()
        for callback in self._mourners:
            callback()
        self.wake()

    def abandon_in_child(self) -> None:
        """In a fork of the application: let go of everything that belongs to the parent's keeper."""
        self.refusal = f"this keeper belongs to process {os.getppid()}; make a new one in process {os.getpid()}"
        self._lock = threading.RLock()
        self._ended.set()
        self._base.abandon_in_child()


def _raise(error: Exception) -> None:
    raise error


def _say(error: BaseException, what: str) -> None:
    text = "".join(traceback.format_exception(error))
    report("CRITICAL", f"the keeper has failed, and {what}; this is a defect of poolkeeper\n{text}")
