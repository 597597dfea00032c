"""Where a keeper keeps its files, and that it can: directories, permissions, the kind of filesystem."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import HomeUnusable
from .inheritance import INHERITANCE, Inherited
from .logs import emit
from .places import default_base, home_unusable, local_base

if TYPE_CHECKING:
    from .instance import InstanceLock

__all__ = ["Home"]

SOCKET_PATH_LIMIT = 107
KEY_BYTES = 32

SHORT = "/tmp"  # noqa: S108 - what is made there is private, and looked at before it is used


class Home(NamedTuple):
    """One keeper's directory: ``name/run_id`` below the base, or a private temporary one that is removed at the end."""

    path: Path
    ephemeral: bool
    socket: str
    key: bytes
    lock: InstanceLock | None
    """Held by a named keeper; None for an ephemeral one, of which nobody else knows."""
    inherited: bool = False
    """Whether the keeper goes on where an earlier program in this process has left it."""
    listener: sockets.socket | None = None
    """The socket that listens there already, inherited."""

    @classmethod
    def open(cls, name: str | None, run_id: str, base: str | os.PathLike[str] | None) -> Home:
        """Create the directory as needed, mode 0700, with a key of its own; take over what a re-exec has left.

        The key stays the same from one keeper of a name to the next, for it has signed the checkpoints.

        Raises HomeUnusable where it cannot be created or written to and on a network filesystem, AlreadyRunning while
        another keeper of this name and run lives, ValueError for a name that is no file name.
        """
        lock = None
        inherited: Inherited | None = None
        if name is not None:
            from .instance import InstanceLock  # most keepers have no name

            lock = InstanceLock(name, run_id, base)
            inherited = INHERITANCE.claim(lock.folder)
            if inherited is not None:
                lock = inherited.lock
        parent = local_base(base) if lock is None and base is not None else None
        path: Path | None = None
        try:
            if lock is None:
                if parent is not None:
                    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                import tempfile

                path = Path(tempfile.mkdtemp(prefix="poolkeeper-", dir=parent))
            else:
                path = lock.folder
                if not lock.acquire():
                    raise lock.already_running()
            (path / "logs").mkdir(mode=0o700, exist_ok=True)
            key = _key_in(path / "authkey")
            listener = None if inherited is None else inherited.listener
            socket_path = _socket_path(path, ephemeral=lock is None) if listener is None else listener.getsockname()
            return cls(path, lock is None, socket_path, key, lock, inherited is not None, listener)
        except OSError as error:
            if lock is not None:
                lock.release()
            elif path is not None:
                _unmake(path)
            if isinstance(error, HomeUnusable):
                raise
            raise home_unusable(_place_of_homes(base, ephemeral=lock is None), error) from error

    @property
    def logs(self) -> Path:
        """The directory of the workers' logs."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints; made with the first."""
        return self.path / "checkpoints"

    @property
    def temporary(self) -> list[str]:
        """Directories that must not outlive the keeper: all if ephemeral, else that of a socket that lies elsewhere."""
        elsewhere = os.path.dirname(self.socket)
        directories = [elsewhere] if elsewhere != str(self.path) else []
        return [*directories, str(self.path)] if self.ephemeral else directories

    def restore(self) -> None:
        """Make anew what the fork server of an ephemeral keeper has removed at its end; raises OSError."""
        Path(self.socket).unlink(missing_ok=True)
        for directory in (self.path, Path(self.socket).parent, self.logs):
            directory.mkdir(mode=0o700, exist_ok=True)

    def remove(self) -> None:
        """Remove what must not outlive the keeper."""
        with contextlib.suppress(OSError):  # gone, or whatever somebody has put in its place
            os.unlink(self.socket)
        if self.listener is not None:
            self.listener.close()
        for directory in self.temporary:
            import shutil  # loaded since tempfile is, of which the first of them was had

            shutil.rmtree(directory, ignore_errors=True)
            _unmake(Path(directory))  # rmtree needs descriptors, and they may be what the keeper failed for
        if not self.ephemeral and self.checkpoints.exists():
            from .checkpoint import clear_unkeyed

            clear_unkeyed(str(self.checkpoints))
        self.close_lock()

    def close_lock(self) -> None:
        """Give up the lock; in a forked child, which never had it, nothing happens."""
        if self.lock is not None:
            self.lock.release()


def _place_of_homes(base: str | os.PathLike[str] | None, *, ephemeral: bool) -> str | os.PathLike[str]:
    if base is not None:
        return base
    if not ephemeral:
        return default_base()
    import tempfile

    return tempfile.gettempdir()


def _unmake(home: Path) -> None:
    """Remove a home that has hardly begun; without opening it, for descriptors may be what is missing."""
    with contextlib.suppress(OSError):
        (home / "authkey").unlink(missing_ok=True)
        if (home / "logs").exists():
            (home / "logs").rmdir()
        home.rmdir()


def _key_in(path: Path) -> bytes:
    """Return the key in ``path`` if nobody else can have put it there or read it; else write a new one."""
    key = _trusted_key(path)
    if key is None:
        key = os.urandom(KEY_BYTES)
        _write_private(path, key)
    return key


def _trusted_key(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        _say_replaced(path, f"it cannot be opened ({error.strerror})")
        return None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            why = "it is no regular file"
        elif about.st_uid != os.geteuid():
            why = f"it belongs to user {about.st_uid}"
        elif stat.S_IMODE(about.st_mode) != 0o600:
            why = f"its mode is {stat.S_IMODE(about.st_mode):o}, not 600"
        elif about.st_size != KEY_BYTES:
            why = f"it has {about.st_size} bytes, not {KEY_BYTES}"
        else:
            return os.read(fd, KEY_BYTES)
    finally:
        os.close(fd)
    _say_replaced(path, why)
    return None


def _say_replaced(path: Path, why: str) -> None:
    emit(
        "WARNING",
        f"{path} is replaced, for {why}; checkpoints and records that were signed with it are not used any more",
    )


def _write_private(path: Path, content: bytes) -> None:
    """Put a file of ours in the place of whatever has that name."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
    try:
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _socket_path(home: Path, *, ephemeral: bool) -> str:
    """Return where to listen; in the home, or elsewhere where that is too long.

    For a durable keeper that is the same place each time: what has survived the one before it calls there.
    """
    path = str(home / "keeper.sock")
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        path = os.path.join(_short_directory(home, ephemeral=ephemeral), "keeper.sock")
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise HomeUnusable(
            error.errno,
            f"{path}, where the keeper is to listen, is taken and cannot be removed ({error.strerror}): move it away",
        ) from error
    return path


def _short_directory(home: Path, *, ephemeral: bool) -> str:
    import tempfile

    if not ephemeral:
        import hashlib

        digest = hashlib.blake2b(os.fsencode(home), digest_size=8).hexdigest()
        path = os.path.join(SHORT, f"pk-{os.geteuid()}-{digest}")
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        about = os.lstat(path)
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) == 0o700:
            return path
        emit("WARNING", f"{path} is somebody else's; what survives this keeper will not find the next one by itself")
    return tempfile.mkdtemp(prefix="pk-", dir=SHORT)
