"""What earlier keepers have recorded of a run: found by batch, key or position, and the fingerprints."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from typing import NamedTuple

from .journal_file import ACCIDENTS
from .journal_runs import Run
from .logs import emit
from .outcomes import Filed, Outcome, Torn, unpack_body, unpack_head
from .result_files import ResultFiles

__all__ = ["Recall"]

HELD = 4
"""Groups whose outcomes are kept in memory: neighbours are asked for one after the other, and by several threads."""


class _Place(NamedTuple):
    group: int
    position: int
    arguments: str


class Recall:
    """The recorded outcomes of one run; results stay on disk until they are asked for. Thread-safe.

    Args:
        connection: for reading; closed by ``close``.
        key: of the journal.
        files: where heavy results lie.
        run: whose outcomes these are.

    Raises:
        sqlite3.Error: when the journal cannot be read.
    """

    def __init__(self, connection: sqlite3.Connection, key: bytes, files: ResultFiles, run: Run) -> None:
        self.latest = 0.0
        self._connection = connection
        self._key = key
        self._files = files
        self._lock = threading.Lock()
        self._held: OrderedDict[int, list[Outcome]] = OrderedDict()
        self._places: dict[tuple[str, str], dict[str | int, _Place]] = {}
        self._read(run)

    @property
    def count(self) -> int:
        """How many outcomes there are."""
        return sum(map(len, self._places.values()))

    def knows(self, name: str, code: str, identity: str | int, arguments: str) -> bool:
        """Whether ``find`` has anything to look for."""
        place = self._places.get((name, code), {}).get(identity)
        return place is not None and place.arguments == arguments

    def find(self, name: str, code: str, identity: str | int, arguments: str) -> Outcome | None:
        """Return what is recorded for this task, if anything is and all agrees."""
        places = self._places.get((name, code))
        place = None if places is None else places.get(identity)
        if place is None or place.arguments != arguments:
            return None
        try:
            with self._lock:
                outcome = self._outcomes(place.group)[place.position]
            if type(outcome.payload) is Filed:
                outcome = outcome._replace(payload=self._files.read(outcome.payload.name))
        except (Torn, LookupError, *ACCIDENTS) as error:
            emit("WARNING", f"the recorded outcome of {name or 'the task with key'} {identity!r} is not used: {error}")
            return None
        return outcome

    def close(self) -> None:
        """Let go of the journal."""
        with self._lock:
            self._connection.close()

    def _read(self, run: Run) -> None:
        batches = {
            id: (name, code)
            for id, name, code in self._connection.execute(
                "SELECT id, name, code FROM batches WHERE run = ? AND code IS NOT NULL", (run.id,)
            )
        }
        torn = 0
        groups = self._connection.execute(
            "SELECT id, recorded, count, head FROM groups WHERE run = ? ORDER BY id", (run.id,)
        )
        for id, recorded, count, head in groups:
            try:
                outcomes = unpack_head(head, self._key)
            except Torn:
                torn += count
                continue
            self.latest = max(self.latest, recorded)
            for position, outcome in enumerate(outcomes):
                places = self._places.setdefault(batches.get(outcome.batch, ("", "")), {})
                if outcome.arguments is None or (not outcome.ok and id <= run.failures_void):
                    places.pop(outcome.identity, None)
                else:
                    places[outcome.identity] = _Place(id, position, outcome.arguments)
        self._places.pop(("", ""), None)
        if torn:
            emit(
                "WARNING",
                f"{torn} recorded outcomes of {run.title} do not agree with their checksum and are not used: "
                "these tasks run again",
            )

    def _outcomes(self, group: int) -> list[Outcome]:
        held = self._held.get(group)
        if held is not None:
            self._held.move_to_end(group)
            return held
        row = self._connection.execute("SELECT head, body FROM groups WHERE id = ?", (group,)).fetchone()
        if row is None:
            raise LookupError("its row is gone")
        outcomes, payloads = unpack_head(row[0], self._key), unpack_body(row[1], self._key)
        held = [outcome._replace(payload=payload) for outcome, payload in zip(outcomes, payloads, strict=True)]
        self._held[group] = held
        if len(self._held) > HELD:
            self._held.popitem(last=False)
        return held
