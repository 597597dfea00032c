"""A keeper's part in the re-exec of its process: to come to rest, and to say what it leaves to the new program."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from .errors import ReexecRefused
from .home import Home

if TYPE_CHECKING:
    from collections.abc import Callable

    from .reexec import Estate

__all__ = ["Departing", "Departure"]


class Departing(Protocol):
    """The keeper."""

    name: str | None
    run_id: str

    @property
    def ended(self) -> bool:
        """Whether it has ended."""

    @property
    def is_caller(self) -> bool:
        """Whether this is its own thread."""

    @property
    def listener(self) -> int:
        """The descriptor of its listening socket."""

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have ``call`` run on its thread."""

    def wake(self) -> None:
        """Have its thread look around."""

    def come_to_rest(self, reason: str) -> None:
        """Let nothing happen any more, with everything recorded."""


class Departure:
    """What ``reexec`` replaces: see ``reexec.Replaceable``. ``asked`` is whether it has come to that."""

    def __init__(self, keeper: Departing, home: Home) -> None:
        self.name = keeper.name
        self.run_id = keeper.run_id
        self._keeper = keeper
        self._home = home
        self._reason: str | None = None
        self._at_rest = threading.Event()
        self._stranded: Future[None] = Future()

    @property
    def asked(self) -> bool:
        """Whether a new program is to take this one's place."""
        return self._reason is not None

    def answers(self, seconds: float) -> bool:
        """Whether the loop runs; raises ReexecRefused when it does nothing for ``seconds``."""
        if self._keeper.is_caller:
            return True
        answered = threading.Event()
        self._keeper.call_soon(answered.set)
        if self._wait(answered, seconds):
            return True
        if self._keeper.ended:
            return False
        raise ReexecRefused(f"the keeper's loop has not answered within {seconds:g} s; the old program goes on")

    def depart(self, reason: str, seconds: float) -> bool:
        """Come to rest, with everything recorded, for a new program takes this one's place.

        Children are not told: to them the keeper is away for a moment. Return whether that is so within ``seconds``.
        """
        self._reason = reason
        if self._keeper.is_caller:
            self._come_to_rest(reason)
        else:
            self._keeper.wake()
        return self._wait(self._at_rest, seconds)

    def rest(self) -> None:
        """On the keeper's thread: come to rest, and wait for the process to be replaced; raises where it is not."""
        assert self._reason is not None
        self._come_to_rest(self._reason)
        raise self._stranded.exception() or AssertionError

    def _come_to_rest(self, reason: str) -> None:
        self._keeper.come_to_rest(reason)
        self._at_rest.set()

    def estate(self) -> Estate | None:
        """Return what a successor in this process takes over; None for an ephemeral keeper."""
        from .reexec import Estate

        if self._home.lock is None:
            return None
        return Estate(self._home.lock, self._keeper.listener, self._home.socket)

    def strand(self, error: BaseException) -> None:
        """No new program takes this one's place: end, as nothing else is left to do."""
        if not self._stranded.done():
            self._stranded.set_exception(error)

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not event.wait(0.1):
            if self._keeper.ended or time.monotonic() >= deadline:
                return event.is_set()
        return True
