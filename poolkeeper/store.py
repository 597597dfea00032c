"""What batches know of a journal: a store with a shelf for each of them, whatever executor runs the tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

__all__ = ["Entry", "Recalled", "Shelf", "Store", "claim_of"]


class Recalled(NamedTuple):
    """A recorded outcome: what the task returned, or the ``error`` that it ended with."""

    value: Any
    error: BaseException | None
    attempts: int
    deaths: int
    seconds: float | None


class Shelf(Protocol):
    """The record of one batch."""

    def entry(self, identity: str | int, args: tuple[Any, ...]) -> Entry:
        """Return what one task is recorded under: its key or position, and its arguments. Never raises."""

    def recall(self, entry: Entry) -> Recalled | None:
        """Return the outcome that an earlier run has recorded, if that may be reused."""

    def completed(self) -> None:
        """Every item of the batch has a final outcome."""


class Entry(NamedTuple):
    """What one task is recorded under. ``arguments`` is their fingerprint, None where they have none."""

    shelf: Any
    identity: str | int
    arguments: str | None


def claim_of(entry: Entry | None) -> tuple[str, str, str | int, str, str] | None:
    """Return what tells one recorded task from all others, in this keeper and later ones; None where nothing does.

    The last of it stands for the code where that may be another (see ``holdings.work_of``).
    """
    if entry is None:
        return None
    shelf, identity, arguments = entry
    if arguments is None or shelf.code is None:
        return None
    return shelf.name, shelf.code, identity, arguments, shelf.kin


class Store(Protocol):
    """Where the outcomes of batches are recorded."""

    def shelf(self, name: str, function: Callable[..., Any]) -> Shelf:
        """Return the shelf of a new batch; the second batch of a name gets another one than the first."""

    def leave(self, reason: str) -> None:
        """Have the next run go on with this one, even if all its tasks should come to their end."""
