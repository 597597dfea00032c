"""Waiting for a future or a map while a signal handler raises, wherever it can: no lock is left taken.

Python runs handlers on entering a function and on coming back from one of C. A profile function is called there, too.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from types import FrameType
from typing import Any

from poolkeeper.futures import Bell, TaskFuture
from poolkeeper.ledger import Call, Options, Segment
from poolkeeper.mapping import MapJob
from tests.helpers import PATIENCE


class Handled(Exception):
    """What the handler raises."""


def interrupted(call: Callable[[], Any], number: int) -> bool:
    """Run ``call`` and raise where a handler could for the ``number``-th time; return whether it came to that."""
    seen = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal seen
        if event in ("call", "c_return") and frame.f_code.co_filename != __file__:
            seen += 1
            if seen == number:
                raise Handled

    sys.setprofile(profile)
    try:
        call()
    except Handled:
        return True
    except TimeoutError:
        pass
    finally:
        sys.setprofile(None)
    return False


def in_another_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "a lock is left taken"


class NoKeeper:
    """A keeper that nobody can drive."""

    def cancel(self, task: TaskFuture) -> bool:
        return False

    def expect_callbacks(self) -> None:
        pass

    def is_running(self, task: TaskFuture) -> bool:
        return False

    def drive(self, task: TaskFuture, timeout: float | None) -> None:
        pass

    def submit(self, segment: Segment) -> None:
        pass

    def encode_item(self, item: Any) -> Any:
        return item

    def forget(self, segments: list[Segment]) -> None:
        pass


CALL = Call("work", b"", Options())


def test_a_future_outlives_a_handler_that_raises_anywhere_in_its_wait() -> None:
    for number in count(1):
        future = TaskFuture(CALL, None, None, NoKeeper())
        raised = interrupted(partial(future.result, 0.001), number)
        in_another_thread(partial(future.settle, 7))
        assert future.result(PATIENCE) == 7
        if not raised:
            break
    assert number > 5


def test_a_map_outlives_a_handler_that_raises_anywhere_in_its_wait() -> None:
    for number in count(1):
        job = MapJob(NoKeeper(), CALL, starred=False, chunksize=1, single=False, ordered=True)
        job.submit([1])
        results = job.results(None, 1, time.monotonic() + 0.001, 0.001)
        raised = interrupted(partial(next, results), number)
        in_another_thread(job.announce)
        if not raised:
            break
    assert number > 5


def test_a_bell_that_was_rung_before_is_heard_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    bell.wait(None)
    ringing = threading.Timer(0.01, bell.ring)
    ringing.start()
    bell.wait(None)
    ringing.join()
    bell.wait(0.0)
