"""The pidfile: who the keeper and its children are, for whoever comes after it.

The file is replaced by a whole new one and never written in place, so a reader sees a whole document whenever it looks
and whoever is killed meanwhile. It is not flushed to the disk: after a power failure none of its processes are left.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from . import logs
from .errors import PoolkeeperError
from .process_identity import PROC, ProcessIdentity

if TYPE_CHECKING:
    from .service_handover import Handover, ServiceRecord

__all__ = [
    "ChildRecord",
    "ChildRole",
    "PidfileDocument",
    "PidfileError",
    "PidfileWriter",
    "read_pidfile",
    "survivors",
    "write_pidfile",
]

FORMAT = "poolkeeper-pidfile"
VERSION = 1
SIZE_LIMIT = 16 * 2**20
LONGEST_BACKOFF = 5.0
SHARE = 20.0
"""A write is followed by a pause of so many times the processor's time that it has taken."""

ChildRole = Literal["forkserver", "worker", "service", "logwriter"]


class PidfileError(PoolkeeperError, ValueError):
    """What is there is no pidfile, not a whole one, or one of a later poolkeeper."""


class ChildRecord(NamedTuple):
    """A process that the keeper has started, or had started by its fork server.

    Args:
        id: by which the keeper knows it.
        role: what it is for; one that this version does not know is kept as it is.
        name: of the service, or for people to read.
        identity: who it is.
        slot: the worker's slot or the service's replica.
        fingerprint: of the code that it runs.
        attempt: how often it has been started before, and this time.
    """

    id: str
    role: ChildRole | str
    name: str
    identity: ProcessIdentity
    slot: int | None = None
    fingerprint: str | None = None
    attempt: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        fields = {"id": self.id, "role": self.role, "name": self.name, **self.identity.to_dict()}
        return fields | {"slot": self.slot, "fingerprint": self.fingerprint, "attempt": self.attempt}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote; unknown keys are ignored, missing ones defaulted."""
        return cls(
            id=_text(data, "id"),
            role=_text(data, "role") or "worker",
            name=_text(data, "name"),
            identity=ProcessIdentity.from_dict(data),
            slot=_number(data, "slot"),
            fingerprint=_text(data, "fingerprint") or None,
            attempt=_number(data, "attempt"),
        )


class PidfileDocument(NamedTuple):
    """What a pidfile says.

    Args:
        keeper: who wrote it.
        name: of the keeper.
        run_id: of its run.
        socket: the path on which it listens.
        since: when it started, with a timezone.
        fleet: the file that declares the fleet, if it runs one.
        argv: the arguments of the fleet.
        children: the processes that it has started.
        services: what is to be known of services besides their processes; None where there are none.
    """

    keeper: ProcessIdentity
    name: str
    run_id: str
    socket: str
    since: datetime
    fleet: str | None = None
    argv: tuple[str, ...] = ()
    children: tuple[ChildRecord, ...] = ()
    services: Handover | None = None

    @property
    def service_records(self) -> tuple[ServiceRecord, ...]:
        """What is to be known of each service."""
        return () if self.services is None else self.services.services

    def to_json(self) -> bytes:
        """Return the content of the pidfile."""
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "keeper": self.keeper.to_dict(),
            "name": self.name,
            "run_id": self.run_id,
            "socket": self.socket,
            "since": self.since.isoformat(),
            "fleet": self.fleet,
            "argv": list(self.argv),
            "children": [child.to_dict() for child in self.children],
            "services": None if self.services is None else self.services.to_data(),
        }
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read what ``to_json`` wrote; unknown keys are ignored, missing ones defaulted.

        A time that is missing is the beginning of 1970.

        Raises:
            PidfileError: for what is no whole pidfile, or one in a later version of the format.
        """
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise PidfileError(f"it is no whole JSON document: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PidfileError("it is JSON, but no pidfile of poolkeeper")
        if (version := _number(data, "version") or VERSION) > VERSION:
            raise PidfileError(f"a later poolkeeper wrote it: its format is {version}, known are those up to {VERSION}")
        children = data.get("children", [])
        if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
            raise PidfileError("its children are not a list of records")
        keeper, argv = data.get("keeper"), data.get("argv")
        return cls(
            keeper=ProcessIdentity.from_dict(keeper if isinstance(keeper, dict) else {}),
            name=_text(data, "name"),
            run_id=_text(data, "run_id"),
            socket=_text(data, "socket"),
            since=_time(data.get("since")),
            fleet=_text(data, "fleet") or None,
            argv=tuple(argument for argument in argv if isinstance(argument, str)) if isinstance(argv, list) else (),
            children=tuple(map(ChildRecord.from_dict, children)),
            services=_services(data.get("services")),
        )


def write_pidfile(path: str | os.PathLike[str], document: PidfileDocument) -> None:
    """Replace the file at ``path`` with ``document``, readable by this user alone; a symbolic link is itself replaced.

    Raises:
        OSError: when that fails; the file that was there is still there, and nothing else.
    """
    target = Path(path)
    temporary = target.with_name(f"{_temporary_prefix(target)}{os.urandom(8).hex()}")
    try:
        with open(temporary, "xb", buffering=0, opener=_private) as file:
            rest = memoryview(document.to_json())
            while rest:
                rest = rest[file.write(rest) :]
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_pidfile(path: str | os.PathLike[str]) -> PidfileDocument:
    """Return what the pidfile at ``path`` says.

    Raises:
        FileNotFoundError: when there is none.
        PidfileError: for anything else that is there: a directory, a pipe, a symbolic link that is not ours, a file
            that is no whole pidfile or too large for one.
        OSError: when it cannot be read.
    """
    try:
        with contextlib.closing(_Descriptor(path)) as file:
            return PidfileDocument.from_json(file.read())
    except PidfileError as error:
        raise PidfileError(f"{os.fspath(path)} is not a usable pidfile: {error}") from error.__cause__


def survivors(document: PidfileDocument, *, proc: str = PROC) -> tuple[ChildRecord, ...]:
    """Return the children that are alive; strangers that have their pids by now are not among them.

    Raises:
        OSError: when that cannot be found out, as without a free descriptor.
    """
    return tuple(child for child in document.children if child.identity.is_alive(proc=proc))


class PidfileWriter:
    """Keeps a pidfile up to date from a thread of its own, so that no disk ever stops the caller.

    Updates that come while a write is due are written as one. A write that fails is tried again, later and later, and
    logged when the failures begin. There must be no other writer of this file.

    Args:
        path: of the pidfile.
        interval: seconds between two writes, at least.
    """

    def __init__(self, path: str | os.PathLike[str], *, interval: float = 0.05) -> None:
        self._path = Path(path)
        self._interval = interval
        self._owner = os.getpid()
        self._changed = threading.Condition()
        self._latest: PidfileDocument | Callable[[], PidfileDocument] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failing = False

    def update(self, document: PidfileDocument | Callable[[], PidfileDocument]) -> None:
        """Have ``document`` written soon; returns at once, and does nothing in a forked child or after ``close``.

        Args:
            document: what to write, or what returns it when it is time, on the writer's thread.
        """
        if os.getpid() != self._owner:
            return
        with self._changed:
            if self._closed:
                return
            self._latest = document
            self._changed.notify()
            if self._thread is None:
                self._start()

    def close(self, *, remove: bool) -> None:
        """End the thread, after the last update has been written or, to ``remove`` the file, without that.

        The file is removed or written once; if that fails it is logged.
        """
        if os.getpid() != self._owner:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()
        latest, self._latest = self._latest, None
        if not remove:
            if latest is not None:
                self._write(latest)
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            logs.emit("WARNING", f"the pidfile {self._path} cannot be removed: {error}")

    def abandon_in_child(self) -> None:
        """In a fork of the process: the file and the thread belong to the parent."""
        self._owner = -1

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="poolkeeper-pidfile", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be had: the next update tries again, and so does close
            self._complain(error)
            return
        self._thread = thread

    def _run(self) -> None:
        self._remove_temporary_files()
        backoff = self._interval
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._latest is not None)
                if self._closed:
                    return
                latest, self._latest = self._latest, None
            assert latest is not None
            began = time.thread_time()
            written = self._write(latest)
            # Where it takes long, as in the storm of a hundred starts, it shall not take much of the time.
            pause = max(self._interval, SHARE * (time.thread_time() - began))
            backoff = pause if written else min(2 * backoff, LONGEST_BACKOFF)
            with self._changed:
                if not written and self._latest is None:
                    self._latest = latest
                self._changed.wait_for(lambda: self._closed, backoff)

    def _write(self, latest: PidfileDocument | Callable[[], PidfileDocument]) -> bool:
        try:
            write_pidfile(self._path, latest() if callable(latest) else latest)
        except Exception as error:
            self._complain(error)
            return False
        if self._failing:
            self._failing = False
            logs.emit("INFO", f"the pidfile {self._path} is written again")
        return True

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            logs.emit("WARNING", f"the pidfile {self._path} cannot be brought up to date for now: {error}")

    def _remove_temporary_files(self) -> None:
        """Remove what an earlier writer was killed over."""
        with contextlib.suppress(OSError):
            for path in self._path.parent.glob(_temporary_prefix(self._path) + "*"):
                path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Descriptor:
    """An open pidfile: a regular file of a sensible size, to which no link of somebody else has led."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))
        except IsADirectoryError as error:
            raise PidfileError("it is a directory") from error
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise PidfileError("it is a socket") from error
            if error.errno not in (errno.ELOOP, errno.EMLINK):
                raise
            if os.lstat(path).st_uid != os.geteuid():
                raise PidfileError("it is a symbolic link of another user") from error
            self._descriptor = os.open(path, flags)

    def read(self) -> bytes:
        found = os.fstat(self._descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise PidfileError("it is a directory")
        if not stat.S_ISREG(found.st_mode):
            raise PidfileError("it is not a regular file")
        if found.st_size > SIZE_LIMIT:
            raise PidfileError(f"it has {found.st_size} bytes, and no pidfile has more than {SIZE_LIMIT}")
        with open(self._descriptor, "rb", closefd=False) as file:
            return file.read(SIZE_LIMIT + 1)

    def close(self) -> None:
        os.close(self._descriptor)


def _temporary_prefix(path: Path) -> str:
    return f".{path.name}-"


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _number(data: Mapping[str, Any], key: str) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _services(data: object) -> Handover | None:
    if data is None:
        return None
    from .service_handover import Handover  # most keepers have no services

    return Handover.from_data(data)


def _time(value: object) -> datetime:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    return time if time is not None and time.tzinfo is not None else datetime.fromtimestamp(0, UTC)
