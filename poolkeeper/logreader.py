"""Log files for people: all generations in order, several files as one stream, and what is appended as it comes."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from .loglines import LogLine, parse

__all__ = ["LogFollower", "follow", "log_names", "read_logs"]

CHUNK = 1 << 18
_GENERATION = re.compile(r"(.+)\.log(?:\.(\d+))?")
_by_time = attrgetter("time")


class _Reader:
    """Turns the bytes of one file into lines; a line without a prefix counts as of the time of the one before it."""

    def __init__(self, stem: str, file: BinaryIO, since: datetime | None = None) -> None:
        self.file = file
        self._since = since
        self._stem = stem
        self._rest = b""
        self._time: datetime | None = None

    def lines(self) -> Iterator[LogLine]:
        """The lines that are whole now."""
        while data := self.file.read(CHUNK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from self._young(lines)

    def rest(self) -> Iterator[LogLine]:
        """The last line, if it lacks its newline; there will be no more."""
        rest, self._rest = self._rest, b""
        if rest:
            yield from self._young([rest])

    def _young(self, lines: list[bytes]) -> Iterator[LogLine]:
        since = self._since
        for raw in lines:
            line = self._line(raw)
            if since is None or line.time >= since:
                yield line

    def _line(self, line: bytes) -> LogLine:
        parsed = parse(line)
        if parsed is not None:
            self._time = parsed.time
            return parsed._replace(stem=self._stem)
        if self._time is None:
            self._time = datetime.fromtimestamp(os.fstat(self.file.fileno()).st_mtime, UTC)
        return LogLine(self._time, self._stem, 0, 0, line, self._stem)


class _Tail:
    """Follows one log through rotation and removal."""

    def __init__(self, folder: Path, stem: str, since: datetime | None) -> None:
        self._folder = folder
        self._stem = stem
        self._since = since
        self._reader: _Reader | None = None

    def skip(self) -> None:
        """Begin behind what is there."""
        self._begin(_generations(self._folder, self._stem))
        if self._reader is not None:
            self._reader.file.seek(0, 2)

    def read(self) -> list[LogLine]:
        """Return what has come since the last time; all there is, the first time."""
        lines: list[LogLine] = []
        if self._reader is None:
            self._begin(_generations(self._folder, self._stem), lines)
            return lines
        lines.extend(self._reader.lines())
        if not self._is_current(self._reader.file):
            lines.extend(self._reader.lines())  # written between the look before and the renaming
            files = _generations(self._folder, self._stem)
            about = os.fstat(self._reader.file.fileno())
            known = [os.path.samestat(os.fstat(file.fileno()), about) for file in files]
            newer = known.index(True) + 1 if True in known else max(0, len(files) - 1)
            if newer < len(files):
                lines.extend(self._reader.rest())
                self._reader.file.close()
                self._begin(files[newer:], lines)
                files = files[:newer]
            for file in files:
                file.close()
        return lines

    def close(self) -> list[LogLine]:
        """Return the last line if it lacks its newline, and let go of the file."""
        if self._reader is None:
            return []
        rest = list(self._reader.rest())
        self._reader.file.close()
        self._reader = None
        return rest

    def _begin(self, files: list[BinaryIO], lines: list[LogLine] | None = None) -> None:
        """Read ``files``, oldest first, and stay with the last."""
        for position, file in enumerate(files):
            self._reader = _Reader(self._stem, file, self._since)
            if lines is not None:
                lines.extend(self._reader.lines())
            if position < len(files) - 1:
                if lines is not None:
                    lines.extend(self._reader.rest())
                file.close()

    def _is_current(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.stat(self._folder / f"{self._stem}.log"), os.fstat(file.fileno()))
        except OSError:
            return False


class LogFollower:
    """Follows log files by descriptor: across rotation and removal, and to the last line of a removed folder.

    Args:
        folder: where the files ``STEM.log`` are, or will be.
        names: the stems to follow; None for all, also those that come later.
        since: leave out what is older; aware.
    """

    def __init__(self, folder: Path, names: Iterable[str] | None = None, since: datetime | None = None) -> None:
        self._folder = folder
        self._since = since
        self._names = None if names is None else list(dict.fromkeys(names))
        self._tails: dict[str, _Tail] = {}

    def skip(self) -> None:
        """Begin behind what is there."""
        for tail in self._find():
            tail.skip()

    def read(self) -> list[LogLine]:
        """Return the lines that have come since the last call, in the order of their times."""
        lines = [line for tail in self._find() for line in tail.read()]
        lines.sort(key=_by_time)
        return lines

    def close(self) -> list[LogLine]:
        """Return the last lines that lack their newlines."""
        return [line for tail in self._tails.values() for line in tail.close()]

    def _find(self) -> list[_Tail]:
        for stem in log_names(self._folder) if self._names is None else self._names:
            if stem not in self._tails:
                self._tails[stem] = _Tail(self._folder, stem, self._since)
        return list(self._tails.values())


def read_logs(folder: Path, names: Iterable[str] | None = None, since: datetime | None = None) -> Iterator[LogLine]:
    """Yield the lines of the named logs, all generations, in the order of their times.

    Args:
        folder: where the logs are.
        names: the stems of their files; None for all.
        since: leave out what is older; aware.
    """
    stems = log_names(folder) if names is None else list(dict.fromkeys(names))
    yield from heapq.merge(*(_whole(folder, stem, since) for stem in stems), key=_by_time)


def follow(
    folder: Path,
    names: Iterable[str] | None = None,
    since: datetime | None = None,
    *,
    interval: float = 0.2,
    wait: Callable[[float], object] | None = None,
) -> Iterator[LogLine]:
    """Yield the lines of the named logs as ``read_logs`` does, then those that are appended, for ever.

    Args:
        folder: where the logs are, or will be.
        names: the stems of their files; None for all, also those that come later.
        since: leave out what is older; aware.
        interval: seconds between two looks.
        wait: waits that long, and returns something true to end.
    """
    pause = wait if wait is not None else threading.Event().wait
    follower = LogFollower(folder, names, since)
    try:
        while True:
            yield from follower.read()
            if pause(interval):
                yield from follower.read()
                return
    finally:
        follower.close()


def _whole(folder: Path, stem: str, since: datetime | None) -> Iterator[LogLine]:
    for file in _generations(folder, stem):
        with file:
            if since is not None and os.fstat(file.fileno()).st_mtime < since.timestamp():
                continue
            reader = _Reader(stem, file, since)
            yield from reader.lines()
            yield from reader.rest()


def _generations(folder: Path, stem: str) -> list[BinaryIO]:
    """Open all generations of a log, oldest first.

    They are opened newest first: one that is renamed meanwhile is met twice, and known by its number, but never missed.
    """
    numbers = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = _GENERATION.fullmatch(name)
            if match is not None and match[1] == stem and match[2] is not None:
                numbers.append(int(match[2]))
    last = max(numbers, default=0)
    found: dict[tuple[int, int], BinaryIO] = {}
    for number in range(last + 2):  # the oldest may have been moved on by now
        path = folder / (f"{stem}.log.{number}" if number else f"{stem}.log")
        # not every OSError: where descriptors run out, a log must not look empty
        with contextlib.suppress(FileNotFoundError, PermissionError, IsADirectoryError):
            file = path.open("rb")
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) in found:
                file.close()
            else:
                found[about.st_dev, about.st_ino] = file
    return list(reversed(found.values()))


def log_names(folder: Path) -> list[str]:
    """Return the stems of the log files in ``folder``."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted({match[1] for name in names if (match := _GENERATION.fullmatch(name)) is not None})
