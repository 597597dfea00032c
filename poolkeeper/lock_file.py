"""A file that at most one open file has locked, and that says who has it.

Taking the lock, probing it and breaking it each need more than one step, so each happens under a short lock on the
folder: a probe then never looks like a holder, whoever finds the lock taken also finds written down by whom, and no
lock is broken that somebody else has just taken. A process that is stopped while it has the folder's lock must not stop
everybody: after a while takers and probers go on without it. Who breaks a lock does not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .file_locking import is_free, try_lock, unlock

__all__ = ["LockFile"]

GUARD_SECONDS = 2.0
ATTEMPTS = 100
CONTENT_LIMIT = 65536
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_mutex = threading.RLock()
"""Held for every step on a lock, and by whoever forks: no descriptor gets into a child without being known here."""
_open: set[int] = set()
"""The descriptors of all locks that this process has."""


class LockFile:
    """The lock at ``path``; its descriptor is closed in forked children and by exec, the lock itself is untouched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten: OSError | None = None
        """Why the content could not be written, if the lock was taken without."""
        self.abandoned = False
        """Whether whoever had the lock before has ended without giving it up."""
        self._descriptor: int | None = None
        self._owner = 0

    @property
    def descriptor(self) -> int | None:
        """The descriptor while this object has the lock, in the process that took it."""
        return self._descriptor if self._owner == os.getpid() else None

    def acquire(self, content: bytes) -> bool:
        """Take the lock if nobody has it, and say who has it; return whether this object has it now.

        Raises:
            OSError: where the file cannot be opened or emptied; HomeUnusable where the filesystem knows no locks.
        """
        with _mutex:
            if self.descriptor is not None:
                return True
            with _guard(self.path.parent):
                for _ in range(ATTEMPTS):
                    descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
                    try:
                        if not try_lock(descriptor):
                            os.close(descriptor)
                            return False
                        if self._is_current(descriptor):
                            self.abandoned = os.fstat(descriptor).st_size > 0
                            self.unwritten = _write(descriptor, content)
                            self._keep(descriptor)
                            return True
                    except BaseException:
                        os.close(descriptor)
                        raise
                    os.close(descriptor)  # somebody has put another file in its place meanwhile
            raise OSError(errno.EAGAIN, f"{self.path} is replaced again and again")

    def adopt(self, descriptor: int) -> bool:
        """Take over an open file that has the lock, as one that was inherited through exec; return whether it has.

        Raises:
            OSError: when ``descriptor`` is not open.
        """
        with _mutex:
            if self.descriptor is not None or not self._is_current(descriptor) or not try_lock(descriptor):
                return False
            os.set_inheritable(descriptor, False)
            self._keep(descriptor)
            return True

    @contextlib.contextmanager
    def inheritable(self) -> Iterator[None]:
        """Have the lock pass through an exec within the block; forks by ``os.fork`` wait that long.

        Raises:
            ValueError: when this object does not have the lock.
        """
        with _mutex:
            descriptor = self.descriptor
            if descriptor is None:
                raise ValueError(f"the lock of {self.path} is not held by this object")
            os.set_inheritable(descriptor, True)
            try:
                yield
            finally:
                os.set_inheritable(descriptor, False)

    def release(self) -> None:
        """Give up the lock if this object has it; in a forked child it has not."""
        with _mutex:
            descriptor, self._descriptor = self.descriptor, None
            if descriptor is None:
                return
            _open.discard(descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):
                unlock(descriptor)  # a child that came about without our hook may have the file open still
            os.close(descriptor)

    def look(self) -> tuple[bool, bytes]:
        """Return whether anybody has the lock, and what the holder has written.

        Raises:
            OSError: where the file is there but cannot be read.
        """
        with _mutex, _opened(self.path) as (descriptor, _):
            if descriptor is None or is_free(descriptor):
                return self.descriptor is not None, b""
            return True, _read(descriptor)

    def break_if(self, judge: Callable[[bytes], bool]) -> bool:
        """Remove the file if it is locked and ``judge(content)`` allows it; return whether the lock is free now.

        Raises:
            OSError: where the file is there but cannot be read or removed.
        """
        with _mutex:
            if self.descriptor is not None:
                return False
            with _opened(self.path) as (descriptor, guarded):
                if descriptor is None or is_free(descriptor):
                    return True
                if not guarded or not judge(_read(descriptor)):
                    return False
                self.path.unlink(missing_ok=True)
                return True

    def _keep(self, descriptor: int) -> None:
        _open.add(descriptor)
        self._descriptor, self._owner = descriptor, os.getpid()

    def _is_current(self, descriptor: int) -> bool:
        """Whether the open file is the one that the path names: a file that was removed can be locked for ever."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.lstat())
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def _guard(folder: Path) -> Iterator[bool]:
    """Keep others from taking, probing or breaking locks in ``folder``; yield whether they are kept from it."""
    if sys.platform == "win32":  # directories cannot be opened there
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        guarded = _lock_soon(descriptor)
        try:
            yield guarded
        finally:
            if guarded:
                unlock(descriptor)
    finally:
        os.close(descriptor)


def _lock_soon(descriptor: int) -> bool:
    deadline = time.monotonic() + GUARD_SECONDS
    pause = 0.0002
    while not try_lock(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)  # flock has no timeout
        pause = min(2 * pause, 0.005)
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[int | None, bool]]:
    """Open the file for reading under the guard, if it is there; yield its descriptor and whether it is guarded."""
    with contextlib.ExitStack() as stack:
        try:
            guarded = stack.enter_context(_guard(path.parent))
            descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            yield None, False
            return
        stack.callback(os.close, descriptor)
        yield descriptor, guarded


def _read(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, CONTENT_LIMIT)


def _write(descriptor: int, content: bytes) -> OSError | None:
    """Write all or nothing, and return why nothing; raises OSError if what an earlier holder wrote would stay."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        if os.write(descriptor, content) == len(content):
            return None
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as caught:
        error = caught
    os.ftruncate(descriptor, 0)
    return error


def _close_in_child() -> None:
    """Close what belongs to the parent, and unlock nothing: a lock goes with the open file, which the parent shares."""
    for descriptor in _open:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open.clear()
    _mutex.release()


if sys.platform != "win32":
    os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_close_in_child)
