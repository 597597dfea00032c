"""Ctrl-C and SIGTERM for a program that is a run: the first stops it cleanly, the second at once.

A Python signal handler runs in the middle of whatever the main thread does, perhaps while that holds a lock. So the
handler only puts the signal's number on a queue, which is made for this, and a thread of its own acts on it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
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
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._act, name="poolkeeper-signals", daemon=True)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._queue.put(None)
        self._thread.join()

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._queue.put(number)

    def _act(self) -> None:
        while (number := self._queue.get()) is not None:
            if self.received is None:
                self.received = number
                self._first(number)
            else:
                self._again(number)
