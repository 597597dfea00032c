"""Workers: who is there, who has room, when to start more."""

from __future__ import annotations

import pytest

from poolkeeper.lifecycle import IllegalTransition, WorkerEvent, WorkerState
from poolkeeper.messages import Progress
from poolkeeper.roster import FIRST_BACKOFF, START_ATTEMPTS, UNEXPLAINED_ATTEMPTS, Roster, Worker
from tests.scripted import Page, call, tasks


def ready(roster: Roster) -> Worker:
    (worker,) = roster.recruit(1)
    roster.move(worker, WorkerEvent.HELLO)
    roster.file(worker)
    return worker


@pytest.mark.parametrize(("progress", "executing"), [((0, 0), None), ((1, 0), 1), ((1, 1), None), ((7, 6), 7)])
def test_what_a_page_says_is_executed(progress: tuple[int, int], executing: int | None) -> None:
    assert Progress(*progress, 0, 0.0).executing == executing


def test_workers_are_recruited_up_to_the_bound_with_slots_of_their_own() -> None:
    roster = Roster(3)
    first, second = roster.recruit(2)
    assert [worker.slot for worker in roster.recruit(5)] == [2]
    assert roster.full
    assert roster.recruit(1) == []
    roster.move(first, WorkerEvent.EXIT)
    (replacement,) = roster.recruit(5)
    assert (replacement.slot, replacement.id) == (0, 4)
    assert second.id in roster.workers


@pytest.mark.parametrize(
    ("events", "alive", "starting"),
    [
        ([], 1, 1),
        ([WorkerEvent.HELLO], 1, 0),
        ([WorkerEvent.HELLO, WorkerEvent.LINK_LOST], 1, 0),
        ([WorkerEvent.RETIRE], 0, 0),
        ([WorkerEvent.HELLO, WorkerEvent.RETIRE], 0, 0),
        ([WorkerEvent.KILL], 0, 0),
        ([WorkerEvent.KILL, WorkerEvent.EXIT], 0, 0),
        ([WorkerEvent.EXIT], 0, 0),
    ],
)
def test_who_is_counted(events: list[WorkerEvent], alive: int, starting: int) -> None:
    roster = Roster(1)
    (worker,) = roster.recruit(1)
    for event in events:
        roster.move(worker, event)
    assert (roster.alive, roster.starting) == (alive, starting)
    assert roster.full == bool(alive)
    assert (worker.id in roster.workers) == (worker.state is not WorkerState.DEAD)


def test_who_replaces_one_that_finishes_its_last_tasks_waits_until_then() -> None:
    roster = Roster(1)
    worker = ready(roster)
    worker.inflight.extend(tasks(call(), 2))
    roster.idle.pop(worker.id)
    roster.move(worker, WorkerEvent.RETIRE)
    assert (roster.alive, roster.full) == (0, False)
    successor = ready(roster)
    assert (list(roster.idle.values()), roster.full, roster.vacancies) == ([successor], True, 0)
    worker.inflight.popleft()
    roster.file(worker)
    assert roster.vacancies == 0
    worker.inflight.popleft()
    roster.file(worker)
    assert roster.vacancies == 1
    roster.move(worker, WorkerEvent.EXIT)
    assert roster.vacancies == 1


@pytest.mark.parametrize("end", [None, WorkerEvent.RETIRE, WorkerEvent.KILL, WorkerEvent.EXIT])
def test_who_is_silent_has_no_place_until_it_is_heard(end: WorkerEvent | None) -> None:
    roster = Roster(2)
    worker = roster.take_over(1, 0, "")
    worker.inflight.extend(tasks(call(), 1))
    roster.silence(worker)
    roster.silence(worker)
    assert roster.alive + len(roster.leaving) == 0
    if end is not None:
        roster.move(worker, end)
    assert roster.alive + len(roster.leaving) == 0
    roster.heard(worker)
    roster.heard(worker)
    assert roster.alive + len(roster.leaving) == (1 if end in (None, WorkerEvent.RETIRE) else 0)


def test_a_worker_that_is_taken_over_keeps_its_id_unless_another_has_it_or_has_had_it() -> None:
    roster = Roster(9)
    ids = [roster.take_over(id, 0, "").id for id in (5, 2, 5)]
    assert ids == [5, 2, 6]
    roster.move(roster.workers[2], WorkerEvent.EXIT)
    assert roster.take_over(2, 0, "").id == 7
    (own,) = roster.recruit(1)
    roster.move(own, WorkerEvent.EXIT)
    assert (own.id, roster.take_over(8, 0, "").id, roster.take_over(3, 0, "").id) == (8, 9, 3)


def test_the_dead_do_not_move() -> None:
    roster = Roster(1)
    worker = ready(roster)
    roster.move(worker, WorkerEvent.EXIT)
    with pytest.raises(IllegalTransition):
        roster.move(worker, WorkerEvent.HELLO)


@pytest.mark.parametrize(
    ("held", "target", "filed"),
    [(0, 1, "idle"), (1, 1, "open"), (1, 2, "open"), (2, 2, "neither"), (3, 6, "open"), (4, 6, "neither")],
)
def test_a_window_opens_again_when_it_is_half_empty(held: int, target: int, filed: str) -> None:
    roster = Roster(1)
    worker = ready(roster)
    roster.idle.clear()
    worker.inflight.extend(tasks(call(), held))
    worker.target = target
    roster.file(worker)
    assert (worker.id in roster.idle, worker.id in roster.open) == (filed == "idle", filed == "open")


def test_only_who_is_ready_has_room() -> None:
    roster = Roster(1)
    worker = ready(roster)
    assert roster.idle
    roster.move(worker, WorkerEvent.LINK_LOST)
    assert not roster.idle
    roster.file(worker)
    assert not roster.idle
    roster.move(worker, WorkerEvent.HELLO)
    roster.file(worker)
    assert roster.idle


def test_who_is_alone_has_no_room_until_empty() -> None:
    roster = Roster(1)
    worker = ready(roster)
    roster.idle.clear()
    worker.alone = True
    worker.inflight.extend(tasks(call(), 1))
    roster.file(worker)
    assert not roster.idle
    assert not roster.open
    worker.inflight.clear()
    roster.file(worker)
    assert roster.idle
    assert not worker.alone


def test_a_worker_gives_back_what_it_has_not_started() -> None:
    worker = Worker(1, 0)
    page = worker.page = Page()
    held = tasks(call(), 3)
    worker.inflight.extend(held)
    page.started = 1
    assert worker.revoke(1) is None, "it has started that"
    assert worker.revoke(3) is held[2]
    assert worker.revoke(3) is None, "once is enough"
    assert worker.revoke(4) is None, "never fed"
    assert list(worker.inflight) == [held[0], held[1], None]
    assert page.revoked == {3}


def test_a_page_is_not_believed_beyond_what_was_fed() -> None:
    worker = Worker(1, 0)
    worker.inflight.extend(tasks(call(), 1))
    assert [worker.task_at(index) for index in (None, 0, 2, 10**9)] == [None] * 4


def test_backoff_doubles_from_round_to_round() -> None:
    roster = Roster(1)
    now = 100.0
    waits = []
    for _ in range(10):
        (worker,) = roster.recruit(1)
        roster.start_failed(worker, now)
        roster.move(worker, WorkerEvent.EXIT)
        waits.append(roster.spawn_after - now)
        now = roster.spawn_after
    assert waits == pytest.approx([FIRST_BACKOFF * 2**n for n in (0, 1, 2, 3, 4, 5, 6, 7, 7, 7)])


def test_after_a_fork_server_was_killed_once_the_next_start_does_not_wait() -> None:
    roster = Roster(2)
    now = 100.0
    waits = []
    for _ in range(4):
        for worker in roster.recruit(2):
            worker.cut_short = True
            roster.start_failed(worker, now)
            roster.move(worker, WorkerEvent.EXIT)
        waits.append(max(0.0, roster.spawn_after - now))
        now = max(now, roster.spawn_after)
    assert waits == pytest.approx([0.0, FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF])
    assert not roster.is_hopeless(explained=True)


def test_many_that_fail_at_once_count_once() -> None:
    roster = Roster(8)
    for worker in roster.recruit(8):
        roster.start_failed(worker, 100.0)
    assert roster.failed_rounds == 1
    assert roster.spawn_after == 100.0 + FIRST_BACKOFF


@pytest.mark.parametrize(("explained", "attempts"), [(True, START_ATTEMPTS), (False, UNEXPLAINED_ATTEMPTS)])
def test_it_is_hopeless_only_when_nobody_works(explained: bool, attempts: int) -> None:
    roster = Roster(2)
    worker = ready(roster)
    roster.failed_rounds = attempts
    assert not roster.is_hopeless(explained=explained)
    roster.move(worker, WorkerEvent.EXIT)
    assert roster.is_hopeless(explained=explained)
    roster.failed_rounds -= 1
    assert not roster.is_hopeless(explained=explained)
