"""The worker's line alone: what it sends and takes in over links that come and go."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkeeper.frames import Frame, FrameKind
from poolkeeper.link import Link
from poolkeeper.messages import Kind, pack, unpack
from poolkeeper.session import Session
from poolkeeper.worker_config import WorkerConfig
from poolkeeper.worker_line import Retired, WorkerLine
from tests.answering import KEY, Answering
from tests.helpers import PATIENCE


class Owner:
    """What a line belongs to."""

    def __init__(self, path: Path, grace: float | None) -> None:
        self.taken: list[Any] = []
        self.left = 0
        config = WorkerConfig(str(path), KEY, str(path.parent), orphan_grace=grace)
        introduction = {"role": "worker", "id": 1, "birth": "", "pid": 1}
        self.line = WorkerLine(config, introduction, self.take_in, lambda _: None, self.attachment, self.leaving)

    def take_in(self, link: Link, frames: Iterable[Frame]) -> None:
        for frame in frames:
            if self.line.session.receive(frame):
                self.taken += unpack(frame.body)

    def attachment(self) -> tuple[bytes, tuple[int, ...]]:
        return pack([{}]), ()

    def leaving(self) -> dict[str, Any]:
        self.left += 1
        return {}

    def say(self, *message: Any) -> None:
        self.line.send(self.line.session.send(pack([message])), ())


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Answering]:
    answering = Answering(str(tmp_path / "socket"))
    yield answering
    answering.end()


def heard(keeper: Answering, link: Link) -> list[Any]:
    """What comes next over ``link``, whatever kind of frame it is in."""
    frames, _ = link.receive()
    new = [frame for frame in frames if keeper.session.receive(frame) or frame.kind is FrameKind.ASIDE]
    return [message for frame in new for message in unpack(frame.body)]


def test_what_is_said_without_a_keeper_is_said_when_there_is_one(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "socket", 300.0)
    owner.say(Kind.STARTED)
    owner.line.remark((Kind.NOTICE, "alone"))
    assert owner.line.blocked
    keeper = Answering(str(tmp_path / "socket"))
    try:
        owner.line.summoned()
        link = keeper.link()
        got: list[Any] = []
        while len(got) < 2:
            got += heard(keeper, link)
        assert got == [(Kind.STARTED,), (Kind.NOTICE, "alone")]
        assert not owner.line.blocked
        link.close()
    finally:
        owner.line.leave_to_parent()
        keeper.end()


def test_a_line_without_a_successor_ends_with_its_keeper(tmp_path: Path, keeper: Answering) -> None:
    owner = Owner(tmp_path / "socket", None)
    owner.line.reconnect(None)
    keeper.link().close()
    with pytest.raises(Retired):
        while owner.line.receive():
            pass
    owner.line.leave_to_parent()


def test_what_a_keeper_has_sent_before_it_was_lost_is_taken_in(tmp_path: Path, keeper: Answering) -> None:
    owner = Owner(tmp_path / "socket", 300.0)
    owner.line.reconnect(None)
    link = keeper.link()
    keeper.refuses = True
    link.send(keeper.session.send(pack([(Kind.RELEASE, [1])])))
    link.close()
    owner.line.summoned()
    assert owner.taken == [(Kind.RELEASE, [1])]
    assert owner.line.link is None
    keeper.link().close()


def test_one_that_is_refused_waits_to_be_summoned(tmp_path: Path, keeper: Answering) -> None:
    owner = Owner(tmp_path / "socket", 300.0)
    keeper.refuses = True
    for _ in range(5):
        owner.line.reconnect(None)
        owner.say(Kind.STARTED)
    assert (owner.left, owner.line.leaving) == (1, True)
    owner.line.summoned()
    assert owner.left == 2
    owner.line.await_summons(0.01)
    owner.line.reconnect(None)
    assert owner.left == 2, "nobody has summoned it meanwhile"
    for _ in range(2):
        keeper.link().close()


def test_nobody_cuts_in_while_something_is_sent(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "socket", 300.0)
    order: list[str] = []

    def speak() -> None:
        owner.line.unless_busy(lambda: order.append("the signal's handler"))
        order.append("who speaks")

    owner.line.undisturbed(speak)
    owner.line.unless_busy(speak)
    owner.line.unless_busy(lambda: order.append("the next"))
    assert order == ["who speaks", "who speaks", "the next"]


def test_another_thread_waits_for_who_speaks(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "socket", 300.0)
    order: list[str] = []
    other = threading.Thread(target=lambda: owner.line.undisturbed(lambda: order.append("other")))

    def speak() -> None:
        other.start()
        other.join(0.01)
        order.append("first")

    owner.line.undisturbed(speak)
    other.join(PATIENCE)
    assert order == ["first", "other"]


@pytest.mark.parametrize("calls", [False, True])
def test_what_a_call_in_the_midst_of_receiving_told_as_not_received_is_not_taken_in(
    keeper: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: bool
) -> None:
    """A signal's handler may find the link broken between two bytecodes, and tell the next keeper what there is."""
    owner = Owner(tmp_path / "socket", 300.0)
    owner.line.reconnect(None)
    line, lost = owner.line, owner.line.link
    assert lost is not None
    other = keeper.link()
    receive = lost.receive

    def interrupted() -> tuple[list[Frame], bool]:
        frames, alive = receive()
        if calls:
            line.summoned()
        return frames, alive

    monkeypatch.setattr(lost, "receive", interrupted)
    other.send(keeper.session.send(pack([(Kind.STARTED,)]), ()))
    other.close()
    keeper.session = Session()  # the next keeper knows nothing of that
    line.receive()
    assert owner.taken == ([] if calls else [(Kind.STARTED,)])
    line.leave_to_parent()


def test_what_waits_in_the_first_link_is_not_taken_in_after_another_keeper_was_called(
    keeper: Answering, tmp_path: Path
) -> None:
    """The signal may come before the worker has looked at the link that it was born with, into which it was fed."""
    owner = Owner(tmp_path / "socket", 300.0)
    ours, theirs = socket.socketpair()
    ours.sendall(Session().send(pack([(Kind.STARTED,)])))
    owner.line.summoned()
    other = keeper.link()
    called = owner.line.link
    owner.line.begin(theirs.detach())
    assert owner.line.link is called
    other.send(keeper.session.send(pack([(Kind.READY,)]), ()))
    owner.line.receive()
    assert owner.taken == [(Kind.READY,)]
    with pytest.raises(ConnectionResetError):  # the first link is closed, and what waits there unread
        ours.recv(1)
    for end in (ours, other):
        end.close()
    owner.line.leave_to_parent()
