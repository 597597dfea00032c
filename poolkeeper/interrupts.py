"""Ctrl-C and SIGTERM for a program that is a run: the first stops it cleanly, the second at once.

Python runs a signal handler in the main thread, which may be in the midst of something that must not be interrupted, or
blocked while the system has delivered the signal to another thread. So the handler does nothing; the interpreter
writes the signal's number into a socket (``signal.set_wakeup_fd``), and a thread that reads there acts on it.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Catches the signals from ``with`` on to its end; only the main thread may use it.

    Args:
        first: is called with the number of the first signal.
        again: is called with that of each later one.
    """

    def __init__(self, first: Callable[[int], None], again: Callable[[int], None]) -> None:
        self.received: int | None = None
        """The number of the first signal, None as long as there was none."""
        self._first = first
        self._again = again
        self._numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._thread = threading.Thread(target=self._act, name="poolkeeper-signals", daemon=True)
        self._handlers: dict[int, Any] = {}
        self._earlier_wakeup = -1

    def __enter__(self) -> Self:
        self._thread.start()
        self._earlier_wakeup = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, _leave_it_to_the_thread)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier_wakeup)
        self._wakeup.close()
        self._thread.join()
        self._numbers.close()

    def _act(self) -> None:
        while received := self._numbers.recv(64):
            for number in received:
                if number not in _SIGNALS:  # the socket hears of every signal that has a handler
                    continue
                if self.received is None:
                    self.received = number
                    self._first(number)
                else:
                    self._again(number)


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    pass
