"""The buffer between pipes and disk: bounded, and fair to the file that comes second."""

from __future__ import annotations

import threading

from poolkeeper.logbuffer import Batch, LogBuffer
from tests.helpers import PATIENCE


def test_blocks_come_out_per_file_and_in_order() -> None:
    buffer = LogBuffer(100)
    done: list[int] = []
    for stem, block in [("a", b"1"), ("b", b"2"), ("a", b"3")]:
        assert buffer.offer(stem, block)
    buffer.then(lambda: done.append(1))
    batch = buffer.take()
    assert batch is not None
    assert batch.blocks == {"a": [b"1", b"3"], "b": [b"2"]}
    for action in batch.after:
        action()
    assert done == [1]


def test_one_file_gets_half_and_the_next_half_of_the_rest() -> None:
    buffer = LogBuffer(64)
    taken = {stem: sum(buffer.offer(stem, b"x") for _ in range(100)) for stem in "abc"}
    assert taken == {"a": 32, "b": 16, "c": 8}
    assert not buffer.is_calm("a")


def test_room_comes_back_when_blocks_are_written_not_when_they_are_taken() -> None:
    buffer = LogBuffer(20)
    assert buffer.offer("a", b"x" * 10)
    assert buffer.take() is not None
    assert not buffer.offer("a", b"x")
    buffer.written("a", 10)
    assert buffer.is_calm("a")
    assert not buffer.offer("a", b"x" * 10, 0.25)
    assert buffer.offer("a", b"x" * 10)


def test_what_is_forced_goes_in_beyond_the_share() -> None:
    buffer = LogBuffer(1)
    buffer.force("a", b"notice")
    assert buffer.take() == Batch({}, {"a": [b"notice"]}, [])


def test_lines_without_room_are_counted_per_file() -> None:
    buffer = LogBuffer(1)
    for stem in "aba":
        buffer.lose(stem, 2)
    assert buffer.take() == Batch({"a": 4, "b": 2}, {}, [])


def test_the_end_comes_behind_all_that_was_taken() -> None:
    buffer = LogBuffer(10)
    batches: list[Batch | None] = []

    def write() -> None:
        while (batch := buffer.take()) is not None:
            batches.append(batch)
        batches.append(None)

    thread = threading.Thread(target=write)
    thread.start()
    assert buffer.offer("a", b"last")
    buffer.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert batches == [Batch({}, {"a": [b"last"]}, []), None]
