"""Futures and maps get their outcomes although the code that gives them fails, at each of its lines in turn.

As the keeper's loop does, what has failed is done again for those that have no outcome, and then all are told.
"""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures._base import ALL_COMPLETED, FIRST_COMPLETED, _create_and_install_waiters
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import poolkeeper
from poolkeeper.futures import Bell, TaskFuture
from poolkeeper.ledger import Call, Options, Segment
from poolkeeper.mapping import MapJob
from poolkeeper.settlement import Settlement
from poolkeeper.spool import Stowage
from tests.helpers import PATIENCE, wait_until
from tests.unit.test_waiting import NoKeeper

MODULES = tuple(str(Path(poolkeeper.__file__).parent / f"{name}.py") for name in ("futures", "settlement", "mapping"))
INFALLIBLE = ("with ", "while True", "return ", "raise", "except ", "try:", "self._untold.pop()")
"""Where nothing can fail, or what ends here has failed already."""

Settle = Callable[[Settlement, list[TaskFuture]], None]


class Injected(Exception):
    """A defect, or memory that is exhausted."""


def failing_at(number: int, call: Callable[[], None]) -> bool:
    """Run ``call`` and raise at the ``number``-th line of it that may fail; return whether it came to that."""
    left = number

    def enter(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return step if frame.f_code.co_filename in MODULES else None

    def step(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal left
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith(
            INFALLIBLE
        ):
            left -= 1
            if left == 0:
                raise Injected
        return step

    sys.settrace(enter)
    try:
        call()
    except Injected:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.fixture
def settlement(tmp_path: Path) -> Iterator[Settlement]:
    stowage = Stowage(tmp_path, 1 << 20)
    settlement = Settlement(stowage)
    yield settlement
    settlement.delivery.close()
    stowage.close()


def new_future() -> TaskFuture:
    return TaskFuture(Call("task", b"", Options()), (), None, NoKeeper())


class Watched:
    """A future that is waited for in all ways."""

    def __init__(self) -> None:
        self.future = new_future()
        self.called: list[TaskFuture] = []
        self.bell = Bell()
        self.future.add_done_callback(self.called.append)
        with self.future._condition:
            self.future._waiters.append(self.bell)
        self.waiters = [
            _create_and_install_waiters([self.future], when)
            for when in ("_AS_COMPLETED", FIRST_COMPLETED, ALL_COMPLETED)
        ]

    def assert_told_once(self, settlement: Settlement) -> None:
        done = threading.Event()
        settlement.delivery.post(done.set)
        assert done.wait(PATIENCE)
        assert self.called == [self.future]
        assert self.bell._lock.acquire(blocking=False)
        for waiter in self.waiters:
            assert waiter.event.is_set()
            assert waiter.finished_futures == [self.future]


def deliver(settlement: Settlement, futures: list[TaskFuture]) -> None:
    settlement.deliver(futures, list(range(len(futures))))


def fail(settlement: Settlement, futures: list[TaskFuture]) -> None:
    for future in futures:
        if not future.done():
            settlement.fail_task(future, ValueError("failed"))


def withdraw(settlement: Settlement, futures: list[TaskFuture]) -> None:
    for future in futures:
        if not future.done():
            settlement.withdraw(future)


@pytest.mark.parametrize("settle", [deliver, fail, withdraw])
def test_all_who_wait_are_told_once_wherever_it_fails(settlement: Settlement, settle: Settle) -> None:
    number, failed = 0, True
    while failed:
        number += 1
        watched = [Watched(), Watched()]
        futures = [watched[0].future, new_future(), watched[1].future]
        failed = failing_at(number, lambda futures=futures: settle(settlement, futures))
        if failed:
            settle(settlement, futures)
            settlement.announce()
        assert all(future.done() for future in futures), number
        for each in watched:
            each.assert_told_once(settlement)
    assert number > 20


def test_a_waiter_that_cannot_be_told_does_not_keep_others_from_their_outcomes(settlement: Settlement) -> None:
    class Exhausted:
        def add_result(self, _: object) -> None:
            raise MemoryError

    futures = [new_future() for _ in range(4)]
    watched = Watched()
    with futures[1]._condition:
        futures[1]._waiters.append(Exhausted())
    futures.append(watched.future)
    with pytest.raises(MemoryError):
        deliver(settlement, futures)
    assert [future.result(0) for future in futures] == [0, 1, 2, 3, 4]
    watched.assert_told_once(settlement)


class Gathering:
    """A map of three items, and its consumer."""

    def __init__(self, *, ordered: bool) -> None:
        self.segments: list[Segment] = []
        call = Call("task", b"", Options())
        self.job = MapJob(self, call, starred=False, chunksize=1, single=True, ordered=ordered)
        self.job.submit([0, 1, 2])
        self.got: list[int] = []
        self.results = self.job.results(None, 100, None, None)
        self.arrived: Any = self.job._pieces if ordered else self.job._arrived

    def submit(self, segment: Segment) -> None:
        self.segments.append(segment)

    def forget(self, _: list[Segment]) -> None:
        pass

    def settle(self, settlement: Settlement, chunk: Any) -> None:
        settlement.settle_chunk(chunk, None, [chunk.start])
        settlement.announce()

    def consume(self, chunk: Any) -> None:
        if len(self.got) == chunk.start and chunk.start in self.arrived:
            self.got.append(next(self.results))


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_a_map_has_each_result_once_wherever_it_fails(settlement: Settlement, ordered: bool) -> None:
    number, failed = 0, True
    while failed:
        number += 1
        gathering: Any = Gathering(ordered=ordered)
        chunks = [gathering.segments[0].cut(1) for _ in range(3)]
        gathering.settle(settlement, chunks[0])
        gathering.consume(chunks[0])
        failed = failing_at(number, lambda: gathering.settle(settlement, chunks[1]))  # noqa: B023 - called at once
        gathering.consume(chunks[1])  # quicker than what comes next
        for chunk in chunks[1:] if failed else chunks[2:]:
            gathering.settle(settlement, chunk)
            gathering.consume(chunk)
        assert gathering.got == [0, 1, 2], number
        assert list(gathering.results) == []
    assert number > 5


def test_one_that_waits_for_a_piece_of_a_map_is_woken_wherever_it_fails(settlement: Settlement) -> None:
    class Waiting:
        withdrawn = False
        rung = 0

        def settle(self, *_: object) -> bool:
            return True

        def announce(self) -> None:
            self.rung += 1

    number, failed = 0, True
    while failed:
        number += 1
        jobs: list[Any] = [Waiting(), Waiting()]
        settlement._jobs.extend(jobs)
        failed = failing_at(number, settlement.announce)
        if failed:
            settlement.announce()
        assert all(job.rung for job in jobs), number


class Leaves(BaseException):
    """Neither an Exception nor known to anybody."""


def test_a_callback_that_wants_to_leave_keeps_no_other_from_being_called(settlement: Settlement) -> None:
    future, called = new_future(), []

    def leave(_: object) -> None:
        raise Leaves

    future.add_done_callback(leave)
    future.add_done_callback(called.append)
    settlement.deliver([future], [1])
    wait_until(lambda: called, "the second callback")
    other = Watched()
    settlement.deliver([other.future], [2])
    other.assert_told_once(settlement)


def test_a_sink_that_raises_does_not_end_the_thread_of_callbacks(settlement: Settlement) -> None:
    from loguru import logger

    def sink(_: object) -> None:
        raise OSError("the log is gone")

    def leave(_: object) -> None:
        raise Leaves

    logger.enable("poolkeeper")
    handle = logger.add(sink, catch=False)
    try:
        future = new_future()
        future.add_done_callback(leave)
        settlement.deliver([future], [1])
        other = Watched()
        settlement.deliver([other.future], [2])
        other.assert_told_once(settlement)
    finally:
        logger.remove(handle)
        logger.disable("poolkeeper")


def test_a_withdrawn_future_is_cancelled_once(settlement: Settlement) -> None:
    watched = Watched()
    settlement.withdraw(watched.future)
    settlement.withdraw(watched.future)
    watched.assert_told_once(settlement)
    with pytest.raises(CancelledError):
        watched.future.result(0)
