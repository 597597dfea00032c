"""Asks a task's retry policy; runs on the delivery thread, for strategies and exceptions are user code."""

from __future__ import annotations

from .commands import Decide
from .errors import TaskTimeout
from .ledger import History
from .payload import loads_exception

__all__ = ["delay_before_retry"]


def delay_before_retry(command: Decide, now: float) -> float | None:
    """Return the seconds until the next attempt, None if the failure is final. ``now`` is monotonic.

    Raises whatever a strategy raises; the failure is then final.
    """
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
