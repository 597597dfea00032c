"""The census on disk: ``census.db`` (SQLite) and a CSV file per table, replaced only when all of them are complete."""

from __future__ import annotations

import csv
import os
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from source_census.totals import Census

__all__ = ["printable", "save"]

INTEGER = "INTEGER NOT NULL"
TEXT = "TEXT NOT NULL"


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns map the attribute that fills a column, which gives it its name, to its SQL type."""

    name: str
    columns: dict[str, str]
    constraint: str

    @property
    def names(self) -> list[str]:
        """The columns' names: the last part of each attribute."""
        return [attribute.rpartition(".")[2] for attribute in self.columns]

    def rows(self, entries: Iterable[object]) -> list[tuple[object, ...]]:
        """Return a row for each of ``entries``, as SQLite and CSV take it."""
        cells = attrgetter(*self.columns)
        return [tuple(_cell(value) for value in cells(entry)) for entry in entries]

    @property
    def schema(self) -> str:
        """The statement that creates this table."""
        columns = [f"{name} {kind}" for name, kind in zip(self.names, self.columns.values(), strict=True)]
        return f"CREATE TABLE {self.name} ({', '.join([*columns, self.constraint])})"

    @property
    def insertion(self) -> str:
        """The statement that adds a row."""
        places = ", ".join("?" * len(self.columns))
        return f"INSERT INTO {self.name} VALUES ({places})"  # noqa: S608  # the names are those below


PACKAGES = Table(
    "packages",
    {
        "distribution": TEXT,
        "package": TEXT,
        "totals.files": INTEGER,
        "broken": INTEGER,
        "totals.size": INTEGER,
        "totals.lines": INTEGER,
        "totals.code": INTEGER,
        "totals.docstring": INTEGER,
        "totals.comment": INTEGER,
        "totals.blank": INTEGER,
        "totals.tokens": INTEGER,
        "totals.functions": INTEGER,
        "totals.classes": INTEGER,
        "nesting": INTEGER,
        "totals.complexity": INTEGER,
        "worst_complexity": INTEGER,
        "totals.documentable": INTEGER,
        "totals.documented": INTEGER,
        "totals.docstring_coverage": "REAL",
    },
    "PRIMARY KEY (distribution, package)",
)
_OF_PACKAGE = "FOREIGN KEY (distribution, package) REFERENCES packages"
FILES = Table(
    "files",
    {
        "stats.path": "TEXT PRIMARY KEY",
        "origin.distribution": TEXT,
        "origin.package": TEXT,
        "origin.file": TEXT,
        "stats.size": INTEGER,
        "stats.encoding": TEXT,
        "stats.lines": INTEGER,
        "stats.code": INTEGER,
        "stats.docstring": INTEGER,
        "stats.comment": INTEGER,
        "stats.blank": INTEGER,
        "stats.tokens": INTEGER,
        "stats.functions": INTEGER,
        "stats.classes": INTEGER,
        "stats.nesting": INTEGER,
        "stats.complexity": INTEGER,
        "stats.worst_function": "TEXT",
        "stats.worst_line": "INTEGER",
        "stats.worst_complexity": "INTEGER",
        "stats.documentable": INTEGER,
        "stats.documented": INTEGER,
        "stats.docstring_coverage": "REAL",
    },
    _OF_PACKAGE,
)
BROKEN = Table(
    "broken",
    {
        "path": "TEXT PRIMARY KEY",
        "origin.distribution": TEXT,
        "origin.package": TEXT,
        "origin.file": TEXT,
        "line": "INTEGER",
        "why": TEXT,
        "reason": TEXT,
    },
    _OF_PACKAGE,
)


def save(census: Census, folder: Path) -> list[Path]:
    """Write the database and the CSV files to ``folder`` and return their paths.

    Each file is replaced as a whole, and none before all are written: a census that fails leaves the earlier one alone.
    """
    tables = [
        (PACKAGES, PACKAGES.rows(census.packages)),
        (FILES, FILES.rows(census.files)),
        (BROKEN, BROKEN.rows(census.broken)),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
        written = [_write_database(Path(unfinished, "census.db"), tables)]
        written += [_write_csv(Path(unfinished, f"{table.name}.csv"), table, rows) for table, rows in tables]
        for path in written:
            os.replace(path, folder / path.name)
    return [folder / path.name for path in written]


def _write_database(path: Path, tables: Iterable[tuple[Table, list[tuple[object, ...]]]]) -> Path:
    with closing(sqlite3.connect(path)) as database, database:
        for table, rows in tables:
            database.execute(table.schema)
            database.executemany(table.insertion, rows)
    return path


def _write_csv(path: Path, table: Table, rows: Iterable[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.names)
        writer.writerows(rows)
    return path


def printable(value: object) -> str:
    """Return the text of ``value`` with what UTF-8 cannot encode escaped: file names need not be valid text."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _cell(value: object) -> object:
    return value if value is None or isinstance(value, (int, float)) else printable(value)
