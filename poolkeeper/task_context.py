"""What a running task sees of itself: ``context()``. Outside a worker it answers harmlessly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from loguru import Logger

    from .resumption import OnError, Resumption

__all__ = ["Context", "NoService", "Surroundings", "context", "wants_context"]

T = TypeVar("T")


class Surroundings(Protocol):
    """What a worker tells the context of the task that it runs."""

    name: str
    attempt: int
    key: str | None
    slot: int
    worker: str

    def is_cancelled(self) -> bool:
        """Whether the keeper asks the running task to stop."""

    def wait(self, seconds: float) -> bool:
        """Wait; return early, and True, once the task is asked to stop."""

    def progress(self, done: float, total: float | None) -> None:
        """Pass progress on to the keeper."""

    def is_stopping(self) -> bool:
        """Whether the service is asked to end."""

    def ready(self, status: str) -> None:
        """Tell the keeper that the service is ready."""

    def heartbeat(self) -> None:
        """Show the keeper that the service is well."""

    def resumption(self) -> Resumption:
        """Return what the running task saves and finds again."""


class NoService:
    """What a task, or a plain function, has to say where a service would say more: nothing."""

    def is_stopping(self) -> bool:
        """Return False: what is no service is cancelled, not stopped."""
        return False

    def ready(self, status: str) -> None:
        """Nobody waits for it."""

    def heartbeat(self) -> None:
        """Nobody watches."""


class _Nowhere(NoService):
    """Outside a worker: nobody asks a plain function to stop, and nobody watches its progress."""

    name = ""
    attempt = 1
    key: str | None = None
    slot = 0
    worker = ""

    def is_cancelled(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False

    def progress(self, done: float, total: float | None) -> None:
        pass

    def resumption(self) -> Resumption:
        from .resumption import Resumption  # what never checkpoints need not import it

        return Resumption(None, "", 1, _ignore, _ignore)


def _ignore(*_: object) -> None:
    pass


class Context:
    """The running task's view of itself.

    Obtained by ``context()``, or as a first parameter annotated ``Context``. It stays valid for the whole process and
    always speaks of the task that runs at the moment.
    """

    def __init__(self, surroundings: Surroundings | None = None) -> None:
        self._around: Surroundings = surroundings if surroundings is not None else _Nowhere()

    def enter(self, surroundings: Surroundings) -> Surroundings:
        """For poolkeeper alone: speak of ``surroundings`` from now on; return of which before."""
        before, self._around = self._around, surroundings
        return before

    @property
    def name(self) -> str:
        """The name of the callable that runs."""
        return self._around.name

    @property
    def attempt(self) -> int:
        """Which attempt at the task this is, from 1; worker deaths count as attempts here."""
        return self._around.attempt

    @property
    def key(self) -> str | None:
        """The task's key, None where it has none."""
        return self._around.key

    @property
    def slot(self) -> int:
        """A small integer that no other living worker of this keeper has."""
        return self._around.slot

    @property
    def cancelled(self) -> bool:
        """Whether the task is asked to stop: its future was cancelled while it ran."""
        return self._around.is_cancelled()

    @property
    def stopping(self) -> bool:
        """Whether the service is asked to end, by its stop signal; False in a task.

        A service that has never looked here, nor called ``wait``, is ended by ``SystemExit`` instead.
        """
        return self._around.is_stopping()

    def wait(self, seconds: float) -> bool:
        """Sleep for ``seconds``, or until the task or service is asked to stop; return whether it is."""
        return self._around.wait(max(0.0, seconds))

    def ready(self, status: str = "") -> None:
        """Say that a service declared with ``ready="notify"`` is ready; ``status`` is a text to show."""
        self._around.ready(status)

    def heartbeat(self) -> None:
        """Say that the service is well; costs less than a microsecond. For services with a ``watchdog``."""
        self._around.heartbeat()

    def progress(self, done: float, total: float | None = None) -> None:
        """Report that ``done`` of ``total`` units are done; cheap, may be called in every round of a loop."""
        self._around.progress(done, total)

    def checkpoint(self, state: Any, *, every: float | None = None, durable: bool = False) -> bool:
        """Save ``state``, from which a later attempt goes on; return whether it is stored.

        The state of a task is kept until the task succeeds. It is found by its next attempt; and if the task has a key
        and the keeper a name, by a task of the same function and key in a later run. The state of a service is kept for
        each replica, across restarts. Outside a worker nothing is kept.

        A full disk or a home that is gone does not end the task: this returns False, and the log says why.

        Args:
            state: anything that pickle or cloudpickle can save. A class of ``__main__`` comes back as it was, a copy;
                one of a module as the module has it then.
            every: seconds; does nothing if less time has passed since the state was last saved.
            durable: survive a loss of power as well; waits for the disk.

        Raises:
            PayloadError: if the state cannot be pickled.
        """
        return self._around.resumption().checkpoint(state, every, durable=durable)

    def restore(self, default: Any = None, *, on_error: OnError = "raise") -> Any:
        """Return the state that this task or service has saved last, ``default`` if there is none.

        A newest checkpoint that is torn, or was tampered with, is passed over for the one before it.

        Args:
            default: what to begin with.
            on_error: ``"default"`` starts afresh, with a notice in the log, where this would raise.

        Raises:
            CheckpointUnreadable: if no checkpoint is whole, or the state does not fit the present code: a class is
                gone, or its fields are others.
        """
        return self._around.resumption().restore(default, on_error)

    def track(self, iterable: Iterable[T], *, every: float = 1.0, key: str | None = None) -> Iterator[T]:
        """Iterate, show progress, save the position, and skip what an earlier attempt has done.

        The items must come in the same order in each attempt. What was done after the position was last saved is done
        again. If their number has changed, all are done again.

        Args:
            iterable: a sequence is entered in the middle; of an iterator the items that are done are read and dropped.
            every: seconds between two saved positions; 0: after each item.
            key: tells this loop from others; needed within another loop that is tracked. Without, loops count in the
                order in which they begin.

        Raises:
            ValueError: for a loop within a loop that has no key, and for a key that was used before.
        """
        return self._around.resumption().track(iterable, every, key)

    @property
    def log(self) -> Logger:
        """A loguru logger bound to the worker, task and attempt."""
        from loguru import logger

        around = self._around
        return logger.bind(worker=around.worker, task=around.name, key=around.key, attempt=around.attempt)


_current = Context()


def context() -> Context:
    """Return the context of the running task; outside a worker one that does nothing harmful."""
    return _current


def enter(surroundings: Surroundings) -> Surroundings:
    """Make ``surroundings`` what ``context()`` speaks of; return what it spoke of before."""
    return _current.enter(surroundings)


def wants_context(function: Callable[..., Any]) -> bool:
    """Whether the first parameter of ``function`` is annotated ``Context``."""
    annotations = getattr(function, "__annotations__", None)
    if not annotations or not any(
        note is Context or note in ("Context", "poolkeeper.Context") for note in annotations.values()
    ):
        return False
    import inspect  # slow to import, rarely needed

    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):
        return False
    return first is not None and (first.annotation is Context or first.annotation in ("Context", "poolkeeper.Context"))
