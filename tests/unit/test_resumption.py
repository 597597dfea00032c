"""What a task saves and finds again: loops that go on, throttling, notices, and that no trouble ends the task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.checkpoint import Found, MemoryStore
from poolkeeper.errors import CheckpointUnreadable
from poolkeeper.resumption import Resumption


class Attempts:
    """A task that is attempted again and again."""

    def __init__(self, store: Any = None) -> None:
        self.store = MemoryStore() if store is None else store
        self.notices: list[str] = []
        self.progress: list[tuple[float, float | None]] = []
        self.number = 0

    def next(self) -> Resumption:
        self.number += 1
        return Resumption(
            self.store, "once\0task", self.number, self.notices.append, lambda *said: self.progress.append(said)
        )


class Stopped(Exception):
    """The attempt ends."""


def run(resumption: Resumption, items: Iterable[int], until: int, **options: Any) -> list[int]:
    """Do ``items`` until ``until`` is met, which is not done."""
    done = []
    options = {"every": 0.0, "key": None} | options
    for item in resumption.track(items, **options):
        if item == until:
            break
        done.append(item)
    return done


@given(st.integers(0, 30), st.lists(st.integers(0, 30)), st.booleans(), st.sampled_from([0.0, 1000.0]))
def test_each_item_is_done_once_however_often_the_loop_is_broken_off(
    total: int, stops: list[int], iterator: bool, every: float
) -> None:
    attempts = Attempts()
    done: list[int] = []
    for stop in [*stops, -1]:
        items: Iterable[int] = iter(range(total)) if iterator else range(total)
        done += run(attempts.next(), items, stop, every=every)
    if every == 0 or len(stops) <= 1:
        assert done == list(range(total)) or (every and stops[0] >= total)  # a short loop that ended is repeated


def test_a_loop_that_is_held_is_saved_when_the_attempt_fails() -> None:
    attempts = Attempts()
    first = attempts.next()
    held = first.track(range(5), 1000, None)
    assert [next(held), next(held), next(held)] == [0, 1, 2]
    first.failed()
    held.close()  # type: ignore[attr-defined]
    assert run(attempts.next(), range(5), -1) == [2, 3, 4]


def test_progress_is_shown_from_where_it_goes_on() -> None:
    attempts = Attempts()
    run(attempts.next(), range(4), 2)
    attempts.progress.clear()
    run(attempts.next(), range(4), -1)
    assert attempts.progress == [(2, 4), (3, 4), (4, 4)]


def test_other_items_are_all_done_again() -> None:
    attempts = Attempts()
    run(attempts.next(), range(4), 2)
    assert run(attempts.next(), range(5), -1) == [0, 1, 2, 3, 4]
    assert "2 of 4 items were done, and now there are 5: all are done again" in attempts.notices[0]


def test_loops_one_after_the_other_are_told_apart() -> None:
    attempts = Attempts()
    first = attempts.next()
    assert run(first, range(3), -1) == [0, 1, 2]
    assert run(first, range(3), 1) == [0]
    second = attempts.next()
    assert run(second, range(3), -1) == []
    assert run(second, range(3), -1) == [1, 2]


def test_a_loop_within_a_loop_needs_a_key_of_its_own() -> None:
    resumption = Attempts().next()
    for outer in resumption.track(range(2), 0, None):
        with pytest.raises(ValueError, match="needs key="):
            resumption.track(range(3), 0, None)
        assert run(resumption, range(3), -1, key=f"inner {outer}") == [0, 1, 2]
    with pytest.raises(ValueError, match="used before"):
        resumption.track(range(3), 0, "inner 1")


def test_a_checkpoint_is_written_at_most_so_often() -> None:
    attempts = Attempts()
    first = attempts.next()
    assert [first.checkpoint(number, 1000, durable=False) for number in range(3)] == [True, False, False]
    assert first.checkpoint(3, None, durable=False)
    assert attempts.next().restore(None, "raise") == 3


def test_success_leaves_nothing() -> None:
    attempts = Attempts()
    first = attempts.next()
    first.checkpoint(1, None, durable=False)
    run(first, range(3), 2)
    first.succeeded()
    assert not first.checkpoint(2, None, durable=False)
    second = attempts.next()
    assert second.restore(None, "raise") is None
    assert run(second, range(3), -1) == [0, 1, 2]


def test_a_service_that_returns_keeps_its_state_and_begins_its_loops_anew() -> None:
    attempts = Attempts()
    first = attempts.next()
    first.checkpoint(1, None, durable=False)
    run(first, range(3), -1)
    first.returned()
    second = attempts.next()
    assert second.restore(None, "raise") == 1
    assert run(second, range(3), -1) == [0, 1, 2]


class Troubled(MemoryStore):
    """A store on a bad disk."""

    full = True

    def write(self, *args: Any, **options: Any) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().write(*args, **options)

    def read(self, identity: str, part: str) -> Found | None:
        if self.full:
            raise CheckpointUnreadable("it is torn")
        return super().read(identity, part)


def test_trouble_is_said_once_and_ends_nothing() -> None:
    attempts = Attempts(Troubled())
    first = attempts.next()
    assert [first.checkpoint(1, None, durable=False) for _ in range(3)] == [False] * 3
    assert len(attempts.notices) == 1
    assert "No space left on device; the work goes on" in attempts.notices[0]
    attempts.store.full = False
    assert first.checkpoint(1, None, durable=False)
    attempts.store.full = True
    first.checkpoint(1, None, durable=False)
    assert len(attempts.notices) == 2
    attempts.store.full = False
    assert first.checkpoint(1, None, durable=False)


def test_trouble_is_said_by_the_first_task_that_meets_it() -> None:
    attempts = Attempts(Troubled())
    for _ in range(3):
        attempts.next().checkpoint(1, None, durable=False)
    assert len(attempts.notices) == 1
    attempts.store.full = False
    assert attempts.next().checkpoint(1, None, durable=False)


def test_what_cannot_be_read_raises_or_starts_afresh() -> None:
    attempts = Attempts(Troubled())
    with pytest.raises(CheckpointUnreadable, match=r"the checkpoint of once task: it is torn; .* starts afresh"):
        attempts.next().restore(1, "raise")
    assert attempts.next().restore(1, "default") == 1
    assert run(attempts.next(), range(3), -1) == [0, 1, 2]
    assert all("it starts afresh" in notice for notice in attempts.notices if "torn" in notice)
    with pytest.raises(ValueError, match="on_error='never' must be"):
        attempts.next().restore(1, "never")  # type: ignore[arg-type]
