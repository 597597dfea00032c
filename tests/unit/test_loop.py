"""The keeper's loop: what it deals with at once, and that it is woken."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

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


@pytest.mark.parametrize("lines", range(6))
def test_who_is_interrupted_while_waking_the_loop_leaves_it_to_be_woken(lines: int) -> None:
    """Ctrl-C raises anywhere in there; a loop that slept on, and nobody's to wake, would never run what comes next."""
    loop = Loop(Host())
    loop.sleeping = [True]
    left = lines

    def step(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        nonlocal left
        if event == "line" and frame.f_code is Loop.wake.__code__:
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            loop.wake()
    finally:
        sys.settrace(before)
    woken = bool(select.select([loop.descriptor], [], [], 0)[0])
    assert woken or loop.sleeping
    loop.selector.close()
    loop.close()


def test_who_has_woken_the_loop_late_does_not_take_its_next_sleep_for_the_one_before() -> None:
    loop = Loop(Host())
    loop.sleeping = [True]
    sleep = loop.sleeping
    loop.wake()
    assert not sleep
    assert not loop.sleeping
    loop.step()
    loop.sleeping = [True]
    sleep.clear()
    assert loop.sleeping
    loop.selector.close()
    loop.close()


class Settling(Host):
    """Another thread settles the future that is waited for just before the loop goes to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop(self)
        self.done = False

    def timeout(self) -> float | None:
        if not self.done:
            self.done = self.loop.nudged = True
            if self.loop.sleeping:
                self.loop.wake()
        return None


@pytest.mark.parametrize("driven", [True, False])
def test_what_another_thread_has_done_on_the_way_to_bed_is_seen(driven: bool) -> None:
    host = Settling()
    loop = host.loop
    waits: list[float | None] = []

    class Selector:
        def select(self, wait: float | None) -> Ready:
            waits.append(wait)
            return []

    class Future:
        def done(self) -> bool:
            return host.done

    whole, loop.selector = loop.selector, Selector()  # type: ignore[assignment]
    if driven:
        thread = threading.Thread(target=loop.drive, args=(Future(), None))  # whatever handlers the main thread has
        thread.start()
        thread.join()
    else:
        loop.step()
    assert waits == [0.0]
    whole.close()
    loop.close()
