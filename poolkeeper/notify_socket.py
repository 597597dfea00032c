"""Where programs that run as our services say that they are ready, by sd_notify(3): the manager's end.

Everybody of this user can write to the socket, so the kernel's word for who has sent a message (SCM_CREDENTIALS,
unix(7)) decides which service it speaks for. Descriptors that come along are closed: we store none (FDSTORE), and it is
how sd_notify_barrier(3) learns that its message has been taken in.
"""

from __future__ import annotations

import array
import contextlib
import errno
import hashlib
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self, TypeVar

from .notification import DATAGRAM_BYTES, Notification, parse

__all__ = ["NotifySocket", "ancestry", "belongs_to"]

T = TypeVar("T")

NAME = "notify.sock"
FRESH = "~"
"""Marks a socket that is about to take its place."""
PATH_LIMIT = 107 - len(FRESH)
BURST = 1000
"""Datagrams that one ``receive`` takes at most: who floods us must not hold the keeper up for ever."""
GENERATIONS = 64
"""How far up ``belongs_to`` looks."""

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_DESCRIPTORS = 253  # SCM_MAX_FD
_ANCILLARY = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_DESCRIPTORS * 4)


class NotifySocket:
    """Receives what services say; ``fileno()`` is readable when there is something.

    Made by ``open``, or by ``adopt`` from the descriptor of an earlier one that was inherited.
    """

    def __init__(self, path: str, inner: socket.socket) -> None:
        self.path = path
        """The ``NOTIFY_SOCKET`` of services."""
        self.ignored = 0
        """How many messages were garbage, too long, or of another user."""
        self._socket = inner

    @classmethod
    def open(cls, home: Path) -> Self:
        """Bind ``notify.sock`` in ``home``, in the place of one that a dead keeper has left.

        Where the path is too long for an address, it is in a directory of its own in /tmp, which is the same for the
        same home: a keeper that takes over finds its services speaking to it.

        Raises:
            OSError: if that cannot be done.
        """
        if not hasattr(socket, "SO_PASSCRED"):
            raise OSError(errno.EOPNOTSUPP, "this system does not say who has sent a datagram; Linux does")
        path = _path(home)
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with contextlib.suppress(OSError):
                os.fchmod(inner.fileno(), 0o600)  # on Linux the file is born with this mode; elsewhere it gets it below
            fresh = path + FRESH
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # before anybody can send
            inner.bind(fresh)
            os.chmod(fresh, 0o600)
            os.rename(fresh, path)  # there is a socket at any time
        except OSError:
            inner.close()
            raise
        return cls(path, inner)

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Go on with the socket that ``fd`` is; it passes through a re-exec with what has not been read yet.

        Raises:
            OSError: if ``fd`` is no socket that is bound to a path.
        """
        inner = socket.socket(fileno=fd)
        path = inner.getsockname()
        if inner.family != socket.AF_UNIX or not isinstance(path, str) or not path:
            inner.detach()
            raise OSError(f"descriptor {fd} is no notification socket")
        inner.set_inheritable(False)
        return cls(path.removesuffix(FRESH), inner)

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    def receive(self) -> Iterator[Notification]:
        """Yield what has been said since the last time, at most ``BURST`` messages; does not block.

        Each is to be dealt with before the next is asked for: with that it may be that its sender is told, by
        sd_notify_barrier(3), that it need not wait any longer, and ends.
        """
        for _ in range(BURST):
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    DATAGRAM_BYTES + 1, _ANCILLARY, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except OSError:  # nothing more, as a rule; else the socket is of no use and nothing can be done about it
                break
            credentials = _take(ancillary)
            notification = None
            if credentials is not None and not flags & socket.MSG_TRUNC:
                pid, uid = credentials
                if uid in (os.geteuid(), 0):
                    notification = parse(data, pid)
            if notification is None:
                self.ignored += 1
            else:
                yield notification

    def close(self) -> None:
        """Close the socket and remove its file, and the directory in /tmp if it has one."""
        self.release()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        if os.path.basename(os.path.dirname(self.path)).startswith("pk-"):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(self.path))

    def release(self) -> None:
        """Close the socket; another process has it, or will bind one at its path."""
        self._socket.close()


def belongs_to(pid: int, roots: Mapping[int, T]) -> T | None:
    """Return what ``roots`` has for the process ``pid`` or the nearest of its ancestors.

    A process whose parents have ended belongs to the leader of its session: workers lead one each, and a leader's pid
    is not given to another process as long as the session has a member.

    Args:
        pid: the sender of a message.
        roots: services by the pids of their processes.

    Returns:
        None if none of them is an ancestor, or if the process has ended and nothing is known of it any more.
    """
    return next((roots[each] for each in ancestry(pid) if each in roots), None)


def ancestry(pid: int) -> tuple[int, ...]:
    """Return a process, its ancestors from the nearest on, and the leader of its session; itself alone if it is gone.

    Args:
        pid: 0 for nobody.
    """
    found: list[int] = []
    session: int | None = None
    current = pid
    while current > 0 and len(found) < GENERATIONS:
        found.append(current)
        lineage = _lineage(current)
        if lineage is None:
            break
        current, leader = lineage
        session = leader if session is None else session
    return (*found, session) if session is not None else tuple(found)


def _lineage(pid: int) -> tuple[int, int] | None:
    """The parent and the session of a process, None if it is gone; proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
        fields = text[text.rindex(b")") + 1 :].split()  # the name may have blanks and brackets of its own
        return int(fields[1]), int(fields[3])
    except (OSError, ValueError, IndexError):
        return None


def _take(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """The sender's pid and uid; descriptors are closed."""
    credentials = None
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        elif kind == socket.SCM_CREDENTIALS and len(data) == _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack(data)
            credentials = (pid, uid)
    return credentials


def _path(home: Path) -> str:
    path = str(home / NAME)
    if len(os.fsencode(path)) <= PATH_LIMIT:
        return path
    digest = hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:16]
    directory = f"/tmp/pk-{os.geteuid()}-{digest}"  # noqa: S108 - believed only if it is ours alone
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        directory = tempfile.mkdtemp(prefix="pk-", dir="/tmp")  # somebody has taken the name
    return os.path.join(directory, NAME)
