"""The keeper's loop: sleeps until something happens and has it processed, in one thread at a time.

That is the keeper's own thread, or in its place the thread that waits for a result (see ``driving``). Other threads
wake it only while it sleeps, which saves them a system call.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from .driving import Seat, SignalGuard
from .futures import TaskFuture

__all__ = ["LONGEST_WAIT", "Host", "Loop", "Ready"]

SPIN_SECONDS = 0.0002
"""How long a driver may look for the result of a short task before it sleeps; a third of it is usual."""

LONGEST_WAIT = 3600.0
"""Seconds; what is due later is looked at again then, for the system's waits cannot be told any number."""

AT_ONCE = 32
"""Events that are dealt with before new tasks are looked at again: a hundred workers may call in one moment."""

_ONE = (1).to_bytes(8, "little")

Ready = list[tuple[selectors.SelectorKey, int]]


class Host(Protocol):
    """Whose loop it is."""

    def process(self, ready: Ready) -> None:
        """Deal with what has become ready, and with all else that is to be done."""

    def has_news(self) -> bool:
        """Whether there is something to process without waiting."""

    def timeout(self) -> float | None:
        """Return the seconds until something is due, None for nothing."""

    def runs_one_short_task(self, task: TaskFuture, limit: float) -> float | None:
        """Return how many seconds ``task`` takes if nothing else runs, and it takes less than ``limit``; else None."""

    def failed(self, error: Exception) -> None:
        """Have the keeper's own thread fail with what processing has raised in another one."""


class Loop:
    """Owns the selector, the means to wake who waits there, and the seat that says who does.

    ``sleeping`` is true if somebody who has news must ``wake`` the loop: a list with one entry for each sleep, which is
    emptied by who has woken it. What is no news to the host, and yet to be seen to (a future that another thread has
    settled), is to be ``nudged`` before that look at ``sleeping``, for the loop may be on its way to bed.
    """

    def __init__(self, host: Host) -> None:
        self.sleeping: list[bool] = []
        self.nudged = False
        self.selector = selectors.DefaultSelector()
        self._host = host
        self._seat = Seat()
        self._guard = SignalGuard()
        try:
            self._reader, self._writer = _wake_pair()
        except OSError:
            self.selector.close()
            raise
        self.selector.register(self._reader, selectors.EVENT_READ, self._woken)

    @property
    def descriptor(self) -> int:
        """One of the loop's own descriptors."""
        return self._reader

    def wake(self) -> None:
        """Make the loop look around; safe in finalizers."""
        sleep = self.sleeping
        with contextlib.suppress(OSError):
            os.write(self._writer, _ONE)
        # Afterwards, for a signal's handler may raise before, and then nobody would wake it any more. By then it may
        # sleep again: that is another sleep.
        sleep.clear()

    def step(self) -> None:
        """Wait and process once, in the keeper's own thread; while another one drives, stand back."""
        if self._seat.taken:
            self.wake()  # what the driver waits for may have been done in the step before
        self._seat.stand_back()
        self._process(self._sleep(self._host.timeout()))

    def _sleep(self, wait: float | None) -> Ready:
        self.sleeping = [True]
        ready = self.selector.select(0.0 if self.nudged or self._host.has_news() else wait)
        self.sleeping = []
        return ready

    def _process(self, ready: Ready) -> None:
        self.nudged = False
        for first in range(0, len(ready) or 1, AT_ONCE):
            self._host.process(ready[first : first + AT_ONCE])

    def drive(self, task: TaskFuture, timeout: float | None) -> None:
        """Run the loop in the calling thread until ``task`` is done, if that may be; ``timeout`` in seconds."""
        guard = self._guard if threading.current_thread() is threading.main_thread() else None
        if guard is not None and not guard.enter():
            return
        try:
            if self._seat.take():
                try:
                    self._drive(task, None if timeout is None else time.monotonic() + timeout, guard)
                finally:
                    # Whoever submits next must wake the keeper's thread, unless it looks by itself in a moment.
                    self.sleeping = [] if self._seat.parked else [True]
                    if self.nudged or self._host.has_news():
                        self.wake()
                    self._seat.leave()
        finally:
            if guard is not None:
                guard.leave()

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Hold back meanwhile the KeyboardInterrupt that would end what the calling thread does half-way."""
        guard = self._guard
        holds = threading.current_thread() is threading.main_thread() and guard.hold()
        try:
            yield
        finally:
            if holds:
                guard.leave()

    def _drive(self, task: TaskFuture, deadline: float | None, guard: SignalGuard | None) -> None:
        host = self._host
        ready: Ready = []
        while True:
            try:
                self._process(ready)
            except Exception as error:
                host.failed(error)
                return
            if task.done() or host.has_news():
                return
            wait = host.timeout()
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                wait = min(left, LONGEST_WAIT if wait is None else wait)
            if guard is not None:
                guard.open()
            ready = self._spin(task, wait)
            if not ready:
                ready = self._sleep(wait)
            if guard is not None:
                guard.critical = True

    def _spin(self, task: TaskFuture, wait: float | None) -> Ready:
        """Look for a result that is due in a moment without going to sleep, which would take longer than that."""
        seconds = self._host.runs_one_short_task(task, SPIN_SECONDS)
        if seconds is None or (wait is not None and wait < SPIN_SECONDS):
            return []
        end = time.monotonic() + seconds + SPIN_SECONDS
        select = self.selector.select
        while time.monotonic() < end:
            ready = select(0)
            if ready or self.nudged or self._host.has_news():
                return ready
        return []

    def _woken(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def leave(self) -> None:
        """Have a driver leave the seat, and let nobody take it again; the host ``has_news`` until then."""
        self.wake()  # a driver that sleeps
        self._seat.close()

    def renew(self) -> None:
        """After ``leave``: do without what was watched, and let the seat be taken again. Raises OSError."""
        self.selector.close()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self._reader, selectors.EVENT_READ, self._woken)
        self._seat.reopen()

    def close(self) -> None:
        """Close the means to wake it; whoever has news from now on is told so by ``sleeping``."""
        os.close(self._reader)
        if self._writer != self._reader:
            os.close(self._writer)
        self._writer = self._reader = -1
        self.sleeping = [True]

    def abandon_in_child(self) -> None:
        """In a fork of the application: close everything, for it belongs to the parent."""
        watched = self.selector.get_map()
        for key in list(watched.values()) if watched else ():
            with contextlib.suppress(OSError):
                os.close(key.fd)
        if self._writer != self._reader:
            os.close(self._writer)
        self._writer = self._reader = -1
        with contextlib.suppress(OSError, ValueError):  # it may have ended before
            os.close(self.selector.fileno())


def _wake_pair() -> tuple[int, int]:
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer
