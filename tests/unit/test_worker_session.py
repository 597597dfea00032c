"""The worker's end of a session whose link, and whose arenas' descriptors, tasks close behind its back."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkeeper import worker_session
from poolkeeper.arena import Arena, ArenaPool
from poolkeeper.frames import FrameKind, decode_json
from poolkeeper.keeper_line import KeeperLine
from poolkeeper.left_behind import left_results
from poolkeeper.messages import Code, Kind, Progress, pack, unpack
from poolkeeper.payload import Large
from poolkeeper.session import Session
from poolkeeper.worker_config import WorkerConfig
from poolkeeper.worker_line import Retired
from poolkeeper.worker_session import Mapped, WorkerSession
from tests.answering import KEY, Answering
from tests.helpers import PATIENCE


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Answering]:
    answering = Answering(str(tmp_path / "socket"))
    yield answering
    answering.end()


@pytest.fixture
def worker(keeper: Answering, tmp_path: Path) -> Iterator[WorkerSession]:
    session = WorkerSession(WorkerConfig(str(tmp_path / "socket"), KEY, str(tmp_path)), 1)
    yield session
    session.arenas.close()
    if session.line.link is not None:
        session.line.link.close()


def steal(fd: int, path: Path) -> None:
    """Close ``fd`` as a task would, and open a file as that number."""
    other = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(other, fd)
    os.close(other)


def large(arenas: ArenaPool, content: bytes) -> Large:
    import pickle

    arena, spans = arenas.write([memoryview(pickle.dumps(content))])
    return Large(arena, None, spans)


def result(worker: WorkerSession, index: int, content: bytes) -> Arena:
    """Hold ``content`` back as the result of task ``index``."""
    value = large(worker.arenas, content)
    worker.hold(index, value, Code.ARENA)
    return value.arena


def test_what_comes_with_each_welcome_is_taken_in_once_and_in_order(keeper: Answering, worker: WorkerSession) -> None:
    for number in range(4):
        keeper.session.send(pack([(Kind.RELEASE, [number])]))
        if number % 2:
            worker.line.reconnect(worker.line.link)
    assert list(worker.inbox) == [[(Kind.RELEASE, [number])] for number in range(4)]


def test_sending_over_a_link_that_a_task_has_replaced_by_a_file_reconnects(
    keeper: Answering, worker: WorkerSession, tmp_path: Path
) -> None:
    worker.line.reconnect(None)
    assert worker.line.link is not None
    stolen = worker.line.link.fileno()
    steal(stolen, tmp_path / "file")
    keeper.session.send(pack([(Kind.RETIRE,)]))
    worker.values.append(7)
    worker.flush()
    os.close(stolen)  # it was left alone
    assert (tmp_path / "file").stat().st_size == 0
    assert list(worker.inbox) == [[(Kind.RETIRE,)]]
    keeper.link().close()
    link = keeper.link()
    assert keeper.results(link) == [(1, [7])]
    link.close()


def test_a_link_that_is_given_up_is_closed_where_it_is_still_ours(keeper: Answering, worker: WorkerSession) -> None:
    worker.line.reconnect(None)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        keeper.link().close()
        worker.line.reconnect(worker.line.link)
    keeper.link().close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_large_arguments_are_mapped_before_the_tasks_ahead_of_them_run(
    keeper: Answering, worker: WorkerSession
) -> None:
    worker.line.reconnect(None)
    link = keeper.link()
    argument = large(keeper.arenas, b"a" * 100_000)
    before = len(os.listdir("/proc/self/fd"))
    first = keeper.session.send(pack([(Kind.TASKS, 1, 1, [()], None)]))
    second = keeper.session.send(pack([(Kind.TASKS, 2, 1, [argument.wire()], None)]), (argument.arena.fd,))
    link.send(first)
    link.send(second, (argument.arena.fd,))
    while len(worker.inbox) < 2:
        worker.receive()
    assert len(os.listdir("/proc/self/fd")) == before  # nothing is left that a task could close
    payload = worker.inbox[1][0][3][0]
    assert type(payload) is Mapped
    assert payload.load() == b"a" * 100_000
    argument.arena.close()
    link.close()


def test_a_result_that_is_held_back_survives_the_loss_of_its_descriptor(
    keeper: Answering, worker: WorkerSession, tmp_path: Path
) -> None:
    worker.line.reconnect(None)
    arenas = [result(worker, index, bytes([index]) * 100_000) for index in (1, 2)]
    stolen = arenas[0].fd
    steal(stolen, tmp_path / "file")
    worker.flush()
    link = keeper.link()
    assert keeper.results(link) == [(1, [bytes([1]) * 100_000, bytes([2]) * 100_000])]
    os.close(stolen)
    link.close()


def test_a_result_that_did_not_arrive_is_sent_again_over_the_next_link(
    keeper: Answering, worker: WorkerSession
) -> None:
    worker.line.reconnect(None)
    result(worker, 1, b"a" * 100_000)
    worker.flush()
    keeper.link().close()  # without having read it
    worker.values.append(2)
    worker.flush()
    link = keeper.link()
    assert keeper.results(link) == [(1, [b"a" * 100_000])]
    assert keeper.results(link) == [(2, [2])]
    link.close()


def test_a_worker_leaves_rather_than_send_somebody_elses_file_as_a_result(
    keeper: Answering, worker: WorkerSession, tmp_path: Path
) -> None:
    worker.line.reconnect(None)
    arena = result(worker, 1, b"a" * 100_000)
    worker.flush()
    keeper.link().close()  # without having read it
    stolen = arena.fd
    steal(stolen, tmp_path / "file")
    worker.values.append(2)
    with pytest.raises(Retired):
        worker.flush()
    os.close(stolen)


def test_a_flush_that_cuts_into_a_reconnect_waits_for_its_end(keeper: Answering, worker: WorkerSession) -> None:
    """As the signal's handler does."""
    calls = []

    class Interrupted(Session):
        def resume(self, peer_received: int, peer_acknowledges: int | None = None) -> Any:
            calls.append(peer_received)
            worker.values.append(5)
            worker.flush()
            return super().resume(peer_received, peer_acknowledges)

    worker.line.session = Interrupted()
    worker.line.reconnect(None)
    assert calls == [0]
    assert worker.values == [5]
    worker.flush()
    link = keeper.link()
    assert keeper.results(link) == [(1, [5])]
    link.close()


def test_a_fork_of_the_worker_says_nothing(keeper: Answering, worker: WorkerSession) -> None:
    worker.line.reconnect(None)
    link = keeper.link()
    worker.values.append(1)
    worker.line.leave_to_parent()
    worker.flush()
    worker.send((Kind.PROGRESS, 1, 1, None))
    assert worker.line.link is None
    assert link.receive() == ([], False)
    link.close()


def fill(worker: WorkerSession) -> int:
    """Have results wait for a keeper that does not read; return how many there are."""
    number = 0
    while worker.line.link is not None and not worker.line.link.blocked:
        number += 1
        worker.hold(number, b"r" * 50_000, Code.PICKLED)
        worker.flush()
    return number


def test_what_a_keeper_does_not_read_is_not_waited_for_and_arrives_when_it_reads(
    keeper: Answering, worker: WorkerSession
) -> None:
    told = threading.Event()
    before = signal.signal(signal.SIGURG, lambda *_: (worker.summoned(), told.set()))
    try:
        worker.line.reconnect(None)
        link = keeper.link()
        number = fill(worker)
        for done in range(1_000):
            worker.remark((Kind.PROGRESS, 1, done, None))
        assert len(worker.line.session.outbox) == number, "progress is not kept"
        heard: list[tuple[Any, ...]] = []
        asides: list[tuple[Any, ...]] = []
        while len(heard) < number or not asides:
            for frame in link.receive()[0]:
                if keeper.session.receive(frame):
                    heard += unpack(frame.body)
                elif frame.kind is FrameKind.ASIDE:
                    asides += unpack(frame.body)
        assert [message[1] for message in heard] == list(range(1, number + 1))
        assert asides == [(Kind.PROGRESS, 1, 999, None)], "the newest alone"
        assert told.is_set(), "the signal has had it sent, not the next message"
        link.close()
    finally:
        signal.signal(signal.SIGURG, before)


def test_no_further_task_is_begun_while_too_much_waits(
    keeper: Answering, worker: WorkerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_session, "OUTBOX_BYTES", 500_000)
    worker.line.reconnect(None)
    link = keeper.link()
    number = fill(worker)
    assert worker.flush_before_next(1.0) == 1.0, "there is room yet"
    while not worker._is_full:
        number += 1
        worker.hold(number, b"r" * 50_000, Code.PICKLED)
        worker.flush()
    waiting = threading.Thread(target=worker.flush_before_next, args=(1.0,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    heard = 0
    while heard < number:
        heard += len(keeper.results(link))
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    link.close()


def test_what_has_waited_is_not_sent_where_a_task_has_put_its_own_file(
    keeper: Answering, worker: WorkerSession, tmp_path: Path
) -> None:
    worker.line.reconnect(None)
    link = keeper.link()
    number = fill(worker)
    arena = result(worker, number + 1, b"a" * 100_000)
    worker.flush()
    stolen = arena.fd
    steal(stolen, tmp_path / "file")
    heard = 0
    while heard < number - 1:  # of the last a part has not been sent
        heard += len(keeper.results(link))
    with pytest.raises(Retired):
        worker.remark((Kind.PROGRESS, 1, 1, None))
    os.close(stolen)
    link.close()


def test_the_fork_server_does_not_wait_for_a_keeper_that_does_not_read(keeper: Answering, tmp_path: Path) -> None:
    line = KeeperLine(WorkerConfig(str(tmp_path / "socket"), KEY, str(tmp_path), orphan_grace=1.0), dict)
    link = keeper.link()
    number = 0
    while line.awaits is not None and not line.awaits[1] & select.POLLOUT:
        number += 1
        line.send((Kind.NOTICE, f"{number} " + 10_000 * "n"))
    heard: list[str] = []
    while len(heard) < number:
        line.flush()
        for frame in link.receive()[0]:
            assert keeper.session.receive(frame)
            heard += [text.split()[0] for _, text in unpack(frame.body)]
    assert heard == [str(sent + 1) for sent in range(number)]
    assert line.awaits is not None
    assert not line.awaits[1] & select.POLLOUT
    line.close()
    link.close()


def test_an_orphan_that_reports_progress_for_hours_stays_small(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    orphan = WorkerSession(WorkerConfig(path, KEY, str(tmp_path), orphan_grace=300.0), 1)
    orphan.describe = lambda: ({}, ())
    for done in range(10_000):
        orphan.remark((Kind.PROGRESS, 1, done, None))
        if done % 100 == 0:
            orphan.remark((Kind.NOTICE, str(done)))
    assert not orphan.line.session.outbox
    keeper = Answering(path)
    try:
        orphan.summoned()
        link = keeper.link()
        frames = [frame for frame in link.receive()[0] if frame.kind is FrameKind.ASIDE]
        (frame,) = frames
        first, *notices, progress = unpack(frame.body)
        assert first == (Kind.NOTICE, "84 earlier notices are lost, for nobody listened")
        assert notices == [(Kind.NOTICE, str(done)) for done in range(8_400, 10_000, 100)]
        assert progress == (Kind.PROGRESS, 1, 9_999, None)
        link.close()
    finally:
        keeper.end()
        assert orphan.line.link is not None
        orphan.line.link.close()


def test_one_that_is_told_to_leave_says_what_it_has_begun_and_leaves_that_behind(
    keeper: Answering, tmp_path: Path
) -> None:
    (tmp_path / "authkey").write_bytes(KEY)
    config = WorkerConfig(str(tmp_path / "socket"), KEY, str(tmp_path), arena_directory=str(tmp_path), orphan_grace=300)
    orphan = WorkerSession(config, 7, "birth")
    orphan.describe = lambda: ({}, ())
    orphan.begin_nothing = lambda: Progress(3, 2, 0, 12.5)
    infos: list[Any] = [(str(key), 1, None, ("batch", "code", str(key), "arguments")) for key in range(4)]
    keeper.session.send(pack([(Kind.DEFINE, 1, "work", b"", None), (Kind.TASKS, 1, 1, [()] * 4, infos)]))
    orphan.line.reconnect(None)
    keeper.link().close()
    keeper.refuses = True
    orphan.values.extend([10, 20])
    orphan.flush()
    link = keeper.link()
    (frame,), _ = link.receive()
    claims = [["batch", "code", str(key), "arguments"] for key in range(3)]
    assert frame.kind is FrameKind.LEAVING
    assert decode_json(frame.body) == {
        "holds": [["work", 1, claim] for claim in claims],
        "executing": True,
        "since": 12.5,
    }
    link.close()
    orphan.hold(3, None, Code.SKIPPED)
    orphan.flush()  # without another call
    assert keeper.links.empty()
    with pytest.raises(Retired):
        orphan.receive()
    ((path, left),) = left_results(tmp_path / "spool", KEY, "birth-7")
    assert [(one.claim[2], one.code, one.payload) for one in left] == [
        ("0", Code.VALUE, 10),
        ("1", Code.VALUE, 20),
        ("2", Code.SKIPPED, None),
    ]
    path.unlink()


def test_one_that_has_to_leave_says_so_again_when_it_is_summoned(keeper: Answering, tmp_path: Path) -> None:
    orphan = WorkerSession(WorkerConfig(str(tmp_path / "socket"), KEY, str(tmp_path), orphan_grace=300), 1)
    orphan.begin_nothing = lambda: Progress(0, 0, 0, 0.0)
    keeper.refuses = True
    for _ in range(2):
        orphan.summoned()
        link = keeper.link()
        (frame,), _ = link.receive()
        assert decode_json(frame.body) == {"holds": [], "executing": False, "since": 0.0}
        link.close()
    with pytest.raises(Retired):
        orphan.receive()
    assert keeper.links.empty()
