"""A line in a log file: how it begins, how it is read back, and how a stream of bytes becomes lines. Pure.

A line is ``2026-11-21T09:15:23.123456+00:00 web[1234]#2 text``: when it was read, the service or worker that wrote it,
its pid, which attempt that was, and the text as it came, be it text or not.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

__all__ = ["CUT", "LINE_LIMIT", "OWN_LABEL", "LineSplitter", "LogLine", "dropped", "parse", "prefix", "stamped"]

LINE_LIMIT = 64 * 1024
"""Bytes after which a line is cut, so that a stream without newlines needs no memory."""

CUT = b" [the line goes on]"
"""What ends a piece of a line that was cut."""

OWN_LABEL = "poolkeeper"
"""The label of what the log writer itself has to say; its attempt is 0."""

_LINE = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00) ([^\n]+?)\[(\d{1,19})\]#(\d{1,19}) (.*)", re.DOTALL
)


class LogLine(NamedTuple):
    """One line; ``text`` has neither prefix nor newline, ``stem`` names the file that it was read from."""

    time: datetime
    label: str
    pid: int
    attempt: int
    text: bytes
    stem: str = ""

    @property
    def words(self) -> str:
        """The text for people: what is not UTF-8 is replaced."""
        return self.text.decode(errors="replace")

    def __str__(self) -> str:
        who = f"{self.label}[{self.pid}]#{self.attempt}" if self.pid else self.label
        return f"{self.time.isoformat(timespec='microseconds')} {who} {self.words}"


def prefix(time: datetime, label: str, pid: int, attempt: int) -> bytes:
    """Return what stands before the text of a line; ``time`` is aware."""
    when = time.astimezone(UTC).isoformat(timespec="microseconds")
    return f"{when} {label}[{pid}]#{attempt} ".encode(errors="surrogateescape")


def stamped(block: bytes, prefix: bytes) -> bytes:
    """Return ``block``, whole lines that end in newlines, with ``prefix`` before each of them."""
    # One replacement in C: a loop over lines would be what limits how much a worker can write.
    return prefix + block[:-1].replace(b"\n", b"\n" + prefix) + b"\n" if block else b""


def dropped(lines: int, why: str) -> str:
    """Return the notice that stands where ``lines`` lines should."""
    return f"... {lines} line{'s' if lines != 1 else ''} dropped: {why}"


def parse(line: bytes) -> LogLine | None:
    """Return the parts of a line without its newline, None for one that has no prefix."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    when, label, pid, attempt, text = match.groups()
    try:
        time = datetime.fromisoformat(when.decode())
    except ValueError:
        return None
    return LogLine(time, label.decode(errors="surrogateescape"), int(pid), int(attempt), text)


class LineSplitter:
    """Takes a stream in chunks and gives back blocks of whole lines, the same whatever the chunks.

    Args:
        limit: the bytes after which a line is cut and marked.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take a chunk; return the lines that are whole now, each with its newline."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._rest += data
            return self._overlong()
        first = data.find(b"\n")
        limit = self._limit
        block = bytes(self._rest) + data[:end] if self._rest else data[:end]
        # Each line between the first and the last newline is shorter than what lies between them.
        if len(self._rest) + first > limit or end - first - 1 > limit:
            block = b"".join(self._cut(line) for line in block.split(b"\n")[:-1])
        self._rest = bytearray(data[end:])
        return block + self._overlong() if len(self._rest) > limit else block

    def finish(self) -> bytes:
        """Return the last line if it lacks its newline, with one; the stream has ended."""
        rest, self._rest = self._rest, bytearray()
        return bytes(rest) + b"\n" if rest else b""

    def _overlong(self) -> bytes:
        rest, limit = self._rest, self._limit
        pieces = []
        start = 0
        while len(rest) - start > limit:
            pieces.append(bytes(rest[start : start + limit]) + CUT + b"\n")
            start += limit
        del rest[:start]
        return b"".join(pieces)

    def _cut(self, line: bytes) -> bytes:
        limit = self._limit
        last = max(0, (len(line) - 1) // limit * limit)
        pieces = [line[start : start + limit] + CUT + b"\n" for start in range(0, last, limit)]
        return b"".join((*pieces, line[last:], b"\n"))
