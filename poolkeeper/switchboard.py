"""All sessions of a keeper, over the links of those that its ``Reception`` lets in.

It moves bytes, frames and sessions; what a message means it leaves to the peer's ``Listener``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .errors import ProtocolError
from .frames import Frame, FrameKind
from .link import Link
from .messages import Kind, pack, unpack
from .peer import Peer
from .reception import OURS, Caller, Reception
from .reporting import report
from .session import Session
from .versions import Versions

__all__ = ["Switchboard"]

ACK_FRAMES = 16
"""Frames that may stay unacknowledged while nothing else goes out to carry the acknowledgement."""

_WITHIN_A_SESSION = frozenset({FrameKind.DATA, FrameKind.ACK, FrameKind.ATTACH, FrameKind.ASIDE})


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
        self._selector = selector
        self._due: deque[Peer] = deque()
        self._reception = Reception(path, key, selector, introduce, self._connect, listener, versions)

    def on_wrong_key(self, tell: Callable[[int], object]) -> None:
        """Have ``tell`` called with the pid of each process that calls and does not know the key."""
        self._reception.disown = tell

    @property
    def listener(self) -> socket.socket:
        """The listening socket, which a successor in this process may take over."""
        return self._reception.socket

    @property
    def deaf_until(self) -> float | None:
        """When to call ``listen_again``, None for not at all."""
        return self._reception.deaf_until

    def listen_again(self, now: float) -> None:
        """Accept connections again once the pause is over."""
        self._reception.listen_again(now)

    def mend(self) -> None:
        """Listen anew where the socket has been removed, as those do who clean up temporary files."""
        self._reception.mend()

    def hear_out(self, peer: Peer) -> None:
        """Read all that is left of what ``peer`` has said, which has ended."""
        while self.read(peer):
            pass
        self._reception.hear_out(peer)

    # -- links --------------------------------------------------------------------------------------------------------

    def _connect(self, peer: Peer, caller: Caller, hello: dict[str, Any], frames: list[Frame]) -> None:
        self._drain(peer)
        if not peer.attached:
            peer.session = Session(received=int(hello["acknowledged"]), sent=int(hello["received"]))
        resend = peer.session.resume(int(hello["received"]))
        self._reception.release(caller)
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
        self._hear_frames(peer, frames)

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
        self.mend()  # or it could not call back
        peer.listener.disconnected(peer)

    def detach(self, peer: Peer) -> None:
        """Close the link to ``peer``, if there is one; the session goes on when it calls again."""
        if peer.link is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(peer.link.socket)
            peer.link.close()
            peer.link = None
            peer.wants_write = False

    def close(self, *, listen_on: bool = False) -> None:
        """Close all connections of callers, and the listening socket unless a successor is to ``listen_on`` there."""
        self._reception.close(listen_on=listen_on)
