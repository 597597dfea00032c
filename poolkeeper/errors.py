"""What can go wrong, as exceptions that say what happened, to which task or worker, and what to do.

Those that are a ``BrokenProcessPool`` are in ``losses``: it takes a while to import, and workers never raise them.
"""

from __future__ import annotations

from pickle import PicklingError

__all__ = [
    "AlreadyRunning",
    "CheckpointUnreadable",
    "CommandFailed",
    "FleetStopping",
    "HomeUnusable",
    "NotReexecable",
    "PayloadError",
    "PoolkeeperError",
    "ProtocolError",
    "ReexecRefused",
    "RemoteError",
    "RemoteTraceback",
    "RestartRefused",
    "ServiceFailed",
    "TaskExited",
    "TaskTimeout",
    "UnsupportedPlatform",
]


class PoolkeeperError(Exception):
    """Base of everything that poolkeeper itself raises."""


class UnsupportedPlatform(PoolkeeperError, NotImplementedError):
    """This operating system cannot run a keeper (no fork, or no AF_UNIX sockets)."""


class HomeUnusable(PoolkeeperError, OSError):
    """The home directory cannot be created, written to, or lies where sockets and locks do not work."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()  # without the number


class ProtocolError(PoolkeeperError):
    """A peer sent bytes that are not a valid frame, or failed to authenticate; its link is closed."""


class PayloadError(PoolkeeperError, PicklingError):
    """A function, argument or result could not be pickled or unpickled; the cause is chained."""


class CheckpointUnreadable(PoolkeeperError):
    """What an earlier attempt has saved cannot be restored: every generation is damaged, or its classes have changed.

    ``restore(on_error="default")`` starts afresh instead.
    """


class AlreadyRunning(PoolkeeperError):
    """Another keeper holds the instance lock; the message names its pid, host, directory and start."""


class FleetStopping(PoolkeeperError, RuntimeError):
    """A service is not started, for its fleet or its keeper is about to end."""


class ServiceFailed(PoolkeeperError):
    """A service has exhausted its restart policy."""


class NotReexecable(PoolkeeperError):
    """There is no program to re-exec: ephemeral keeper, notebook, standard input or ``python -c``."""


class ReexecRefused(PoolkeeperError):
    """The process is not replaced, for the new program would not run, or it was replaced too often; it goes on."""


class RestartRefused(PoolkeeperError):
    """A service is not restarted, for its code on disk cannot be loaded; it goes on as it is."""


class CommandFailed(PoolkeeperError):
    """A ``command(...)`` could not be started, ended with a non-zero exit code, or was cancelled.

    ``argv`` is what was run. ``exit_code`` is negative for the signal that killed it, and None if it never ran.
    """

    def __init__(self, message: str, argv: tuple[str, ...] = (), exit_code: int | None = None) -> None:
        super().__init__(message)
        self.argv = argv
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.argv, self.exit_code)


class TaskTimeout(PoolkeeperError, TimeoutError):
    """An attempt ran longer than its ``timeout`` and its worker was replaced; the pool goes on."""


class RemoteError(PoolkeeperError):
    """An exception of a task that could not be pickled: its type and message, its traceback as the cause."""


class TaskExited(PoolkeeperError, SystemExit):
    """A task called ``sys.exit`` or raised another exception that would end the caller's process.

    It is a SystemExit, as with the standard executor; uncaught, it ends the application with its message and status 1.
    ``exit_code`` is what the task gave to ``sys.exit``.
    """

    def __init__(self, message: str, exit_code: object = None) -> None:
        super().__init__(message)
        self.code = message
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.exit_code)


class RemoteTraceback(Exception):
    """The traceback of a worker as text, chained as the cause of the exception that it explains."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tb = text

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'


def signal_name(number: int) -> str:
    """Return the name of signal ``number``, or ``"?"`` for one that this system does not name."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return "?"
