"""A session through everything that can happen to a link, and to keepers, by a virtual clock and from one seed.

A worker sends answers and takes orders. Keepers send orders, take answers, and acknowledge each when their journal has
it; they are killed, and others take over. Bytes arrive in any portions, or not for long; a link is cut at any byte,
in the midst of a handshake too, or a bit of what is on its way turns over; the worker calls again while the keeper
still reads from the link before.
"""

from __future__ import annotations

from random import Random

from poolkeeper.backoff import Backoff
from poolkeeper.connection import Connection, ConnectionState
from poolkeeper.errors import ProtocolError
from poolkeeper.frames import Frame, FrameKind, FrameReader, decode_json, encode, encode_json
from poolkeeper.session import Session

__all__ = ["SessionSimulation"]

TIMEOUT = 5.0


class Pipe:
    """One direction of a link: bytes on their way, and until when they stand still."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.stalled_until = 0.0
        self.reader = FrameReader()
        self.reader.authenticated = True

    def deliver(self, size: int) -> list[Frame]:
        data = bytes(self.bytes[:size])
        del self.bytes[:size]
        return self.reader.receive(data)


class Wire:
    """A link; ``attached`` once the keeper knows whose it is."""

    def __init__(self) -> None:
        self.to_keeper = Pipe()
        self.to_worker = Pipe()
        self.open = True
        self.greeted = False


class Keeper:
    """One generation; ``journal`` outlives it, what it has taken in and not recorded does not."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.session = Session()
        self.attached = generation == 0
        self.wire: Wire | None = None
        self.taken: list[bytes] = []
        self.sent: list[bytes] = []
        self.unrecorded: list[tuple[int, bytes]] = []
        self.waiting: list[bytes] = []


class SessionSimulation:
    """One schedule of faults; ``run`` raises AssertionError where a message is lost, repeated or out of order."""

    def __init__(self, seed: int, steps: int = 150) -> None:
        self.random = random = Random(seed)
        self.steps = steps
        self.now = 0.0
        self.worker = Session()
        self.wire: Wire | None = None
        self.connection = Connection(Backoff(0.02, 1.0), 20.0)
        self.called_at = 0.0
        self.answers: list[bytes] = []
        self.orders: list[bytes] = []  # that the worker has taken
        self.keepers = [Keeper(0)]
        self.journal: list[bytes] = []
        self.faults = 0
        self.fault_rate = random.choice([0.0, 0.02, 0.1, 0.3])
        self.takeover_rate = random.choice([0.0, 0.0, 0.02, 0.1])
        self.portion = random.choice([1, 7, 60, 5000])

    @property
    def keeper(self) -> Keeper:
        return self.keepers[-1]

    # -- the schedule -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        random = self.random
        for _ in range(self.steps):
            self.now += random.expovariate(20)
            if random.random() < self.fault_rate:
                self.harm()
            if random.random() < self.takeover_rate:
                self.take_over()
            random.choice([self.answer, self.order, self.record, self.move, self.move, self.move, self.acknowledge])()
            self.tend()
            self.check()
        self.portion = 5000
        for _ in range(400):
            self.now += 0.5
            self.record()
            self.move()
            self.acknowledge()
            self.tend()
            if self.is_quiet:
                break
        self.check()
        assert self.is_quiet, "what was sent does not arrive, though nothing is in the way"
        assert set(self.journal) == set(self.answers)
        assert self.keeper.taken == self.answers[len(self.answers) - len(self.keeper.taken) :]
        ours = [order for order in self.orders if order.startswith(b"%d " % self.keeper.generation)]
        assert ours == self.keeper.sent

    @property
    def is_quiet(self) -> bool:
        keeper = self.keeper
        outboxes = self.worker.outbox or keeper.session.outbox
        return keeper.attached and not outboxes and not keeper.unrecorded and not keeper.waiting

    def check(self) -> None:
        """What must hold at any moment."""
        acknowledged = self.answers[: self.worker.acknowledged]
        assert set(acknowledged) <= set(self.journal), "acknowledged before it was recorded"
        for keeper in self.keepers:
            if keeper.taken:
                begin = self.answers.index(keeper.taken[0])
                assert keeper.taken == self.answers[begin : begin + len(keeper.taken)], "twice, or out of order"
        orders = [tuple(map(int, order.split())) for order in self.orders]
        assert orders == sorted(set(orders)), "twice, or out of order"
        for keeper in self.keepers:
            ours = [order for order in self.orders if order.startswith(b"%d " % keeper.generation)]
            assert ours == keeper.sent[: len(ours)], "an order is skipped"

    # -- what the peers do --------------------------------------------------------------------------------------------

    def answer(self) -> None:
        body = b"%d" % len(self.answers)
        self.answers.append(body)
        frame = self.worker.send(body)
        if self.wire is not None and self.wire.greeted:
            self.wire.to_keeper.bytes += frame

    def order(self) -> None:
        keeper = self.keeper
        body = b"%d %d" % (keeper.generation, len(keeper.sent))
        keeper.sent.append(body)
        keeper.waiting.append(body)
        self.send_orders()

    def send_orders(self) -> None:
        keeper = self.keeper
        if keeper.attached:  # else nobody knows yet what number comes next
            for body in keeper.waiting:
                frame = keeper.session.send(body)
                if keeper.wire is not None and keeper.wire.open:
                    keeper.wire.to_worker.bytes += frame
            keeper.waiting.clear()

    def record(self) -> None:
        """The journal has some of what was taken in, not always the oldest."""
        unrecorded = self.keeper.unrecorded
        for _ in range(self.random.randint(0, len(unrecorded))):
            sequence, body = unrecorded.pop(self.random.randrange(len(unrecorded)))
            self.journal.append(body)
            self.keeper.session.release(sequence)

    def acknowledge(self) -> None:
        keeper = self.keeper
        if keeper.wire is not None and keeper.wire.open and keeper.attached and keeper.session.owes_ack:
            keeper.wire.to_worker.bytes += keeper.session.acknowledge()
        if self.wire is not None and self.wire.greeted and self.worker.owes_ack:
            self.wire.to_keeper.bytes += self.worker.acknowledge()

    def tend(self) -> None:
        """The worker notices the end of its link, gives up a call that is not answered, and calls again when due."""
        connection, wire = self.connection, self.wire
        if wire is not None and connection.state is ConnectionState.CALLING:
            if not wire.open or self.now - self.called_at > TIMEOUT:
                self.wire = None
                wire.open = False
                connection.unanswered(self.now, self.random.random())
        elif wire is not None and not wire.open:
            self.wire = None
            connection.lose(self.now)
        if self.wire is None and connection.is_due(self.now):
            self.call()

    def call(self) -> None:
        self.connection.begin_call(self.now)
        self.called_at = self.now
        self.wire = wire = Wire()
        hello = {"received": self.worker.received, "acknowledged": self.worker.acknowledged}
        wire.to_keeper.bytes += encode(FrameKind.HELLO, encode_json(hello))

    # -- the link -----------------------------------------------------------------------------------------------------

    def move(self) -> None:
        """Some bytes arrive, at either end; those of the link before may still be there to be read."""
        for wire in {id(wire): wire for wire in (self.keeper.wire, self.wire) if wire is not None}.values():
            for pipe, hear in ((wire.to_keeper, self.hear_at_keeper), (wire.to_worker, self.hear_at_worker)):
                if self.now >= pipe.stalled_until and (wire.open or pipe is wire.to_keeper):
                    size = self.random.randint(1, self.portion)
                    try:
                        for frame in pipe.deliver(size):
                            hear(wire, frame)
                    except ProtocolError:
                        wire.open = False

    def hear_at_keeper(self, wire: Wire, frame: Frame) -> None:
        keeper = self.keeper
        if frame.kind is FrameKind.HELLO:
            self.welcome(wire, decode_json(frame.body))
        elif keeper.wire is not wire:
            return
        elif frame.kind is FrameKind.ATTACH:
            keeper.attached = True
            self.send_orders()
        elif not keeper.attached:
            raise ProtocolError("it came before ATTACH")
        elif keeper.session.receive(frame):
            body = bytes(frame.body)
            keeper.taken.append(body)
            keeper.unrecorded.append((keeper.session.withhold(), body))

    def welcome(self, wire: Wire, hello: dict[str, int]) -> None:
        keeper = self.keeper
        if keeper.wire is not None:  # what has come over the one before is taken in first
            former = keeper.wire
            try:
                for frame in former.to_keeper.deliver(1 << 20):
                    self.hear_at_keeper(former, frame)
            except ProtocolError:
                pass
            former.open = False
        if not keeper.attached:
            keeper.session = Session(received=hello["acknowledged"], sent=hello["received"])
        resend = keeper.session.resume(hello["received"])
        keeper.wire = wire
        session = keeper.session
        standing = {"received": session.received, "acknowledged": session.acknowledgeable}
        content = {**standing, "attach": not keeper.attached}
        wire.to_worker.bytes += encode(FrameKind.WELCOME, encode_json(content))
        for frame, _ in resend:
            wire.to_worker.bytes += frame

    def hear_at_worker(self, wire: Wire, frame: Frame) -> None:
        if wire is not self.wire:
            return
        if frame.kind is FrameKind.WELCOME:
            welcome = decode_json(frame.body)
            resend = self.worker.resume(welcome["received"], welcome["acknowledged"])
            wire.greeted = True
            if welcome["attach"]:
                wire.to_keeper.bytes += encode(FrameKind.ATTACH)
            for again, _ in resend:
                wire.to_keeper.bytes += again
            self.connection.answered()
        elif self.worker.receive(frame):
            self.orders.append(bytes(frame.body))

    # -- faults -------------------------------------------------------------------------------------------------------

    def harm(self) -> None:
        wire, random = self.wire, self.random
        if wire is None:
            return
        self.faults += 1
        pipe = random.choice([wire.to_keeper, wire.to_worker])
        match random.choice(["cut", "flip", "stall", "call again", "summon"]):
            case "cut":
                for half in (wire.to_keeper, wire.to_worker):
                    del half.bytes[random.randint(0, len(half.bytes)) :]
                wire.open = False
            case "flip" if pipe.bytes:
                pipe.bytes[random.randrange(len(pipe.bytes))] ^= 1 << random.randrange(8)
            case "stall":
                pipe.stalled_until = self.now + random.expovariate(0.5)
            case "call again" if wire.greeted:
                self.connection.lose(self.now)
                self.call()
            case "summon":
                self.connection.summon()

    def take_over(self) -> None:
        """The keeper is killed, and another one comes, which knows only what the journal has."""
        if self.keeper.wire is not None:
            self.keeper.wire.open = False
        if self.wire is not None:
            self.wire.open = False
        self.keepers.append(Keeper(len(self.keepers)))
        self.connection.summon()
