"""An exclusive lock on an open file: flock, which goes with the open file and not with the process; Windows' own there.

Windows locks bytes, and what is locked nobody else can read: the byte that stands for the lock is far behind the end.
"""

from __future__ import annotations

import errno
import os
import sys

from .errors import HomeUnusable

__all__ = ["is_free", "try_lock", "unlock"]

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})

if sys.platform == "win32":
    import msvcrt

    BYTE = 2**30

    def try_lock(descriptor: int) -> bool:
        """Lock the file exclusively if nobody has it; return whether that was so."""
        os.lseek(descriptor, BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK, errno.EDEADLOCK):
                return False
            raise
        return True

    def unlock(descriptor: int) -> None:
        """Give up the lock."""
        os.lseek(descriptor, BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

    def is_free(descriptor: int) -> bool:
        """Whether nobody has the file locked; the descriptor must not be that of a lock."""
        if not try_lock(descriptor):
            return False
        unlock(descriptor)
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Lock the file exclusively if nobody has it; return whether that was so.

        Raises:
            HomeUnusable: where the filesystem knows no locks.
        """
        return _try(descriptor, fcntl.LOCK_EX)

    def unlock(descriptor: int) -> None:
        """Give up the lock, for every process that has inherited the open file."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def is_free(descriptor: int) -> bool:
        """Whether nobody has the file locked; the descriptor must not be that of a lock.

        Raises:
            HomeUnusable: where the filesystem knows no locks.
        """
        if not _try(descriptor, fcntl.LOCK_SH):
            return False
        unlock(descriptor)
        return True

    def _try(descriptor: int, how: int) -> bool:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise HomeUnusable(
                    error.errno,
                    f"the filesystem of the home cannot lock files ({error.strerror}); "
                    "pass home=... or set POOLKEEPER_HOME to a directory on a local filesystem",
                ) from error
            raise
        return True
