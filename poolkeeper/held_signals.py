"""Makes signal handlers wait while what they might raise would lose something: a child that nobody knows yet, a lock.

Python runs a handler in the main thread, between any two steps of what that is doing. To block signals instead would
not do: a program inherits the mask, and other threads would still receive them.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["HeldSignals"]

_NUMBERS: tuple[int, ...] = tuple(signal.valid_signals())


class HeldSignals:
    """Holds every handler back from ``with`` on to its end, but for the time from ``open`` to ``hold``.

    The handlers of what came meanwhile run then, once for each signal. After one that raises, all are held again while
    one cleans up. Does nothing outside the main thread, for there no handler runs.
    """

    def __init__(self) -> None:
        self._earlier: dict[int, Any] = {}
        self._heard: dict[int, FrameType | None] = {}
        self._holding = True

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in _NUMBERS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._earlier[number] = handler
        try:
            for number in self._earlier:
                signal.signal(number, self._handle)
        except BaseException:  # raised by one that is not held yet
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._holding = True
        try:
            self._let_through()
        finally:
            try:
                self._restore()
            except BaseException:  # raised by one that is in its place again
                self._restore()
                raise
            finally:
                self._let_through()

    def open(self) -> None:
        """Let handlers run, first those of the signals that came; raises what they raise."""
        self._let_through()
        self._holding = False
        try:
            self._let_through()  # what came between these two
        except BaseException:
            self._holding = True
            raise

    def hold(self) -> None:
        """Hold them back again."""
        self._holding = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._heard[number] = frame
            return
        self._holding = True
        self._earlier[number](number, frame)
        self._holding = False

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            if signal.getsignal(number) == self._handle:  # a handler that ran may have set another one
                signal.signal(number, handler)

    def _let_through(self) -> None:
        if self._heard:
            number, frame = self._heard.popitem()
            try:
                # Not sent again: who listens by set_wakeup_fd has heard of it already.
                self._earlier[number](number, frame)
            finally:
                self._let_through()  # the others, whatever it raises
