"""The journal's file: its tables, how older ones are brought up to date, and what happens to one that is damaged."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from .errors import PoolkeeperError
from .reporting import report

__all__ = [
    "ACCIDENTS",
    "VERSION",
    "Durability",
    "back_up",
    "is_damage",
    "lacks_room",
    "open_for_reading",
    "open_journal",
    "replace_journal",
]

Durability = Literal["process", "power"]

BUSY_SECONDS = 5.0
"""How long to wait for another program that looks into the journal."""

CHECK_BYTES = 64 << 20
"""Larger files are not read through when they are opened; each record has its own checksum."""

BACKUP_BYTES = 8 << 20
"""Of larger files no backup is made; of one of this size it takes some 40 ms of the journal's thread."""

# One entry for each version, from the empty file on. What has been released is never edited, only added to.
MIGRATIONS = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        state TEXT NOT NULL,  -- running, finished, interrupted
        began REAL NOT NULL,
        ended REAL,
        reason TEXT  -- of the interruption
    );
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL,
        name TEXT NOT NULL,  -- '' for what was submitted by key
        code TEXT,  -- the fingerprint of the function
        began REAL NOT NULL,
        ended REAL
    );
    CREATE TABLE groups (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL,
        recorded REAL NOT NULL,
        count INTEGER NOT NULL,
        head BLOB NOT NULL,  -- sealed: whose outcomes these are
        body BLOB NOT NULL  -- sealed: the outcomes
    );
    CREATE INDEX batches_of_run ON batches (run);
    CREATE INDEX groups_of_run ON groups (run);
    """,
    # Failures in groups up to this one are void: they were to be run again.
    "ALTER TABLE runs ADD COLUMN failures_void INTEGER NOT NULL DEFAULT 0;",
)
VERSION = len(MIGRATIONS)
ACCIDENTS = (sqlite3.Error, OSError, UnicodeDecodeError)
"""What may be raised wherever the journal is touched; the last by sqlite3, for messages that quote a damaged file."""

# Result codes that come and go with the state of the machine, and say nothing about the file.
_WEATHER = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})
_MAGIC = b"SQLite format 3\0"
_TABLES = ("runs", "batches", "groups")


def open_journal(path: Path, durability: Durability = "process") -> sqlite3.Connection:
    """Open the journal at ``path`` for writing, made or brought up to date as needed.

    A damaged one is set aside under another name, and what can still be read of it is taken over.

    Raises:
        OSError, sqlite3.Error: where it cannot be opened or written to.
        PoolkeeperError: if a newer poolkeeper has written it.
    """
    try:
        if _salvaged(path).exists():  # a keeper was killed while it put this in place
            _put_in_place(path)
            report(
                "ERROR",
                f"the journal {path} was damaged: it is kept as {path.name}.corrupt-* and a new one has begun, with "
                "what could still be read; what is not in it runs again",
            )
        return _open(path, durability)
    except ACCIDENTS as error:
        if not is_damage(error):
            raise
        return replace_journal(path, error, durability)


def is_damage(error: Exception) -> bool:
    """Whether ``error`` says that the file is not what it should be; a full disk, for one, says nothing of the kind."""
    if isinstance(error, UnicodeDecodeError):
        return True
    return isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF not in _WEATHER


def lacks_room(error: Exception) -> bool:
    """Whether ``error`` says that the disk is full, as far as that can be told."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", 0) in _NO_ROOM


def replace_journal(path: Path, damage: Exception, durability: Durability = "process") -> sqlite3.Connection:
    """Set a damaged journal aside, put what can be read of it in its place, and open that; raises as above.

    Whoever is killed here, or runs out of room, leaves the damaged one where it is, or all that could be salvaged.
    """
    if not _salvaged(path).exists():
        _salvage(path)
    aside = _put_in_place(path)
    connection = _open(path, durability)
    (count,) = connection.execute("SELECT coalesce(sum(count), 0) FROM groups").fetchone()
    report(
        "ERROR",
        f"the journal {path} is damaged ({damage}): it is kept as {aside.name} and a new one has begun, with "
        f"{count or 'no'} outcomes that could still be read; what is not in it runs again",
    )
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the journal at ``path`` for another thread, or another program, to read; raises sqlite3.Error."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, check_same_thread=False
    )


def back_up(connection: sqlite3.Connection, path: Path) -> None:
    """Write a copy of the journal at ``path`` beside it, in the place of the one before, unless it is large.

    Raises:
        OSError, sqlite3.Error: where that fails, or the journal is damaged; the one before stays.
    """
    if path.stat().st_size > BACKUP_BYTES:
        return
    draft = path.with_name(f"{path.name}.bak-draft")
    try:
        with open(draft, "wb", opener=_private):
            pass
        with contextlib.closing(sqlite3.connect(draft)) as copy:
            copy.execute("PRAGMA journal_mode = OFF").fetchone()
            copy.execute("PRAGMA synchronous = OFF")
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # to be read without further files
            _check(copy, draft)
        os.replace(draft, _backup(path))
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _backup(path: Path) -> Path:
    return path.with_name(f"{path.name}.bak")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _open(path: Path, durability: Durability) -> sqlite3.Connection:
    backup = _backup(path)
    if not path.exists():
        backup.unlink(missing_ok=True)  # whoever has removed the one wants nothing of the other
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC and (magic or backup.exists()):  # SQLite would take a very short one for an empty one
        raise sqlite3.DatabaseError("file is not a database")
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
        _check(connection, path)
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise sqlite3.DatabaseError if the file is not sound."""
    if path.stat().st_size <= CHECK_BYTES:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(str(verdict).replace("\n", " "))


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise PoolkeeperError(
            f"{path} was written by a newer poolkeeper (schema {version}, this one knows {VERSION}): "
            "use that one, or give another run_id"
        )
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version and not names.issuperset(_TABLES):
        raise sqlite3.DatabaseError(f"there is no table {min(set(_TABLES) - names)!r} in it")
    if not version and names:
        raise sqlite3.DatabaseError("it holds the tables of another program")
    for number in range(version, VERSION):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


def _put_in_place(path: Path) -> Path:
    """Have what was salvaged take the place of the damaged journal; return the name under which that is kept."""
    aside = _set_aside(path)
    os.replace(_salvaged(path), path)
    return aside


def _set_aside(path: Path) -> Path:
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    for suffix in ("-wal", ""):  # the log belongs to the file, and would be taken for that of the new one
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    Path(f"{path}-shm").unlink(missing_ok=True)  # what SQLite knows of that log
    return aside


def _salvaged(path: Path) -> Path:
    """Return where what was salvaged lies until it is put in place: a file of this name is whole."""
    return path.with_name(f"{path.name}.salvaged")


def _salvage(path: Path) -> None:
    """Copy what can be read of a damaged journal, and what its backup has besides, all of it or nothing.

    The seals of the rows are looked at later.
    """
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    with open(draft, "wb", opener=_private):
        pass
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = MEMORY").fetchone()  # after a crash nobody reads it
            connection.execute("PRAGMA synchronous = FULL")
            _migrate(connection, draft)
            connection.execute("BEGIN")
            for source in (path, _backup(path)):
                for table, row in _readable(source):
                    _insert(connection, table, row)
            connection.execute("COMMIT")
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    os.replace(draft, _salvaged(path))


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """Take over a row, unless it is there already, or damaged too and does not fit."""
    if not all(map(str.isidentifier, row)):
        return
    with _as_far_as_it_goes():
        connection.execute(
            f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",  # noqa: S608
            tuple(row.values()),
        )


@contextlib.contextmanager
def _as_far_as_it_goes() -> Iterator[None]:
    """Leave the block where a file is damaged; all else that may go wrong says nothing of the file, and is raised."""
    try:
        yield
    except ACCIDENTS as error:
        if not is_damage(error):
            raise


def _readable(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows that can be read of a damaged journal, which stays as it is, with the names of their tables."""
    if not path.exists():
        return
    with _as_far_as_it_goes(), contextlib.closing(open_for_reading(path)) as source:
        source.text_factory = lambda text: text.decode(errors="replace")
        source.row_factory = sqlite3.Row
        source.execute("PRAGMA writable_schema = ON")  # without it, a file that is too short is not read at all
        for table in _TABLES:
            for row in _readable_rows(source, table):
                yield table, dict(row)


def _readable_rows(source: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """Yield the rows from the first up to one that cannot be read, then those from the last back to such a one."""
    seen = set()
    for order in ("ASC", "DESC"):
        with _as_far_as_it_goes():
            for row in source.execute(f"SELECT * FROM {table} ORDER BY id {order}"):  # noqa: S608
                if row["id"] in seen:
                    break
                seen.add(row["id"])
                yield row
