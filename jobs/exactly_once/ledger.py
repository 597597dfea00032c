"""An append-only ledger in which nothing can be changed, removed, repeated or slipped in without being noticed.

Each line is a JSON object that begins with the checksum of the line before it and ends with its own. Lines are written
one at a time, under a lock that the kernel takes back from whoever dies, each by one ``write`` to a file opened with
``O_APPEND``. A line that a dying writer or a full disk has cut short is closed by the next writer and stays where it
is: readers know it by what it must begin with, pass over it and count it.

The checksums have no key. They notice accidents and edits; who calculates them all anew is found out by the audit only
where the ledger then contradicts the outcomes.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

__all__ = ["ORIGIN", "Chain", "Entry", "Kind", "Ledger", "LedgerError", "Pen"]

ORIGIN = "0" * 32
"""What the first line has in the place of an earlier checksum."""

_TAIL_BYTES = 8192
_MARK = b',"sum":"'


class LedgerError(Exception):
    """The ledger is not what was written."""


class Kind(StrEnum):
    """What a line tells."""

    BEGIN = "begin"
    """The run began, or goes on after an interruption."""
    EXECUTION = "execution"
    """An execution of a task began."""
    EFFECT = "effect"
    """It had its effect."""
    FOUND = "found"
    """It found that an earlier execution had had the effect."""
    END = "end"
    """All tasks have come to their end."""


class Entry(NamedTuple):
    """One line; ``digest`` says which effect, ``pid`` and ``attempt`` who writes this, ``at`` when, since the epoch."""

    seq: int
    kind: Kind
    run: str
    key: str = ""
    digest: str = ""
    attempt: int = 0
    pid: int = 0
    at: float = 0.0

    def line(self, after: str) -> bytes:
        """Return the line that follows the one with the checksum ``after``."""
        body = json.dumps({"after": after, **self._asdict()}, separators=(",", ":")).encode()[:-1]
        return b'%b%b%b"}\n' % (body, _MARK, _checksum(body).encode())


def _checksum(body: bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


def _parsed(line: bytes) -> tuple[Entry, str, str] | None:
    """Return what is in ``line``, the checksum before it and its own; None if that is no whole line."""
    body, mark, end = line.rpartition(_MARK)
    if not mark or end != _checksum(body).encode() + b'"}':
        return None
    try:
        fields = json.loads(body + b"}")
        after = fields.pop("after")
        fields["kind"] = Kind(fields["kind"])
        return Entry(**fields), after, end[:-2].decode()
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class Chain:
    """Takes lines in their order and checks that each follows from the one before; a value to be kept and gone on with.

    Args:
        sum: the checksum of the last line taken.
        seq: its number.
        lines: how many lines were taken, those cut short included.
        torn: how many were cut short.
    """

    def __init__(self, sum: str = ORIGIN, seq: int = 0, lines: int = 0, torn: int = 0) -> None:  # noqa: A002
        self.sum = sum
        self.seq = seq
        self.lines = lines
        self.torn = torn

    def take(self, line: bytes) -> Entry | None:
        """Return the entry of ``line``, which has no line feed; None for one that was cut short.

        Raises:
            LedgerError: for a line that nobody has written there.
        """
        self.lines += 1
        parsed = _parsed(line)
        if parsed is None:
            if not self._may_begin_with(line):
                raise LedgerError(f"line {self.lines} of the ledger is not as it was written: {line[:200]!r}")
            self.torn += 1
            return None
        entry, after, own = parsed
        if after != self.sum or entry.seq != self.seq + 1:
            raise LedgerError(
                f"line {self.lines} of the ledger (number {entry.seq}) does not follow from what stands before it: "
                "lines were changed, removed, repeated or slipped in"
            )
        self.sum, self.seq = own, entry.seq
        return entry

    def read(self, data: bytes) -> Iterator[Entry]:
        """Yield the entries of all lines in ``data`` that end in it."""
        for line in data.split(b"\n")[:-1]:
            entry = self.take(line)
            if entry is not None:
                yield entry

    def _may_begin_with(self, fragment: bytes) -> bool:
        """Whether the next line may, as far as it goes, begin with ``fragment``."""
        beginning = b'{"after":"%b","seq":%d,"kind":"' % (self.sum.encode(), self.seq + 1)
        shorter = min(len(fragment), len(beginning))
        return shorter > 0 and fragment[:shorter] == beginning[:shorter]


class Pen:
    """Writes to a ledger while no other process does; made by ``Ledger.writing``."""

    def __init__(self, ledger: Ledger, descriptor: int) -> None:
        self._ledger = ledger
        self._descriptor = descriptor
        self._sum, self._seq, self._whole = self._last()

    def write(self, kind: Kind, key: str = "", digest: str = "", attempt: int = 0) -> Entry:
        """Append a line.

        Raises:
            OSError: if the disk does not take all of it; what it took is passed over by readers.
        """
        run = self._ledger.path.parent.name
        entry = Entry(self._seq + 1, kind, run, key, digest, attempt, os.getpid(), round(time.time(), 6))
        line = entry.line(self._sum)
        data = line if self._whole else b"\n" + line
        written = os.write(self._descriptor, data)
        if written < len(data):
            self._sum, self._seq, self._whole = self._last()
            raise OSError(f"{self._ledger.path} took {written} of {len(data)} bytes: is the disk full?")
        parsed = _parsed(line[:-1])
        assert parsed is not None
        self._sum, self._seq, self._whole = parsed[2], entry.seq, True
        return entry

    def entries(self) -> list[Entry]:
        """Read all lines; raises LedgerError."""
        return self._ledger.read()[0]

    def _last(self) -> tuple[str, int, bool]:
        """Return checksum and number of the last whole line, and whether the file ends with a line feed."""
        size = os.fstat(self._descriptor).st_size
        span = _TAIL_BYTES
        while True:
            start = max(0, size - span)
            data = os.pread(self._descriptor, size - start, start)
            lines = data.split(b"\n")
            for line in reversed(lines[1:] if start else lines):  # the first may have lost its head
                parsed = _parsed(line)
                if parsed is not None:
                    return parsed[2], parsed[0].seq, data.endswith(b"\n")
            if not start:
                return ORIGIN, 0, not data or data.endswith(b"\n")
            span *= 8


class Ledger:
    """The file ``path``; nothing of it is kept in memory, so that processes may come and go."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[Pen]:
        """Keep all others from writing meanwhile; who dies in here lets the next one in."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Pen(self, descriptor)
        finally:
            os.close(descriptor)

    def write(self, kind: Kind, key: str = "", digest: str = "", attempt: int = 0) -> Entry:
        """Append one line; raises OSError."""
        with self.writing() as pen:
            return pen.write(kind, key, digest, attempt)

    def read(self) -> tuple[list[Entry], int]:
        """Return all entries, and how many lines were cut short.

        Raises:
            LedgerError: if it is not what was written.
        """
        chain = Chain()
        data = self.path.read_bytes()
        entries = list(chain.read(data))
        return entries, chain.torn + (not data.endswith(b"\n") and data != b"")
