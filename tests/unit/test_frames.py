"""Frames: whatever the cuts, whole frames come out or an error; proofs bind the role and every part."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.errors import ProtocolError
from poolkeeper.frames import (
    BODY_LIMIT,
    HANDSHAKE_LIMIT,
    HEADER_SIZE,
    Frame,
    FrameKind,
    FrameReader,
    decode_json,
    encode,
    encode_json,
    proof,
)

NUMBERS = st.integers(0, 2**64 - 1)


@dataclass(frozen=True)
class Sent:
    kind: FrameKind
    body: bytes
    sequence: int
    acknowledged: int
    fds: int

    def encode(self) -> bytes:
        return encode(self.kind, self.body, self.sequence, self.acknowledged, self.fds)


SENT = st.builds(Sent, st.sampled_from(FrameKind), st.binary(max_size=300), NUMBERS, NUMBERS, st.integers(0, 255))


def as_sent(frame: Frame) -> Sent:
    return Sent(frame.kind, bytes(frame.body), frame.sequence, frame.acknowledged, frame.fds)


@given(st.lists(SENT), st.data())
def test_frames_arrive_whole_however_the_stream_is_cut(sent: list[Sent], data: st.DataObject) -> None:
    stream = b"".join(frame.encode() for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = FrameReader()
    received: list[Sent] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received.extend(map(as_sent, reader.receive(stream[start:stop])))
    assert received == sent


def test_frames_arrive_byte_by_byte() -> None:
    reader = FrameReader()
    stream = encode(FrameKind.DATA, b"one", 1) + encode(FrameKind.ACK, acknowledged=7)
    frames = [frame for position in range(len(stream)) for frame in reader.receive(stream[position : position + 1])]
    assert [(frame.kind, bytes(frame.body), frame.acknowledged) for frame in frames] == [
        (FrameKind.DATA, b"one", 0),
        (FrameKind.ACK, b"", 7),
    ]


@given(SENT, st.data())
def test_a_damaged_byte_is_never_taken_for_a_frame(sent: Sent, data: st.DataObject) -> None:
    stream = bytearray(sent.encode())
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position] ^= data.draw(st.integers(1, 255))
    try:
        frames = FrameReader().receive(bytes(stream))
    except ProtocolError:
        return
    # A length that has grown announces bytes that have not come yet.
    assert position < 4
    assert frames == []


def test_an_unknown_kind_is_refused() -> None:
    good = encode(FrameKind.ACK)
    unknown = encode(99, b"", 0, 0)  # type: ignore[arg-type]
    assert len(unknown) == len(good) == HEADER_SIZE
    with pytest.raises(ProtocolError, match="unknown kind 99"):
        FrameReader().receive(unknown)


def test_a_stranger_cannot_make_us_buffer_much() -> None:
    large = encode(FrameKind.HELLO, bytes(HANDSHAKE_LIMIT + 1))
    with pytest.raises(ProtocolError, match=f"announces {HANDSHAKE_LIMIT + 1} bytes"):
        FrameReader().receive(large[:HEADER_SIZE])
    reader = FrameReader()
    reader.authenticated = True
    assert len(reader.receive(large)) == 1


class HugeBytes(bytes):
    """Says that it is longer than a frame may be, without being it."""

    def __len__(self) -> int:
        return BODY_LIMIT + 1


def test_a_body_beyond_the_limit_is_not_encoded() -> None:
    with pytest.raises(ProtocolError, match="longer than the limit"):
        encode(FrameKind.DATA, HugeBytes())


# -- handshake bodies -------------------------------------------------------------------------------------------------


def test_json_is_canonical() -> None:
    assert encode_json({"b": 1, "a": [1, 2]}) == encode_json({"a": [1, 2], "b": 1}) == b'{"a":[1,2],"b":1}'


JSON = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text())


@given(JSON)
def test_json_survives(content: dict[str, object]) -> None:
    assert decode_json(memoryview(encode_json(content))) == content


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"7", b'"text"', b"\xff\xfe", b"[" * (HANDSHAKE_LIMIT - 1), b"9" * 5000],
    ids=["nothing", "torn", "list", "number", "text", "no text", "deep", "long number"],
)
def test_a_body_that_is_no_object_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="handshake body"):
        decode_json(body)


# -- proofs -----------------------------------------------------------------------------------------------------------


def test_a_proof_binds_key_role_and_parts() -> None:
    proofs = [
        proof(b"key", "caller", b"nonce", b"body"),
        proof(b"other", "caller", b"nonce", b"body"),
        proof(b"key", "keeper", b"nonce", b"body"),
        proof(b"key", "caller", b"other", b"body"),
        proof(b"key", "caller", b"nonce", b"other"),
        proof(b"key", "caller", b"nonceb", b"ody"),
        proof(b"key", "caller", b"noncebody"),
    ]
    assert len(set(proofs)) == len(proofs)
    assert proofs[0] == proof(b"key", "caller", b"nonce", b"body")
    assert len(bytes.fromhex(proofs[0])) == 32


@given(bit=st.integers(0, 31))
def test_a_damaged_length_is_seen_at_once(bit: int) -> None:
    """Else the reader would wait for what will never come."""
    data = bytearray(encode(FrameKind.DATA, b"body", 1))
    data[bit // 8] ^= 1 << bit % 8
    reader = FrameReader()
    reader.authenticated = True
    with pytest.raises(ProtocolError, match=r"damaged|announces"):
        reader.receive(bytes(data))
