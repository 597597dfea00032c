"""The thread of a keeper: it runs one incarnation of the loop after the other, until the end.

One thread does all of it, or in its place the thread that waits for a result (see ``loop``). Applications only append
to ``_inbox`` and wake it; what they ask of the core itself they ask under ``_lock``. A loop that fails is a defect, and
is rebuilt in place: another incarnation goes on with what there is.
"""

from __future__ import annotations

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
from typing import TYPE_CHECKING, TypeVar

from .departure import Departure
from .errors import PoolkeeperError
from .foundation import Foundation
from .futures import TaskFuture
from .incarnation import Incarnation
from .ledger import Segment, Task
from .loop import Ready
from .reporting import at_any_rate, flush, report

if TYPE_CHECKING:
    from .handover import PastReexec

__all__ = ["Mainloop"]

T = TypeVar("T")


class Mainloop:
    """The host of a keeper's loop: what is posted to it, its failures, and its end.

    ``incarnation`` is what the loop owns now. ``refusal`` is why nothing more is taken on, None as long as it is.

    Args:
        base: of all incarnations; its loop is hosted here.

    Raises:
        OSError: where the system refuses what the first incarnation takes.
    """

    def __init__(self, base: Foundation) -> None:
        self.refusal: str | None = None
        self.name = base.host.name
        self.run_id = base.host.run_id
        self._base = base
        self._home = base.home
        self._loop = base.loop
        self._settlement = base.settlement
        self.stowage, self.recorder, self.news = base.stowage, base.recorder, base.news
        self._inbox: deque[Task | Segment] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._mourners: list[Callable[[], object]] = []
        self._detached = False
        self._paused = False
        self._rebuilt: tuple[PastReexec, ...] = ()
        self.incarnation = Incarnation(base)
        self.departure = Departure(self, base.home)
        self._thread = threading.Thread(target=self._run, name="poolkeeper", daemon=True)

    # -- from any thread ----------------------------------------------------------------------------------------------

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
        self._loop.nudged = True
        if self._loop.sleeping:
            self.wake()

    def _refuse_late(self) -> None:
        """A submission slipped in between the last look at the inbox and the end: it must not wait for ever."""
        while self._inbox:
            self._settlement.fail_task(self._inbox.popleft(), RuntimeError(self.refusal))
        self._settlement.announce()

    def ask(self, call: Callable[[], T]) -> T:
        """Have ``call`` run on the keeper's thread, with what follows from it; return its result or raise its error."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                result = call()
            except BaseException as error:
                answer.set_exception(error)
                return
            try:
                self.incarnation.carry_out()
            finally:  # should that fail, it is the loop's affair
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

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called, on the keeper's thread, when it has ended; at once if it has already."""
        with self._lock:
            if not self._ended.is_set():
                self._mourners.append(callback)
                return
        callback()

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
        if self._inbox or self._calls or not self.incarnation.core.closing:
            return False
        with self._lock:
            return self.incarnation.is_down(time.monotonic())

    # -- a loop that fails --------------------------------------------------------------------------------------------

    def _mend(self, error: Exception) -> None:
        """Have a new program, or a new incarnation, go on in place of a loop that has failed; raises where none can."""
        from .reexec import PROCESS
        from .reexec_pace import delay_before, remembered

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
        from .service_model import ServiceEvent

        self._loop.leave()
        at_any_rate(self._settlement.announce)
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
        at_any_rate(self._settlement.announce)
        self.leave_unfinished(reason)
        self._base.part()
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
                at_any_rate(self._settlement.fail_task, task, failure)
        at_any_rate(self._settlement.announce)

    def _end(self) -> None:
        """Leave nothing behind, no process, no descriptor, no file that should not stay; unless detached."""
        self._paused = True
        at_any_rate(self._loop.leave)
        at_any_rate(self._settlement.announce)
        if self._detached:
            at_any_rate(self._base.part)
            why = f"{self._title} was detached: what runs goes on, and a later keeper of this name has its outcome"
            at_any_rate(self._fail_pending, PoolkeeperError(why))
        self.incarnation.close(leave=self._detached)
        self._base.close(leave=self._detached)
        flush()
        with self._lock:
            at_any_rate(self._loop.close)  # whoever submits now calls wake, which refuses
            self._ended.set()
        self.news.notify_all()
        for callback in self._mourners:
            at_any_rate(callback)
        at_any_rate(self.wake)

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
