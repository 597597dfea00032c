"""The keeper's listening socket and all sessions over it: who calls is asked for proof, who is known is heard.

It moves bytes, frames and sessions; what a message means it leaves to the peer's ``Listener``. ``introduce`` tells
whose session a caller resumes, by what it says of itself, and raises ProtocolError for a stranger. A child of another
version is told to drain, and its listener hears of it once, however often it calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from struct import Struct
from typing import Any, Protocol

from .errors import ProtocolError
from .frames import Frame, FrameKind, decode_json
from .link import PYTHON, Handshake, Link, WrongKey
from .messages import Kind, pack, unpack
from .refusals import Refusals
from .reporting import report
from .session import Session
from .versions import PROTOCOL, Verdict, Versions, judge

__all__ = ["Heir", "Listener", "Peer", "Switchboard"]

ACK_FRAMES = 16
"""Frames that may stay unacknowledged while nothing else goes out to carry the acknowledgement."""

DEAF_SECONDS = 0.1
"""How long to wait with accepting when the process has no descriptor left."""

_CREDENTIALS = Struct("3i")  # pid, user and group

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_WITHIN_A_SESSION = frozenset({FrameKind.DATA, FrameKind.ACK, FrameKind.ATTACH, FrameKind.ASIDE})

OURS = Versions(PROTOCOL, PYTHON)

STRANGERS = 256
"""Connections that have not authenticated yet, at most; beyond, the oldest is closed."""


class Listener(Protocol):
    """Who hears what a peer says, and of its links."""

    def connected(self, peer: Any, hello: dict[str, Any]) -> None:
        """A link to ``peer`` is up again."""

    def message(self, peer: Any, message: tuple[Any, ...], fds: list[int]) -> None:
        """``peer`` has sent a message; its descriptors are the first of ``fds``, to be taken out."""

    def disconnected(self, peer: Any) -> None:
        """The link to ``peer`` is gone."""


class Heir(Listener, Protocol):
    """Who also looks after processes that an earlier keeper has made."""

    def attached(self, peer: Any, content: dict[str, Any], fds: list[int]) -> None:
        """``peer`` has said what it is and holds; the descriptors beside are the first of ``fds``, to be taken out."""

    def turned_away(self, peer: Any, hello: dict[str, Any], why: str) -> None:
        """``peer`` has called, and its versions differ; ``why`` is a predicate of it. It will not be heard."""

    def leaving(self, peer: Any, content: dict[str, Any]) -> None:
        """``peer``, who was refused, has said what it has begun and leaves to be found."""


class Peer:
    """The keeper's end of the session with one process, across all its links.

    ``attached`` is False for a process that an earlier keeper has made, until it has said what it is. ``refusal`` is
    why it cannot be heard: its versions differ.
    """

    name = "a peer"
    attached = True
    refusal = ""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.session = Session()
        self.link: Link | None = None
        self.outgoing: list[tuple[Any, ...]] = []
        self.fds: list[int] = []
        self.wants_write = False
        self.told = 0
        self.due = False

    def releases(self) -> list[int]:
        """Return the numbers of arenas to give back with the next message."""
        return []


class _Caller:
    """A connection that has not said yet who it is, or that was ``refused`` to this peer."""

    def __init__(self, link: Link, key: bytes) -> None:
        self.link = link
        self.refused: Peer | None = None
        self.handshake = Handshake(key)


class Switchboard:
    """Accepts, authenticates, reads and writes; runs on the keeper's thread alone."""

    def __init__(
        self,
        path: str,
        key: bytes,
        selector: selectors.BaseSelector,
        introduce: Callable[[dict[str, Any]], Peer],
        listener: socket.socket | None = None,
        versions: Versions = OURS,
    ) -> None:
        self._key = key
        self._versions = versions
        self._selector = selector
        self._introduce = introduce
        self._callers: dict[Link, _Caller] = {}
        self._due: deque[Peer] = deque()
        self._refusals = Refusals()
        self.disown: Callable[[int], object] = lambda _: None
        """Is told of processes that have called and do not know the key."""
        self.deaf_until: float | None = None
        self._socket = _listen(path) if listener is None else listener
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    @property
    def listener(self) -> socket.socket:
        """The listening socket, which a successor in this process may take over."""
        return self._socket

    # -- callers ------------------------------------------------------------------------------------------------------

    def _accept(self, _: int) -> None:
        while True:
            try:
                sock, _address = self._socket.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # Whoever calls keeps waiting; so must we, rather than be told of it again and again.
                    self._selector.unregister(self._socket)
                    self.deaf_until = time.monotonic() + DEAF_SECONDS
                    report("WARNING", f"a connection cannot be accepted yet: {error.strerror}")
                return
            sock.setblocking(False)
            caller = _Caller(Link(sock), self._key)
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
            self._selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def _drop(self, caller: _Caller) -> None:
        del self._callers[caller.link]
        self._selector.unregister(caller.link.socket)
        caller.link.close()

    def _hear_caller(self, caller: _Caller, _: int) -> None:
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

    def _hear_hello(self, caller: _Caller, frames: list[Frame]) -> None:
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
            self._connect(peer, caller, hello)
            self._hear_frames(peer, frames[1:])

    def _refuse(self, peer: Peer, caller: _Caller, hello: dict[str, Any], why: str) -> None:
        caller.refused = peer
        with contextlib.suppress(OSError):  # gone again, which reading will show
            caller.link.send(caller.handshake.refusal(hello, Verdict.DRAIN, why))
        if not peer.refusal:
            peer.refusal = why
            heir: Any = peer.listener  # nobody else has such peers
            heir.turned_away(peer, hello, why)

    def _hear_refused(self, caller: _Caller, peer: Peer, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind is not FrameKind.LEAVING:
                raise ProtocolError(f"{frame.kind.name} came from one who was refused")
            heir: Any = peer.listener
            heir.leaving(peer, decode_json(frame.body))

    def _connect(self, peer: Peer, caller: _Caller, hello: dict[str, Any]) -> None:
        self._drain(peer)
        if not peer.attached:
            peer.session = Session(received=int(hello["acknowledged"]), sent=int(hello["received"]))
        resend = peer.session.resume(int(hello["received"]))
        del self._callers[caller.link]
        self.detach(peer)
        link = peer.link = caller.link
        self._selector.modify(link.socket, selectors.EVENT_READ, partial(self._hear, peer))
        session = peer.session
        peer.told = session.acknowledgeable
        welcome = caller.handshake.welcome(hello, session.received, peer.told, attach=not peer.attached)
        sent = link.send(welcome)
        for frame, fds in resend:
            sent = link.send(frame, fds)
        if not sent:
            self._watch_writable(peer, True)
        peer.listener.connected(peer, hello)

    def adopt(self, peer: Peer, sock: socket.socket) -> None:
        """Take ``sock`` for the link to ``peer``: one end of a socket pair, whose other end only ``peer`` gets."""
        sock.setblocking(False)
        link = Link(sock)
        link.reader.authenticated = True
        self._selector.register(sock, selectors.EVENT_READ, partial(self._hear, peer))
        peer.link = link

    def _drain(self, peer: Peer) -> None:
        """Take in what has come over a link that its peer has given up: it may be unable to send it again.

        A worker's task can have closed the descriptors of the results that were sent before it ran.
        """
        link = peer.link
        if link is None:
            return
        with contextlib.suppress(ProtocolError, OSError):
            alive = True
            while alive:
                frames, alive = link.receive()
                self._hear_frames(peer, frames)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _hear(self, peer: Peer, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(peer)
        if mask & selectors.EVENT_READ:
            self.read(peer)

    def read(self, peer: Peer) -> bool:
        """Read once; return whether there may be more."""
        link = peer.link
        if link is None:
            return False
        try:
            frames, alive = link.receive()
            self._hear_frames(peer, frames)
        except BlockingIOError:
            return False
        except (ProtocolError, OSError) as error:
            report("WARNING", f"the link to {peer.name} is closed: {error}")
            alive = False
        if not alive and peer.link is link:
            self.lose(peer)
        return alive

    def _hear_frames(self, peer: Peer, frames: Iterable[Frame]) -> None:
        link = peer.link
        assert link is not None
        for frame in frames:
            if frame.kind not in _WITHIN_A_SESSION:
                raise ProtocolError(f"{frame.kind.name} came within a session")
            fds = link.take_fds(frame) if frame.fds else []
            try:
                if frame.kind is FrameKind.ATTACH:
                    self._attach(peer, frame, fds)
                elif not peer.attached:
                    raise ProtocolError(f"{frame.kind.name} came before ATTACH")
                elif peer.session.receive(frame) or frame.kind is FrameKind.ASIDE:
                    self.mark(peer)  # an acknowledgement may be due
                    for message in unpack(frame.body):
                        peer.listener.message(peer, message, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _attach(self, peer: Peer, frame: Frame, fds: list[int]) -> None:
        if not peer.attached:
            (content,) = unpack(frame.body)
            peer.attached = True
            heir: Any = peer.listener  # nobody else has such peers
            heir.attached(peer, content, fds)
            self.mark(peer)

    def post(self, peer: Peer, message: tuple[Any, ...]) -> None:
        """Have ``peer`` told ``message`` with the next ``send_due``."""
        peer.outgoing.append(message)
        self.mark(peer)

    def mark(self, peer: Peer) -> None:
        """Have ``send_due`` look at ``peer``; safe in finalizers."""
        if not peer.due:
            peer.due = True
            self._due.append(peer)

    # -- writing ------------------------------------------------------------------------------------------------------

    def send_due(self) -> None:
        """Send what is due to all peers that something is due to."""
        due = self._due
        while due:
            peer = due.popleft()
            peer.due = False
            self.send(peer)

    def send(self, peer: Peer) -> None:
        """Put what ``peer`` is to be told into one frame, or acknowledge what it has sent if that is overdue."""
        if not peer.attached:
            return  # what it is to be told gets its number when it is known where its session stands
        released = peer.releases()
        if released:
            peer.outgoing.insert(0, (Kind.RELEASE, released))  # first, that the next result may use the arena again
        session = peer.session
        fds: tuple[int, ...] = ()
        if peer.outgoing:
            messages, peer.outgoing = peer.outgoing, []
            fds, peer.fds = tuple(peer.fds), []
            frame = session.send(pack(messages), fds)
        elif session.acknowledgeable - peer.told >= ACK_FRAMES:
            frame = session.acknowledge()
        else:
            return
        peer.told = session.acknowledgeable
        if peer.link is not None:
            try:
                if not peer.link.send(frame, fds):
                    self._watch_writable(peer, True)
            except OSError:
                self._stop_writing(peer)

    def flush(self, peer: Peer, seconds: float = 1.0) -> None:
        """Wait until what was sent to ``peer`` is on its way, but no longer than ``seconds``."""
        if peer.link is not None and peer.link.blocked:
            with contextlib.suppress(OSError):
                peer.link.socket.settimeout(seconds)
                peer.link.flush()

    def _flush(self, peer: Peer) -> None:
        if peer.link is None:
            return
        try:
            if peer.link.flush():
                self._watch_writable(peer, False)
        except OSError:
            self._stop_writing(peer)

    def _stop_writing(self, peer: Peer) -> None:
        """The link is broken; what has come over it before is read first, then its end is seen."""
        if peer.link is not None:
            self._watch_writable(peer, False)
            with contextlib.suppress(OSError):
                peer.link.socket.shutdown(socket.SHUT_RDWR)

    def _watch_writable(self, peer: Peer, wanted: bool) -> None:
        if peer.link is not None and peer.wants_write != wanted:
            peer.wants_write = wanted
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(peer.link.socket, events, partial(self._hear, peer))

    # -- ending -------------------------------------------------------------------------------------------------------

    def lose(self, peer: Peer) -> None:
        """Close the link to ``peer`` and say so."""
        self.detach(peer)
        peer.listener.disconnected(peer)

    def detach(self, peer: Peer) -> None:
        """Close the link to ``peer``, if there is one; the session goes on when it calls again."""
        if peer.link is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(peer.link.socket)
            peer.link.close()
            peer.link = None
            peer.wants_write = False

    def close(self) -> None:
        """Close the listening socket and all connections of callers."""
        for caller in list(self._callers.values()):
            caller.link.close()
        self._callers.clear()
        self._socket.close()


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
