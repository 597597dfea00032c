"""What a process believes of a hand-over: nothing that it cannot check."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from poolkeeper.file_locking import try_lock
from poolkeeper.handover import VARIABLE, HandedKeeper, Handover, PastReexec, encode
from poolkeeper.inheritance import Inheritance


class Left(NamedTuple):
    """Descriptors as an earlier program may leave them."""

    keeper: HandedKeeper
    descriptors: list[int]

    @property
    def folder(self) -> Path:
        return Path(self.keeper.folder)


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    folder = tmp_path / "etl" / "default"
    folder.mkdir(parents=True)
    lock = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
    assert try_lock(lock)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = str(folder / "keeper.sock")
    listener.bind(path)
    listener.listen()
    descriptors = [lock, listener.detach()]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    yield Left(HandedKeeper("etl", "default", str(folder), descriptors[0], descriptors[1], path), descriptors)
    for descriptor in descriptors:
        if is_open(descriptor):
            os.close(descriptor)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def take(*keepers: HandedKeeper, pid: int | None = None) -> Inheritance:
    environ = {VARIABLE: encode(Handover(pid or os.getpid(), keepers, (PastReexec(1.0, True),)))}
    inheritance = Inheritance(environ)
    assert environ == {}, "children must not see it"
    return inheritance


def test_lock_and_socket_are_taken_over_once_and_closed_in_children(left: Left) -> None:
    inheritance = take(left.keeper)
    assert not any(os.get_inheritable(descriptor) for descriptor in left.descriptors)
    assert len(inheritance.history) == 1
    assert inheritance.claim(left.folder.parent / "other") is None
    inherited = inheritance.claim(left.folder)
    assert inherited is not None
    assert inherited.lock.fileno() == left.keeper.lock
    assert inherited.listener is not None
    assert inherited.listener.fileno() == left.keeper.socket
    assert inheritance.claim(left.folder) is None
    inherited.listener.close()
    inherited.lock.release()


def test_a_home_is_known_by_what_it_is_not_by_how_it_is_written(left: Left, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    inherited = take(left.keeper).claim(tmp_path / "link" / "etl" / "default")
    assert inherited is not None
    assert inherited.listener is not None
    inherited.listener.close()
    inherited.lock.release()


def test_what_is_meant_for_another_process_is_not_touched(left: Left) -> None:
    inheritance = take(left.keeper, pid=os.getppid())
    assert inheritance.claim(left.folder) is None
    assert inheritance.history == ()
    assert all(os.get_inheritable(descriptor) for descriptor in left.descriptors)


def test_a_descriptor_that_is_another_file_is_not_touched(left: Left, tmp_path: Path) -> None:
    with open(tmp_path / "innocent", "w") as innocent:
        os.set_inheritable(innocent.fileno(), True)
        wrong = left.keeper._replace(lock=innocent.fileno(), socket=None, socket_path="")
        assert take(wrong).claim(left.folder) is None
        assert os.get_inheritable(innocent.fileno())
        innocent.write("still open")


def test_a_lock_that_somebody_else_has_is_not_taken(left: Left) -> None:
    other = os.open(left.folder / "keeper.lock", os.O_RDWR)
    try:
        assert take(left.keeper._replace(lock=other)).claim(left.folder) is None
    finally:
        os.close(other)


def test_a_lock_file_that_was_replaced_is_no_lock(left: Left) -> None:
    (left.folder / "keeper.lock").unlink()
    (left.folder / "keeper.lock").touch()
    assert take(left.keeper).claim(left.folder) is None


def test_a_home_that_is_called_otherwise_is_not_the_home(left: Left) -> None:
    assert take(left.keeper._replace(run_id="other")).claim(left.folder) is None


@pytest.mark.parametrize("flaw", ["no descriptor", "no socket", "another name", "does not listen", "gone"])
def test_without_its_socket_a_keeper_is_taken_over_all_the_same(left: Left, flaw: str, tmp_path: Path) -> None:
    keeper = left.keeper
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        path = str(tmp_path / "other.sock")
        other.bind(path)
        if flaw == "no descriptor":
            keeper = keeper._replace(socket=9999)
        elif flaw == "no socket":
            keeper = keeper._replace(socket=keeper.lock)
        elif flaw == "another name":
            keeper = keeper._replace(socket_path=path)
        elif flaw == "does not listen":
            keeper = keeper._replace(socket=other.fileno(), socket_path=path)
        else:
            os.unlink(keeper.socket_path)
        inherited = take(keeper).claim(left.folder)
        assert other.getsockname() == path, "what is not ours stays open"
    assert inherited is not None
    assert inherited.listener is None
    assert is_open(left.descriptors[1]) == (flaw != "gone")
    inherited.lock.release()


def test_garbage_is_ignored() -> None:
    environ = {VARIABLE: "{nonsense"}
    assert Inheritance(environ).history == ()
    assert environ == {}
