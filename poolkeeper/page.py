"""The page that a worker shares with the keeper: what it runs now, and what it must not start any more.

The worker writes ``started`` before it looks for a revocation mark; the keeper writes the mark before it reads
``started``. Whatever the order of these four steps, a revoked task is never run and a running one never counted as
revoked (Dekker's protocol; x86 and ARM both drain their store buffers within the interpreter's own work between them).
When both see each other the worker skips the task and says so, and the keeper queues it again.
"""

from __future__ import annotations

import mmap
import os

from .messages import WINDOW_LIMIT, Progress

__all__ = ["BEAT", "MARKS", "PAGE_SIZE", "KeeperPage", "WorkerPage", "anonymous_file", "new_page"]

MARKS = 2 * WINDOW_LIMIT
_MARKS_AT = 64
PAGE_SIZE = _MARKS_AT + MARKS

STARTED, FINISHED, ITEM, STARTED_AT, CANCEL, BEAT = range(6)
"""Words of the page; CANCEL is the keeper's: the index of a running task that is asked to stop. BEAT is a service's."""


def anonymous_file(name: str, directory: str | None = None) -> int:
    """Return the descriptor of a file without a name: in memory where the system has memfd, else unlinked on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile  # slow to import, and only needed here

    with tempfile.TemporaryFile(prefix=name, dir=directory) as file:
        return os.dup(file.fileno())


def new_page() -> int:
    """Return the descriptor of a fresh page."""
    fd = anonymous_file("poolkeeper-page")
    os.ftruncate(fd, PAGE_SIZE)
    return fd


class WorkerPage:
    """The worker's side; ``words`` and ``times`` are written on the hot path, ``marks`` read there."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_SIZE)
        whole = memoryview(self._map)
        self.words = whole[:_MARKS_AT].cast("Q")
        self.times = whole[:_MARKS_AT].cast("d")
        self.marks = whole[_MARKS_AT:]

    def close(self) -> None:
        """Give the memory back now: later, the mapping would close a descriptor by a number that is another's."""
        for view in (self.words, self.times, self.marks):
            view.release()
        self._map.close()


class KeeperPage(WorkerPage):
    """The keeper's side; of a fresh page, or of the one behind ``fd``, which it closes in the end."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = new_page() if fd is None else fd
        super().__init__(self.fd)

    def observe(self) -> Progress:
        """Return what the worker has marked."""
        words = self.words
        return Progress(words[STARTED], words[FINISHED], words[ITEM], self.times[STARTED_AT])

    def beat(self) -> float:
        """Return when a service gave its last heartbeat, in seconds of the monotonic clock; 0.0: never."""
        return self.times[BEAT]

    def revoke(self, index: int) -> bool:
        """Forbid the worker to start ``index``; return False if it has started already."""
        self.marks[index % MARKS] = 1
        if self.words[STARTED] < index:
            return True
        self.marks[index % MARKS] = 0
        return False

    def close(self) -> None:
        """Give the memory back."""
        super().close()
        self.close_fd()

    def close_fd(self) -> None:
        """Close the descriptor once the worker has its own; the mapping stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
