"""A survivor holds tasks whose code has changed: it ends what it is in the midst of, and that alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poolkeeper.adoption import Adoption
from poolkeeper.commands import Command, Retire, Spawn
from poolkeeper.core import Core
from poolkeeper.futures import TaskFuture
from poolkeeper.holdings import Held, digest_of
from poolkeeper.page import Executing
from poolkeeper.roster import Worker
from poolkeeper.store import Entry, claim_of
from tests.scripted import KILLED, Page, call

NOBODY: Any = None
FIRST = 3
"""The index of what the worker has finished; it executes the next, and was fed a third."""


class Shelves:
    """The journal, which knows nothing yet."""

    def adopted(self, name: str, code: str, kin: str) -> Any:
        return SimpleNamespace(name=name, code=code, kin=kin, expect=lambda: None)

    def knows(self, *_: object) -> bool:
        return False


def task(key: str, code: str = "new", kin: str = "m.f") -> TaskFuture:
    made = TaskFuture(call(), (), key, NOBODY)
    made.entry = Entry(SimpleNamespace(name="", code=code, kin=kin), key, "()")
    return made


def claim(of: TaskFuture) -> tuple[Any, ...]:
    found = claim_of(of.entry)
    assert found is not None
    return found


def held(kin: str = "m.f") -> list[Held]:
    return [Held("f", 1, claim(task(key, "old", kin))) for key in "abc"]


class Taken:
    """A survivor that has finished "a", executes "b" and was fed "c", all of them with old code."""

    def __init__(self) -> None:
        self.core = Core(2)
        self.worker = self.core.succession.take_over(1, 0, "")
        recorder: Any = Shelves()
        self.seen: Executing | None = None
        self.adoption = Adoption(
            self.core, recorder, NOBODY, NOBODY, 100.0, lambda _: None, lambda: False, lambda _: self.seen
        )
        self.adoption.expect(self.worker)
        self.page = Page()
        self.page.started, self.page.finished = FIRST + 1, FIRST

    def calls(self, kin: str = "m.f") -> None:
        self.worker.page = self.page
        tasks = self.adoption.take_in(self.worker, FIRST, held(kin))
        self.core.succession.attached(self.worker, self.page, FIRST, tasks)

    def asks(self, *wanted: TaskFuture, early: bool, kin: str = "m.f") -> list[TaskFuture]:
        """Return what is to run elsewhere."""
        if early:
            assert self.adoption.sift(list(wanted), 99.0) == []
            self.calls(kin)
            self.adoption.tend(99.5)
            return [one for one in self.core.queue.tasks() if isinstance(one, TaskFuture)]
        self.calls(kin)
        return self.adoption.sift(list(wanted), 99.0)


@pytest.mark.parametrize("early", [True, False])
def test_what_it_executes_is_waited_for_and_the_rest_runs_on_new_code(early: bool) -> None:
    taken = Taken()
    done, running, waits = task("a"), task("b"), task("c")
    assert taken.asks(done, running, waits, early=early) == [done, waits]
    assert taken.worker.task_at(FIRST + 1) is running
    assert taken.worker.task_at(FIRST + 2) is None
    assert taken.page.revoked == {FIRST + 2}
    assert claim_of(taken.worker.inflight[0].entry) == claim(task("a", "old"))  # type: ignore[union-attr]


def test_its_outcome_is_recorded_as_one_of_the_old_code() -> None:
    taken = Taken()
    running = task("b")
    taken.asks(running, early=True)
    assert taken.adoption.runs_as(running) == claim(task("b", "old"))[:4]
    taken.adoption.answered([running], ["result"])
    assert claim(running) == claim(task("b", "old"))


def test_what_runs_again_is_recorded_as_one_of_the_new_code() -> None:
    taken = Taken()
    running = task("b")
    taken.asks(running, early=True)
    taken.core.died(taken.worker, 100.0, KILLED)
    assert [one for one in taken.core.queue.tasks() if type(one) is TaskFuture] == [running]
    running.worker = 7
    taken.adoption.answered([running], ["result"])
    assert claim(running) == claim(task("b"))


def test_what_begins_while_it_is_looked_at_counts_as_begun() -> None:
    taken = Taken()
    waits = task("c")
    taken.calls()
    taken.page.started, taken.page.finished = FIRST + 2, FIRST + 1
    assert taken.adoption.sift([waits], 99.0) == []
    assert taken.worker.task_at(FIRST + 2) is waits


def test_what_ends_before_it_is_asked_for_runs_again() -> None:
    taken = Taken()
    running = task("b")
    taken.calls()
    taken.page.finished = FIRST + 1
    assert taken.adoption.sift([running], 99.0) == [running]


@pytest.mark.parametrize("early", [True, False])
def test_another_function_is_not_taken_for_it(early: bool) -> None:
    """A function without a name of its own is known by its code alone."""
    taken = Taken()
    wanted = [task(key, "new", "new") for key in "abc"]
    assert taken.asks(*wanted, early=early, kin="old") == wanted
    assert [claim_of(one.entry) for one in taken.worker.inflight] == [one.claim for one in held("old")]  # type: ignore[union-attr]


def test_it_is_no_different_for_a_silent_one() -> None:
    taken = Taken()
    running, waits = task("b"), task("c")
    taken.seen = Executing(FIRST + 1, digest_of(claim(running)))
    taken.worker.page = taken.page
    assert taken.adoption.sift([running, waits], 99.0) == []
    taken.adoption.tend(100.0)
    assert list(taken.core.queue.tasks()) == [waits]
    assert list(taken.worker.inflight) == [running]
    taken.calls()
    assert taken.worker.task_at(FIRST + 1) is running
    taken.adoption.answered([running], ["result"])
    assert claim(running) == claim(task("b", "old"))


def decided(core: Core, now: float) -> list[Command]:
    """Return what is to be done."""
    due: list[Command] = []
    core.decide(now, due)
    return due


def test_workers_that_run_old_code_have_their_place_until_they_leave() -> None:
    core = Core(1)
    worker: Worker = core.succession.take_over(1, 0, "")
    page = Page()
    page.started = 1
    core.succession.attached(worker, page, 1, [task("a")])
    core.hello(worker)
    core.recycle(worker)
    core.submit([task("b")])
    retire, spawn = decided(core, 1.0)
    assert isinstance(retire, Retire)
    assert isinstance(spawn, Spawn), "its successor starts while it works"
    core.hello(spawn.worker)
    assert decided(core, 1.0) == []
    page.finished = 1
    core.results(worker, 1, None, ["result"], 1.0)
    assert "Feed" in [type(command).__name__ for command in decided(core, 2.0)]
