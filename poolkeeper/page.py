"""The page that a worker shares with the keeper: what it runs now, and what it must not start any more.

It is the worker's as much as the keeper's, and outlives either. A keeper that takes over from another one is given it
by the worker's call, and finds the page of one that cannot call among its descriptors.

The worker writes ``started`` before it looks for a revocation mark; the keeper writes the mark before it reads
``started``. Whatever the order of these four steps, a revoked task is never run and a running one never counted as
revoked (Dekker's protocol; x86 and ARM both drain their store buffers within the interpreter's own work between them).
When both see each other the worker skips the task and says so, and the keeper queues it again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import NamedTuple

from .messages import WINDOW_LIMIT, Progress

__all__ = [
    "BEAT",
    "MARKS",
    "PAGE_SIZE",
    "Executing",
    "KeeperPage",
    "WorkerPage",
    "anonymous_file",
    "find_page",
    "new_page",
]

MARKS = 2 * WINDOW_LIMIT
_MARKS_AT = 64
PAGE_SIZE = _MARKS_AT + MARKS

STARTED, FINISHED, ITEM, STARTED_AT, CANCEL, BEAT, CLAIM = range(7)
"""Words of the page; CANCEL is the keeper's: the index of a running task that is asked to stop. BEAT is a service's.

CLAIM and the word behind it are the digest of what a later keeper knows the task by (see ``holdings``), written before
it is started. The second half is combined with its index, so that a digest that is half-written, or was left there by
an earlier task that no later keeper knows, is that of no task.
"""

_NAME = "poolkeeper-page:"
"""Another layout of the page must have another name: whoever looks for this one writes to it."""


def anonymous_file(name: str, directory: str | None = None) -> int:
    """Return the descriptor of a file without a name: in memory where the system has memfd, else unlinked on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile  # slow to import, and only needed here

    with tempfile.TemporaryFile(prefix=name, dir=directory) as file:
        return os.dup(file.fileno())


def new_page(worker: str = "") -> int:
    """Return the descriptor of a fresh page, which bears the tag of the ``worker`` that it is for."""
    fd = anonymous_file(_NAME + worker)
    os.ftruncate(fd, PAGE_SIZE)
    return fd


class Executing(NamedTuple):
    """Which task a worker executes, and the digest of its claim; if it has none, that of nothing."""

    task: int
    digest: tuple[int, int]


class WorkerPage:
    """The worker's side; ``words`` and ``times`` are written on the hot path, ``marks`` read there."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_SIZE)
        whole = memoryview(self._map)
        self.words = whole[:_MARKS_AT].cast("Q")
        self.times = whole[:_MARKS_AT].cast("d")
        self.marks = whole[_MARKS_AT:]

    def claim(self, index: int, digest: tuple[int, int]) -> None:
        """Mark what a later keeper knows the task by that is started next."""
        words = self.words
        words[CLAIM], high = digest
        words[CLAIM + 1] = high ^ index

    def close(self) -> None:
        """Give the memory back now: later, the mapping would close a descriptor by a number that is another's."""
        for view in (self.words, self.times, self.marks):
            view.release()
        self._map.close()


class KeeperPage(WorkerPage):
    """The keeper's side; of a fresh page for ``worker``, or of the one behind ``fd``, which it closes in the end."""

    def __init__(self, fd: int | None = None, worker: str = "") -> None:
        self.fd = new_page(worker) if fd is None else fd
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

    def executing(self) -> Executing | None:
        """Return what the worker executes, as a keeper can tell that has not fed it."""
        index = self.observe().executing
        words = self.words
        return None if index is None else Executing(index, (words[CLAIM], words[CLAIM + 1] ^ index))

    def revoke_rest(self) -> int:
        """Forbid the worker to start anything that it has not started; return the index started last."""
        self.marks[:] = b"\1" * MARKS
        started = self.words[STARTED]
        self.marks[started % MARKS] = 0
        return started

    def allow(self, first: int) -> None:
        """Let the worker start what it is fed from index ``first`` on, whatever an earlier keeper has revoked."""
        begin = first % MARKS
        number = max(0, MARKS - (first - 1 - min(self.words[STARTED], first - 1)))
        before_end = min(number, MARKS - begin)
        self.marks[begin : begin + before_end] = bytes(before_end)
        self.marks[: number - before_end] = bytes(number - before_end)

    def close(self) -> None:
        """Give the memory back."""
        super().close()
        self.close_fd()

    def close_fd(self) -> None:
        """Close the descriptor once the worker has its own; the mapping stays."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1  # in this order nothing can have a number closed that is another file's by then
            os.close(fd)


def find_page(pid: int, worker: str) -> KeeperPage | None:
    """Return the page that process ``pid`` has for ``worker``; None where it cannot be seen, or there are several.

    Beside its own it may have those of other workers, with which it was forked.
    """
    pages: dict[tuple[int, int], str] = {}
    with contextlib.suppress(OSError):  # it is gone, or another user's
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            with contextlib.suppress(OSError):  # closed since
                if os.readlink(path) == f"/memfd:{_NAME}{worker} (deleted)":
                    pages[_identity(os.stat(path))] = path
    if len(pages) != 1:
        return None
    ((page, path),) = pages.items()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError, ValueError):  # it is of another size
        if _identity(os.fstat(fd)) == page:
            return KeeperPage(fd)
    os.close(fd)
    return None


def _identity(seen: os.stat_result) -> tuple[int, int]:
    return seen.st_dev, seen.st_ino
