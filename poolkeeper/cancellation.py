"""Cancellation tokens: one side asks for an end, the other side looks, waits, or is told.

Rules:

- A token is cancelled once, for one reason, and stays cancelled. Whoever is first gives the reason: ``cancel``,
  an ancestor, or the deadline.
- A child is cancelled with its parent, never the other way round. Parents do not know their children until these have
  somebody to tell, so dropping a child costs the parent nothing.
- Who looks (``cancelled``) reads the ancestors and the clock. Who waits sleeps until the deadline at most. Only
  callbacks need somebody to watch the clock: one thread for all tokens, which lives while there is something to watch.
- Each callback runs once, in the thread that cancels, or the watching one, or at once in ``on_cancel`` if it comes
  late. What it raises is logged and keeps no other callback from running.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable

__all__ = ["CancellationToken"]

Callback = Callable[[], object]

_log = logging.getLogger(__name__)


class CancellationToken:
    """Asks tasks, batches or threads to end. Every method may be called from any thread and from signal handlers."""

    __slots__ = ("__weakref__", "_alarm", "_callbacks", "_deadline", "_expiry", "_leave", "_lock", "_parent", "_reason")

    def __init__(self) -> None:
        self._parent: CancellationToken | None = None
        self._deadline = math.inf  # on the monotonic clock; the earliest of its own and its ancestors'
        self._expiry = ""  # the reason, once that deadline has passed
        self._reason: str | None = None
        self._callbacks: dict[int, Callback] = {}
        self._leave: Callback | None = None  # ends the subscription to the parent
        self._alarm: _Alarm | None = None
        # One lock for a whole family: parents tell children and children ask parents. It is reentrant because a signal
        # handler may cancel a token whose method it has interrupted.
        self._lock = threading.RLock()

    def cancel(self, reason: str = "cancelled") -> bool:
        """Cancel this token and its children, and run their callbacks in this thread.

        Args:
            reason: what ``reason`` will answer.

        Returns:
            Whether this call did it; False if the token was cancelled already.
        """
        if not isinstance(reason, str):
            raise TypeError(f"the reason of a cancellation must be a string, not {reason!r}")
        with self._lock:
            first = not self.cancelled
            if first:
                self._reason = reason
        self._tell()
        return first

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled this token or an ancestor, or the deadline has passed."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Why it was cancelled; None while it is not."""
        if self._reason is None:
            inherited = None if self._parent is None else self._parent.reason
            if inherited is None and time.monotonic() >= self._deadline:
                inherited = self._expiry
            if inherited is not None:
                with self._lock:
                    if self._reason is None:
                        self._reason = inherited
        return self._reason

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the token is cancelled.

        Args:
            timeout: seconds after which to give up; None: never.

        Returns:
            Whether it is cancelled.
        """
        if timeout is not None and math.isnan(timeout):
            raise ValueError("CancellationToken.wait(timeout=nan): must be a number of seconds, or None")
        give_up = math.inf if timeout is None else time.monotonic() + timeout
        # A bare lock, as a Condition has inside: its release is atomic, so that a signal handler of the waiting
        # thread can cancel; Event.set() there could wait for ever for the lock of the Event.wait() that it interrupts.
        gate = threading.Lock()
        gate.acquire()
        leave = self._subscribe(gate.release, watch=False)
        try:
            while leave is not None and not self.cancelled:
                remaining = min(give_up, self._deadline) - time.monotonic()
                if remaining > 0:
                    gate.acquire(timeout=min(remaining, threading.TIMEOUT_MAX))
                elif time.monotonic() >= give_up:
                    break
        finally:
            if leave is not None:
                leave()
        return self.cancelled

    def on_cancel(self, callback: Callback) -> Callback:
        """Call ``callback()`` once when the token is cancelled, or now if it is.

        Returns:
            A function that takes the callback back, unless it has run or is about to.
        """
        if not callable(callback):
            raise TypeError(f"a callback must be callable, and {callback!r} is not")
        leave = self._subscribe(callback, watch=True)
        if leave is None:
            _run(callback)
            return _nothing
        return leave

    def child(self) -> CancellationToken:
        """Make a token that is cancelled with this one, and can be cancelled without it."""
        child = CancellationToken()
        child._parent = self
        child._deadline, child._expiry = self._deadline, self._expiry
        child._lock = self._lock
        return child

    def with_deadline(self, seconds: float) -> CancellationToken:
        """Make a child that is cancelled ``seconds`` from now at the latest.

        Raises:
            ValueError: if ``seconds`` is NaN.
        """
        if math.isnan(seconds):
            raise ValueError("CancellationToken.with_deadline(nan): must be a number of seconds")
        child = self.child()
        deadline = time.monotonic() + seconds
        if deadline < child._deadline:
            child._deadline, child._expiry = deadline, f"the deadline of {seconds:g} s has passed"
        return child

    def __repr__(self) -> str:
        reason = self.reason
        return f"<{type(self).__name__} {'active' if reason is None else f'cancelled: {reason}'}>"

    def __reduce__(self) -> str:
        raise TypeError("a CancellationToken belongs to one process; a task reads context().cancelled instead")

    def _subscribe(self, callback: Callback, *, watch: bool) -> Callback | None:
        """Have ``callback`` called; return how to undo that, or None, without a call, if the token is cancelled.

        With ``watch`` the shared thread looks after the deadline, else the subscriber does.
        """
        with self._lock:
            if self.cancelled:
                return None
            ticket = next(_tickets)
            self._callbacks[ticket] = callback
            if self._parent is not None and self._leave is None:
                self._leave = self._parent._subscribe(self._tell, watch=False)
            if watch and self._alarm is None and self._deadline < math.inf:
                try:
                    self._alarm = _watch.at(self._deadline, self._tell)
                except RuntimeError:  # no thread can be started
                    del self._callbacks[ticket]
                    raise

        def leave() -> None:
            with self._lock:
                if self._callbacks.pop(ticket, None) is not None and not self._callbacks:
                    self._settle()

        return leave

    def _tell(self) -> None:
        """Run the callbacks if the token is cancelled; each is taken out first, so that no other thread runs it too."""
        while self.cancelled:
            with self._lock:
                if not self._callbacks:
                    self._settle()
                    return
                callback = self._callbacks.pop(next(iter(self._callbacks)), _nothing)
            _run(callback)

    def _settle(self) -> None:
        """Nobody is left to be told: leave the parent and the watching thread."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            _watch.switch_off(alarm)


_tickets = itertools.count()


def _nothing() -> None:
    pass


def _run(callback: Callback) -> None:
    try:
        callback()
    except Exception:
        _log.exception("a callback of a CancellationToken raised: %r", callback)


class _Alarm:
    """A call to make at some time, or nothing once it has been made or switched off."""

    __slots__ = ("call",)

    def __init__(self, call: Callback) -> None:
        self.call = call


class _Watch:
    """The thread that watches the clock for all tokens; it ends when there is nothing to watch.

    Finalizers may switch alarms off in the middle of any method, even in the thread that runs it. So that does no more
    than count, and the thread tidies up.
    """

    def __init__(self) -> None:
        self._start_afresh()
        # a forked child has neither the thread nor the other threads that may have held the lock
        os.register_at_fork(after_in_child=self._start_afresh)

    def _start_afresh(self) -> None:
        self._changed = threading.Condition()
        self._alarms: list[tuple[float, int, _Alarm]] = []  # a heap; what is off stays until it is the larger part
        self._off = 0
        self._running = False

    def at(self, when: float, call: Callback) -> _Alarm:
        """Have ``call()`` run at ``when`` on the monotonic clock."""
        alarm = _Alarm(call)
        with self._changed:
            if not self._running:
                threading.Thread(target=self._run, name="poolkeeper-deadlines", daemon=True).start()
                self._running = True
            heapq.heappush(self._alarms, (when, next(_tickets), alarm))
            if self._alarms[0][2] is alarm:
                self._changed.notify()
        return alarm

    def switch_off(self, alarm: _Alarm) -> None:
        """Do not make this call any more."""
        with self._changed:
            if alarm.call is not _nothing:
                alarm.call = _nothing
                self._off += 1
                if self._untidy():
                    self._changed.notify()

    def _untidy(self) -> bool:
        return 2 * self._off > len(self._alarms)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._untidy():
                    self._alarms = [entry for entry in self._alarms if entry[2].call is not _nothing]
                    heapq.heapify(self._alarms)
                    self._off = 0
                if not self._alarms:
                    self._running = False
                    return
                when, _, alarm = self._alarms[0]
                remaining = when - time.monotonic()
                if remaining > 0:
                    self._changed.wait(min(remaining, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._alarms)
                call, alarm.call = alarm.call, _nothing
                if call is _nothing:
                    self._off -= 1
            try:
                call()
            except BaseException:
                _log.exception("a callback of a CancellationToken raised")


_watch = _Watch()
