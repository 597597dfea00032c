"""One end of an AF_UNIX connection: frames and their descriptors in and out, and the handshake that opens it.

The keeper speaks first (CHALLENGE with a nonce), the caller answers (HELLO with its own nonce, what it is, and a
proof), the keeper proves itself in turn (WELCOME). Nothing is unpickled before that. Both sides then resend what
the other has not received. A caller whose versions do not match gets REFUSE in place of WELCOME; see ``versions``.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from .errors import ProtocolError
from .frames import Frame, FrameKind, FrameReader, decode_json, encode, encode_json, proof
from .session import Session
from .versions import PROTOCOL, Verdict

__all__ = ["FDS_LIMIT", "PYTHON", "Handshake", "Link", "TurnedAway", "WrongKey", "call_keeper", "draw"]

RECEIVE_SIZE = 1 << 17
FDS_LIMIT = 120
"""Descriptors beside one frame; the kernel takes 253 in one message."""

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

_CMSG_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC) if hasattr(socket, "MSG_CMSG_CLOEXEC") else 0
_DONTWAIT = int(socket.MSG_DONTWAIT) if hasattr(socket, "MSG_DONTWAIT") else 0
_CTRUNC = int(socket.MSG_CTRUNC)
_CMSG_SPACE = socket.CMSG_SPACE(FDS_LIMIT * array.array("i").itemsize)


def draw() -> float:
    """Return a random number from 0 to 1: no forked sibling has the same, and the user's seed stays where it is."""
    return int.from_bytes(os.urandom(4)) / 2**32


class Link:
    """A connected socket with a frame reader, and a queue of what the socket would not take yet.

    A non-blocking socket keeps the rest for ``flush``, and so does a link that is not ``patient``: its receiver may
    have been stopped, and what is to be done meanwhile does not wait for it. Else a blocking one sends all at once.
    ``vet`` is shown the descriptors that have waited before they go; what it raises leaves them where they are.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.patient = True
        self.vet: Callable[[tuple[int, ...]], None] | None = None
        self.reader = FrameReader()
        self._unsent: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._fds: deque[int] = deque()
        self.early: list[Frame] = []
        # Its pages come into being as they are first used: a bytearray writes zeros into all of them, in every worker,
        # and in the keeper for each of its links.
        self._buffer = mmap.mmap(-1, RECEIVE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.socket.fileno()

    @property
    def blocked(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return bool(self._unsent)

    def receive(self) -> tuple[list[Frame], bool]:
        """Read once; return the frames that are whole now, and whether the peer is still there.

        Raises ProtocolError on damage, BlockingIOError where nothing is there to read.
        """
        try:
            size, ancillary, flags, _ = self.socket.recvmsg_into([self._buffer], _CMSG_SPACE, _CMSG_CLOEXEC)
        except (ConnectionError, TimeoutError):
            return [], False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if flags & _CTRUNC:
            raise ProtocolError("descriptors were lost on the way: this process has too many open files")
        return self.reader.receive(self._buffer[:size]), size > 0

    def take_fds(self, frame: Frame) -> list[int]:
        """Return the descriptors beside ``frame``, to be closed by the caller; raises ProtocolError if any is lost."""
        if frame.fds > len(self._fds):
            raise ProtocolError(f"a frame announces {frame.fds} descriptors, {len(self._fds)} came")
        return [self._fds.popleft() for _ in range(frame.fds)]

    def send(self, frame: bytes, fds: tuple[int, ...] = ()) -> bool:
        """Send a frame, or queue what the socket does not take; return whether all is sent.

        Raises OSError if the peer is gone.
        """
        if not self._unsent and not fds:
            try:
                sent = self.socket.send(frame, 0 if self.patient else _DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent == len(frame):
                return True
            self._unsent.append((memoryview(frame)[sent:], ()))
            return self.flush() if self.patient and self.socket.gettimeout() != 0.0 else False
        self._unsent.append((memoryview(frame), fds))
        return self.flush()

    def flush(self) -> bool:
        """Send what is queued; return whether all of it is sent. Raises OSError if the peer is gone."""
        unsent = self._unsent
        flags = 0 if self.patient else _DONTWAIT
        while unsent:
            data, fds = unsent[0]
            if fds and self.vet is not None:
                self.vet(fds)
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self.socket.sendmsg([data], beside, flags) if fds else self.socket.send(data, flags)
            except BlockingIOError:
                return False
            if sent == len(data):
                unsent.popleft()
            else:
                unsent[0] = (data[sent:], ())
        return True

    def ask_for_signal(self, wanted: bool) -> None:
        """Have SIGURG tell this process when the peer has made room for what is blocked, where the system can."""
        if not hasattr(fcntl, "F_SETSIG"):
            return
        if wanted:
            fcntl.fcntl(self.socket, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.socket, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self.socket, fcntl.F_GETFL)
        fcntl.fcntl(self.socket, fcntl.F_SETFL, flags | os.O_ASYNC if wanted else flags & ~os.O_ASYNC)

    def close(self) -> None:
        """Close the socket and the descriptors that no frame has claimed."""
        while self._fds:
            os.close(self._fds.popleft())
        try:
            self.socket.close()
        except OSError:
            self.socket.detach()


def _about_us() -> dict[str, Any]:
    return {"protocol": PROTOCOL, "python": PYTHON}


class TurnedAway(ProtocolError):
    """The keeper is the right one, and this process cannot work for it: their versions differ."""


class WrongKey(ProtocolError):
    """A caller could not prove that it knows the key."""


class Handshake:
    """The keeper's side of opening a link: feed it frames until it returns what the caller says of itself."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._nonce = os.urandom(32)

    def challenge(self) -> bytes:
        """Return the frame that the keeper sends on accepting."""
        return encode(FrameKind.CHALLENGE, encode_json({"nonce": self._nonce.hex(), **_about_us()}))

    def verify(self, frame: Frame) -> dict[str, Any]:
        """Return the caller's introduction (role, id, received); raises WrongKey when it does not know the key."""
        if frame.kind is not FrameKind.HELLO:
            raise ProtocolError(f"{frame.kind.name} came before HELLO")
        hello = decode_json(frame.body)
        given = hello.pop("proof", None)
        if not isinstance(given, str) or not _same(given, proof(self._key, "caller", self._nonce, encode_json(hello))):
            raise WrongKey("a caller could not prove that it knows the key")
        return hello

    def welcome(
        self, hello: dict[str, Any], received: int, acknowledged: int | None = None, *, attach: bool = False
    ) -> bytes:
        """Return the frame by which the keeper proves itself and says up to where it has received, and acknowledges.

        ``attach`` asks for an ATTACH frame: this keeper knows nothing of the caller yet.
        """
        acknowledged = received if acknowledged is None else acknowledged
        content = {"received": received, "acknowledged": acknowledged, "attach": attach}
        mac = proof(self._key, "keeper", bytes.fromhex(str(hello["nonce"])), encode_json(content))
        return encode(FrameKind.WELCOME, encode_json({**content, "proof": mac}))

    def refusal(self, hello: dict[str, Any], verdict: Verdict, why: str) -> bytes:
        """Return the frame by which the keeper proves itself and says that there will be no link, and ``why``."""
        content = {"verdict": verdict.value, "why": why}
        mac = proof(self._key, "keeper", bytes.fromhex(str(hello["nonce"])), encode_json(content))
        return encode(FrameKind.REFUSE, encode_json({**content, "proof": mac}))


def _same(given: str, expected: str) -> bool:
    from hmac import compare_digest

    return compare_digest(given.encode(), expected.encode())


def call_keeper(
    path: str,
    key: bytes,
    session: Session,
    introduction: dict[str, Any],
    timeout: float,
    before_resend: Callable[[set[int]], None] = lambda _: None,
    attach: Callable[[], tuple[bytes, tuple[int, ...]]] | None = None,
    leaving: Callable[[], dict[str, Any]] | None = None,
    *,
    patient: bool = True,
) -> Link:
    """Connect to the keeper's socket, pass the handshake, resend what it misses, and return the blocking link.

    One that is not ``patient`` may hold what the keeper does not read yet, see ``Link``.

    ``timeout`` is in seconds for each step. ``before_resend`` is shown the descriptors that are to be sent again;
    what it raises ends the call. ``attach`` returns what a keeper must know that has taken over from
    another one, and the descriptors that go beside it. ``leaving`` returns what a keeper must know that has no use for
    this process. Raises OSError when nobody answers, TurnedAway when the versions differ, ProtocolError when whoever
    answers is not the keeper, or is another one and there is no ``attach``.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link = Link(sock)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
        challenge = decode_json(_await(link, FrameKind.CHALLENGE).body)
        nonce = os.urandom(32)
        standing = {"received": session.received, "acknowledged": session.acknowledged}
        hello = {**introduction, **_about_us(), **standing, "nonce": nonce.hex()}
        hello["proof"] = proof(key, "caller", bytes.fromhex(challenge["nonce"]), encode_json(hello))
        link.send(encode(FrameKind.HELLO, encode_json(hello)))
        link.reader.authenticated = True
        answer = _await(link, FrameKind.WELCOME, FrameKind.REFUSE)
        welcome = decode_json(answer.body)
        given = welcome.pop("proof", "")
        if not _same(str(given), proof(key, "keeper", nonce, encode_json(welcome))):
            raise ProtocolError("whoever listens on the keeper's socket does not know its key")
        if answer.kind is FrameKind.REFUSE:
            if leaving is not None and welcome.get("verdict") == Verdict.DRAIN.value:
                link.send(encode(FrameKind.LEAVING, encode_json(leaving())))
            raise TurnedAway(f"the keeper refuses a process that {welcome.get('why')}")
        sock.settimeout(None)
        link.patient = patient
        received = int(welcome["received"])
        resend = session.resume(received, int(welcome.get("acknowledged", received)))
        before_resend({fd for _, fds in resend for fd in fds})
        if welcome.get("attach"):
            if attach is None:
                raise ProtocolError("another keeper than the one that this process belongs to has answered")
            body, beside = attach()  # nothing waits ahead of them: the descriptors go at once
            link.send(encode(FrameKind.ATTACH, body, fds=len(beside)), beside)
        for frame, fds in resend:
            link.send(frame, fds)
    except BaseException:
        link.close()
        raise
    return link


def _await(link: Link, *kinds: FrameKind) -> Frame:
    """Return the next frame; the handshake of one side never runs ahead of the other's, so it comes alone."""
    while True:
        frames, alive = link.receive()
        if frames:
            frame, *rest = frames
            if frame.kind not in kinds:
                raise ProtocolError(f"{frame.kind.name} came where {kinds[0].name} was due")
            link.early = rest
            return frame
        if not alive:
            raise ConnectionResetError("the keeper closed the connection during the handshake")
