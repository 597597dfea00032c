"""What one running task or service saves and finds again: throttled, never fatal, forgotten after success.

The worker writes by itself, so a checkpoint needs no keeper. A state that cannot be stored (the disk is full, the home
is gone) costs the task nothing but the chance to resume from it, and each process says it once; one that cannot be
pickled is a mistake in the task, and raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Literal, TypeVar

from .checkpoint import Found, Store
from .errors import CheckpointUnreadable

__all__ = ["OnError", "Resumption"]

T = TypeVar("T")

OnError = Literal["raise", "default"]

_STATE = "state"
_TRACK = "track"

_complaints: set[int | None] = set()
"""Why this process cannot store checkpoints, by errno: each is said by the first task that meets it, not by all."""


class _Loop:
    """How many items of a loop are done, and of how many that is saved; ``total`` is None where it is not known."""

    __slots__ = ("done", "part", "saved", "total")

    def __init__(self, part: str, done: int, total: int | None) -> None:
        self.part = part
        self.done = self.saved = done
        self.total = total


class Resumption:
    """The checkpoints of one attempt at one task, or of one process of a service.

    Args:
        store: where states are kept; None: nowhere, outside a worker.
        identity: the task's or service's, the same in each attempt: its kind, a NUL, and whatever tells it from others.
        attempt: from 1.
        notice: is told what the user should know, in a sentence.
        progress: is told how many items of a loop are done, and of how many.
    """

    def __init__(
        self,
        store: Store | None,
        identity: str,
        attempt: int,
        notice: Callable[[str], object],
        progress: Callable[[float, float | None], object],
    ) -> None:
        self._store = store
        self.identity = identity
        self._attempt = attempt
        self._notice = notice
        self._progress = progress
        self._lock = threading.Lock()
        self._saved_at: dict[str, float] = {}
        self._tracks: set[str] = set()
        self._loops: list[_Loop] = []
        self._numbered = 0
        self._ended = False

    # -- states -------------------------------------------------------------------------------------------------------

    def checkpoint(self, state: Any, every: float | None, *, durable: bool) -> bool:
        """Save ``state`` unless that was done less than ``every`` seconds ago; return whether it is stored."""
        if every is not None and time.monotonic() - self._saved_at.get(_STATE, -1e9) < every:
            return False
        return self._save(_STATE, state, durable=durable)

    def restore(self, default: T, on_error: OnError) -> Any | T:
        """Return the state that was saved last, ``default`` if there is none; raises CheckpointUnreadable."""
        if on_error not in ("raise", "default"):
            raise ValueError(f"on_error={on_error!r} must be 'raise' or 'default'")
        found = self._find(_STATE, afresh=on_error == "default")
        return default if found is None else found.state

    def _save(self, part: str, state: Any, *, durable: bool = False) -> bool:
        if self._store is None or self._ended:
            return False
        with self._lock:
            try:
                self._store.write(self.identity, part, state, self._attempt, durable=durable)
            except OSError as error:
                self._saved_at[part] = time.monotonic()
                if error.errno not in _complaints:
                    _complaints.add(error.errno)
                    self._notice(
                        f"a checkpoint cannot be stored: {error.strerror or error}; "
                        "the work goes on, and would have to begin at an earlier one"
                    )
                return False
            _complaints.clear()
            self._saved_at[part] = time.monotonic()
            return True

    def _find(self, part: str, *, afresh: bool) -> Found | None:
        if self._store is None:
            return None
        try:
            found = self._store.read(self.identity, part)
        except CheckpointUnreadable as error:
            if not afresh:
                raise CheckpointUnreadable(
                    f"{self._described()}: {error}; restore(default, on_error='default') starts afresh"
                ) from error.__cause__
            self._notice(f"{self._described()}: {error}; it starts afresh")
            return None
        if found is not None and found.trouble:
            self._notice(f"{self._described()}: {found.trouble}; the one before it is used")
        return found

    def _described(self) -> str:
        return "the checkpoint of " + self.identity.replace("\0", " ")

    # -- loops --------------------------------------------------------------------------------------------------------

    def track(self, items: Iterable[T], every: float, key: str | None) -> Iterator[T]:
        """Yield what of ``items`` no earlier attempt has done; see ``Context.track``."""
        part = self._part(key)
        total = len(items) if isinstance(items, Sized) else None
        loop = _Loop(part, self._done_before(part, total), total)
        return self._run(loop, _rest(items, loop.done), every)

    def _part(self, key: str | None) -> str:
        if key is None:
            if self._loops:
                raise ValueError("track() within another track() needs key=..., which says which loop this is")
            self._numbered += 1
            part = f"{_TRACK}\0{self._numbered}"
        else:
            part = f"{_TRACK}\0key\0{key}"
            if part in self._tracks:
                raise ValueError(
                    f"track(key={key!r}) was used before in this attempt; each loop needs a key of its own"
                )
        self._tracks.add(part)
        return part

    def _done_before(self, part: str, total: int | None) -> int:
        found = self._find(part, afresh=True)
        if found is None:
            return 0
        if found.state[1] != total:
            self._notice(
                f"{self._described()}: {found.state[0]} of {found.state[1]} items were done, and now there are "
                f"{total}: all are done again"
            )
            return 0
        return int(found.state[0])

    def _run(self, loop: _Loop, rest: Iterator[T], every: float) -> Iterator[T]:
        began = self._saved_at[loop.part] = time.monotonic()
        self._loops.append(loop)
        try:
            for item in rest:
                self._progress(loop.done, loop.total)
                yield item
                loop.done += 1
                if time.monotonic() - self._saved_at[loop.part] >= every:
                    self._save_loop(loop)
            self._progress(loop.done, loop.total)
            if time.monotonic() - began < every:
                loop.saved = loop.done  # so short that it may well be repeated
        finally:
            self._loops.remove(loop)
            if loop.saved != loop.done:  # complete, or broken off, by an exception perhaps
                self._save_loop(loop)

    def _save_loop(self, loop: _Loop) -> None:
        loop.saved = loop.done
        self._save(loop.part, (loop.done, loop.total))

    # -- the end ------------------------------------------------------------------------------------------------------

    def succeeded(self) -> None:
        """The task has ended well, and its result is on its way: nothing of it needs to be resumed."""
        self.ended()
        if self._store is not None:
            self._store.remove(self.identity)

    def failed(self) -> None:
        """The attempt has raised: loops that it still holds are saved as they are."""
        for loop in self._loops:
            if loop.saved != loop.done:
                self._save_loop(loop)
        self.ended()

    def returned(self) -> None:
        """The service has returned: the loops in it begin anew when it is started again, its state stays."""
        if self._store is not None:
            for part in self._tracks:
                self._store.remove(self.identity, part)

    def ended(self) -> None:
        """The attempt is over: what lives longer, a thread or a loop, saves nothing any more."""
        self._ended = True


def _rest(items: Iterable[T], done: int) -> Iterator[T]:
    """Return what comes after the first ``done`` items; sequences are not read from the start."""
    if not done:
        return iter(items)
    if isinstance(items, Sequence):
        return (items[index] for index in range(done, len(items)))
    return islice(items, done, None)
