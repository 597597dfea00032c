"""What the keeper's loop says through loguru, without ever waiting for a sink.

A sink may block for as long as it likes (a terminal that was stopped by Ctrl-S, a full disk, a pipe that nobody reads).
So what the loop says is spoken by a thread of its own; while that cannot keep up, lines are given up and counted.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from .logs import is_wanted, speak

__all__ = ["at_any_rate", "flush", "report"]

QUEUE_LIMIT = 1000
FLUSH_SECONDS = 1.0


class _Remark(NamedTuple):
    level: str
    message: str
    facts: dict[str, Any]
    caller: tuple[str, str, int]
    seconds: float


class _Speaker:
    """A queue of remarks and the thread that speaks them, which starts with the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[_Remark] = deque()
        self._lost = 0
        self._idle = True
        self._thread: threading.Thread | None = None

    def say(self, remark: _Remark) -> None:
        with self._changed:
            if len(self._queue) >= QUEUE_LIMIT:
                self._lost += 1
                return
            self._queue.append(remark)
            if self._thread is None and not self._start():
                return
            self._changed.notify_all()

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="poolkeeper-logs", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # at interpreter exit, or no thread left: the next remark tries again
            return False
        self._thread = thread
        return True

    def flush(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None or (not self._queue and self._idle), seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue)
                remark = self._queue.popleft()
                lost, self._lost = self._lost, 0
                self._idle = False
            if lost:
                _speak(remark._replace(level="WARNING", message=f"{lost} lines were lost: the log was too slow"))
            _speak(remark)


_speaker = _Speaker()


def report(level: str, message: str, /, **facts: Any) -> None:
    """Log as ``logs.emit`` does, but never wait: for what runs in the keeper's loop."""
    if is_wanted():
        frame = sys._getframe(1)  # noqa: SLF001 - as loguru itself finds its caller
        name = str(frame.f_globals.get("__name__", "poolkeeper"))
        caller = (name, frame.f_code.co_name, frame.f_lineno)
        _speaker.say(_Remark(level, message, facts, caller, time.time()))


def at_any_rate(call: Callable[..., object], /, *arguments: Any, **options: Any) -> None:
    """Do one of several things that are to be done even if another fails, which is reported."""
    try:
        call(*arguments, **options)
    except Exception:
        report("ERROR", f"of what is to be let go of, something is not\n{traceback.format_exc()}")


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Wait until all that was reported has been spoken, but no longer than ``seconds``."""
    _speaker.flush(seconds)


def _speak(remark: _Remark) -> None:
    speak(remark.level, remark.message, remark.facts, remark.caller, remark.seconds)


def _start_afresh() -> None:
    """In a forked child the thread does not exist, and the lock may be held for ever."""
    global _speaker  # noqa: PLW0603 - one voice per process
    _speaker = _Speaker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
