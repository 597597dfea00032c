"""What can go wrong, as exceptions that say what happened, to which task or worker, and what to do."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pickle import PicklingError

__all__ = [
    "AlreadyRunning",
    "CommandFailed",
    "DeathReport",
    "HomeUnusable",
    "NotReexecable",
    "PayloadError",
    "PoolkeeperError",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "ServiceFailed",
    "TaskExited",
    "TaskQuarantined",
    "TaskTimeout",
    "UnsupportedPlatform",
    "WorkerLost",
    "WorkerStartFailed",
]


class PoolkeeperError(Exception):
    """Base of everything that poolkeeper itself raises."""


class UnsupportedPlatform(PoolkeeperError, NotImplementedError):
    """This operating system cannot run a keeper (no fork, or no AF_UNIX sockets)."""


class HomeUnusable(PoolkeeperError, OSError):
    """The home directory cannot be created, written to, or lies where sockets and locks do not work."""


class ProtocolError(PoolkeeperError):
    """A peer sent bytes that are not a valid frame, or failed to authenticate; its link is closed."""


class PayloadError(PoolkeeperError, PicklingError):
    """A function, argument or result could not be pickled or unpickled; the cause is chained."""


class AlreadyRunning(PoolkeeperError):
    """Another keeper holds the instance lock; the message names its pid, host, directory and start."""


class ServiceFailed(PoolkeeperError):
    """A service has exhausted its restart policy."""


class NotReexecable(PoolkeeperError):
    """There is no program to re-exec: ephemeral keeper, notebook, standard input or ``python -c``."""


class CommandFailed(PoolkeeperError):
    """A ``command(...)`` ended with a non-zero exit code."""


class TaskTimeout(PoolkeeperError, TimeoutError):
    """An attempt ran longer than its ``timeout`` and its worker was replaced; the pool goes on."""


@dataclass(frozen=True, slots=True)
class DeathReport:
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


def signal_name(number: int) -> str:
    """Return the name of signal ``number``, or ``"?"`` for one that this system does not name."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return "?"


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


class RemoteError(PoolkeeperError):
    """An exception of a task that could not be pickled: its type and message, its traceback as the cause."""


class TaskExited(PoolkeeperError):
    """A task called ``sys.exit`` or raised another exception that would end the caller's process."""


class RemoteTraceback(Exception):
    """The traceback of a worker as text, chained as the cause of the exception that it explains."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
