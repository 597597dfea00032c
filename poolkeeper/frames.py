"""Bytes to frames and back, and the proofs that two peers share a key. No sockets, no clock.

Every frame is a fixed header followed by its body::

    body length u32 | crc32 u32 | kind u8 | fds u8 | guard u16 | sequence u64 | acknowledged u64

The CRC covers the header behind it and the body. The guard is the lower half of the length's own CRC, for a length that
is damaged would have the receiver wait for ever; 0 stands for none. ``fds`` counts the descriptors that travel beside
the frame. ``sequence`` numbers the DATA frames of a session from 1 and is 0 for all others; ``acknowledged`` is the
highest sequence up to which all that the sender of this frame has received is safe with it. Bodies of handshake frames
are JSON, so that nothing is unpickled before a peer has proved that it knows the key.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, NamedTuple
from zlib import crc32

from .errors import ProtocolError

__all__ = [
    "HEADER_SIZE",
    "Frame",
    "FrameKind",
    "FrameReader",
    "decode_json",
    "encode",
    "encode_json",
    "proof",
]

HEADER = struct.Struct("<IIBBHQQ")
LENGTH = struct.Struct("<I")
CHECKED = struct.Struct("<BBHQQ")
HEADER_SIZE = HEADER.size

HANDSHAKE_LIMIT = 16 * 1024
"""A peer that has not authenticated may not make us buffer more than this many bytes."""

BODY_LIMIT = 1 << 30
"""Large payloads travel in arenas; a longer body than this is damage, not data."""


class FrameKind(IntEnum):
    """What a frame is for; DATA alone is numbered, acknowledged and resent.

    ATTACH is what a caller tells a keeper that knows nothing of it yet, ahead of what it sends again. An ASIDE has a
    body as DATA has, and may be lost: what it says is soon overtaken. REFUSE comes in place of a WELCOME, and LEAVING
    is what a worker answers that is refused for good (``versions``).
    """

    CHALLENGE = 1
    HELLO = 2
    WELCOME = 3
    REFUSE = 4
    DATA = 5
    ACK = 6
    ATTACH = 7
    ASIDE = 8
    LEAVING = 9


_KINDS = {kind.value: kind for kind in FrameKind}


class Frame(NamedTuple):
    """One frame as it arrived, its CRC already checked."""

    kind: FrameKind
    sequence: int
    acknowledged: int
    fds: int
    body: bytes | memoryview


def encode(kind: FrameKind, body: bytes = b"", sequence: int = 0, acknowledged: int = 0, fds: int = 0) -> bytes:
    """Return the bytes of one frame.

    Raises ProtocolError when ``body`` is longer than a frame may be.
    """
    if len(body) > BODY_LIMIT:
        raise ProtocolError(f"a frame of {len(body)} bytes is longer than the limit of {BODY_LIMIT}")
    length = LENGTH.pack(len(body))
    checked = CHECKED.pack(kind, fds, crc32(length) & 0xFFFF, sequence, acknowledged)
    return b"".join((length, LENGTH.pack(crc32(body, crc32(checked))), checked, body))


class FrameReader:
    """Collects received bytes and gives back whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = 0
        self.authenticated = False

    def receive(self, data: bytes) -> list[Frame]:
        """Take bytes from the peer, return the frames that are complete now.

        Raises ProtocolError on a wrong CRC, an unknown kind, or a length beyond what the peer may send; the link
        must be closed then, for nothing behind the damage can be trusted.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                return []
            view = memoryview(bytes(buffer))
            buffer.clear()
        else:
            view = memoryview(data)
        self._needed = 0
        frames: list[Frame] = []
        position, end = 0, len(view)
        limit = BODY_LIMIT if self.authenticated else HANDSHAKE_LIMIT
        while end - position >= HEADER_SIZE:
            length, crc, kind, fds, guard, sequence, acknowledged = HEADER.unpack_from(view, position)
            if length > limit:
                raise ProtocolError(f"a frame announces {length} bytes; the limit is {limit}")
            if guard and guard != crc32(LENGTH.pack(length)) & 0xFFFF:
                raise ProtocolError("the length of a frame is damaged")
            stop = position + HEADER_SIZE + length
            if stop > end:
                self._needed = stop - position
                break
            if crc32(view[position + 8 : stop]) != crc:
                raise ProtocolError("a frame fails its CRC")
            if kind not in _KINDS:
                raise ProtocolError(f"a frame has the unknown kind {kind}")
            frames.append(Frame(_KINDS[kind], sequence, acknowledged, fds, view[position + HEADER_SIZE : stop]))
            position = stop
        if position < end:
            buffer += view[position:]
        return frames


def encode_json(content: dict[str, Any]) -> bytes:
    """Return ``content`` as the canonical JSON that the proofs are computed over."""
    import json  # a keeper can load it while its fork server starts

    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def decode_json(body: bytes | memoryview) -> dict[str, Any]:
    """Return the object in a handshake body; raises ProtocolError when it is not one."""
    import json

    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a handshake body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ProtocolError("a handshake body is not an object")
    return content


def proof(key: bytes, role: str, *parts: bytes) -> str:
    """Return the HMAC-SHA256 (RFC 2104), in hex, by which ``role`` proves over ``parts`` that it knows ``key``."""
    import hmac  # loads OpenSSL, which takes a while; likewise

    framed = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    return hmac.digest(key, role.encode() + framed, "sha256").hex()
