"""Lets the thread that waits for a result do the keeper's work meanwhile: two thread switches less in a round trip.

A waiting thread takes the *seat* and runs the keeper's loop itself until its future is done. The keeper's own thread
stands back as long as the seat is taken, and a moment longer, for in a series of round trips the next one follows at
once.

The main thread must not be interrupted in the midst of the keeper's state by a signal handler that raises
(``KeyboardInterrupt``). While it drives, Python's default SIGINT handler is replaced by one that waits for the end of
the critical section; where the application has handlers of its own, the main thread does not drive.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Seat", "SignalGuard"]

GRACE = 0.0005
"""Seconds for which the keeper's thread stands back after a driver has left."""

_NUMBERS = sorted(set(signal.valid_signals()) - {signal.SIGINT})
_PASSIVE = (signal.SIG_DFL, signal.SIG_IGN, None)


class SignalGuard:
    """Holds SIGINT back while ``critical``; for the main thread, between ``enter`` and ``leave``."""

    def __init__(self) -> None:
        self.critical = False
        self._pending = False

    def enter(self) -> bool:
        """Install the guard; return False where the application's own handlers forbid to drive."""
        getsignal = signal.getsignal
        if getsignal(signal.SIGINT) is not signal.default_int_handler:
            return False
        for number in _NUMBERS:
            if getsignal(number) not in _PASSIVE:
                return False
        signal.signal(signal.SIGINT, self._interrupt)
        return True

    def leave(self) -> None:
        """Restore the default handler; raise the KeyboardInterrupt that was held back."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.check()

    def check(self) -> None:
        """Raise the KeyboardInterrupt that was held back, if any."""
        self.critical = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> Any:
        if self.critical:
            self._pending = True
        else:
            signal.default_int_handler(number, frame)


class Seat:
    """Who runs the loop: a waiting thread that has taken the seat, else the keeper's own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0.0
        self._vacated = False
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
        while self._lock.locked() or time.monotonic() - self._left <= GRACE:
            time.sleep(GRACE)
        self.parked = False

    def close(self) -> None:
        """Wait for the driver to leave, and let nobody take the seat again."""
        self._lock.acquire()
