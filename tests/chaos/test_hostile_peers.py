"""Whoever can reach the keeper's socket without its key gets nothing, runs nothing, and disturbs nobody."""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from zlib import crc32

import psutil
import pytest

from poolkeeper import Keeper
from poolkeeper.errors import ProtocolError
from poolkeeper.frames import HANDSHAKE_LIMIT, Frame, FrameKind, FrameReader, decode_json, encode, encode_json, proof
from poolkeeper.link import call_keeper
from poolkeeper.reception import STRANGERS
from poolkeeper.session import Session
from tests import tasks
from tests.helpers import PATIENCE, wait_until


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    with Keeper(2, home=tmp_path_factory.mktemp("homes"), preload=["tests.tasks"]) as shared:
        shared.submit(tasks.square, 1).result()
        yield shared


@pytest.fixture(autouse=True)
def _undisturbed(keeper: Keeper) -> Iterator[None]:
    """The keeper works, with the workers that it had, and keeps no descriptor of the strangers."""
    before = {worker.pid for worker in keeper.status().workers} - {None}
    descriptors = psutil.Process().num_fds()
    yield
    assert list(keeper.map(tasks.square, range(100), timeout=PATIENCE)) == [number**2 for number in range(100)]
    assert {worker.pid for worker in keeper.status().workers} >= before
    wait_until(lambda: psutil.Process().num_fds() <= descriptors + 8, "the strangers' descriptors to be closed")


def connect(keeper: Keeper) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect(str(keeper.home / "keeper.sock"))
    return sock


def read_frame(sock: socket.socket) -> Frame:
    reader = FrameReader()
    while not (frames := reader.receive(sock.recv(65536))):
        pass
    return frames[0]


def is_refused(sock: socket.socket) -> bool:
    """Whether the keeper closes the connection, saying no more than its challenge and perhaps a refusal."""
    with suppress(ConnectionError):
        while sock.recv(65536):
            pass
    return True


class Bomb:
    """Leaves a file wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def header(length: int, kind: int, fds: int = 0, crc: int = 0) -> bytes:
    return struct.pack("<IIBBHQQ", length, crc, kind, fds, 0, 0, 0)


GARBAGE = {
    "zeros": bytes(4096),
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10,
    "random": os.urandom(20_000),
    "a huge length": header(0xFFFFFFFF, FrameKind.HELLO),
    "one byte more than a handshake may have": header(HANDSHAKE_LIMIT + 1, FrameKind.HELLO),
    "an unknown kind": struct.pack("<II", 0, crc32(b"\xff\0\0\0" + bytes(16))) + b"\xff\0\0\0" + bytes(16),
    "a wrong checksum": header(2, FrameKind.HELLO, crc=1) + b"{}",
    "data before a handshake": encode(FrameKind.DATA, b"x", sequence=1),
    "an acknowledgement before a handshake": encode(FrameKind.ACK, acknowledged=7),
    "a welcome": encode(FrameKind.WELCOME, b"{}"),
    "no JSON": encode(FrameKind.HELLO, b"\x80\x05K\x01."),
    "no object": encode(FrameKind.HELLO, b"[1, 2]"),
    "nested JSON": encode(FrameKind.HELLO, b"[" * 16_000),
    "an empty object": encode(FrameKind.HELLO, b"{}"),
    "wrong types": encode(FrameKind.HELLO, encode_json({"proof": 5, "role": [], "id": {}, "received": "x"})),
    "no ASCII in the proof": encode(FrameKind.HELLO, encode_json({"proof": "ä"})),
    "descriptors that do not come": encode(FrameKind.HELLO, b"{}", fds=200),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(keeper: Keeper, name: str) -> None:
    with connect(keeper) as sock:
        with suppress(ConnectionError):
            sock.sendall(GARBAGE[name])
            if name in ("zeros", "random"):
                sock.shutdown(socket.SHUT_WR)
        assert is_refused(sock)


def test_of_many_who_say_nothing_the_first_have_to_go(keeper: Keeper) -> None:
    silent = [connect(keeper) for _ in range(STRANGERS + 10)]
    try:
        for sock in silent[:10]:
            assert is_refused(sock)
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    finally:
        for sock in silent:
            sock.close()


def test_a_pickle_before_authentication_is_never_unpickled(keeper: Keeper, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for kind in FrameKind:
        with connect(keeper) as sock:
            with suppress(ConnectionError):
                sock.sendall(encode(kind, bomb, sequence=1))
                sock.sendall(encode(FrameKind.DATA, bomb, sequence=1))
            assert is_refused(sock)
    hello = {"role": "worker", "id": 1, "pid": 1, "protocol": 1, "nonce": "00" * 32, "received": 0, "proof": "0" * 64}
    with connect(keeper) as sock:
        with suppress(ConnectionError):
            sock.sendall(encode(FrameKind.HELLO, encode_json(hello)) + encode(FrameKind.DATA, bomb, sequence=1))
        assert is_refused(sock)
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    assert not (tmp_path / "exploded").exists()


def test_the_challenge_is_new_each_time_and_old_answers_are_refused(keeper: Keeper) -> None:
    key = (keeper.home / "authkey").read_bytes()
    (worker, *_) = keeper.status().workers
    hello = {
        "role": "worker", "id": int(worker.id), "pid": worker.pid, "protocol": 1, "python": "3.11",
        "nonce": "11" * 32, "received": 0,
    }  # fmt: skip
    with connect(keeper) as first:
        nonce = bytes.fromhex(decode_json(read_frame(first).body)["nonce"])
        answer = dict(hello, proof=proof(key, "caller", nonce, encode_json(hello)))
        # Not sent here: kept for another connection, as one who has listened would.
        with connect(keeper) as second:
            assert bytes.fromhex(decode_json(read_frame(second).body)["nonce"]) != nonce
            second.sendall(encode(FrameKind.HELLO, encode_json(answer)))
            assert is_refused(second)


def test_a_wrong_key_is_refused(keeper: Keeper) -> None:
    introduction = {"role": "worker", "id": 1, "pid": os.getpid()}
    with pytest.raises((ProtocolError, OSError)):
        call_keeper(str(keeper.home / "keeper.sock"), b"x" * 32, Session(), introduction, PATIENCE)


@pytest.mark.parametrize(
    "introduction",
    [
        {"role": "worker", "id": 999_999},
        {"role": "worker", "id": "one"},
        {"role": "keeper", "id": 1},
        {"role": "worker"},
        {},
    ],
)
def test_one_who_knows_the_key_and_nothing_else_is_refused(keeper: Keeper, introduction: dict[str, object]) -> None:
    key = (keeper.home / "authkey").read_bytes()
    with pytest.raises((ProtocolError, OSError)):
        call_keeper(str(keeper.home / "keeper.sock"), key, Session(), {**introduction, "pid": 1}, PATIENCE)


@pytest.mark.parametrize("number", [50, 400])
def test_a_crowd_with_half_a_handshake_each_keeps_no_worker_out(tmp_path: Path, number: int) -> None:
    hello = encode(FrameKind.HELLO, b'{"role": "worker"}')
    with Keeper(2, home=tmp_path, preload=["tests.tasks"]) as keeper, ExitStack() as waiting:
        for position in range(number):
            sock = waiting.enter_context(connect(keeper))
            sock.sendall(hello[: position % len(hello)])
        assert list(keeper.map(tasks.square, range(1000), timeout=PATIENCE)) == [n * n for n in range(1000)]
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9


def test_slow_bytes_are_no_reason_to_wait(keeper: Keeper) -> None:
    with connect(keeper) as sock:
        for byte in encode(FrameKind.HELLO, encode_json({"role": "worker"}))[:-1]:
            with suppress(ConnectionError):  # on a slow machine it is shown the door before it has come to its end
                sock.sendall(bytes([byte]))
            assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4


def test_descriptors_that_strangers_send_are_closed(keeper: Keeper) -> None:
    before = psutil.Process().num_fds()
    for _ in range(10):
        with connect(keeper) as sock, open(os.devnull) as file:
            with suppress(ConnectionError):
                socket.send_fds(sock, [b"\0" * 5], [file.fileno()] * 100)
                sock.shutdown(socket.SHUT_WR)
            assert is_refused(sock)
    wait_until(lambda: psutil.Process().num_fds() <= before)


def test_nobody_else_may_open_the_socket(keeper: Keeper) -> None:
    assert (keeper.home / "keeper.sock").stat().st_mode & 0o077 == 0
    assert keeper.home.stat().st_mode & 0o077 == 0
