"""The future of a task. It is the task: one object for both, for a pool of small tasks is made of little else.

Against the standard future it saves the Condition (3 to 6 µs) until somebody waits, and unpickles a result in the
thread that asks for it. The state changes under the keeper's lock; a Condition is published before it is waited on,
so that whoever settles the task either sees it or has settled before the waiter looks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING
from typing import Any, Protocol

from .errors import PayloadError
from .ledger import Call, Task
from .messages import Code
from .payload import loads, loads_exception, loads_view
from .store import Entry, Recalled

__all__ = ["Bell", "Keeps", "TaskFuture", "Unread", "settle_quietly"]

creation = threading.Lock()
"""Held while a condition is made, and by ``settle_quietly``: nobody begins to wait between its look and its deed."""


class Keeps(Protocol):
    """The keeper, as a future sees it."""

    def cancel(self, task: TaskFuture) -> bool:
        """Withdraw ``task``; False if it is too late."""

    def expect_callbacks(self) -> None:
        """Be ready to run callbacks."""

    def is_running(self, task: TaskFuture) -> bool:
        """Whether a worker executes ``task`` now."""

    def drive(self, task: TaskFuture, timeout: float | None) -> None:
        """Do the keeper's work until ``task`` is done, if the calling thread may; ``timeout`` in seconds."""


class Bell:
    """Wakes one waiting thread; rung before, the next wait returns at once.

    A bare lock, for a signal handler may raise in the main thread anywhere in the Python code of a Condition, and leave
    its lock taken, or released once too often. Nobody can cut in between a bare lock and the ``with`` that takes it.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self, _: object = None) -> None:
        """Let the waiting thread go on."""
        with contextlib.suppress(RuntimeError):  # it was rung already
            self._lock.release()

    add_result = add_exception = add_cancelled = ring
    """What a future calls on its waiters."""

    def wait(self, timeout: float | None) -> None:
        """Wait for ``timeout`` seconds, or for ever."""
        self._lock.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX))


class Unread:
    """A result as it arrived; ``read`` unpickles it, and raises what the task raised."""

    __slots__ = ("code", "payload")

    def __init__(self, code: int, payload: Any) -> None:
        self.code = code
        self.payload = payload

    def read(self) -> Any:
        """Return the value; raises PayloadError where it cannot be unpickled."""
        if self.code == Code.ARENA:
            return loads_view(self.payload)
        return loads(self.payload)


class TaskFuture(Task, Future):  # type: ignore[type-arg]
    """A ``concurrent.futures.Future`` that also tells how its task fared.

    ``attempts`` counts runs, ``deaths`` the workers that died of it, ``run_seconds`` is the last run's time (the mean,
    where tasks were so short that they were answered together), ``worker_pid`` where it ran; None while unknown.
    ``reused`` is whether an earlier run has recorded the outcome. ``entry`` is what it is to be recorded under, and
    ``answered`` whether the journal has taken charge of it.
    """

    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _cond: threading.Condition | None = None
    _untold: list[Any] | None = None  # waiters, the next one last
    run_seconds: float | None = None
    worker_pid: int | None = None
    reused = False
    entry: Entry | None = None
    answered = False

    def __init__(self, call: Call, payload: Any, key: str | None, keeper: Keeps) -> None:
        # Future.__init__ is what this class avoids; its attributes are the class' own until they are needed.
        self.call = call
        self.payload = payload
        self.key = key
        self.worker = None
        self.index = 0
        self.attempts = 1
        self.deaths = 0
        self.history = None
        self.withdrawn = False
        self._keeper = keeper

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # made when somebody waits
        return self._cond or self._publish_condition()

    def _publish_condition(self) -> threading.Condition:
        with creation:
            condition = self._cond
            if condition is None:
                self._waiters: list[Any] = []
                self._done_callbacks: list[Callable[[Any], object]] = []
                self._mutex = threading.RLock()
                condition = self._cond = threading.Condition(self._mutex)
            return condition

    # -- what the keeper does -----------------------------------------------------------------------------------

    def settle(self, value: Any) -> bool:
        """Record the outcome; return whether there are callbacks to be run (``run_callbacks``)."""
        return self._conclude(FINISHED, value, None)

    def settle_unobserved(self, value: Any) -> bool:
        """Record the outcome, ``creation`` being held, unless somebody waits; return whether that was possible."""
        if self._cond is not None:
            return False
        if self._state == PENDING:
            self._result = value
            self._state = FINISHED
        return True

    def settle_recalled(self, recalled: Recalled) -> None:
        """Record the outcome that an earlier run has had."""
        self.reused = True
        self.payload = None
        self.attempts, self.deaths, self.run_seconds = recalled.attempts, recalled.deaths, recalled.seconds
        self._conclude(FINISHED, recalled.value, recalled.error)

    def settle_exception(self, error: BaseException) -> bool:
        """Record that the task has failed; as ``settle``."""
        return self._conclude(FINISHED, None, error)

    def settle_cancelled(self) -> bool:
        """Record that the task will not run; as ``settle``."""
        return self._conclude(CANCELLED_AND_NOTIFIED, None, None)

    def _conclude(self, state: str, value: Any, error: BaseException | None) -> bool:
        with creation:
            if self._state == PENDING and self._cond is None:
                self._result, self._exception, self._state = value, error, state
                return False
            if self._cond is None:
                return False
        # Waiters are installed under the condition too: each sees either the end or the call that tells of it.
        with self._mutex:
            if self._state == PENDING:
                self._untold = self._waiters[::-1]
                self._result, self._exception, self._state = value, error, state
            return self._tell()

    def finish_telling(self) -> bool:
        """Tell those of the outcome who have not been told, should that have failed half-way; as ``settle``."""
        if self._cond is None or self._state == PENDING:
            return False
        with self._mutex:
            return self._tell()

    def _tell(self) -> bool:
        while self._untold:
            self._tell_waiter(self._untold[-1])
            self._untold.pop()
        self._cond.notify_all()  # type: ignore[union-attr]  # there is one where somebody waits
        return bool(self._done_callbacks)

    def _tell_waiter(self, waiter: Any) -> None:
        result, error = self._result, self._exception
        if self._state == CANCELLED_AND_NOTIFIED:
            waiter.add_cancelled(self)
        elif error is not None or (type(result) is Unread and result.code == Code.EXCEPTION):
            waiter.add_exception(self)
        else:
            waiter.add_result(self)

    def run_callbacks(self) -> None:
        """Run each callback once, in the keeper's delivery thread; raises what is no Exception when all have run."""
        exits: list[BaseException] = []
        while self._done_callbacks:
            callback = self._done_callbacks.pop(0)
            try:
                callback(self)
            except Exception:
                LOGGER.exception("exception calling callback for %r", self)
            except BaseException as error:
                exits.append(error)
        if exits:
            raise exits[0]

    # -- what the application does ------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Withdraw the task; return False if it has ended, or runs and ``options(cancel="kill")`` was not given.

        A running task that is not killed sees ``context().cancelled``.
        """
        return self._keeper.cancel(self)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Have ``fn(self)`` run when the task has ended, in the keeper's delivery thread; at once if it has already."""
        if self._state == PENDING:
            self._keeper.expect_callbacks()
        super().add_done_callback(fn)

    def cancelled(self) -> bool:
        """Whether the task was withdrawn."""
        return self._state == CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        """Whether a worker executes the task at this moment."""
        return self._state == PENDING and self._keeper.is_running(self)

    def done(self) -> bool:
        """Whether the task has ended or was withdrawn."""
        return self._state != PENDING

    def result(self, timeout: float | None = None) -> Any:
        """Return the task's result.

        ``timeout`` is in seconds. Raises what the task raised (the worker's traceback as its cause), TimeoutError,
        CancelledError, TaskTimeout, WorkerLost or TaskQuarantined.
        """
        if self._state != FINISHED:
            self._await(timeout)
        if type(self._result) is Unread:
            self._read()
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642 - no cycle from the traceback to the exception
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, None if it did not; waits and raises as ``result`` does."""
        if self._state != FINISHED:
            self._await(timeout)
        if type(self._result) is Unread:
            self._read()
        return self._exception

    def _await(self, timeout: float | None) -> None:
        if self._state == PENDING:
            began = time.monotonic()
            self._keeper.drive(self, timeout)
            if self._state == PENDING:
                left = None if timeout is None else timeout - (time.monotonic() - began)
                self._wait(left)
        if self._state == PENDING:
            raise TimeoutError
        if self._state == CANCELLED_AND_NOTIFIED:
            raise CancelledError

    def _wait(self, timeout: float | None) -> None:
        bell = Bell()
        self._publish_condition()
        try:
            with self._mutex:
                if self._state != PENDING:
                    return
                self._waiters.append(bell)
            bell.wait(timeout)
        finally:
            with self._mutex:
                if bell in self._waiters:
                    self._waiters.remove(bell)

    def _read(self) -> None:
        self._publish_condition()
        with self._mutex:
            unread = self._result
            if type(unread) is not Unread:
                return
            try:
                if unread.code == Code.EXCEPTION:
                    self._exception, self._result = loads_exception(unread.payload), None
                else:
                    self._result = unread.read()
            except PayloadError as error:
                self._exception = PayloadError(f"the result of {self.call.name} {error}")
                self._exception.__cause__ = error.__cause__
                self._result = None

    def __repr__(self) -> str:
        if self._state == FINISHED and type(self._result) is Unread:
            self._read()
        state = "running" if self.running() else self._state.replace("CANCELLED_AND_NOTIFIED", "CANCELLED").lower()
        if self._state == FINISHED and self._exception is not None:
            state += f" raised {type(self._exception).__name__}"
        elif self._state == FINISHED:
            state += f" returned {type(self._result).__name__}"
        return f"<{type(self).__name__} of {self.call.name} at {id(self):#x} state={state}>"

    def set_running_or_notify_cancel(self) -> bool:
        """Not for applications; raises InvalidStateError."""
        raise InvalidStateError("the keeper alone moves this future")

    def set_result(self, result: Any) -> None:
        """As ``set_running_or_notify_cancel``."""
        raise InvalidStateError("the keeper alone settles this future")

    def set_exception(self, exception: BaseException | None) -> None:
        """As ``set_running_or_notify_cancel``."""
        raise InvalidStateError("the keeper alone settles this future")


def settle_quietly(futures: list[TaskFuture], values: Sequence[Any]) -> list[tuple[TaskFuture, Any]]:
    """Record the outcomes of all futures that nobody waits for, at once; return the others with their values."""
    observed: list[tuple[TaskFuture, Any]] = []
    with creation:
        for future, value in zip(futures, values, strict=True):
            if future._cond is not None or type(future) is not TaskFuture:  # noqa: SLF001 - a call less for each
                if not future.settle_unobserved(value):
                    observed.append((future, value))
            elif future._state == PENDING:  # noqa: SLF001
                future._result = value  # noqa: SLF001
                future._state = FINISHED  # noqa: SLF001
    return observed
