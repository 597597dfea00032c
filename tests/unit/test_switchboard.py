"""The keeper's end of links that break: what has come over them is heard, however they end."""

from __future__ import annotations

import selectors
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from poolkeeper.link import PYTHON, Link, TurnedAway, call_keeper
from poolkeeper.messages import Kind, pack
from poolkeeper.peer import Peer
from poolkeeper.session import Session
from poolkeeper.switchboard import Switchboard
from poolkeeper.versions import PROTOCOL, Versions
from tests.helpers import PATIENCE, wait_until

KEY = b"k" * 32
VERSIONS = Versions(PROTOCOL, PYTHON, "3.1.2")


class Board:
    """A switchboard with one peer, and what that has said; it runs only while ``until`` waits."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.peer = Peer(self)
        self.heard: list[Any] = []
        self.events: list[str] = []
        self.selector = selectors.DefaultSelector()
        self.board = Switchboard(self.path, KEY, self.selector, self.introduce, versions=VERSIONS)

    def introduce(self, hello: dict[str, Any]) -> Peer:
        return self.peer

    def connected(self, peer: Peer, hello: dict[str, Any]) -> None:
        self.events.append("connected")

    def message(self, peer: Peer, message: tuple[Any, ...], fds: list[int]) -> None:
        self.heard.append(message[1])

    def disconnected(self, peer: Peer) -> None:
        self.events.append("disconnected")

    def turned_away(self, peer: Peer, hello: dict[str, Any], why: str) -> None:
        self.events.append(why)

    def leaving(self, peer: Peer, content: dict[str, Any]) -> None:
        self.heard.append(content)

    def end(self) -> None:
        self.board.detach(self.peer)
        self.board.close()
        self.selector.close()

    def until(self, condition: Callable[[], bool]) -> None:
        def step() -> bool:
            for key, mask in self.selector.select(0.01):
                key.data(mask)
            return condition()

        wait_until(step)

    def call(self, session: Session, leaving: Callable[[], dict[str, Any]] | None = None, **more: Any) -> Link:
        """Connect as the peer."""
        introduction = {"role": "worker", "id": 1, **more}
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(call_keeper, self.path, KEY, session, introduction, PATIENCE, leaving=leaving)
            self.until(future.done)
            return future.result()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path / "socket")
    yield board
    board.end()


def say(link: Link, session: Session, numbers: range) -> None:
    for number in numbers:
        link.send(session.send(pack([(Kind.PROGRESS, number)])))


def test_what_was_sent_before_a_link_broke_is_heard_though_writing_to_it_fails(board: Board) -> None:
    session = Session()
    link = board.call(session)
    say(link, session, range(3))
    link.close()
    board.board.post(board.peer, (Kind.RETIRE,))
    board.board.send_due()
    board.until(lambda: board.events == ["connected", "disconnected"])
    assert board.heard == [0, 1, 2]
    assert board.peer.link is None


def test_a_call_on_a_new_link_lets_nothing_be_lost_that_came_over_the_old_one(board: Board) -> None:
    session = Session()
    link = board.call(session)
    # The new call is made without the board looking at the old link, as if both had come at one time.
    old = board.peer.link
    assert old is not None
    board.selector.unregister(old.socket)
    say(link, session, range(100))
    again = board.call(session)
    assert board.heard == list(range(100))
    assert not session.outbox, "nothing had to be sent again"
    for end in (link, again):
        end.close()


def test_a_link_that_cannot_be_written_to_ends_although_its_peer_does_not_close_it(board: Board) -> None:
    session = Session()
    link = board.call(session)
    link.socket.shutdown(socket.SHUT_RD)  # the board's writes fail from now on
    board.board.post(board.peer, (Kind.RETIRE,))
    board.board.send_due()
    board.until(lambda: board.events == ["connected", "disconnected"])
    link.close()
    board.call(session).close()
    assert session.received == 0
    assert len(board.peer.session.outbox) == 1


def test_one_of_another_version_is_told_to_leave_and_that_is_heard_of_once(board: Board) -> None:
    for number in range(3):
        with pytest.raises(TurnedAway, match="has cloudpickle 2.0 where this keeper has 3.1.2"):
            board.call(Session(), lambda number=number: {"holds": [number]}, cloudpickle="2.0")
        board.until(lambda number=number: len(board.heard) == number + 1)
    assert board.events == ["has cloudpickle 2.0 where this keeper has 3.1.2"]
    assert board.heard == [{"holds": [0]}, {"holds": [1]}, {"holds": [2]}]
    assert board.peer.link is None
    board.call(Session(), cloudpickle="3.1.2").close()
    assert board.events[1:] == ["connected"]


def test_one_that_cannot_say_what_it_leaves_is_turned_away_all_the_same(board: Board) -> None:
    with pytest.raises(TurnedAway):
        board.call(Session(), cloudpickle="2.0")
    assert board.heard == []


def test_a_client_of_another_python_is_heard(board: Board) -> None:
    board.call(Session(), role="control", cloudpickle="2.0").close()
    assert board.events == ["connected"]


def test_a_socket_that_somebody_has_removed_is_made_again_when_a_link_is_lost(board: Board) -> None:
    session = Session()
    link = board.call(session)
    Path(board.path).unlink()
    link.close()
    board.until(lambda: board.events == ["connected", "disconnected"])
    board.call(session).close()


def test_a_folder_that_is_gone_is_not_made_again(board: Board) -> None:
    """It may be the home, and what else was in it is missed by others."""
    folder = Path(board.path).parent
    shutil.rmtree(folder)
    board.board.mend()
    assert not folder.exists()
    folder.mkdir()
    board.board.mend()
    board.call(Session()).close()


def test_what_one_that_was_refused_has_said_is_heard_before_its_end_is(board: Board) -> None:
    with pytest.raises(TurnedAway):
        board.call(Session(), lambda: {"holds": []}, cloudpickle="2.0")
    board.board.hear_out(board.peer)
    assert board.heard == [{"holds": []}]
