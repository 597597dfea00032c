"""Ctrl-C and SIGTERM for a program that is a run: the first stops it cleanly, the second at once. SIGHUP reloads it.

Python runs a signal handler in the main thread, which may be in the midst of something that must not be interrupted, or
blocked while the system has delivered the signal to another thread. So the handler does nothing; the interpreter
writes the signal's number into a socket (``signal.set_wakeup_fd``), and a thread that reads there acts on it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from .inheritance import INHERITANCE

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Catches the signals from ``with`` on to its end; only the main thread may use it.

    Args:
        first: is called with the number of the first signal.
        again: is called with that of each later one.
        hangup: is called for each SIGHUP, unless the terminal has gone, or the process was started to ignore it. That
            of a terminal counts as the others.
    """

    def __init__(
        self,
        first: Callable[[int], None],
        again: Callable[[int], None],
        hangup: Callable[[], None] | None = None,
    ) -> None:
        self.received: int | None = None
        """The number of the first signal, None as long as there was none."""
        self._first = first
        self._again = again
        self._hangup = hangup
        self._terminals = [stream for stream in (0, 1, 2) if os.isatty(stream)]
        self._numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._thread = threading.Thread(target=self._act, name="poolkeeper-signals", daemon=True)
        self._handlers: dict[int, Any] = {}
        self._earlier_wakeup = -1

    def __enter__(self) -> Self:
        self._thread.start()
        self._earlier_wakeup = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        heard = [*_SIGNALS]
        if self._hangup is not None and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            heard.append(signal.SIGHUP)
        for number in heard:
            self._handlers[number] = signal.signal(number, _leave_it_to_the_thread)
        # What came while one program took the place of another has waited until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INHERITANCE.held)
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
                if number not in self._handlers:  # the socket hears of every signal that has a handler
                    continue
                if number == signal.SIGHUP and self._hangup is not None and not self._terminal_is_gone():
                    self._hangup()
                elif self.received is None:
                    self.received = number
                    self._first(number)
                else:
                    self._again(number)

    def _terminal_is_gone(self) -> bool:
        return any(not os.isatty(stream) for stream in self._terminals)


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    pass
