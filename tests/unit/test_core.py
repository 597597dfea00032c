"""The core: what happened goes in, what is to be done comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from poolkeeper.commands import Command, Decide, Fail, Feed, Kill, Nudge, Retire, Settle, Spawn
from poolkeeper.core import REPORT_WAIT
from poolkeeper.dispatch import LATE
from poolkeeper.errors import ProtocolError
from poolkeeper.ledger import Task
from poolkeeper.lifecycle import LEAVE_SECONDS, WorkerState
from poolkeeper.messages import Code, Progress
from poolkeeper.roster import FIRST_BACKOFF, UNEXPLAINED_ATTEMPTS, Exit, Told, Worker
from tests.scripted import Job, Page, Script, call, keys, segment, tasks

FAST, LONG = 1e-5, 10.0


def one_running(script: Script, task: Task) -> Worker:
    """Submit ``task``; return the worker that has started it."""
    script.submit(task)
    (worker,) = [worker for worker in script.workers if task in worker.inflight]
    script.start(worker)
    return worker


def two_suspects(script: Script) -> tuple[Task, Task]:
    """Both workers die of a task; their successors come up."""
    first, second = tasks(call(LONG), 2)
    script.submit(first, second)
    for worker in script.workers:
        script.start(worker)
    for worker in script.workers:
        script.core.died(worker, script.now, None)
    for command in script.decide():
        if isinstance(command, Spawn):
            script.hello(command.worker)
    return first, second


def come_up(script: Script) -> None:
    """Whoever is on the way arrives."""
    for worker in script.workers:
        if worker.state is WorkerState.STARTING:
            script.hello(worker)


def one_task(**options: object) -> Task:
    return tasks(call(LONG, **options), 1)[0]  # type: ignore[arg-type]


# -- results ----------------------------------------------------------------------------------------------------------


def test_results_settle_their_tasks_in_order() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 3))
    script.run(worker, 3)
    commands = script.answer(worker, seconds=3e-5)
    (settle,) = commands
    assert isinstance(settle, Settle)
    assert (keys(settle.tasks), settle.values) == (["0", "1", "2"], ["result 0", "result 1", "result 2"])
    assert settle.seconds == pytest.approx(1e-5)
    assert not script.core.outstanding


def test_what_cannot_be_handed_over_is_not_lost() -> None:
    class Full(list[Command]):
        def extend(self, commands: Iterable[Command]) -> None:
            raise MemoryError

    script = Script(1)
    script.core.submit([one_task()])
    with pytest.raises(MemoryError):
        script.core.decide(script.now, Full())
    (feed,) = script.decide()
    assert isinstance(feed, Feed)


def test_results_teach_the_call_and_skipped_tasks_do_not() -> None:
    script = Script(1)
    (worker,) = script.workers
    of = call(0.001, seen=1)
    script.submit(*tasks(of, 3))
    script.core.cancel(worker.inflight[1])  # type: ignore[arg-type]
    script.run(worker, 2)
    script.answer(worker, seconds=0.004)
    assert of.seen == 1 + 2
    assert of.cost == pytest.approx(0.001 + 0.3 * (0.002 - 0.001))


def test_a_worker_that_saw_the_mark_of_a_revocation_given_up_has_not_run_the_task() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 2))
    script.run(worker, 2)
    script.answer(worker, codes=[Code.VALUE, Code.SKIPPED])
    assert script.settled() == ["0"]
    assert script.fed(worker) == ["1"], "it is fed again"


def test_results_of_revoked_tasks_alone_settle_nothing() -> None:
    script = Script(1)
    (worker,) = script.workers
    (plain,) = tasks(call(FAST), 1)
    script.submit(plain)
    assert script.core.cancel(plain)
    script.core.results(worker, worker.base, [Code.VALUE], ["a worker that overlooked the mark"], 0.1)
    script.decide()
    script.submit(segment(call(), 1))
    assert script.core.cancel(worker.inflight[0])  # type: ignore[arg-type]
    script.core.chunk_result(worker, worker.base, None, ["here too"], 0.1)
    assert script.decide() == []
    assert script.settled() == []
    assert script.fed(worker) == []


def test_the_outcome_of_a_chunk_is_one_piece() -> None:
    script = Script(1)
    (worker,) = script.workers
    of = call()
    script.submit(segment(of, 5, chunksize=5))
    script.run(worker)
    commands = script.answer_chunk(worker, seconds=0.5, codes=[0, 0, Code.EXCEPTION, 0, 0])
    (settle,) = commands
    assert isinstance(settle, Settle)
    assert keys(settle.tasks) == [[0, 1, 2, 3, 4]]
    assert (of.seen, of.cost) == (5, 0.1)


@pytest.mark.parametrize("first", [1, 3])
def test_a_worker_that_answers_what_it_was_not_asked_is_killed(first: int) -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(one_task())
    with pytest.raises(ProtocolError, match=f"worker 1 answers {first}\\+1 where 2 is due"):
        script.core.results(worker, first, None, [None], 0.0)
    script.decide()
    assert script.killed() == [worker.id]
    with pytest.raises(ProtocolError):
        script.core.chunk_result(worker, 7, None, [None], 0.0)
    script.core.link_lost(worker, script.now)
    script.replace(script.die(worker))
    assert script.feeds()[-1][1] == ["0"], "the task goes elsewhere"
    assert script.killed() == [worker.id], "once"


def test_more_results_than_tasks_are_refused_too() -> None:
    script = Script(1)
    script.submit(one_task())
    with pytest.raises(ProtocolError):
        script.core.results(script.workers[0], 2, None, [None, None], 0.0)


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancel_what_is_queued() -> None:
    script = Script(1, ready=0)
    task = one_task()
    script.submit(task)
    assert script.core.cancel(task)
    assert script.core.cancel(task), "again"
    script.decide()
    assert not script.core.outstanding


def test_cancel_what_is_fed_ahead() -> None:
    script = Script(1)
    (worker,) = script.workers
    held = tasks(call(FAST), 3)
    script.submit(*held)
    script.start(worker)
    assert script.core.cancel(held[1])
    assert script.fed(worker) == ["0", None, "2"]
    script.pages[worker.id].finished += 1
    script.run(worker)
    script.answer(worker)
    assert script.settled() == ["0", "2"]
    assert not script.core.outstanding


@pytest.mark.parametrize("kill", [False, True])
def test_cancel_what_runs(kill: bool) -> None:
    script = Script(1)
    task = one_task(kill=kill)
    worker = one_running(script, task)
    assert script.core.cancel(task) is kill
    script.decide()
    assert script.killed() == [worker.id] * kill
    if kill:
        script.die(worker)
        assert script.failures() == []
        assert not script.core.outstanding
        assert task.deaths == 0


@pytest.mark.parametrize("kill", [False, True])
def test_cancel_comes_too_late_for_what_has_finished(kill: bool) -> None:
    """Above all it must not kill the worker in the midst of the next task."""
    script = Script(1)
    (worker,) = script.workers
    held = tasks(call(FAST, kill=kill), 2)
    script.submit(*held)
    script.run(worker)
    script.start(worker)
    assert not script.core.cancel(held[0])
    script.decide()
    assert script.killed() == []


def test_a_failure_of_a_task_that_was_cancelled_meanwhile_is_not_retried() -> None:
    script = Script(1)
    task = one_task(attempts=3, kill=True)
    worker = one_running(script, task)
    assert script.core.cancel(task)
    script.pages[worker.id].finished += 1
    script.answer(worker, codes=[Code.EXCEPTION])
    assert script.all(Decide) == []
    script.die(worker)
    assert not script.core.outstanding


def test_what_waits_behind_a_killed_task_goes_elsewhere_at_once() -> None:
    script = Script(2)
    first, second = script.workers
    held = tasks(call(0.002, kill=True), 6)
    script.submit(*held)
    script.start(first)
    assert script.core.cancel(held[0])
    script.run(second, 3)
    script.answer(second, seconds=0.006)
    assert script.fed(first) == ["0", None, None]
    assert script.fed(second) == ["2"]
    assert len(script.core.queue) == 1
    script.die(first)
    assert [task.deaths for task in held] == [0] * 6


def test_a_cancelled_suspect_does_not_block_the_next() -> None:
    script = Script(2)
    first, second = two_suspects(script)
    (holder,) = [worker for worker in script.workers if first in worker.inflight]
    assert script.core.cancel(first)
    script.decide()
    come_up(script)
    assert any(second in worker.inflight for worker in script.workers)
    assert script.fed(holder) == [None], "until it says so"


def test_a_cancelled_task_that_waits_for_its_next_attempt_holds_nothing_up() -> None:
    script = Script(1)
    task = one_task(attempts=3)
    worker = one_running(script, task)
    script.pages[worker.id].finished += 1
    commands = script.answer(worker, codes=[Code.EXCEPTION])
    (decide,) = [command for command in commands if isinstance(command, Decide)]
    script.core.decided(decide, 3600.0, script.now)
    script.core.close()
    script.decide()
    assert script.core.outstanding
    assert script.core.cancel(task)
    script.decide()
    assert not script.core.outstanding
    assert script.core.next_deadline() is None


def test_a_task_cancelled_while_its_policy_is_asked_has_no_second_end() -> None:
    script = Script(1)
    task = one_task(attempts=3)
    worker = one_running(script, task)
    script.pages[worker.id].finished += 1
    (decide,) = [c for c in script.answer(worker, codes=[Code.EXCEPTION]) if isinstance(c, Decide)]
    assert script.core.cancel(task)
    script.core.decided(decide, None, script.now)
    script.decide()
    assert not script.core.outstanding
    assert script.settled() == []


def test_a_map_that_nobody_reads_any_more_stops() -> None:
    script = Script(1)
    (worker,) = script.workers
    whole = segment(call(LONG), 100)
    script.submit(whole)
    assert isinstance(whole.job, Job)
    whole.job.withdrawn = True
    script.run(worker)
    script.answer_chunk(worker, seconds=LONG)
    assert script.fed(worker) == []
    assert not script.core.outstanding


def test_abandon_gives_up_all_that_no_worker_has() -> None:
    script = Script(1)
    retried, queued = one_task(attempts=3), one_task()
    worker = one_running(script, retried)
    script.pages[worker.id].finished += 1
    script.core.results(worker, worker.base, [Code.EXCEPTION], [b"error"], 1.0)
    (decide,) = [command for command in script.decide() if isinstance(command, Decide)]
    running = one_task()
    one_running(script, running)
    script.submit(queued)
    assert set(script.core.abandon()) == {retried, queued}
    script.core.decided(decide, 0.0, script.now)
    script.decide()
    assert script.fed(worker) == ["0"], "what runs, runs"
    assert len(script.core.queue) == 0


# -- failures and retries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("map_item", [False, True])
def test_an_exception_is_final_unless_a_policy_is_to_be_asked(map_item: bool) -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(segment(call(), 1) if map_item else one_task())
    script.run(worker)
    (script.answer_chunk if map_item else script.answer)(worker, codes=[Code.EXCEPTION])
    assert len(script.settled()) == 1


@pytest.mark.parametrize("map_item", [False, True])
@pytest.mark.parametrize("delay", [0.0, 5.0])
def test_an_exception_that_is_retried(map_item: bool, delay: float) -> None:
    script = Script(1)
    (worker,) = script.workers
    of = call(LONG, attempts=2)
    script.submit(segment(of, 1) if map_item else tasks(of, 1)[0])
    script.run(worker)
    answer = script.answer_chunk if map_item else script.answer
    (decide,) = [command for command in answer(worker, codes=[Code.EXCEPTION]) if isinstance(command, Decide)]
    assert script.core.outstanding
    script.core.decided(decide, delay, script.now)
    if delay:
        script.decide(after=delay / 2)
        assert script.fed(worker) == []
        assert script.core.next_deadline() == pytest.approx(script.now + delay / 2)
    script.decide(after=delay)
    assert len(script.fed(worker)) == 1
    assert decide.task.attempts == 2
    script.run(worker)
    (decide,) = [command for command in answer(worker, codes=[Code.EXCEPTION]) if isinstance(command, Decide)]
    script.core.decided(decide, None, script.now)
    (settle,) = script.decide()
    assert isinstance(settle, Settle)
    assert settle.codes == [Code.EXCEPTION]
    assert not script.core.outstanding


def test_only_the_failures_among_many_results_are_diverted() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST, attempts=2), 3))
    script.run(worker, 3)
    commands = script.answer(worker, codes=[Code.VALUE, Code.EXCEPTION, Code.VALUE])
    assert [keys([command.task]) for command in commands if isinstance(command, Decide)] == [["1"]]
    assert script.settled() == ["0", "2"]


# -- timeouts ---------------------------------------------------------------------------------------------------------


def test_an_attempt_is_killed_when_its_time_is_up() -> None:
    script = Script(1)
    task = one_task(timeout=3.0)
    script.submit(task)
    (worker,) = script.workers
    script.now += 1.0
    script.start(worker)
    script.decide(after=2.5)
    assert script.killed() == [], "the time counts from the start of the attempt"
    assert script.core.next_deadline() == pytest.approx(script.now + 0.5)
    script.decide(after=0.5)
    assert script.killed() == [worker.id]
    script.die(worker)
    assert script.failures() == [("0", "timeout")]
    assert task.deaths == 0


def test_a_timeout_counts_as_an_attempt() -> None:
    script = Script(1)
    task = one_task(timeout=3.0, attempts=2)
    worker = one_running(script, task)
    script.decide(after=3.0)
    (decide,) = [command for command in script.die(worker) if isinstance(command, Decide)]
    assert decide.outcome is None
    script.core.decided(decide, 0.0, script.now)
    worker = script.replace(script.decide())
    assert script.fed(worker) == ["0"]
    assert (task.attempts, task.deaths) == (2, 0)
    script.start(worker)
    script.decide(after=3.0)
    (decide,) = [command for command in script.die(worker) if isinstance(command, Decide)]
    script.core.decided(decide, None, script.now)
    script.decide()
    assert script.failures() == [("0", "timeout")]


def test_a_result_that_arrives_before_the_death_counts() -> None:
    script = Script(1)
    worker = one_running(script, one_task(timeout=3.0))
    script.decide(after=3.0)
    script.pages[worker.id].finished += 1
    script.answer(worker)
    script.die(worker)
    assert (script.settled(), script.failures()) == (["0"], [])


def test_a_task_that_has_just_finished_is_not_killed_and_its_result_asked_for() -> None:
    script = Script(1)
    worker = one_running(script, one_task(timeout=3.0))
    script.pages[worker.id].finished += 1
    script.decide(after=3.0)
    assert script.killed() == []
    assert [command.worker for command in script.all(Nudge)] == [worker]


def test_tasks_that_are_fed_ahead_have_their_own_time_each() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(0.02, timeout=1.0), 2))
    script.run(worker)
    script.now += 0.9
    script.start(worker)
    script.answer(worker, number=1)
    started = script.now
    while script.killed() == []:
        deadline = script.core.next_deadline()
        assert deadline is not None
        script.decide(after=max(0.0, deadline - script.now))
    assert script.now == pytest.approx(started + 1.0)


def test_the_time_of_a_task_counts_from_its_start_though_it_was_fed_long_before() -> None:
    """When its first deadline comes it has not even started: the keeper looks again, and again."""
    script = Script(1)
    (worker,) = script.workers
    script.submit(one_task(timeout=3.0))
    script.decide(after=3.0)
    script.start(worker)
    started = script.now
    while script.killed() == []:
        deadline = script.core.next_deadline()
        assert deadline is not None
        script.decide(after=max(0.0, deadline - script.now))
    assert script.now == pytest.approx(started + 3.0)


def test_the_time_of_a_task_counts_over_a_lost_link() -> None:
    script = Script(1)
    worker = one_running(script, one_task(timeout=3.0))
    script.core.link_lost(worker, script.now)
    script.decide(after=3.0)
    assert script.killed() == [worker.id]


# -- deaths -----------------------------------------------------------------------------------------------------------


def test_a_death_touches_only_the_task_that_was_executed() -> None:
    script = Script(2)
    first, second = script.workers
    held = tasks(call(FAST), 8)
    script.submit(*held)
    script.run(first)
    script.start(first)
    replacement = script.replace(script.die(first))
    assert [task.deaths for task in held] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert script.fed(replacement) == ["1"], "alone"
    assert script.fed(second)[:4] == ["4", "5", "6", "7"]
    assert script.failures() == []


@pytest.mark.parametrize(("deaths", "times", "verdict"), [(0, 1, "lost"), (1, 1, "quarantined"), (3, 3, "quarantined")])
def test_a_task_ends_with_the_last_death_allowed(deaths: int, times: int, verdict: str) -> None:
    script = Script(1)
    task = one_task(deaths=deaths)
    worker = one_running(script, task)
    for _ in range(times - 1):
        worker = script.replace(script.die(worker))
        script.start(worker)
        assert script.failures() == []
    commands = script.die(worker, Exit(-11, 5000))
    (fail,) = commands
    assert isinstance(fail, Fail)
    assert (fail.failure.value, fail.worker) == (verdict, worker)
    assert worker.exit == Exit(-11, 5000)
    assert task.deaths == times
    assert not script.core.outstanding


def test_a_verdict_waits_a_moment_for_the_exit_status() -> None:
    script = Script(1)
    worker = one_running(script, one_task(deaths=1))
    script.die(worker, None)
    assert script.failures() == []
    assert script.core.outstanding
    assert script.core.next_deadline() == script.now + REPORT_WAIT
    script.die(worker, Exit(-9, None))
    assert script.failures() == [("0", "quarantined")]
    assert script.core.next_deadline() is None
    assert not script.core.outstanding


def test_a_verdict_waits_no_longer_than_a_moment_and_no_shorter() -> None:
    script = Script(1)
    worker = one_running(script, one_task(deaths=1, timeout=0.1))
    script.die(worker, None)
    script.decide(after=REPORT_WAIT * 0.9)
    assert script.failures() == [], "the deadline of the task that died with it is not that of the verdict"
    script.decide(after=REPORT_WAIT * 0.1)
    assert script.failures() == [("0", "quarantined")]
    script.core.died(worker, script.now, Exit(0, None))
    assert script.decide() == [], "what is known later changes nothing"


def test_a_verdict_is_passed_whoever_is_taken_over_meanwhile() -> None:
    script = Script(2, ready=0)
    task = one_task(deaths=1)
    for held in ([task], []):  # two of one id, as two keepers have given it
        worker = script.core.succession.take_over(1, 0, "")
        page = script.pages[worker.id] = Page()
        page.started = len(held)
        script.core.succession.attached(worker, page, 1, held)
        script.die(worker, None)
    script.decide(after=REPORT_WAIT)
    assert script.failures() == [("0", "quarantined")]
    assert not script.core.outstanding


def silent(script: Script, task: Task, index: int = 5) -> Worker:
    """A worker of an earlier keeper that has not called, and whose page says that it executes ``task``."""
    worker = script.core.succession.take_over(1, 0, "")
    page = script.pages[worker.id] = worker.page = Page()
    page.started, page.finished, page.started_at = index, index - 1, script.now
    script.core.succession.executes(worker, index, task, script.now)
    script.decide()
    return worker


def test_who_is_silent_and_dies_is_blamed_for_what_its_page_says() -> None:
    script = Script(1, ready=0)
    task, other = one_task(deaths=2), one_task()
    worker = silent(script, task)
    assert script.core.running == 1
    script.submit(other)
    assert script.feeds() == [], "nothing is fed to it"
    (spawn,) = [command for command in script.die(worker) if isinstance(command, Spawn)]
    assert (task.deaths, other.deaths) == (1, 0)
    script.hello(spawn.worker)
    assert script.all(Feed)[0].tasks == [task]
    script.start(spawn.worker)
    script.die(spawn.worker)
    assert script.failures() == [("0", "quarantined")]


def test_the_time_of_what_a_silent_worker_executes_counts_from_its_start() -> None:
    script = Script(1, ready=0)
    worker = silent(script, one_task(timeout=3.0))
    assert script.core.next_deadline() == script.now + 3.0
    assert script.decide(after=3.0) == [Kill(worker)]
    script.die(worker)
    assert script.failures() == [("0", "timeout")]


@pytest.mark.parametrize("right", [True, False])
def test_who_was_silent_and_calls_tells_more_than_its_page(right: bool) -> None:
    script = Script(1, ready=0)
    task, behind = one_task(), one_task()
    worker = silent(script, task)
    held = [None, task if right else None, behind]
    script.core.succession.attached(worker, worker.page, 4, held)
    assert list(worker.inflight) == held
    assert script.pages[worker.id].revoked == set()
    assert (task.worker, behind.worker) == (worker.id if right else None, worker.id)
    assert list(script.core.queue.tasks()) == ([] if right else [task])
    script.hello(worker)
    script.pages[worker.id].finished = 5
    script.answer(worker, number=2)
    assert script.settled() == ["0"] * right


@pytest.mark.parametrize("busy", [True, False])
def test_another_worker_is_in_the_place_of_a_silent_one_until_that_calls(busy: bool) -> None:
    script = Script(1, ready=0)
    worker = script.core.succession.take_over(1, 0, "")
    page = script.pages[worker.id] = Page()
    assert script.submit(one_task()) == []
    script.core.succession.unheard(worker)
    other = script.replace(script.decide())
    script.run(other)
    script.answer(other)
    page.started = busy
    script.core.succession.attached(worker, page, 1, [one_task()] * busy)
    script.hello(worker)
    assert [command.worker for command in script.all(Retire)] == [other if busy else worker]


@pytest.mark.parametrize("max_tasks", [1, 2])
def test_no_more_workers_are_at_work_than_there_may_be(max_tasks: int) -> None:
    script = Script(2, max_tasks, ready=0)
    script.submit(*tasks(call(LONG), 7))
    come_up(script)
    while script.core.queue:
        busy = [worker for worker in script.workers if worker.inflight]
        assert len(busy) == 2
        script.run(busy[0])
        script.answer(busy[0])
        come_up(script)


def test_a_task_cancelled_before_its_verdict_has_no_second_end() -> None:
    script = Script(1)
    task = one_task(deaths=1)
    worker = one_running(script, task)
    script.die(worker, None)
    assert script.core.cancel(task)
    script.decide(after=REPORT_WAIT)
    assert script.failures() == []
    assert not script.core.outstanding


def test_the_item_that_kills_is_found_and_the_others_are_settled() -> None:
    script = Script(1)
    (worker,) = script.workers
    whole = segment(call(), 7, chunksize=7)
    script.submit(whole)
    for item, _ in enumerate(range(3)):
        script.start(worker)
        if script.fed(worker)[0] != [4]:
            script.pages[worker.id].item = 4 * bool(item)
        worker = script.replace([*script.die(worker), *script.submit(*tasks(call(LONG), 1, "more"))])
    assert script.failures() == [([4], "quarantined")]
    seen: list[object] = []
    while script.core.outstanding:
        held = worker.inflight[0]
        script.run(worker)
        (script.answer if held is not None and held.together else script.answer_chunk)(worker, seconds=1.0)
    seen = script.settled()
    assert seen.count([0, 1, 2, 3]) == 1
    assert seen.count([5, 6]) == 1


def test_a_suspect_that_was_fed_and_not_started_is_still_run_alone() -> None:
    script = Script(1)
    worker = one_running(script, one_task())
    worker = script.replace(script.die(worker))
    assert script.fed(worker) == ["0"]
    script.submit(*tasks(call(FAST), 5, "other"))
    script.core.recycle(worker)
    script.pages[worker.id].finished = 1
    worker = script.replace(script.answer(worker))
    assert script.fed(worker) == ["0"]
    assert worker.alone


@pytest.mark.parametrize("seen", ["result first", "death first"])
def test_a_suspect_that_survives_makes_way_for_the_next(seen: str) -> None:
    script = Script(2)
    first, second = two_suspects(script)
    (holder,) = [worker for worker in script.workers if worker.inflight]
    assert holder.inflight[0] is first
    if seen == "result first":
        script.run(holder)
        script.answer(holder)
    else:
        script.start(holder)
        script.die(holder)
    come_up(script)
    assert any(second in worker.inflight for worker in script.workers)


def test_what_was_decided_about_a_worker_that_is_gone_is_not_carried_out() -> None:
    """A cancellation and the worker's end may reach the keeper in one round."""
    script = Script(2)
    task = one_task(kill=True)
    worker = one_running(script, task)
    script.core.cancel(task)
    other = next(candidate for candidate in script.workers if candidate is not worker)
    script.core.recycle(other)
    script.core.died(worker, script.now, None)
    script.core.died(other, script.now, None)
    assert not [command for command in script.decide() if isinstance(command, Kill | Retire | Nudge)]


# -- workers that do not come up --------------------------------------------------------------------------------------


def test_when_no_worker_can_be_started_what_is_queued_fails_with_the_reason() -> None:
    script = Script(2, ready=0)
    script.submit(*tasks(call(), 2), segment(call(), 5))
    for _ in range(3):
        script.decide(after=1.0)
        for worker in script.workers:
            script.core.start_failed(worker, "the initializer raised")
            script.core.died(worker, script.now, None)
    script.decide()
    assert [failure for _, failure in script.failures()] == ["no workers"] * 3
    assert {command.detail for command in script.all(Fail)} == {"the initializer raised"}
    assert not script.core.outstanding


def test_where_the_system_is_short_of_room_for_a_worker_that_is_waited_for() -> None:
    script = Script(1, ready=0)
    script.submit(*tasks(call(), 2))
    for _ in range(UNEXPLAINED_ATTEMPTS - 1):
        script.decide(after=10.0)
        script.core.refused(script.workers[0], "no descriptor left")
        script.core.died(script.workers[0], script.now, None)
    assert script.failures() == []
    script.decide(after=10.0)
    script.core.refused(script.workers[0], "no descriptor left")
    script.core.died(script.workers[0], script.now, None)
    script.decide()
    assert {command.detail for command in script.all(Fail)} == {"no descriptor left"}


def test_fork_servers_that_are_killed_are_the_fault_of_no_task() -> None:
    script = Script(1, ready=0)
    script.submit(*tasks(call(), 2))
    for _ in range(3 * UNEXPLAINED_ATTEMPTS):
        script.decide(after=10.0)
        script.core.cut_short(script.workers[0])
        script.core.died(script.workers[0], script.now, None)
    assert script.failures() == []
    for _ in range(3):
        script.decide(after=10.0)
        script.core.start_failed(script.workers[0], "the initializer raised")
        script.core.died(script.workers[0], script.now, None)
    script.decide()
    assert {command.detail for command in script.all(Fail)} == {"the initializer raised"}


def test_the_next_submission_tries_again() -> None:
    script = Script(1, ready=0)
    for _ in range(UNEXPLAINED_ATTEMPTS):
        script.submit(*tasks(call(), 1))
        script.decide(after=10.0)
        script.die(script.workers[0])
    script.submit(*tasks(call(), 1, "next"))
    worker = script.replace(script.decide(after=10.0))
    assert script.fed(worker) == ["next0"]


def test_many_workers_that_fail_together_are_one_failure() -> None:
    script = Script(8, ready=0)
    script.submit(*tasks(call(), 8))
    for worker in script.workers:
        script.die(worker)
    assert script.failures() == []


def test_workers_that_end_before_their_first_task_have_not_come_up() -> None:
    script = Script(1, ready=0)
    script.submit(*tasks(call(), 1))
    for _ in range(UNEXPLAINED_ATTEMPTS):
        worker = script.workers[0]
        script.hello(worker)
        assert script.fed(worker) == ["0"]
        script.die(worker)
        script.decide(after=10.0)
    assert script.failures() == [("0", "no workers")]


def test_failed_starts_fail_nothing_while_another_worker_works() -> None:
    script = Script(2, ready=1)
    one_running(script, one_task())
    for _ in range(6):
        script.submit(*tasks(call(LONG), 1))
        script.decide(after=10.0)
        for worker in script.workers:
            if worker.state is WorkerState.STARTING:
                script.die(worker)
    assert script.failures() == []


def test_failures_that_others_have_survived_do_not_condemn_what_is_queued_later() -> None:
    script = Script(2, ready=1)
    (old,) = script.workers
    one_running(script, one_task())
    script.submit(*tasks(call(LONG), 1, "other"))
    for _ in range(4):
        script.decide(after=10.0)
        script.die(script.workers[-1])
    script.die(old)
    assert script.failures() == [], "the next start may succeed"
    worker = script.replace(script.decide(after=10.0)[:1])
    script.run(worker)
    script.answer(worker, seconds=LONG)
    assert script.core._roster.failed_rounds == 0


def test_work_of_older_workers_does_not_shorten_the_wait_for_new_ones() -> None:
    script = Script(2, ready=1)
    (old,) = script.workers
    script.submit(*tasks(call(LONG), 10))
    waits = []
    for _ in range(4):
        script.die(script.workers[-1])
        script.run(old)
        script.answer(old, seconds=LONG)
        deadline = script.core.next_deadline()
        assert deadline is not None
        waits.append(deadline - script.now)
        script.decide(after=waits[-1])
    assert waits == pytest.approx([FIRST_BACKOFF * 2**n for n in range(4)])


# -- recycling and shutting down --------------------------------------------------------------------------------------


def test_a_worker_that_asks_to_be_replaced_finishes_what_it_runs() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 3))
    script.start(worker)
    script.core.recycle(worker)
    successor = script.replace(script.decide())
    assert script.fed(worker) == ["0", None, None]
    assert [command.worker for command in script.all(Retire)] == [worker]
    script.core.recycle(worker)
    assert script.decide() == [], "once, and its successor waits until it has finished"
    script.pages[worker.id].finished = 4
    script.answer(worker)
    assert script.fed(successor) == ["1", "2"]


def test_closing_retires_workers_when_all_is_done() -> None:
    script = Script(2)
    first, second = script.workers
    one_running(script, one_task())
    script.core.close()
    script.decide()
    assert [command.worker for command in script.all(Retire)] == [second]
    script.pages[first.id].finished += 1
    script.answer(first)
    assert [command.worker for command in script.all(Retire)] == [second, first]
    script.die(first, Exit(0, None))
    script.die(second, Exit(0, None))
    assert not script.core.workers
    assert not script.core.outstanding


def test_closing_waits_for_retries() -> None:
    script = Script(1)
    worker = one_running(script, one_task(attempts=2))
    script.pages[worker.id].finished += 1
    (decide,) = [c for c in script.answer(worker, codes=[Code.EXCEPTION]) if isinstance(c, Decide)]
    script.core.close()
    script.decide()
    script.core.decided(decide, 5.0, script.now)
    script.decide()
    assert script.all(Retire) == []
    script.decide(after=5.0)
    assert script.fed(worker) == ["0"]


def test_work_that_comes_back_after_closing_is_still_done() -> None:
    script = Script(1)
    worker = one_running(script, one_task())
    script.core.close()
    worker = script.replace(script.die(worker))
    assert script.fed(worker) == ["0"]


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.READY, WorkerState.DETACHED])
def test_closing_retires_workers_in_whatever_state_they_are(state: WorkerState) -> None:
    script = Script(1, ready=0)
    (task,) = tasks(call(), 1)
    script.submit(task)
    (worker,) = script.workers
    script.core.cancel(task)
    if state is not WorkerState.STARTING:
        script.hello(worker)
    if state is WorkerState.DETACHED:
        script.core.link_lost(worker, script.now)
    assert worker.state is state
    script.core.close()
    script.decide()
    assert [command.worker for command in script.all(Retire)] == [worker]


def test_a_worker_may_call_again_before_the_end_of_its_link_is_seen() -> None:
    script = Script(1)
    worker = one_running(script, one_task())
    script.hello(worker)
    assert script.core.running == 1
    script.pages[worker.id].finished += 1
    script.answer(worker)
    assert script.settled() == ["0"]


def test_a_worker_lost_while_commands_are_carried_out_calls_for_another_decision() -> None:
    """The system refuses a new process: nothing else will happen that could wake the keeper."""
    script = Script(1, ready=0)
    script.submit(one_task())
    script.core.died(script.workers[0], script.now, Exit(None, None))
    assert script.core.next_deadline() == 0.0
    script.decide()
    deadline = script.core.next_deadline()
    assert deadline is not None
    assert deadline > script.now


# -- the commands of one decision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda script: script.decide(),
        lambda script: script.decide(after=LATE),
        lambda script: script.decide(after=3600.0),
    ],
)
def test_a_pool_without_work_does_nothing_and_asks_to_be_left_alone(act: Callable[[Script], list[object]]) -> None:
    script = Script(2)
    assert act(script) == []
    assert script.core.next_deadline() is None


def test_commands_are_given_once() -> None:
    script = Script(1)
    assert [type(command) for command in script.submit(one_task())] == [Feed]
    assert script.decide() == []


# -- workers that are away --------------------------------------------------------------------------------------------


def look_until(script: Script, done: Callable[[], object]) -> float:
    """Let time pass, from one deadline to the next; return how much."""
    began = script.now
    while not done():
        deadline = script.core.next_deadline()
        assert deadline is not None
        script.decide(after=max(0.0, deadline - script.now))
    return script.now - began


def test_what_a_worker_that_is_away_has_finished_runs_again_without_blame_when_it_is_given_up() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(*tasks(call(FAST), 3))
    script.run(worker)
    script.core.link_lost(worker, script.now)
    assert look_until(script, script.killed) == pytest.approx(60.0)
    assert len(script.all(Nudge)) > 5
    assert script.fed(worker) == ["0", None, None], "what it has not begun was taken back"
    script.die(worker)
    heir = script.replace(script.all(Spawn))
    assert sorted(script.fed(heir)) == ["0", "1", "2"]
    assert all(task is not None and task.deaths == 0 and not hasattr(task, "returns") for task in heir.inflight)


def test_a_worker_that_is_away_and_at_work_is_left_alone_until_it_has_finished() -> None:
    script = Script(1)
    (task,) = tasks(call(LONG), 1)
    worker = one_running(script, task)
    script.core.link_lost(worker, script.now)
    look_until(script, lambda: len(script.all(Nudge)) == 1000)
    assert script.killed() == []
    script.pages[worker.id].finished += 1
    assert look_until(script, script.killed) == pytest.approx(60.0, abs=11)


def test_one_that_comes_back_is_not_looked_for_any_more() -> None:
    script = Script(1)
    worker = one_running(script, one_task())
    script.core.link_lost(worker, script.now)
    script.hello(worker)
    script.decide(after=1000.0)
    assert script.all(Nudge) == []
    assert script.core.next_deadline() is None


def test_an_end_waits_less_for_one_that_is_away() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(one_task())
    script.run(worker)
    script.core.link_lost(worker, script.now)
    script.decide(after=1.0)
    script.core.close()
    assert look_until(script, script.killed) == pytest.approx(LEAVE_SECONDS - 1.0)


def test_at_most_once_holds_for_what_one_that_is_given_up_had_finished() -> None:
    script = Script(1)
    (worker,) = script.workers
    script.submit(one_task(deaths=0))
    script.run(worker)
    script.core.link_lost(worker, script.now)
    look_until(script, script.killed)
    script.die(worker)
    assert script.failures() == [("0", "lost")]


# -- workers that leave unheard ---------------------------------------------------------------------------------------


def leaving(script: Script, *held: Task | None, executing: bool) -> Worker:
    """A worker of an earlier keeper says what it has begun."""
    worker = script.core.succession.take_over(7, 0, "before")
    script.core.succession.leaving(worker, Told(Progress(len(held), len(held) - executing, 0, script.now)), held)
    script.decide()
    return worker


def test_what_a_leaving_worker_has_begun_is_waited_for_and_then_another_works_in_its_place() -> None:
    script = Script(1, ready=0)
    first, second = tasks(call(LONG), 2)
    worker = leaving(script, first, second, executing=True)
    assert script.core.outstanding
    (other,) = tasks(call(LONG), 1, "other")
    heir = script.replace(script.submit(other))
    assert script.fed(heir) == []
    assert not script.core.cancel(second)
    script.core.results(worker, 1, [Code.VALUE, Code.SKIPPED], [7, None], 1.0)
    script.die(worker, None)
    assert script.settled() == ["0"]
    assert script.fed(heir) == ["1"], "it was not begun after all"
    assert list(script.core.queue.tasks()) == [other]


def test_one_that_dies_as_it_leaves_is_blamed_for_what_it_executed_alone() -> None:
    script = Script(1, ready=0)
    done, running = tasks(call(LONG), 2)
    script.die(leaving(script, done, None, running, executing=True))
    assert (done.deaths, running.deaths) == (0, 1)


def test_the_timeout_of_what_a_leaving_worker_executes_counts() -> None:
    script = Script(1, ready=0)
    task, found = one_task(timeout=3.0), one_task()
    worker = leaving(script, found, executing=True)
    script.core.succession.claim(found, task, script.now)
    assert look_until(script, script.killed) == pytest.approx(3.0)
    script.die(worker)
    assert script.failures() == [("0", "timeout")]
