"""The instance lock: at most one process runs one run of one name, and everybody can see which."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

from . import logs
from .errors import AlreadyRunning, HomeUnusable
from .lock_file import LockFile
from .places import base_folder, home_folder, home_unusable, make_folders
from .process_identity import ProcessIdentity, identify

__all__ = ["InstanceLock", "LockHolder"]

LOCK_FILE = "keeper.lock"


class LockHolder(NamedTuple):
    """Who holds an instance lock, as the holder wrote it down.

    Args:
        pid: of the process, in its pid namespace.
        start_time: see ``boot_id``.
        host: the name of the machine or container.
        cwd: the working directory in which it took the lock.
        since: when it took the lock, with a timezone.
        boot_id: with ``start_time`` and ``pid_namespace`` tells the process from others that have had its pid.
        pid_namespace: see ``boot_id``.
    """

    pid: int
    start_time: int
    host: str
    cwd: str
    since: datetime
    boot_id: str = ""
    pid_namespace: str = ""

    @property
    def identity(self) -> ProcessIdentity:
        """The process, to ask whether it lives."""
        return ProcessIdentity(self.pid, self.start_time, self.boot_id, self.pid_namespace)

    def describe(self) -> str:
        """Return who holds the lock in one sentence."""
        since = self.since.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        return f"process {self.pid} on {self.host} has held it since {since}, from {self.cwd}"

    def to_json(self) -> bytes:
        """Return the content of the lock file."""
        fields = {**self.identity.to_dict(), "host": self.host, "cwd": self.cwd, "since": self.since.isoformat()}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Self | None:
        """Read the content of a lock file; None for what no holder has written to its end."""
        try:
            data: Any = json.loads(content)
            identity = ProcessIdentity.from_dict(data)
            since = datetime.fromisoformat(data["since"])
            since.astimezone()  # some dates at the ends of time have no other timezone
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        if identity.pid <= 0 or since.tzinfo is None:
            return None
        host, cwd = (value if isinstance(value, str) else "?" for value in (data.get("host"), data.get("cwd")))
        return cls(identity.pid, identity.start_time, host, cwd, since, identity.boot_id, identity.pid_namespace)

    @classmethod
    def here(cls) -> Self:
        """Return this process as a holder from now on."""
        me = identify() or ProcessIdentity(os.getpid(), -1)
        try:
            cwd = os.getcwd()
        except OSError:
            cwd = "a directory that is gone"
        now = datetime.now(UTC).astimezone()
        return cls(me.pid, me.start_time, socket.gethostname(), cwd, now, me.boot_id, me.pid_namespace)


class InstanceLock:
    """The lock that ``Keeper(name, run_id=..., home=...)`` holds while it lives, for other programs as well.

    The lock belongs to this object in this process. Forked children do not have it, nor do programs that are started
    inherit it; it is free as soon as its process has ended, however. An object that is dropped while it holds the lock
    leaves it held until the process ends. Objects may be used from several threads.

    Args:
        name: of the keeper, or of whatever must not run twice.
        run_id: tells runs of the same name apart.
        home: the directory that holds the homes of keepers; see ``POOLKEEPER_HOME``.

    Raises:
        ValueError: for a name or run_id that cannot name a directory.
        HomeUnusable: for a home on a network filesystem.
    """

    def __init__(self, name: str, run_id: str = "default", home: str | os.PathLike[str] | None = None) -> None:
        self._base = base_folder(home)
        self.folder = home_folder(self._base, name, run_id)
        self._file = LockFile(self.folder / LOCK_FILE)

    def acquire(self) -> bool:
        """Take the lock if nobody has it, without waiting; return whether this object has it.

        An object that has the lock already answers True, and one ``release`` frees it all the same. On a full disk the
        lock is taken without saying who has it.

        Raises:
            HomeUnusable: where the lock's directory cannot be created or written to, or the filesystem has no locks.
        """
        with self._reported():
            make_folders(self._base, self.folder)
            had = self._file.descriptor is not None
            taken = self._file.acquire(LockHolder.here().to_json())
        if taken and not had and self._file.unwritten is not None:
            logs.emit("WARNING", f"{self._file.path} cannot say who has the lock: {self._file.unwritten}")
        return taken

    @property
    def abandoned(self) -> bool:
        """Whether whoever had the lock before this object took it has ended without giving it up."""
        return self._file.abandoned

    def release(self) -> None:
        """Give the lock up; does nothing unless this object has it, in the process that took it."""
        self._file.release()

    def is_locked(self) -> bool:
        """Whether anybody has the lock, this object included.

        Raises:
            HomeUnusable: where the lock cannot be looked at.
        """
        with self._reported():
            return self._file.look()[0]

    def holder(self) -> LockHolder | None:
        """Return who has the lock; None when nobody has it, or when who has it could not write down who it is.

        The process that is named may be dead, and the lock kept by a child that has inherited it: see ``force_unlock``.

        Raises:
            HomeUnusable: where the lock cannot be looked at.
        """
        with self._reported():
            locked, content = self._file.look()
        return LockHolder.from_json(content) if locked else None

    def force_unlock(self) -> bool:
        """Free a lock whose holder is dead but has left the lock to a child; return whether the lock is free now.

        A lock is not taken from a living holder, nor from one that cannot be judged: one that has not said who it is,
        or that runs in a pid namespace (a container) of which nothing can be seen from here. A crashed holder needs no
        force: its lock is free at once.

        Raises:
            HomeUnusable: where the lock cannot be looked at or removed.
        """
        with self._reported():
            return self._file.break_if(_is_surely_dead)

    def already_running(self) -> AlreadyRunning:
        """Return the exception that names the holder."""
        return AlreadyRunning(f"another keeper uses {self.folder}: {self._holder_in_words()}")

    def fileno(self) -> int:
        """Return the descriptor that has the lock, to be made inheritable around ``execv`` and nowhere else.

        Raises:
            ValueError: when this object does not have the lock.
        """
        if self._file.descriptor is None:
            raise ValueError(f"{self!r} is not held by this object")
        return self._file.descriptor

    def adopt(self, descriptor: int) -> bool:
        """Take over the lock with a descriptor inherited through ``execv``; return whether that descriptor has it.

        The descriptor is no longer inheritable then; if it does not have the lock, it stays the caller's.

        Raises:
            HomeUnusable: when it is not open.
        """
        with self._reported():
            return self._file.adopt(descriptor)

    def inheritable(self) -> contextlib.AbstractContextManager[None]:
        """Have the lock pass through ``execv`` within the block, and nowhere else.

        Raises:
            ValueError: when this object does not have the lock.
        """
        return self._file.inheritable()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            AlreadyRunning: when somebody else has it; the message says who.
            HomeUnusable: as ``acquire``.
        """
        if not self.acquire():
            raise self.already_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<InstanceLock {self._file.path}>"

    def _holder_in_words(self) -> str:
        holder = self.holder()
        if holder is None:
            return "it has not said who it is; end it, or use another name or run_id"
        with contextlib.suppress(OSError):
            if not holder.identity.may_be_alive():
                return (
                    f"{holder.describe()}; that process is gone and a child of it has kept the lock: "
                    "end that child, or call InstanceLock.force_unlock()"
                )
        return f"{holder.describe()}; end it, or use another name or run_id"

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn what the operating system says into what the user can do about it."""
        try:
            yield
        except HomeUnusable:
            raise
        except OSError as error:
            raise home_unusable(self._base, error) from error


def _is_surely_dead(content: bytes) -> bool:
    holder = LockHolder.from_json(content)
    try:
        return holder is not None and not holder.identity.may_be_alive()
    except OSError:  # it could not be found out
        return False
