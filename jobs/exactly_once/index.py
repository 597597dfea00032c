"""The index of definitions: a SQLite database that follows the ledger.

How far the ledger has been read stands in the database, and is written in the transaction that writes what was read:
whenever the process dies, an effect is either in the index and behind the position, or neither. A checkpoint beside the
database could not promise that: it would be saved before the transaction or after it.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import NamedTuple

from exactly_once.effects import ledger_of, place_of
from exactly_once.ledger import Chain, Entry, Kind

__all__ = ["Index", "Position"]

CHUNK = 1 << 20

_SCHEMA = """
CREATE TABLE position (
    starts INTEGER NOT NULL, offset INTEGER NOT NULL, sum TEXT NOT NULL, seq INTEGER NOT NULL, lines INTEGER NOT NULL,
    torn INTEGER NOT NULL, ended INTEGER NOT NULL
);
CREATE TABLE effects (seq INTEGER NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, broken TEXT);
CREATE TABLE definitions (effect INTEGER NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, line INTEGER NOT NULL);
CREATE INDEX definitions_by_name ON definitions (name);
"""
# No key is unique: an effect that comes twice shall be seen twice, by the audit.


class Position(NamedTuple):
    """How often the index was opened to be written, how far it has read, and the number of the last end mark."""

    starts: int = 0
    offset: int = 0
    sum: str = Chain().sum
    seq: int = 0
    lines: int = 0
    torn: int = 0
    ended: int = 0


class Index:
    """The index of the run in ``folder``, made if it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = sqlite3.connect(folder / "index.db", timeout=30.0, isolation_level=None)
        with _Transaction(self._database):
            if not self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'position'").fetchone():
                for statement in _SCHEMA.split(";")[:-1]:
                    self._database.execute(statement)
                self._database.execute("INSERT INTO position VALUES (?, ?, ?, ?, ?, ?, ?)", Position())

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    @property
    def position(self) -> Position:
        """How far it has read."""
        return Position(*self._database.execute("SELECT * FROM position").fetchone())

    def count_start(self) -> None:
        """Note that a process begins to write."""
        self._database.execute("UPDATE position SET starts = starts + 1")

    def take_in(self) -> int:
        """Take in what the ledger has beyond the position, a piece of it; return how many lines that was.

        Raises:
            LedgerError: if the ledger is not what was written.
        """
        with _Transaction(self._database):
            at = self.position
            data = _read(self._folder, at.offset)
            chain = Chain(at.sum, at.seq, at.lines, at.torn)
            ended = at.ended
            for entry in chain.read(data):
                if entry.kind is Kind.EFFECT:
                    self._add(entry)
                elif entry.kind is Kind.END:
                    ended = entry.seq
            offset = at.offset + data.rfind(b"\n") + 1
            if offset > at.offset:
                after = (offset, chain.sum, chain.seq, chain.lines, chain.torn, ended)
                self._database.execute(
                    "UPDATE position SET offset = ?, sum = ?, seq = ?, lines = ?, torn = ?, ended = ?", after
                )
            return chain.lines - at.lines

    def _add(self, entry: Entry) -> None:
        record = json.loads(place_of(self._folder, entry.digest).read_bytes())
        effect = (entry.seq, record["path"], entry.digest, record["broken"])
        self._database.execute("INSERT INTO effects VALUES (?, ?, ?, ?)", effect)
        rows = [(entry.seq, found["name"], found["kind"], found["line"]) for found in record["definitions"]]
        self._database.executemany("INSERT INTO definitions VALUES (?, ?, ?, ?)", rows)

    def effects(self) -> list[tuple[int, str]]:
        """Return number and digest of each effect, in the order in which they were taken in."""
        return self._database.execute("SELECT seq, digest FROM effects ORDER BY rowid").fetchall()

    def sizes(self) -> dict[int, int]:
        """Return the number of definitions for each effect that has any."""
        return dict(self._database.execute("SELECT effect, count(*) FROM definitions GROUP BY effect"))

    def frequent(self, count: int) -> list[tuple[str, str, int]]:
        """Return the names that are defined most often: kind, the last part of the name, and in how many places."""
        rows = self._database.execute("SELECT kind, name FROM definitions")
        tally: dict[tuple[str, str], int] = {}
        for kind, name in rows:
            entry = (kind, name.rpartition(".")[2])
            tally[entry] = tally.get(entry, 0) + 1
        ranked = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
        return [(*entry, places) for entry, places in ranked[:count]]


def _read(folder: Path, offset: int) -> bytes:
    with ledger_of(folder).path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK)


class _Transaction:
    """All or nothing; takes the right to write at once, so that what it reads is what it writes upon."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")
