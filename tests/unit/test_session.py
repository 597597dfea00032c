"""Sessions: two peers joined in memory by a link that breaks at any byte; every message arrives once, in order."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poolkeeper.errors import ProtocolError
from poolkeeper.frames import Frame, FrameKind, FrameReader
from poolkeeper.session import Session


def only(frames: list[Frame]) -> Frame:
    (frame,) = frames
    return frame


def decode(data: bytes) -> Frame:
    return only(FrameReader().receive(data))


class Peer:
    """One side: its session, the bytes on their way to it, and what it has sent and taken in."""

    def __init__(self) -> None:
        self.session = Session()
        self.reader = FrameReader()
        self.wire = bytearray()
        self.sent: list[bytes] = []
        self.taken: list[bytes] = []

    def take(self, data: bytes) -> None:
        for frame in self.reader.receive(data):
            if self.session.receive(frame):
                self.taken.append(bytes(frame.body))


class BrokenLink(RuleBasedStateMachine):
    """Either peer sends at any time; bytes are delivered in any portions; the link breaks and is made again."""

    def __init__(self) -> None:
        super().__init__()
        self.peers = (Peer(), Peer())
        self.linked = True

    @initialize()
    def start(self) -> None:
        self.linked = True

    @rule(side=st.sampled_from([0, 1]), body=st.binary(max_size=40))
    def send(self, side: int, body: bytes) -> None:
        here, there = self.peers[side], self.peers[1 - side]
        frame = here.session.send(body)
        here.sent.append(body)
        if self.linked:
            there.wire += frame

    @precondition(lambda self: self.linked)
    @rule(side=st.sampled_from([0, 1]), number=st.integers(1, 200))
    def deliver(self, side: int, number: int) -> None:
        peer = self.peers[side]
        data = bytes(peer.wire[:number])
        del peer.wire[:number]
        peer.take(data)

    @precondition(lambda self: self.linked)
    @rule(side=st.sampled_from([0, 1]))
    def acknowledge(self, side: int) -> None:
        if self.peers[side].session.owes_ack:
            self.peers[1 - side].wire += self.peers[side].session.acknowledge()

    @precondition(lambda self: self.linked)
    @rule()
    def lose_link(self) -> None:
        self.linked = False
        for peer in self.peers:
            peer.wire.clear()
            peer.reader = FrameReader()

    @precondition(lambda self: not self.linked)
    @rule()
    def reconnect(self) -> None:
        self.linked = True
        for here, there in (self.peers, reversed(self.peers)):
            for frame, _ in here.session.resume(there.session.received):
                there.wire += frame

    @precondition(lambda self: self.linked)
    @rule()
    def resume_without_noticing_the_loss(self) -> None:
        """One peer calls again while bytes of the old link are still being read by the other: duplicates arrive."""
        for here, there in (self.peers, reversed(self.peers)):
            there.take(bytes(there.wire))
            there.wire.clear()
            for frame, _ in here.session.resume(
                here.session.outbox[0].sequence - 1 if here.session.outbox else here.session.sent
            ):
                there.wire += frame

    @invariant()
    def everything_arrives_once_and_in_order(self) -> None:
        for here, there in (self.peers, reversed(self.peers)):
            assert there.taken == here.sent[: len(there.taken)]
            kept = [outgoing.body for outgoing in here.session.outbox]
            assert here.sent[len(here.sent) - len(kept) :] == kept
            assert len(here.sent) - len(kept) <= len(there.taken), "dropped before it was taken in"

    def teardown(self) -> None:
        if self.linked:
            self.lose_link()
        self.reconnect()
        for side in (0, 1):
            self.deliver(side, len(self.peers[side].wire))
        for here, there in (self.peers, reversed(self.peers)):
            assert there.taken == here.sent


TestBrokenLink = BrokenLink.TestCase
TestBrokenLink.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_frames_are_numbered_and_kept_until_acknowledged() -> None:
    session = Session()
    assert [decode(session.send(body)).sequence for body in (b"a", b"b", b"c")] == [1, 2, 3]
    peer = Session()
    peer.received = 2
    assert not session.receive(decode(peer.acknowledge()))
    assert [outgoing.body for outgoing in session.outbox] == [b"c"]


def test_acknowledgements_ride_on_data() -> None:
    here, there = Session(), Session()
    there.receive(decode(here.send(b"question")))
    assert there.owes_ack
    here.receive(decode(there.send(b"answer")))
    assert not there.owes_ack
    assert not here.outbox


def test_a_duplicate_is_dropped_and_still_acknowledges() -> None:
    here, there = Session(), Session()
    frame = here.send(b"once")
    assert there.receive(decode(frame))
    assert not there.receive(decode(frame))
    assert there.received == 1


def test_a_gap_is_a_protocol_error() -> None:
    here, there = Session(), Session()
    here.send(b"lost")
    with pytest.raises(ProtocolError, match="frame 2 arrived where 1 was due"):
        there.receive(decode(here.send(b"second")))
    assert there.received == 0


def test_acknowledging_what_was_never_sent_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="frame 3 was acknowledged but only 0 were sent"):
        Session().receive(Frame(FrameKind.ACK, 0, 3, 0, b""))


@pytest.mark.parametrize(("peer_received", "fault"), [(0, "misses frames behind 0"), (4, "only 3 were sent")])
def test_a_peer_that_remembers_something_else_cannot_resume(peer_received: int, fault: str) -> None:
    session = Session()
    for body in (b"a", b"b", b"c"):
        session.send(body)
    session.receive(Frame(FrameKind.ACK, 0, 1, 0, b""))
    with pytest.raises(ProtocolError, match=fault):
        session.resume(peer_received)


def test_descriptors_stay_with_their_frame() -> None:
    session = Session()
    session.send(b"small")
    frame = decode(session.send(b"large", (7, 8)))
    assert frame.fds == 2
    resent = session.resume(1)
    assert [(decode(data).sequence, fds) for data, fds in resent] == [(2, (7, 8))]


def test_a_body_that_cannot_be_encoded_leaves_the_session_as_it_was() -> None:
    session = Session()
    session.send(b"before")
    with pytest.raises(struct.error):
        session.send(b"too many descriptors", tuple(range(300)))
    assert decode(session.send(b"after")).sequence == 2
    assert [decode(data).body for data, _ in session.resume(1)] == [b"after"]


def test_what_is_withheld_stays_with_its_sender_across_a_reconnect() -> None:
    """Its receiver may be killed before it is recorded, and the next one asks for it."""
    worker, keeper = Session(), Session()
    for body in (b"a", b"b"):
        keeper.receive(decode(worker.send(body)))
        keeper.withhold()
    keeper.release(1)
    assert worker.resume(keeper.received, keeper.acknowledgeable) == []
    assert [outgoing.body for outgoing in worker.outbox] == [b"b"]
    heir = Session(received=worker.acknowledged, sent=worker.received)
    assert [decode(frame).body for frame, _ in worker.resume(heir.received, heir.acknowledgeable)] == [b"b"]


@given(steps=st.lists(st.tuples(st.sampled_from(["receive", "withhold", "release", "acknowledge"]), st.integers(0, 9))))
def test_acknowledged_is_all_that_lies_before_the_first_that_is_withheld(steps: list[tuple[str, int]]) -> None:
    sender, receiver = Session(), Session()
    withheld: list[int] = []
    for what, number in steps:
        if what in ("receive", "withhold"):
            receiver.receive(decode(sender.send(b"")))
            if what == "withhold":
                assert receiver.withhold() == receiver.withhold() == receiver.received, "as often as one likes"
                withheld.append(receiver.received)
        elif what == "release" and withheld:
            sequence = withheld.pop(number % len(withheld))
            receiver.release(sequence)
            receiver.release(sequence)
        elif what == "acknowledge":
            sender.receive(decode(receiver.acknowledge()))
            assert not receiver.owes_ack
            assert sender.acknowledged == receiver.acknowledgeable
        assert receiver.acknowledgeable == min(withheld, default=receiver.received + 1) - 1


@given(sent=st.integers(0, 20), data=st.data())
def test_who_takes_over_begins_where_the_caller_stands(sent: int, data: st.DataObject) -> None:
    worker = Session()
    for number in range(sent):
        worker.send(b"%d" % number)
    acknowledged = data.draw(st.integers(0, sent))
    worker.receive(Frame(FrameKind.ACK, 0, acknowledged, 0, b""))
    heir = Session(received=worker.acknowledged, sent=worker.received)
    taken = []
    for frame, _ in worker.resume(heir.received, heir.acknowledgeable):
        again = decode(frame)
        assert heir.receive(again)
        taken.append(bytes(again.body))
    assert taken == [b"%d" % number for number in range(acknowledged, sent)]
    worker.receive(decode(heir.send(b"order")))
    assert not worker.outbox


def test_an_aside_is_neither_numbered_nor_kept() -> None:
    here, there = Session(), Session()
    here.receive(decode(there.send(b"order")))
    aside = decode(here.aside(b"by the way"))
    assert (aside.kind, aside.sequence, bytes(aside.body)) == (FrameKind.ASIDE, 0, b"by the way")
    assert not here.outbox
    assert not there.receive(aside)
    assert not there.outbox, "it acknowledges, as every frame does"
    assert there.receive(decode(here.send(b"numbered")))
