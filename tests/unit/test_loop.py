"""The keeper's loop: what it deals with at once."""

from __future__ import annotations

import os
import selectors
from collections.abc import Iterator

import pytest

from poolkeeper.futures import TaskFuture
from poolkeeper.loop import AT_ONCE, Loop, Ready


class Host:
    """Reads what is there to read, and notes how much that was each time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def process(self, ready: Ready) -> None:
        self.sizes.append(len(ready))
        for key, mask in ready:
            key.data(mask)

    def has_news(self) -> bool:
        return False

    def timeout(self) -> float | None:
        return 0.0

    def runs_one_short_task(self, task: TaskFuture, limit: float) -> float | None:
        return None

    def failed(self, error: Exception) -> None:
        raise error


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(2 * AT_ONCE + 1)]
    yield made
    for ends in made:
        for end in ends:
            os.close(end)


def test_new_tasks_are_looked_at_while_a_hundred_workers_call(pipes: list[tuple[int, int]]) -> None:
    host = Host()
    loop = Loop(host)
    heard: list[int] = []
    for reader, writer in pipes:
        loop.selector.register(reader, selectors.EVENT_READ, lambda _, reader=reader: heard.append(reader))
        os.write(writer, b"!")
    loop.step()
    assert host.sizes == [AT_ONCE, AT_ONCE, 1]
    assert sorted(heard) == sorted(reader for reader, _ in pipes)
    for reader, _ in pipes:
        os.read(reader, 1)
    loop.step()
    assert host.sizes[3:] == [0], "nothing is ready, and what is due is dealt with all the same"
    loop.selector.close()
    loop.close()
