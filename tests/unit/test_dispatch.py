"""Who gets what, how far ahead, and what is taken back."""

from __future__ import annotations

import pytest

from poolkeeper.commands import Decide, Feed, Nudge, Retire, Spawn
from poolkeeper.dispatch import LATE
from poolkeeper.lifecycle import WorkerState
from poolkeeper.messages import Code
from poolkeeper.roster import FIRST_BACKOFF, UNEXPLAINED_ATTEMPTS
from tests.scripted import Script, call, segment, tasks

FAST, MEDIUM, LONG = 1e-5, 0.02, 10.0


# -- how far ahead ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "number", "held"),
    [
        (None, 9, [1, 1]),  # nothing is known yet
        (LONG, 9, [1, 1]),
        (MEDIUM, 9, [2, 2]),
        (FAST, 10, [5, 5]),  # shared out, though one could hold them all
        (FAST, 1, [1, 0]),
        (FAST, 10_000, [833, 833]),
    ],
)
def test_workers_are_fed_by_what_is_known_of_the_call(cost: float | None, number: int, held: list[int]) -> None:
    script = Script(2)
    script.submit(*tasks(call(cost), number))
    assert [len(worker.inflight) for worker in script.workers] == held


def test_medium_tasks_are_not_fed_ahead_while_workers_can_be_started() -> None:
    script = Script(2, ready=1)
    script.submit(*tasks(call(MEDIUM), 2))
    assert script.feeds() == [(1, ["0"])]
    assert len(script.all(Spawn)) == 1


def test_nothing_is_fed_ahead_that_another_worker_could_start_now() -> None:
    script = Script(2)
    script.submit(*tasks(call(MEDIUM), 2, "medium"), *tasks(call(FAST, name="fast"), 1, "fast"))
    assert sorted(script.fed(worker)[0] for worker in script.workers) == ["medium0", "medium1"]


def test_every_worker_gets_a_chunk_before_any_gets_a_second() -> None:
    script = Script(2)
    script.submit(segment(call(MEDIUM), 3, single=True))
    assert [script.fed(worker) for worker in script.workers] == [[[0], [2]], [[1]]]


def test_a_window_opens_again_as_it_empties() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(MEDIUM), 4))
    assert script.fed(worker) == ["0", "1"]
    script.run(worker)
    script.answer(worker, seconds=MEDIUM)
    assert script.fed(worker) == ["1", "2"]


def test_tasks_behind_a_map_that_is_used_up_have_a_window_of_their_own() -> None:
    script = Script(2)
    script.submit(segment(call(FAST), 1, single=True), *tasks(call(LONG, name="long"), 5))
    assert [len(worker.inflight) for worker in script.workers] == [1, 1]


def test_chunks_are_held_two_at_a_time() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(segment(call(0.0, seen=10**6), 10**5))
    assert len(worker.inflight) == 2
    script.run(worker)
    script.answer_chunk(worker, seconds=0.005)
    assert len(worker.inflight) == 2


def test_each_feed_is_of_one_call() -> None:
    script = Script(1)
    script.submit(*tasks(call(FAST), 2, "a"), *tasks(call(FAST, name="g"), 2, "b"))
    assert script.feeds() == [(1, ["a0", "a1"]), (1, ["b0", "b1"])]
    assert [command.first for command in script.all(Feed)] == [2, 4]


def test_nothing_is_fed_over_a_lost_link() -> None:
    script = Script(2)
    first, second = script.workers
    script.core.link_lost(first, script.now)
    script.submit(*tasks(call(LONG), 2))
    assert script.feeds() == [(second.id, ["0"])]
    script.hello(first)
    assert script.fed(first) == ["1"]


# -- suspects ---------------------------------------------------------------------------------------------------------


def make_suspect(script: Script) -> None:
    """One worker dies of a long task, another comes up in its place."""
    script.submit(*tasks(call(LONG, name="bad"), 1, "bad"))
    (victim,) = [worker for worker in script.workers if worker.inflight]
    script.start(victim)
    script.core.died(victim, script.now, None)


def test_a_suspect_runs_alone() -> None:
    script = Script(2)
    make_suspect(script)
    script.submit(*tasks(call(FAST), 20))
    (holder,) = [worker for worker in script.workers if "bad0" in script.fed(worker)]
    assert script.fed(holder) == ["bad0"]
    script.submit(*tasks(call(FAST), 20))
    assert script.fed(holder) == ["bad0"]
    script.run(holder)
    script.answer(holder, seconds=LONG)
    assert not holder.alone
    assert script.fed(holder)


def test_one_suspect_runs_at_a_time() -> None:
    script = Script(2)
    script.submit(*tasks(call(LONG), 2))
    for worker in script.workers:
        script.start(worker)
    for worker in script.workers:
        script.core.died(worker, script.now, None)
    for command in script.decide():
        if isinstance(command, Spawn):
            script.hello(command.worker)
    assert [script.fed(worker) for worker in script.workers] == [["0"]]
    (holder,) = script.workers
    script.submit(*tasks(call(LONG), 1, "other"))
    script.hello(script.workers[-1])
    assert sorted(script.fed(worker) for worker in script.workers) == [["0"], ["other0"]]
    script.run(holder)
    script.answer(holder, seconds=LONG)
    assert script.fed(holder) == ["1"]


def test_a_suspect_does_not_starve_while_short_tasks_keep_all_windows_full() -> None:
    script = Script(1)
    (bad,) = tasks(call(LONG, attempts=2), 1, "bad")
    script.submit(bad)
    script.start(script.workers[0])
    worker = script.replace(script.die(script.workers[0]))
    script.run(worker)
    (decide,) = [c for c in script.answer(worker, codes=[Code.EXCEPTION]) if isinstance(c, Decide)]
    script.core.decided(decide, 1.0, script.now)
    script.submit(*tasks(call(FAST), 10_000))
    script.decide(after=1.0)
    while script.fed(worker) != ["bad0"]:
        script.run(worker, max(1, len(worker.inflight) // 2))
        script.answer(worker, seconds=FAST)
    assert len(script.core.queue) > 5000, "the others wait, for once"


# -- stealing ---------------------------------------------------------------------------------------------------------


def test_an_idle_worker_takes_half_of_what_waits() -> None:
    script = Script(2)
    first, second = script.workers
    script.submit(*tasks(call(0.002), 8))
    assert [len(worker.inflight) for worker in (first, second)] == [4, 4]
    script.start(first)
    script.run(second, 4)
    script.answer(second, seconds=0.008)
    assert script.fed(first) == ["0", "2", None, None]
    assert script.fed(second) == ["3"]
    assert len(script.core.queue) == 1, "for whoever is the first to have room"


def test_nothing_waits_behind_a_long_task_while_another_worker_is_idle() -> None:
    script = Script(2)
    first, second = script.workers
    script.submit(*tasks(call(FAST), 8))
    script.start(first)
    script.run(second, 4)
    script.answer(second)
    assert script.fed(first) == ["0", "1", "2", "3"], "too short to be moved"
    script.decide(after=0.01)
    assert script.fed(first) == ["0", None, None, None]
    assert script.fed(second) == ["1", "2"]
    script.run(second, 2)
    script.answer(second)
    assert script.fed(second) == ["3"]


def test_a_revoked_task_at_the_end_does_not_protect_those_before_it() -> None:
    script = Script(2)
    first, second = script.workers
    held = tasks(call(FAST), 8)
    script.submit(*held)
    script.start(first)
    assert script.core.cancel(held[3])
    script.run(second, 4)
    script.answer(second)
    script.decide(after=0.01)
    assert script.fed(first) == ["0", None, None, None]
    assert script.fed(second) == ["1"]


def test_nothing_waits_behind_a_long_task_while_a_worker_can_be_started() -> None:
    script = Script(2, ready=1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 4))
    assert script.fed(worker) == ["0", "1", "2", "3"]
    script.start(worker)
    script.decide(after=LATE * 2)
    assert script.fed(worker) == ["0", None, None, None]
    (spawn,) = script.all(Spawn)
    script.hello(spawn.worker)
    assert script.fed(spawn.worker) == ["1", "2"]


def test_a_long_task_is_noticed_however_late_it_starts() -> None:
    script = Script(2, ready=1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 4))
    for _ in range(5):
        script.run(worker)
        script.answer(worker, seconds=FAST)
        script.decide(after=LATE)
        script.submit(*tasks(call(FAST), 1))
    script.start(worker)
    deadline = script.core.next_deadline()
    while deadline is not None and not script.all(Spawn):
        script.decide(after=max(0.0, deadline - script.now))
        deadline = script.core.next_deadline()
    assert script.all(Spawn)


def test_a_worker_that_does_not_even_start_is_relieved_too() -> None:
    """It has been stopped, or waits for a processor: its page shows no headway between two looks."""
    script = Script(2, ready=1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 2))
    for _ in range(3):
        script.decide(after=LATE * 3)
    assert script.fed(worker) == [None, None]


def test_new_tasks_do_not_queue_up_behind_a_worker_that_is_stuck() -> None:
    script = Script(2)
    first, second = script.workers
    script.submit(*tasks(call(FAST), 4))
    script.start(first)
    script.start(second)
    script.decide(after=LATE * 2)
    script.submit(*tasks(call(FAST), 6, "new"))
    assert len(script.core.queue) == 6
    script.pages[second.id].finished += 1
    script.answer(second, seconds=1.0)
    assert "new0" in script.fed(second)
    assert script.fed(first) == ["0", "1"]


def test_a_worker_that_makes_headway_again_is_trusted_again() -> None:
    script = Script(2)
    first, second = script.workers
    script.submit(*tasks(call(FAST), 4))
    script.start(first)
    script.start(second)
    script.decide(after=LATE * 2)
    while script.core.outstanding:
        for worker in (first, second):
            if worker.inflight:
                page = script.pages[worker.id]
                page.started = page.finished = worker.next_index - 1
                script.answer(worker, seconds=FAST)
    script.submit(*tasks(call(FAST), 8, "new"))
    script.start(first)
    script.run(second, 4)
    script.answer(second, seconds=4 * FAST)
    assert script.fed(second) == []
    assert None not in script.fed(first), "nothing is taken from it without a new reason"


def test_what_is_held_back_for_long_is_asked_for() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 3))
    script.run(worker, 1)
    script.start(worker)
    script.decide(after=2 * LATE)
    assert [command.worker for command in script.all(Nudge)] == [worker]


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_a_worker_is_fed_no_more_than_its_budget_and_then_replaced() -> None:
    script = Script(1, 3, ready=0)
    script.submit(*tasks(call(FAST), 5))
    worker = script.replace(script.log)
    assert script.fed(worker) == ["0", "1", "2"]
    assert [command.worker for command in script.all(Retire)] == [worker]
    assert worker.state is WorkerState.RETIRING
    assert len(script.all(Spawn)) == 2, "its successor starts while it works"
    successor = script.workers[-1]
    script.hello(successor)
    script.run(worker, 2)
    script.answer(worker)
    assert script.fed(successor) == [], "only one may be at work"
    script.run(worker)
    script.answer(worker)
    assert script.fed(successor) == ["3", "4"]
    assert successor.state is WorkerState.READY


# -- starting workers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "number", "started"), [(4, 1, 1), (4, 3, 3), (4, 100, 4), (1, 100, 1)])
def test_workers_start_on_demand(bound: int, number: int, started: int) -> None:
    script = Script(bound, ready=0)
    script.submit(*tasks(call(), number))
    assert len(script.all(Spawn)) == started


def test_a_map_counts_for_its_items() -> None:
    script = Script(4, ready=0)
    script.submit(segment(call(), 3))
    assert len(script.all(Spawn)) == 3


def test_those_on_their_way_are_not_asked_for_again() -> None:
    script = Script(4, ready=0)
    script.submit(*tasks(call(), 1))
    script.decide()
    assert len(script.all(Spawn)) == 1
    script.submit(*tasks(call(), 1))
    assert len(script.all(Spawn)) == 2


def test_an_idle_worker_makes_a_new_one_needless() -> None:
    script = Script(4, ready=2)
    script.submit(*tasks(call(), 2))
    assert script.all(Spawn) == []


def test_after_a_failed_start_the_next_one_waits() -> None:
    script = Script(1, ready=0)
    script.submit(*tasks(call(), 1))
    script.die(script.workers[0])
    assert len(script.all(Spawn)) == 1
    assert script.core.next_deadline() == script.now + FIRST_BACKOFF
    script.decide(after=FIRST_BACKOFF)
    assert len(script.all(Spawn)) == 2
    assert script.core.next_deadline() is None, "and then there is nothing to be woken for"


def test_the_wait_after_a_failed_start_ends_though_the_failure_is_forgotten() -> None:
    script = Script(1, ready=0)
    for _ in range(UNEXPLAINED_ATTEMPTS):
        script.submit(*tasks(call(), 1))
        script.decide(after=10.0)
        script.die(script.workers[0])
    assert {failure for _, failure in script.failures()} == {"no workers"}
    script.submit(*tasks(call(), 1, "next"))
    deadline = script.core.next_deadline()
    assert deadline is not None
    script.decide(after=deadline - script.now)
    assert len(script.workers) == 1
