"""Asking a keeper something from another process; the other end is ``control``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .errors import PoolkeeperError, ProtocolError
from .instance import InstanceLock
from .link import Link, call_keeper
from .messages import Kind, pack, unpack
from .pidfile import PidfileError, read_pidfile
from .process_identity import process_state
from .session import Session

__all__ = ["CALL_TIMEOUT", "ControlClient", "ControlError", "KeeperUnreachable"]

CALL_TIMEOUT = 5.0


class ControlError(PoolkeeperError):
    """The keeper refuses what it was asked for; the message is its own."""


class KeeperUnreachable(PoolkeeperError):
    """No keeper answers at this home."""


class ControlClient:
    """A connection to the keeper whose home is ``home``.

    Args:
        home: the keeper's folder.
        timeout: seconds for the call, and for each answer.

    Raises:
        KeeperUnreachable: when none answers.
    """

    def __init__(self, home: Path, timeout: float = CALL_TIMEOUT) -> None:
        self._session = Session()
        self._number = 0
        introduction = {"role": "control", "id": os.getpid(), "pid": os.getpid()}
        try:
            key = (home / "authkey").read_bytes()
            self._link: Link = call_keeper(_socket_of(home), key, self._session, introduction, timeout)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise KeeperUnreachable(_why(home, timeout, f"no keeper runs at {home}")) from error
        except (OSError, ProtocolError) as error:
            raise KeeperUnreachable(_why(home, timeout, f"no keeper answers at {home}: {error}")) from error
        self._home = home
        self._timeout = timeout
        self._link.socket.settimeout(timeout)

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Return the keeper's answer; raises ControlError when it refuses, KeeperUnreachable when it has gone."""
        self._number += 1
        try:
            self._link.send(self._session.send(pack([(Kind.REQUEST, self._number, verb, arguments)])))
            while True:
                frames, alive = self._link.receive()
                for frame in frames:
                    if self._session.receive(frame):
                        for message in unpack(frame.body):
                            if message[0] == Kind.REPLY and message[1] == self._number:
                                return _value(message)
                if not alive:
                    raise KeeperUnreachable(self._lost("it has closed the connection, or does not answer"))
        except (OSError, ProtocolError) as error:
            raise KeeperUnreachable(self._lost(error)) from error

    def _lost(self, what: object) -> str:
        return _why(self._home, self._timeout, f"the keeper has gone while it was asked: {what}")

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _why(home: Path, timeout: float, gone: str) -> str:
    """Return why no keeper answers: that it is ``gone``, unless its process lives and holds the lock."""
    holder = None
    with contextlib.suppress(OSError, ValueError):
        found = InstanceLock(home.parent.name, home.name, home.parent.parent).holder()
        holder = found if found is not None and found.identity.is_alive() else None
    if holder is None:
        return gone
    keeper = f"the keeper of {home}, process {holder.pid},"
    state = process_state(holder.pid)
    if state in ("T", "t"):
        return f"{keeper} is stopped{' by a debugger' if state == 't' else f'; kill -CONT {holder.pid} wakes it'}"
    if state == "D":
        return f"{keeper} waits for the system, perhaps for a disk, and cannot answer"
    return f"{keeper} has not answered within {timeout:g} s, and lives: it is busy, starts or ends ({gone})"


def _value(message: tuple[Any, ...]) -> Any:
    _, _, error, value = message
    if error is not None:
        raise ControlError(error)
    return value


def _socket_of(home: Path) -> str:
    try:
        return read_pidfile(home / "keeper.pid").socket
    except (OSError, PidfileError):
        return str(home / "keeper.sock")
