"""Where a keeper keeps its files, and that it can: directories, permissions, the kind of filesystem."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import AlreadyRunning, HomeUnusable

__all__ = ["Home"]

SOCKET_PATH_LIMIT = 107
_NAME = re.compile(r"[^/\0]+")


@dataclass(frozen=True)
class Home:
    """One keeper's directory: ``name/run_id`` below the base, or a private temporary one that is removed at the end."""

    path: Path
    ephemeral: bool
    socket: str
    key: bytes
    lock: list[int]
    """The descriptor of a named keeper's lock; empty for ephemeral ones, and when it is closed."""

    @classmethod
    def open(cls, name: str | None, run_id: str, base: str | os.PathLike[str] | None) -> Home:
        """Create the directory as needed, mode 0700, with a fresh key.

        Raises HomeUnusable where it cannot be created or written to, AlreadyRunning while another keeper of this name
        and run lives, ValueError for a name that is no file name.
        """
        ephemeral = name is None
        path: Path | None = None
        lock: list[int] = []
        try:
            if name is None:
                parent = None if base is None else _made(Path(base))
                path = Path(tempfile.mkdtemp(prefix="poolkeeper-", dir=parent))
            else:
                path = _made(_base(base) / _checked("name", name) / _checked("run_id", run_id))
            lock = [] if ephemeral else [_lock(path)]
            (path / "logs").mkdir(mode=0o700, exist_ok=True)
            key = os.urandom(32)
            _write_private(path / "authkey", key)
        except OSError as error:
            if lock:
                os.close(lock.pop())
            if ephemeral and path is not None:
                _unmake(path)
            where = base if base is not None else (tempfile.gettempdir() if ephemeral else default_base())
            raise HomeUnusable(
                error.errno,
                f"the keeper cannot use {where} as its home: {error.strerror}; "
                "pass home=... or set POOLKEEPER_HOME to a directory that it may write to",
            ) from error
        return cls(path, ephemeral, _socket_path(path), key, lock)

    @property
    def logs(self) -> Path:
        """The directory of the workers' logs."""
        return self.path / "logs"

    @property
    def temporary(self) -> list[str]:
        """Directories that must not outlive the keeper: all if ephemeral, else that of a socket that lies elsewhere."""
        elsewhere = os.path.dirname(self.socket)
        directories = [elsewhere] if elsewhere != str(self.path) else []
        return [*directories, str(self.path)] if self.ephemeral else directories

    def remove(self) -> None:
        """Remove what must not outlive the keeper."""
        Path(self.socket).unlink(missing_ok=True)
        for directory in self.temporary:
            shutil.rmtree(directory, ignore_errors=True)
            _unmake(Path(directory))  # rmtree needs descriptors, and they may be what the keeper failed for
        self.close_lock()

    def close_lock(self) -> None:
        """Close the lock's descriptor; the lock is free once no process has it open."""
        while self.lock:
            os.close(self.lock.pop())


def default_base() -> Path:
    """Return the directory that holds the homes of all named keepers (XDG base directory specification)."""
    given = os.environ.get("POOLKEEPER_HOME")
    if given:
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "poolkeeper"


def _base(base: str | os.PathLike[str] | None) -> Path:
    return Path(base) if base is not None else default_base()


def _checked(what: str, name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{what}={name!r} must be a non-empty string without '/' or NUL, for it names a directory")
    return name


def _unmake(home: Path) -> None:
    """Remove a home that has hardly begun; without opening it, for descriptors may be what is missing."""
    with contextlib.suppress(OSError):
        (home / "authkey").unlink(missing_ok=True)
        if (home / "logs").exists():
            (home / "logs").rmdir()
        home.rmdir()


def _lock(home: Path) -> int:
    """Take the lock of ``home`` and write down who holds it."""
    fd = os.open(home / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "which has not said who it is"
        os.close(fd)
        raise AlreadyRunning(f"another keeper uses {home}: {holder}; end it, or use another name or run_id") from None
    except OSError:
        os.close(fd)
        raise
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "cwd": os.getcwd(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(about).encode(), 0)
    return fd


def _made(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _write_private(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)


def _socket_path(home: Path) -> str:
    path = str(home / "keeper.sock")
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        Path(path).unlink(missing_ok=True)
        return path
    return os.path.join(tempfile.mkdtemp(prefix="pk-", dir="/tmp"), "keeper.sock")
