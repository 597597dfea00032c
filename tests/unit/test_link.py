"""The handshake: who does not know the key is found out, on either side, whatever it says of itself."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from poolkeeper.errors import ProtocolError
from poolkeeper.frames import Frame, FrameKind, FrameReader, decode_json, encode, encode_json, proof
from poolkeeper.link import Handshake, WrongKey, call_keeper
from poolkeeper.session import Session

KEY, OTHER = b"k" * 32, b"o" * 32


def nonce_of(handshake: Handshake) -> bytes:
    (challenge,) = FrameReader().receive(handshake.challenge())
    return bytes.fromhex(decode_json(challenge.body)["nonce"])


def hello(key: bytes, nonce: bytes, role: str = "caller") -> dict[str, Any]:
    content = {"role": "worker", "id": 1, "birth": "b", "received": 0, "acknowledged": 0, "nonce": "00" * 32}
    return {**content, "proof": proof(key, role, nonce, encode_json(content))}


def frame(content: dict[str, Any]) -> Frame:
    (made,) = FrameReader().receive(encode(FrameKind.HELLO, encode_json(content)))
    return made


def test_who_knows_the_key_is_heard() -> None:
    handshake = Handshake(KEY)
    content = hello(KEY, nonce_of(handshake))
    assert handshake.verify(frame(content)) == {name: value for name, value in content.items() if name != "proof"}


@pytest.mark.parametrize(
    "forge",
    [
        lambda nonce: hello(OTHER, nonce),
        lambda _: hello(KEY, nonce_of(Handshake(KEY))),  # said to another challenge
        lambda nonce: hello(KEY, nonce, "keeper"),  # what a keeper has said, sent back
        lambda nonce: {**hello(KEY, nonce), "id": 2},
        lambda nonce: {**hello(KEY, nonce), "more": 1},
        lambda nonce: {**hello(KEY, nonce), "proof": None},
        lambda nonce: {**hello(KEY, nonce), "proof": ""},
    ],
    ids=["another key", "replayed", "reflected", "changed", "added to", "no proof", "empty proof"],
)
def test_a_forged_introduction_is_refused(forge: Any) -> None:
    handshake = Handshake(KEY)
    with pytest.raises(WrongKey):
        handshake.verify(frame(forge(nonce_of(handshake))))


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_caller_takes_nobody_for_its_keeper_who_does_not_know_the_key(tmp_path: Path, key: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            """Listen as a keeper does, and believe whatever the caller proves."""
            sock, _ = listener.accept()
            with sock:
                handshake = Handshake(key)
                sock.sendall(handshake.challenge())
                reader = FrameReader()
                while not (frames := reader.receive(sock.recv(65536))):
                    pass
                sock.sendall(handshake.welcome(decode_json(frames[0].body), 0))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            if key == KEY:
                call_keeper(str(tmp_path / "s"), KEY, Session(), {"role": "worker"}, 10.0).close()
            else:
                with pytest.raises(ProtocolError, match="does not know its key"):
                    call_keeper(str(tmp_path / "s"), KEY, Session(), {"role": "worker"}, 10.0)
        finally:
            thread.join()
