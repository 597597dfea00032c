"""The reliable message stream that survives reconnects. Pure: it numbers, keeps, acknowledges and deduplicates.

Rules:

1. Every DATA frame has the next sequence number and stays in the outbox until the peer acknowledges it.
2. A frame is taken in once: what was received before is dropped, a gap is a protocol error.
3. Acknowledgements are cumulative and ride on every frame; an ACK frame is sent only when nothing else goes out.
4. After a reconnect both peers tell the highest sequence that they have received; what lies behind it is resent. What
   was received and is withheld stays in the outbox, for its receiver may die before it is recorded.
5. What travels beside a frame (descriptors of arenas) stays with its outbox entry, so that a resend carries it again.
6. What was received may be withheld from acknowledgement until it is recorded: whoever has sent it keeps it until then.
7. A keeper that takes over from another begins where the caller says that it stands: behind what was acknowledged.

What bounds an outbox is who fills it, for a session refuses nothing:

- A worker's: the results of what it has been fed (``Call.window``), and it begins no further task while
  ``worker_session.OUTBOX_BYTES`` or ``OUTBOX_FDS`` wait for a keeper that is away or does not read. When it leaves
  with results that nobody has come for, they go to the spool (``left_behind``). Progress and notices are ASIDE frames
  and never in it (``remarks``).
- A fork server's: two reports for each process that it was asked for, and a notice for each module of the preload.
- A service's: what fits its socket; else it keeps the last message of each lasting kind (``service_line``).
- The keeper's, to a worker that is stopped: what the worker may be fed, a definition for each call, and a release for
  each arena that it has lent; as it answers nothing, it is fed nothing more.

What must not wait behind anything else does not travel here, so that a link is first in, first out: a cancellation is
a mark on the worker's page and a signal, a stop or a kill a signal, a crash the end of the link, large payloads go
beside the frame. Acknowledgements ride on whatever goes out next, for they free memory and nobody waits for them.
ASIDE frames are a class of their own: what they say waits for a link with room, and only the newest of it, so that
progress never delays a result. Output goes to log files.

There are no heartbeats: on one machine the kernel ends the link of a dead peer at once, a stopped one shows as a full
socket or a call without answer, and silence alone proves nothing.

Nothing is compressed. *Measured* on two cores, Python 3.11 (which has no zstd), from one process to another, checked
there, and the answer back: 64 KiB of Python source take 0.03 ms as they are, and 1.0 ms by zlib level 1, to a third of
the size. Large payloads travel by memory that both sides map.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .errors import ProtocolError
from .frames import Frame, FrameKind, encode

__all__ = ["Outgoing", "Session"]


class Outgoing(NamedTuple):
    """One DATA frame that the peer has not acknowledged yet, with the descriptors that go beside it."""

    sequence: int
    body: bytes
    fds: tuple[int, ...]


class Session:
    """One side of a session between the keeper and a worker or fork server.

    ``received`` is the highest sequence taken in, ``sent`` the highest given out; a session that is taken over begins
    with other numbers than 0.
    """

    def __init__(self, received: int = 0, sent: int = 0) -> None:
        self.received = received
        self.sent = sent
        self._acknowledged_to_peer = received
        self._outbox: deque[Outgoing] = deque()
        self._withheld: deque[int] = deque()

    @property
    def outbox(self) -> Sequence[Outgoing]:
        """What the peer has not acknowledged, oldest first."""
        return self._outbox

    @property
    def acknowledged(self) -> int:
        """The highest sequence that the peer has acknowledged."""
        return self.sent - len(self._outbox)

    @property
    def acknowledgeable(self) -> int:
        """The highest sequence that may be acknowledged: all up to it is safe here."""
        return self._withheld[0] - 1 if self._withheld else self.received

    @property
    def owes_ack(self) -> bool:
        """Whether something was received that no frame of ours has acknowledged yet."""
        return self.acknowledgeable > self._acknowledged_to_peer

    def withhold(self) -> int:
        """Do not acknowledge what was received last, nor what comes behind it, until it is given to ``release``."""
        if not self._withheld or self._withheld[-1] != self.received:
            self._withheld.append(self.received)
        return self.received

    def release(self, sequence: int) -> None:
        """What was received as ``sequence``, and withheld, may be acknowledged."""
        with contextlib.suppress(ValueError):
            self._withheld.remove(sequence)

    def send(self, body: bytes, fds: tuple[int, ...] = ()) -> bytes:
        """Number ``body``, keep it until acknowledged, and return the frame to put on the link."""
        outgoing = Outgoing(self.sent + 1, body, fds)
        frame = self._encode(outgoing)
        self.sent += 1
        self._outbox.append(outgoing)
        return frame

    def aside(self, body: bytes) -> bytes:
        """Return a frame with ``body`` that is not kept: it arrives now or never."""
        self._acknowledged_to_peer = self.acknowledgeable
        return encode(FrameKind.ASIDE, body, acknowledged=self._acknowledged_to_peer)

    def acknowledge(self) -> bytes:
        """Return an ACK frame for all that was received."""
        self._acknowledged_to_peer = self.acknowledgeable
        return encode(FrameKind.ACK, acknowledged=self._acknowledged_to_peer)

    def receive(self, frame: Frame) -> bool:
        """Take in any frame; return whether it carries a body that is new.

        Raises ProtocolError on a gap, or on the acknowledgement of something never sent.
        """
        self._take_acknowledgement(frame.acknowledged)
        if frame.kind is not FrameKind.DATA:
            return False
        if frame.sequence <= self.received:
            return False
        if frame.sequence != self.received + 1:
            raise ProtocolError(f"frame {frame.sequence} arrived where {self.received + 1} was due")
        self.received = frame.sequence
        return True

    def resume(self, peer_received: int, peer_acknowledges: int | None = None) -> list[tuple[bytes, tuple[int, ...]]]:
        """Return what to resend, frames with their descriptors, to a peer that has received up to ``peer_received``.

        ``peer_acknowledges`` is less where it withholds some of that. Raises ProtocolError when the peer claims more
        than was sent, or misses what it had acknowledged.
        """
        if peer_received < self.acknowledged:
            raise ProtocolError(f"the peer misses frames behind {peer_received} that it had acknowledged")
        if peer_received > self.sent:
            raise ProtocolError(f"frame {peer_received} was received but only {self.sent} were sent")
        self._take_acknowledgement(peer_received if peer_acknowledges is None else peer_acknowledges)
        behind = (outgoing for outgoing in self._outbox if outgoing.sequence > peer_received)
        return [(self._encode(outgoing), outgoing.fds) for outgoing in behind]

    def _encode(self, outgoing: Outgoing) -> bytes:
        self._acknowledged_to_peer = acknowledged = self.acknowledgeable
        return encode(FrameKind.DATA, outgoing.body, outgoing.sequence, acknowledged, len(outgoing.fds))

    def _take_acknowledgement(self, acknowledged: int) -> None:
        if acknowledged > self.sent:
            raise ProtocolError(f"frame {acknowledged} was acknowledged but only {self.sent} were sent")
        outbox = self._outbox
        while outbox and outbox[0].sequence <= acknowledged:
            outbox.popleft()
