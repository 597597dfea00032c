"""Asks a task's retry policy; runs on the delivery thread, for strategies and exceptions are user code."""

from __future__ import annotations

import traceback

from .commands import Decide
from .errors import TaskTimeout
from .ledger import History
from .logs import emit
from .payload import loads_exception

__all__ = ["decide"]


def decide(command: Decide, now: float) -> float | None:
    """Return the seconds until the next attempt, None if the failure is final. ``now`` is monotonic.

    It is final where a strategy raises, which is logged.
    """
    try:
        return _delay_before_retry(command, now)
    except Exception:
        emit("ERROR", f"the failure of {command.task.call.name} is final\n{traceback.format_exc()}")
        return None


def _delay_before_retry(command: Decide, now: float) -> float | None:
    task = command.task
    options = task.call.options
    history = task.history
    if history is None:
        history = task.history = History(now - command.seconds)
    error: BaseException
    if command.outcome is None:
        error = TaskTimeout(f"task {task.call.name} ran longer than its timeout of {options.timeout} s and was killed")
    else:
        error = loads_exception(command.outcome)
    elapsed = now - history.began
    assert options.retry is not None
    delay = options.retry.delay_after_failure(
        task.attempts, elapsed, error, waited=history.waited, earlier=tuple(history.failures)
    )
    history.failures.append(elapsed)
    history.waited += delay or 0.0
    return delay
