"""A worker of an earlier keeper that does not call: what its page says of it, and what it says itself in the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poolkeeper.adoption import Adoption
from poolkeeper.core import Core
from poolkeeper.futures import TaskFuture
from poolkeeper.holdings import Held, digest_of
from poolkeeper.messages import Progress
from poolkeeper.page import Executing
from poolkeeper.roster import Told, Worker
from poolkeeper.store import Entry, claim_of
from tests.scripted import Page, call

NOBODY: Any = None


def asked_for(key: str) -> TaskFuture:
    task = TaskFuture(call(), (), key, NOBODY)
    task.entry = Entry(SimpleNamespace(name="", code="code", kin="m.f"), key, "()")
    return task


def claim(task: TaskFuture) -> tuple[Any, ...]:
    found = claim_of(task.entry)
    assert found is not None
    return found


class Silence:
    """A worker whose page says, as its keeper looks at 100.0 s, that it executes ``task`` as index 5."""

    def __init__(self, task: TaskFuture) -> None:
        self.core = Core(2)
        self.worker = self.core.succession.take_over(1, 0, "")
        self.adoption = Adoption(self.core, NOBODY, NOBODY, NOBODY, 100.0, lambda _: None, lambda: False, self.look_at)
        self.adoption.expect(self.worker)
        self.digest = digest_of(claim(task))

    def look_at(self, worker: Worker) -> Executing:
        page = worker.page = Page()
        page.started, page.finished = 5, 4
        return Executing(5, self.digest)

    @property
    def queued(self) -> list[Any]:
        return list(self.core.queue.tasks())


@pytest.mark.parametrize("early", [True, False])
def test_what_it_executes_is_waited_for_whenever_it_is_asked_for(early: bool) -> None:
    task, again, other = asked_for("a"), asked_for("a"), asked_for("b")
    silence = Silence(task)
    adoption, worker = silence.adoption, silence.worker
    if early:
        assert adoption.sift([task, other], 99.0) == []
        assert adoption.waiting == 2
        adoption.tend(100.0)
        assert silence.queued == [other]
    else:
        adoption.tend(100.0)
        assert adoption.concerns
        assert adoption.sift([task, other], 101.0) == [other]
    assert list(worker.inflight) == [task]
    assert (task.worker, task.index) == (worker.id, 5)
    assert adoption.sift([again], 102.0) == [again], "it executes one of them"
    assert not adoption.concerns


def test_it_has_died_before_anybody_has_asked() -> None:
    task = asked_for("a")
    silence = Silence(task)
    silence.adoption.tend(100.0)
    silence.adoption.gone(silence.worker)
    assert silence.adoption.sift([task], 101.0) == [task]


@pytest.mark.parametrize("drains", [False, True])
def test_what_it_tells_then_is_the_same_task(drains: bool) -> None:
    """One that is of another version tells what it has begun, from index 1 on."""
    task, behind = asked_for("a"), asked_for("b")
    silence = Silence(task)
    silence.adoption.sift([task, behind], 99.0)
    silence.adoption.tend(100.0)
    held = [Held("f", 3, claim(task)), Held("f", 1, claim(behind))]
    if drains:
        tasks = silence.adoption.take_in(silence.worker, 1, held[:1])
        silence.core.succession.leaving(silence.worker, Told(Progress(1, 0, 0, 0.0)), tasks)
    else:
        tasks = silence.adoption.take_in(silence.worker, 5, held, revoked_behind=5)
        silence.core.succession.attached(silence.worker, silence.worker.page, 5, tasks)
    assert list(silence.worker.inflight) == [task, None][: len(tasks)]
    assert task.attempts == 3
    assert silence.queued == [behind], "it runs elsewhere"
    assert silence.adoption.awaited == ()
