"""What can be found out about a dead worker: its last words, and whether the kernel ran out of memory."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from .commands import Fail, Failure
from .errors import PoolkeeperError, TaskTimeout
from .ledger import Task
from .loglines import OWN_LABEL, parse
from .losses import DeathReport, TaskQuarantined, WorkerLost, WorkerStartFailed
from .roster import Exit

__all__ = ["Postmortem"]

TAIL_BYTES = 8192
TAIL_LINES = 20

COUNT_SECONDS = 0.005
"""How long a reading of the kernel's counter holds."""


class Postmortem:
    """Writes death reports; knows how many out-of-memory kills the kernel had counted when the keeper started."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._oom_kills = self._counted = _oom_kills()
        self._read_again = 0.0

    def explain(self, verdict: Fail) -> PoolkeeperError:
        """Return the exception that tells the user why a task has ended without a result of its own."""
        task = verdict.task
        what = f"task {task.call.name}"
        if isinstance(task, Task) and task.key is not None:
            what += f" (key {task.key!r})"
        if verdict.failure is Failure.NO_WORKERS:
            return WorkerStartFailed(f"{what} cannot run, for no worker can be started: {verdict.detail}")
        if verdict.failure is Failure.TIMEOUT:
            return TaskTimeout(f"{what} ran longer than its timeout of {task.call.options.timeout} s and was killed")
        assert isinstance(task, Task)
        assert verdict.worker is not None
        report = self.report(verdict.worker.id, verdict.worker.pid or 0, verdict.worker.exit)
        if verdict.failure is Failure.LOST:
            text = (
                f"{what} may have run when its worker died, and deaths=0 forbids to run it again: {report.describe()}"
            )
            return WorkerLost(text, report, max(task.deaths, 1))
        plural = "s" if task.deaths != 1 else ""
        text = f"{what} has ended {task.deaths} worker{plural} and is not run again: {report.describe()}"
        return TaskQuarantined(text, report, task.deaths)

    def report(self, worker: int, pid: int, exit: Exit | None) -> DeathReport:
        """Return what is known of the death of ``worker``."""
        code, peak = exit if exit is not None else (None, None)
        verdict = self.out_of_memory(code)
        said = _last_words(self._logs / f"worker-{worker}.log", pid)[-TAIL_LINES:]
        # A crashing interpreter writes its stack with the most recent call first.
        crashed = _last_lines(self._logs / f"worker-{worker}.crash")[:TAIL_LINES]
        return DeathReport(str(worker), pid, code, peak, verdict, "\n".join([*said, *crashed]))

    def out_of_memory(self, code: int | None) -> str:
        """Return whether a process that ended with ``code`` was killed for want of memory: "likely" or "no"."""
        if code == -signal.SIGKILL:
            # The counter is the machine's, not the process': more than likely cannot be said.
            kills = self._count_kills()
            if kills > self._oom_kills:
                self._oom_kills = kills
                return "likely"
        return "no"

    def _count_kills(self) -> int:
        """Return what the kernel has counted, read once for many that die together."""
        now = time.monotonic()
        if now >= self._read_again:
            self._counted = _oom_kills()
            self._read_again = now + COUNT_SECONDS
        return self._counted


def _oom_kills() -> int:
    try:
        with open("/proc/vmstat") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _last_words(path: Path, pid: int) -> list[str]:
    """Return what process ``pid`` has said last, and what is said of lines that are missing; 0 is any process."""
    lines = _last_lines(path)
    if len(lines) < TAIL_LINES:  # it may have been rotated a moment ago
        lines = _last_lines(path.with_name(path.name + ".1")) + lines
    words = []
    for line in lines:
        parsed = parse(line.encode(errors="surrogateescape"))
        if parsed is None:
            words.append(line)
        elif pid in (0, parsed.pid) or parsed.label == OWN_LABEL:
            words.append(parsed.words)
    return words


def _last_lines(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
            if size > TAIL_BYTES:
                text = text.partition("\n")[2] or text  # not the end of a line
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
