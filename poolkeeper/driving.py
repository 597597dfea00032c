"""Lets the thread that waits for a result do the keeper's work meanwhile: two thread switches less in a round trip.

A waiting thread takes the *seat* and runs the keeper's loop itself until its future is done. The keeper's own thread
stands back as long as the seat is taken, and a moment longer, for in a series of round trips the next one follows at
once.

The main thread must not be interrupted in the midst of the keeper's state by a signal handler that raises
(``KeyboardInterrupt``). While it drives, or cancels a task, Python's default SIGINT handler is replaced by one that
waits for the end of the critical section; where the application has handlers of its own, the main thread does not
drive. A SIGINT that is ignored, as in what a shell runs in the background, or that ends the process, interrupts no
Python code.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Seat", "SignalGuard"]

GRACE = 0.0005
"""Seconds for which the keeper's thread stands back after a driver has left."""

GRACE_LIMIT = 0.002
"""Seconds between two looks at a seat that stays taken: each look costs the driver the interpreter lock."""

_SIGINT = int(signal.SIGINT)
_NUMBERS = tuple(sorted(int(number) for number in signal.valid_signals() if number != signal.SIGINT))
_ALL = (_SIGINT, *_NUMBERS)
_PASSIVE = frozenset({int(signal.SIG_DFL), int(signal.SIG_IGN), None})


class SignalGuard:
    """Holds SIGINT back in the main thread while ``critical``, between ``enter`` or ``hold`` and ``leave``."""

    def __init__(self) -> None:
        self.critical = False
        self._pending = False
        self._holds = False

    def enter(self) -> bool:
        """Hold SIGINT back from now on; return False where the application's own handlers forbid to drive."""
        getsignal = _signal.getsignal  # signal's own converts to enums, which takes thirty times as long
        raises = getsignal(_SIGINT) is signal.default_int_handler
        try:
            passive = _PASSIVE.issuperset(map(getsignal, _NUMBERS if raises else _ALL))
        except TypeError:  # a handler that cannot be hashed is a handler
            passive = False
        if not passive:
            return False
        if not self.hold():
            self.critical = True
        return True

    def hold(self) -> bool:
        """Hold SIGINT back from now on if it would raise; return whether it has to be let through by ``leave``."""
        if _signal.getsignal(_SIGINT) is not signal.default_int_handler:
            return False
        self._holds = self.critical = True
        _signal.signal(_SIGINT, self._interrupt)
        return True

    def open(self) -> None:
        """Let SIGINT through until ``critical`` is set again; raises the KeyboardInterrupt that was held back."""
        self.critical = False
        if self._pending:
            self._pending = False
            self.critical = True
            raise KeyboardInterrupt

    def leave(self) -> None:
        """Restore what ``enter`` has found; raises the KeyboardInterrupt that was held back."""
        if self._holds:
            self._holds = False
            _signal.signal(_SIGINT, signal.default_int_handler)
        self.open()

    def _interrupt(self, number: int, frame: FrameType | None) -> Any:
        if self.critical:
            self._pending = True
        else:
            self.critical = True  # what is raised here is cleaned up after without being interrupted again
            signal.default_int_handler(number, frame)


class Seat:
    """Who runs the loop: a waiting thread that has taken the seat, else the keeper's own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0.0
        self._closed = False
        self.parked = False

    @property
    def taken(self) -> bool:
        """Whether somebody drives."""
        return self._lock.locked()

    def take(self) -> bool:
        """Take the seat unless it is taken."""
        return self._lock.acquire(blocking=False)

    def leave(self) -> None:
        """Give the seat up."""
        self._left = time.monotonic()
        self._lock.release()

    def stand_back(self) -> None:
        """The keeper's thread: wait while somebody drives, and a moment longer."""
        if not self._lock.locked() and time.monotonic() - self._left > GRACE:
            return
        self.parked = True
        pause = GRACE
        while self._lock.locked() or time.monotonic() - self._left <= GRACE:
            time.sleep(pause)
            pause = min(2 * pause, GRACE_LIMIT)
        self.parked = False

    def close(self) -> None:
        """Wait for the driver to leave, and let nobody take the seat again; the keeper's own thread may call it."""
        if not self._closed:
            self._lock.acquire()
            self._closed = True

    def reopen(self) -> None:
        """Let the seat be taken again after ``close``."""
        if self._closed:
            self._closed = False
            self._lock.release()
