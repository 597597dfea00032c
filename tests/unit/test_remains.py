"""What a core leaves whose loop has failed: each piece of work once, and another core goes on with it."""

from __future__ import annotations

import pytest

from poolkeeper.commands import Decide, Fail, Failure, Feed, Kill, Settle
from poolkeeper.core import Core
from poolkeeper.ledger import Segment, Task
from poolkeeper.lifecycle import WorkerState
from poolkeeper.messages import Code
from poolkeeper.remains import Remains
from poolkeeper.roster import KillReason, Worker
from tests.scripted import KILLED, Script, call, keys, segment, tasks

LONG = 10.0


def remains_of(script: Script) -> Remains:
    return script.core.remains((), (), lambda _: True)


def heir(script: Script, remains: Remains) -> Script:
    """A core that goes on with what another has left, workers included; they have not called yet."""
    later = Script(len(script.pages), ready=0)
    later.core.resume(remains)
    for worker, held in remains.held.items():
        new = later.core.succession.hand_over(worker, held, later.now)
        later.pages[new.id] = script.pages[worker.id]
    return later


def attach(script: Script, worker: Worker, received: int) -> None:
    """A worker calls that has received so many of the tasks it was fed."""
    script.core.succession.attached(worker, worker.page, worker.base, [None] * received)
    script.hello(worker)


def feeds(script: Script) -> list[object]:
    return [key for command in script.log if isinstance(command, Feed) for key in keys(command.tasks)]


def test_what_runs_stays_with_its_worker_and_is_fed_to_nobody_else() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(LONG), 3))
    script.start(worker)
    remains = remains_of(script)
    assert keys(remains.held[worker]) == ["0"]
    assert keys(remains.waiting) == ["1", "2"]
    later = heir(script, remains)
    (same,) = later.workers
    assert (same.id, same.base, keys(same.inflight)) == (worker.id, worker.base, ["0"])
    later.decide(100.0)
    assert feeds(later) == []
    attach(later, same, received=1)
    later.pages[same.id].finished = same.base
    later.answer(same)
    assert feeds(later) == ["1"]


def test_what_has_never_reached_the_worker_is_fed_again() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(1e-5), 4))
    assert len(worker.inflight) == 4
    later = heir(script, remains_of(script))
    (same,) = later.workers
    attach(later, same, received=2)
    assert keys(same.inflight) == ["0", "1"]
    assert keys(later.core.queue.tasks()) == ["2", "3"]


def test_an_answer_that_comes_once_more_is_nobody_s() -> None:
    script = Script(1)
    (worker,) = script.workers
    first, second = tasks(call(1e-5), 2)
    script.submit(first, second)
    script.run(worker)
    script.answer(worker)
    later = heir(script, remains_of(script))
    (same,) = later.workers
    later.core.succession.attached(same, same.page, same.base - 1, [None, None])
    later.hello(same)
    later.core.results(same, same.base, None, ["again"], 0.0)
    settled = [command for command in later.decide() if isinstance(command, Settle)]
    assert [command.tasks for command in settled] == [[None]]
    assert keys(same.inflight) == [second.key]


def test_a_death_before_the_call_is_blamed_as_ever() -> None:
    script = Script(1)
    (worker,) = script.workers
    task, waits = tasks(call(LONG), 2)
    script.submit(task, waits)
    script.start(worker)
    later = heir(script, remains_of(script))
    later.core.died(later.workers[0], later.now, KILLED)
    assert (task.deaths, waits.deaths) == (1, 0)


def test_what_is_delayed_decided_on_or_has_died_is_remembered() -> None:
    script = Script(2)
    retried = call(LONG, attempts=3)
    delayed, asked = tasks(retried, 2)
    script.submit(delayed, asked)
    for worker in script.workers:
        script.run(worker)
        script.core.results(worker, worker.base, [Code.EXCEPTION], [b""], 1.0)
    first, second = (command for command in script.decide() if isinstance(command, Decide))
    script.core.decided(first, 5.0, script.now)
    remains = remains_of(script)
    assert [(due, task) for due, task in remains.delayed] == [(script.now + 5.0, delayed)]
    assert remains.commands == [second], "the policy is asked again: its answer may be lost"
    later = heir(script, remains)
    later.core.decided(second, 1.0, later.now)
    assert len(later.core.queue) == 2
    assert (delayed.attempts, asked.attempts) == (2, 2)


def test_a_suspect_still_runs_alone() -> None:
    script = Script(2)
    task, other = tasks(call(LONG), 2)
    task.deaths = 1
    script.core.queue.suspect(task)
    script.decide()
    (worker,) = [worker for worker in script.workers if task in worker.inflight]
    script.start(worker)
    other.deaths = 1
    script.core.queue.suspect(other)
    later = heir(script, remains_of(script))
    for each in later.workers:
        attach(later, each, received=len(each.inflight))
    assert later.core.queue.suspect_out is task
    assert feeds(later) == []


def test_a_verdict_that_waits_for_its_explanation_is_passed() -> None:
    script = Script(1)
    (worker,) = script.workers
    (task,) = tasks(call(LONG, deaths=1), 1)
    script.submit(task)
    script.start(worker)
    script.core.died(worker, script.now)
    (verdict,) = remains_of(script).commands
    assert isinstance(verdict, Fail)
    assert (verdict.task, verdict.failure) == (task, Failure.QUARANTINED)


def test_who_was_killed_is_killed_again_and_who_was_leaving_leaves() -> None:
    script = Script(2)
    killed, leaving = script.workers
    (task,) = tasks(call(LONG, timeout=1.0, kill=True), 1)
    script.submit(task)
    (killed,) = [worker for worker in script.workers if worker.inflight]
    (leaving,) = [worker for worker in script.workers if not worker.inflight]
    script.start(killed)
    script.core._dispatcher.put_down(killed, KillReason.TIMEOUT, task.index)
    script.core.recycle(leaving)
    later = heir(script, remains_of(script))
    assert {worker.id: worker.state for worker in later.workers} == {
        killed.id: WorkerState.KILLED,
        leaving.id: WorkerState.RETIRING,
    }
    assert [command.worker.id for command in later.decide() if isinstance(command, Kill)] == [killed.id]


def test_each_piece_is_there_once_whatever_tables_it_is_in() -> None:
    script = Script(1)
    (worker,) = script.workers
    done, runs, waits = tasks(call(LONG), 3)
    script.submit(done)
    script.submit(runs, waits)
    settle = Settle(worker, [done], None, ["result"], 0.0)
    script.core.queue.submit([done, runs])
    worker.inflight.append(runs)
    remains = script.core.remains([settle], [waits, runs], lambda _: True)
    assert sorted(keys(remains.tasks())) == sorted(keys([done, runs, waits]))
    assert remains.commands == [settle]


def test_what_is_not_open_is_left_out() -> None:
    script = Script(1)
    (worker,) = script.workers
    ended, open_ = tasks(call(1e-5), 2)
    script.submit(ended, open_)
    settle = Settle(worker, [ended], None, ["result"], 0.0)
    remains = script.core.remains([settle], (), lambda task: task is not ended)
    assert remains.commands == []
    assert keys(remains.held[worker]) == [None, open_.key]


@pytest.mark.parametrize("deaths", [0, 3])
def test_a_worker_that_was_ended_is_nobody_s_fault(deaths: int) -> None:
    script = Script(1)
    (worker,) = script.workers
    runs, fed = tasks(call(1e-5, deaths=deaths), 2)
    script.submit(runs, fed)
    script.start(worker)
    remains = remains_of(script)
    remains.recall(worker)
    lost = [command.task for command in remains.commands if isinstance(command, Fail)]
    assert lost == ([runs] if deaths == 0 else [])
    assert remains.waiting == [task for task in (runs, fed) if task not in lost]
    assert (runs.deaths, fed.deaths) == (0, 0)


def test_maps_are_among_it() -> None:
    script = Script(1, ready=1)
    whole = segment(call(LONG), 10)
    script.submit(whole)
    remains = remains_of(script)
    assert [entry for entry in remains.waiting if isinstance(entry, Segment)] == [whole]
    assert sum(task.items for task in remains.tasks() if isinstance(task, Task)) + whole.remaining == 10


def test_ids_are_not_given_twice() -> None:
    script = Script(2)
    first = remains_of(script)
    later = Core(4)
    later.resume(first)
    later.submit(tasks(call(LONG), 1))
    later.decide(0.0, [])
    assert set(later.workers).isdisjoint(script.core.workers)
