"""How running tasks make themselves heard without the pool under test: named pipes and a file.

A ``Bell`` is rung by a task at its first line, a ``Gate`` holds tasks until it opens,
a ``Ledger`` lists which process began which task.
"""

from __future__ import annotations

import os
import select
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.tasks import BELL_RECORD, LEDGER_RECORD

__all__ = ["Bell", "Gate", "Ledger", "Meeting"]


@dataclass(frozen=True, slots=True)
class Ring:
    """One ring of the bell: ``at`` is the monotonic time in seconds of the task's first line."""

    at: float
    pid: int


class Bell:
    """A named pipe that tasks ring; opened read-write, so that it never reports end of file."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._descriptor = os.open(path, os.O_RDWR)

    def wait(self, timeout: float) -> Ring:
        """The next ring; raises ``TimeoutError`` after ``timeout`` seconds."""
        readable, _, _ = select.select([self._descriptor], [], [], timeout)
        if not readable:
            raise TimeoutError(f"no task has started within {timeout:g} s")
        nanoseconds, pid = BELL_RECORD.unpack(os.read(self._descriptor, BELL_RECORD.size))
        return Ring(nanoseconds / 1e9, pid)

    def wait_for(self, count: int, timeout: float) -> list[Ring]:
        """The next ``count`` rings, all within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        return [self.wait(max(0.0, deadline - time.monotonic())) for _ in range(count)]

    def close(self) -> None:
        """Close the reading end."""
        os.close(self._descriptor)


class Gate:
    """A named pipe whose readers block in ``open`` until there is a writer."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._descriptor: int | None = None

    def open(self) -> None:
        """Let everybody through, now and later."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR)

    def close(self) -> None:
        """Close the writing end."""
        if self._descriptor is not None:
            os.close(self._descriptor)


class Ledger:
    """A file to which each task appends its index and its pid before it begins."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = str(path)
        self._position = 0

    def entries(self) -> list[tuple[int, int]]:
        """All ``(index, pid)``, in the order in which they began."""
        return list(LEDGER_RECORD.iter_unpack(Path(self.path).read_bytes()))

    def latest(self) -> int | None:
        """The process that began a task last, if one did since this was last asked."""
        size = os.stat(self.path).st_size
        if size == self._position:
            return None
        self._position = size
        with open(self.path, "rb") as file:
            file.seek(size - LEDGER_RECORD.size)
            _, pid = LEDGER_RECORD.unpack(file.read(LEDGER_RECORD.size))
        return int(pid)


class Meeting:
    """A temporary ``folder`` with a bell, a gate and a ledger; leaving it opens the gate."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        self.folder = folder = Path(self._temporary.name)
        self.bell, self.gate, self.ledger = Bell(folder / "bell"), Gate(folder / "gate"), Ledger(folder / "ledger")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.open()
        self.gate.close()
        self.bell.close()
        self._temporary.cleanup()
