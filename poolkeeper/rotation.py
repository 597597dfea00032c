"""A log file that is appended to, is rotated by renaming, and never raises: what cannot be written is counted."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable

from .loglines import dropped

__all__ = ["BACKUPS", "MAX_BYTES", "RotatingFile"]

MAX_BYTES = 10 * 2**20
BACKUPS = 3

LOOK_SECONDS = 1.0
"""How often to look whether the file is still the one at its path."""


def _plain_notice(lines: int, why: str) -> bytes:
    return dropped(lines, why).encode() + b"\n"


class RotatingFile:
    """Appends whole lines to ``path``; ``path.1`` is the generation before it, and so on.

    A write that fails leaves no torn line: the file ends with the last line that went in whole. The others are dropped
    and counted, and a notice says so as soon as writing works again.

    Args:
        path: the file, made with mode 0600 when the first line comes, and again if somebody removes it.
        max_bytes: the size beyond which a block of lines begins a new generation; a block is never divided.
        backups: how many older generations are kept.
        notice: returns the line that tells of a number of dropped lines and why.
        clock: returns seconds.
    """

    def __init__(
        self,
        path: str,
        max_bytes: int = MAX_BYTES,
        backups: int = BACKUPS,
        *,
        notice: Callable[[int, str], bytes] = _plain_notice,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.dropped = 0
        self._max_bytes = max_bytes
        self._backups = backups
        self._notice = notice
        self._clock = clock
        self._why = ""
        self._fd = -1
        self._size = 0
        self._regular = True
        self._torn = False
        self._looked = 0.0

    def lose(self, lines: int, why: str) -> None:
        """Count lines that never came here, so that the next notice tells of them, too."""
        self.dropped += lines
        self._why = why

    def write(self, block: bytes) -> None:
        """Append ``block``, lines that end in newlines; if it is empty, no more than the notice that is due."""
        if not block and not self.dropped:
            return
        lines = block.count(b"\n")
        notice = self._notice(self.dropped, self._why) if self.dropped else b""
        whole = notice + block
        try:
            self._prepare(len(whole))
            kept = self._append(whole)
        except OSError as error:
            self._why = error.strerror or str(error)
            self.dropped += lines
            return
        if kept < len(whole):
            noticed = bool(notice) and kept >= len(notice)
            written = whole.count(b"\n", len(notice), max(kept, len(notice)))
            self.dropped = (0 if noticed else self.dropped) + lines - written
        else:
            self.dropped = 0

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with contextlib.suppress(OSError):  # some filesystems tell here what they could not write
                os.close(fd)

    def _prepare(self, coming: int) -> None:
        """See to it that the file is open, is the one at the path, and has room."""
        full = self._regular and self._size > 0 and self._size + coming > self._max_bytes
        if self._fd >= 0 and (full or self._clock() - self._looked >= LOOK_SECONDS) and not self._is_ours():
            self.close()
        if self._fd < 0:
            self._open()
            full = self._regular and self._size > 0 and self._size + coming > self._max_bytes
        if full:
            # where the folder forbids it, a file that grows is better than lines that are lost
            with contextlib.suppress(OSError):
                self._rotate()
                self.close()
            if self._fd < 0:
                self._open()

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        about = os.fstat(self._fd)
        self._regular = stat.S_ISREG(about.st_mode)
        self._size = about.st_size
        self._torn = self._regular and self._size > 0 and not _ends_in_newline(self.path, self._size)
        self._looked = self._clock()

    def _is_ours(self) -> bool:
        self._looked = self._clock()
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except OSError:
            return False

    def _rotate(self) -> None:
        generations = [self.path, *(f"{self.path}.{number}" for number in range(1, self._backups + 1))]
        if self._backups < 1:
            os.unlink(self.path)
        for number in range(self._backups, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(generations[number - 1], generations[number])

    def _append(self, data: bytes) -> int:
        """Write what fits of ``data``; return the bytes of its whole lines that are in the file."""
        if self._torn:
            if os.write(self._fd, b"\n") != 1:
                return 0
            self._size += 1
            self._torn = False
        written = 0
        while written < len(data):
            try:
                written += os.write(self._fd, memoryview(data)[written:])
            except OSError as error:
                self._why = error.strerror or str(error)
                break
        kept = written if written == len(data) else data.rfind(b"\n", 0, written) + 1
        if kept < written:
            try:
                end = os.lseek(self._fd, 0, os.SEEK_CUR)  # another writer may have appended, too
                os.ftruncate(self._fd, end - (written - kept))
            except OSError:
                self._torn = True  # the next line begins behind a newline of its own
                self._size += written - kept
        self._size += kept
        return kept


def _ends_in_newline(path: str, size: int) -> bool:
    """Whether whoever wrote last finished the line; a writer that was killed may not have."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return os.pread(fd, 1, size - 1) in (b"\n", b"")
    except OSError:
        return True
    finally:
        os.close(fd)
