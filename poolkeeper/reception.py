"""The keeper's listening socket: who calls is asked for proof, and is let in or sent away.

``introduce`` tells whose session a caller resumes, by what it says of itself, and raises ProtocolError for a stranger.
A child of another version is told to drain, and its listener hears of it once, however often it calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

from .errors import ProtocolError
from .frames import Frame, FrameKind, decode_json
from .link import PYTHON, Handshake, Link, WrongKey
from .peer import Peer
from .refusals import Refusals
from .reporting import report
from .versions import PROTOCOL, Verdict, Versions, judge

__all__ = ["OURS", "Caller", "Reception"]

DEAF_SECONDS = 0.1
"""How long to wait with accepting when the process has no descriptor left."""

_CREDENTIALS = Struct("3i")  # pid, user and group

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

OURS = Versions(PROTOCOL, PYTHON)

STRANGERS = 256
"""Connections that have not authenticated yet, at most; beyond, the oldest is closed."""


class Caller:
    """A connection that has not said yet who it is, or that was ``refused`` to this peer."""

    def __init__(self, link: Link, key: bytes) -> None:
        self.link = link
        self.refused: Peer | None = None
        self.handshake = Handshake(key)


Connect = Callable[[Peer, Caller, dict[str, Any], list[Frame]], None]


class Reception:
    """Accepts and authenticates, and has ``connect`` take over whoever is let in: with its hello and what came behind.

    ``deaf_until`` is when to call ``listen_again``, None for not at all.
    """

    def __init__(
        self,
        path: str,
        key: bytes,
        selector: selectors.BaseSelector,
        introduce: Callable[[dict[str, Any]], Peer],
        connect: Connect,
        listener: socket.socket | None,
        versions: Versions,
    ) -> None:
        self._path = path
        self._key = key
        self._versions = versions
        self._selector = selector
        self._introduce = introduce
        self._connect = connect
        self._callers: dict[Link, Caller] = {}
        self._is_gone = False
        self._refusals = Refusals()
        self.disown: Callable[[int], object] = lambda _: None
        """Is told of processes that have called and do not know the key."""
        self.deaf_until: float | None = None
        self.socket = _listen(path) if listener is None else listener
        selector.register(self.socket, selectors.EVENT_READ, self._accept)

    def mend(self) -> None:
        """Listen anew where the socket has been removed, as those do who clean up temporary files."""
        if os.path.lexists(self._path):
            return
        try:
            listener = _listen(self._path)
        except OSError as error:  # as where the folder is gone, with all else in it
            if not self._is_gone:
                self._is_gone = True
                report("WARNING", f"the keeper's socket {self._path} is gone: who loses its link cannot call ({error})")
            return
        self._is_gone = False
        report("WARNING", f"the keeper's socket {self._path} was gone, and is made again")
        if self.deaf_until is None:
            self._selector.unregister(self.socket)
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self.socket.close()
        self.socket = listener

    def _accept(self, _: int) -> None:
        while True:
            try:
                sock, _address = self.socket.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # Whoever calls keeps waiting; so must we, rather than be told of it again and again.
                    self._selector.unregister(self.socket)
                    self.deaf_until = time.monotonic() + DEAF_SECONDS
                    report("WARNING", f"a connection cannot be accepted yet: {error.strerror}")
                return
            sock.setblocking(False)
            caller = Caller(Link(sock), self._key)
            if len(self._callers) >= STRANGERS:
                self._drop(next(iter(self._callers.values())))
            self._callers[caller.link] = caller
            self._selector.register(sock, selectors.EVENT_READ, partial(self._hear_caller, caller))
            with contextlib.suppress(OSError):  # gone again, which reading will show
                caller.link.send(caller.handshake.challenge())

    def listen_again(self, now: float) -> None:
        """Accept connections again once the pause is over."""
        if self.deaf_until is not None and now >= self.deaf_until:
            self.deaf_until = None
            self._selector.register(self.socket, selectors.EVENT_READ, self._accept)

    def release(self, caller: Caller) -> None:
        """Have nothing more to do with a connection: it is a peer's now."""
        del self._callers[caller.link]

    def _drop(self, caller: Caller) -> None:
        del self._callers[caller.link]
        self._selector.unregister(caller.link.socket)
        caller.link.close()

    def _hear_caller(self, caller: Caller, _: int) -> None:
        try:
            frames, alive = caller.link.receive()
            if caller.refused is not None:
                self._hear_refused(caller, caller.refused, frames)
            elif frames:
                self._hear_hello(caller, frames)
            if not alive and caller.link in self._callers:
                self._drop(caller)
        except (ProtocolError, OSError, KeyError, ValueError, TypeError) as error:
            pid = _pid_of(caller.link.socket)
            count = self._refusals.note(pid)
            if count is not None:
                often = f", for the {count}th time" if count > 1 else ""
                report("WARNING", f"a connection of process {pid} to the keeper's socket is refused{often}: {error}")
            if caller.link in self._callers:
                self._drop(caller)
            if pid is not None and isinstance(error, WrongKey):
                self.disown(pid)

    def _hear_hello(self, caller: Caller, frames: list[Frame]) -> None:
        hello = caller.handshake.verify(frames[0])
        verdict, why = judge(self._versions, hello)
        if verdict is Verdict.REFUSE:
            caller.link.send(caller.handshake.refusal(hello, verdict, why))
            raise ProtocolError(f"the caller {why}")
        peer = self._introduce(hello)
        caller.link.reader.authenticated = True
        if verdict is Verdict.DRAIN:
            self._refuse(peer, caller, hello, why)
        else:
            self._connect(peer, caller, hello, frames[1:])

    def _refuse(self, peer: Peer, caller: Caller, hello: dict[str, Any], why: str) -> None:
        caller.refused = peer
        with contextlib.suppress(OSError):  # gone again, which reading will show
            caller.link.send(caller.handshake.refusal(hello, Verdict.DRAIN, why))
        if not peer.refusal:
            peer.refusal = why
            heir: Any = peer.listener  # nobody else has such peers
            heir.turned_away(peer, hello, why)

    def hear_out(self, peer: Peer) -> None:
        """Read what ``peer``, which has ended, may have said when it was refused."""
        for caller in [caller for caller in self._callers.values() if caller.refused is peer]:
            self._hear_caller(caller, 0)

    def _hear_refused(self, caller: Caller, peer: Peer, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind is not FrameKind.LEAVING:
                raise ProtocolError(f"{frame.kind.name} came from one who was refused")
            heir: Any = peer.listener
            heir.leaving(peer, decode_json(frame.body))

    def close(self, *, listen_on: bool) -> None:
        """Close all connections of callers, and the listening socket unless a successor is to ``listen_on`` there."""
        for caller in list(self._callers.values()):
            caller.link.close()
        self._callers.clear()
        if not listen_on:
            self.socket.close()


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _pid_of(sock: socket.socket) -> int | None:
    """Return the pid of the process that has connected, by the kernel's word; None where that cannot be known."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except OSError:
        return None
    return int(pid) or None
