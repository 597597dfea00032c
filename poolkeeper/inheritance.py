"""What an earlier program in this process has handed over: taken when this module is imported, before any child starts.

Nothing is believed that cannot be checked. A descriptor is ours if the lock file of the home that it is said to belong
to is what it has open, and has locked, or if it is a listening socket that bears the name it is said to have. Such a
descriptor is closed in children from then on; any other one is left alone, for it may be somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .handover import VARIABLE, HandedKeeper, Handover, PastReexec, parse
from .logs import emit

if TYPE_CHECKING:
    from .instance import InstanceLock

__all__ = ["INHERITANCE", "Inheritance", "Inherited"]


class Inherited(NamedTuple):
    """What one keeper has left: the lock, held, and its listening socket, if it could be had."""

    lock: InstanceLock
    listener: socket.socket | None


class Inheritance:
    """What has been handed over to this process, and not been claimed yet.

    Args:
        environ: the environment, from which the hand-over is removed.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.history: tuple[PastReexec, ...] = ()
        """The re-execs of this process."""
        self.held: tuple[int, ...] = ()
        """The signals that wait for somebody to handle them."""
        self._kept: dict[Path, Inherited] = {}
        self._complaints: list[str] = []
        text = environ.pop(VARIABLE, None)
        if text is not None:
            self._take(text)

    def claim(self, folder: Path) -> Inherited | None:
        """Return, once, what the keeper has left whose home is ``folder``."""
        for complaint in self._complaints:
            emit("WARNING", complaint)
        self._complaints.clear()
        for kept in self._kept:
            with contextlib.suppress(OSError):  # there is no such home yet
                if os.path.samefile(kept, folder):
                    return self._kept.pop(kept)
        return None

    def _take(self, text: str) -> None:
        try:
            handover = parse(text)
        except ValueError as error:
            self._complaints.append(f"{VARIABLE} is ignored: {error}")
            return
        if handover.pid != os.getpid():
            self._complaints.append(
                f"{VARIABLE} is ignored: it is meant for process {handover.pid}, and this is {os.getpid()}"
            )
            return
        self._take_from(handover)

    def _take_from(self, handover: Handover) -> None:
        self.history = handover.history
        self.held = handover.held
        for keeper in handover.keepers:
            try:
                self._take_keeper(keeper)
            except (OSError, ValueError) as error:
                self._complaints.append(f"what keeper {keeper.name!r} has left cannot be taken over: {error}")

    def _take_keeper(self, keeper: HandedKeeper) -> None:
        from .instance import InstanceLock

        folder = Path(keeper.folder)
        if folder.parts[-2:] != (keeper.name, keeper.run_id):
            raise ValueError(f"{folder} is not its home")
        lock = InstanceLock(keeper.name, keeper.run_id, folder.parent.parent)
        if not lock.adopt(keeper.lock):
            raise ValueError(f"descriptor {keeper.lock} does not have the lock of {folder}")
        listener = None
        if keeper.socket is not None:
            listener, why = _listener(keeper.socket, keeper.socket_path)
            if listener is None:
                self._complaints.append(f"the socket of keeper {keeper.name!r} is made anew: {why}")
        self._kept[lock.folder] = Inherited(lock, listener)


def _listener(descriptor: int, path: str) -> tuple[socket.socket | None, str]:
    """Return the listening socket that is bound to ``path``, or why ``descriptor`` is not that."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None, f"descriptor {descriptor} is no socket"
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        return None, f"descriptor {descriptor}: {error}"
    if not _is_listening(found, path):
        found.detach()
        return None, f"descriptor {descriptor} is another socket"
    if not _is_socket(path):
        found.close()
        return None, f"{path} is gone"
    found.set_inheritable(False)
    found.setblocking(False)
    return found, ""


def _is_listening(found: socket.socket, path: str) -> bool:
    try:
        return (
            found.family == socket.AF_UNIX
            and found.getsockname() == path
            and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        )
    except OSError:
        return False


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


INHERITANCE = Inheritance(os.environ)
