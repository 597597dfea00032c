"""Lost work: how a worker ended, and the exceptions that say which task went with it."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from .errors import PoolkeeperError, signal_name

__all__ = ["DeathReport", "TaskQuarantined", "WorkerLost", "WorkerStartFailed"]


class DeathReport(NamedTuple):
    """What is known of one worker's death.

    ``exitcode`` is the exit status, negative for a signal, None where it is not known.
    ``peak_memory`` is in bytes. ``out_of_memory`` is "yes", "likely" or "no".
    ``log_tail`` holds the last lines that the worker wrote.
    """

    worker: str
    pid: int
    exitcode: int | None = None
    peak_memory: int | None = None
    out_of_memory: str = "no"
    log_tail: str = ""

    def describe(self) -> str:
        """One sentence for an error message, and the last lines of the log below it."""
        if self.exitcode is None:
            how = "disappeared (exit status unknown)"
        elif self.exitcode < 0:
            how = f"was killed by signal {-self.exitcode} ({signal_name(-self.exitcode)})"
        else:
            how = f"exited with status {self.exitcode}"
        parts = [f"worker {self.worker} (pid {self.pid}) {how}"]
        if self.out_of_memory != "no":
            parts.append(f"out of memory: {self.out_of_memory}")
        if self.peak_memory:
            parts.append(f"peak memory {self.peak_memory / 2**20:.0f} MiB")
        text = ", ".join(parts)
        if self.log_tail:
            text += "\nits last lines were:\n" + "\n".join("  | " + line for line in self.log_tail.splitlines())
        return text


class WorkerLost(PoolkeeperError, BrokenProcessPool):
    """The worker died while it executed this task. The pool goes on; only this task is lost.

    It is a ``BrokenProcessPool`` so that existing ``except`` clauses hold.
    ``report`` is the DeathReport of the last death, ``deaths`` how many there were.
    """

    def __init__(self, message: str, report: DeathReport | None = None, deaths: int = 1) -> None:
        super().__init__(message)
        self.report = report
        self.deaths = deaths

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.report, self.deaths)


class TaskQuarantined(WorkerLost):
    """The task has killed as many workers as its ``RetryPolicy(deaths=...)`` allows and is not run again."""


class WorkerStartFailed(PoolkeeperError, BrokenProcessPool):
    """Workers cannot be started: the initializer raises, or new processes die before their first task.

    What was queued fails with this error; the next ``submit`` tries again.
    """
