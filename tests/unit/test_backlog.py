"""The order in which work is handed out, and what is counted."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from poolkeeper.backlog import Backlog
from poolkeeper.ledger import Segment, Task
from tests.scripted import Job, call, keys, segment, tasks


def taken(backlog: Backlog, limit: int = 1) -> list[Any]:
    """Everything that can be taken, in order."""
    order: list[Any] = []
    while backlog.runnable:
        suspect = backlog.take_suspect()
        got = [suspect] if suspect is not None else backlog.take(limit, 1)
        order.extend(keys(got))
        for task in got:
            backlog.cleared(task)
    return order


def test_first_in_first_out() -> None:
    backlog = Backlog()
    backlog.submit(tasks(call(), 3))
    assert taken(backlog) == ["0", "1", "2"]
    assert not backlog


def test_higher_priorities_go_first() -> None:
    backlog = Backlog()
    for priority in (0, 10, -10, 10):
        backlog.submit(tasks(call(priority=priority), 1, f"p{priority}."))
    assert taken(backlog) == ["p10.0", "p10.0", "p0.0", "p-10.0"]


def test_suspects_then_repeated_attempts_then_fresh_work() -> None:
    backlog = Backlog()
    fresh, again, suspect = (tasks(call(), 1, name)[0] for name in ("fresh", "again", "suspect"))
    suspect.deaths = 1
    again.attempts = 2
    backlog.submit([fresh])
    backlog.delay(again, 1.0)
    backlog.suspect(suspect)
    backlog.release(1.0)
    assert taken(backlog) == ["suspect0", "again0", "fresh0"]


def test_delayed_tasks_wait_until_they_are_due() -> None:
    backlog = Backlog()
    late, early = tasks(call(), 2)
    backlog.delay(late, 20.0)
    backlog.delay(early, 10.0)
    assert (len(backlog), backlog.runnable, backlog.next_due) == (2, False, 10.0)
    backlog.release(9.9)
    assert not backlog.runnable
    backlog.release(10.0)
    assert keys(backlog.take(1, 1)) == ["1"]
    assert backlog.next_due == 20.0


def test_what_was_fed_and_never_ran_goes_back_to_where_it_came_from() -> None:
    backlog = Backlog()
    backlog.submit(tasks(call(), 4))
    given = backlog.take(3, 1)
    given[1].attempts = 2
    backlog.put_back(given)
    assert {task.worker for task in given} == {None}
    assert taken(backlog) == ["1", "0", "2", "3"]


def test_a_suspect_that_never_ran_is_still_a_suspect() -> None:
    backlog = Backlog()
    suspect, other = tasks(call(), 2)
    for task in (suspect, other):
        task.deaths = 1
        backlog.suspect(task)
    assert backlog.take_suspect() is suspect
    backlog.cleared(suspect)
    backlog.put_back([suspect])
    assert backlog.take(9, 1) == []
    assert backlog.take_suspect() is suspect


def test_one_suspect_at_a_time() -> None:
    backlog = Backlog()
    first, second = tasks(call(), 2)
    backlog.suspect(first)
    backlog.suspect(second)
    assert backlog.take_suspect() is first
    assert not backlog.runnable
    assert backlog.take_suspect() is None
    backlog.cleared(second)
    assert backlog.take_suspect() is None, "it was the other that ended"
    backlog.cleared(first)
    assert backlog.take_suspect() is second


def test_only_tasks_of_one_call_travel_together() -> None:
    backlog = Backlog()
    one, other = call(name="one"), call(name="other")
    backlog.submit([*tasks(one, 2, "a"), *tasks(other, 1, "b"), *tasks(one, 1, "c")])
    assert keys(backlog.take(9, 1)) == ["a0", "a1"]
    assert backlog.head_call() is other
    assert keys(backlog.take(9, 1)) == ["b0"]
    assert keys(backlog.take(9, 1)) == ["c0"]


def test_a_map_of_the_same_call_does_not_travel_with_its_tasks() -> None:
    backlog = Backlog()
    of = call()
    backlog.submit([*tasks(of, 2), segment(of, 2), *tasks(of, 1, "behind")])
    assert keys(backlog.take(9, 1)) == ["0", "1"]
    assert keys(backlog.take(9, 1)) == [[0]]
    assert keys(backlog.take(9, 1)) == [[1]]
    assert keys(backlog.take(9, 1)) == ["behind0"]


def test_a_chunk_that_came_back_is_not_cut_again() -> None:
    backlog = Backlog()
    of = call(0.0)
    backlog.submit([segment(of, 40), *tasks(of, 1)])
    chunk = backlog.take(9, 2)
    assert keys(chunk) == [list(range(10))]
    backlog.put_back(chunk)
    assert backlog.take(9, 2) == chunk
    assert len(backlog) == 31


def test_the_call_at_the_head_is_that_of_work_that_is_still_wanted() -> None:
    backlog = Backlog()
    gone, wanted = call(name="gone"), call(name="wanted")
    withdrawn = segment(gone, 5)
    backlog.submit([withdrawn, *tasks(gone, 1), *tasks(wanted, 1)])
    assert isinstance(withdrawn.job, Job)
    withdrawn.job.withdrawn = True
    entries = backlog.clear()
    assert isinstance(entries[1], Task)
    entries[1].withdrawn = True
    backlog.submit(entries)
    assert backlog.head_call() is wanted


def test_a_segment_that_is_used_up_leaves_at_once() -> None:
    backlog = Backlog()
    long = call(1.0, name="long")
    backlog.submit([segment(call(0.0, name="short"), 1), *tasks(long, 1)])
    backlog.take(1, 1)
    assert backlog.head_call() is long
    assert backlog.depth == len(backlog) == 1


def test_withdrawn_work_holds_nothing_up() -> None:
    backlog = Backlog()
    for place in (backlog.suspect, lambda task: backlog.delay(task, 1e9), lambda task: backlog.submit([task])):
        (task,) = tasks(call(), 1)
        place(task)
        task.withdrawn = True
    backlog.release(0.0)
    assert not backlog
    assert (len(backlog), backlog.runnable, backlog.next_due) == (0, False, None)


def test_priorities_that_are_used_up_are_forgotten() -> None:
    backlog = Backlog()
    for priority in range(100):
        backlog.submit(tasks(call(priority=priority), 1))
    assert len(taken(backlog)) == 100
    assert not backlog._fresh
    assert not backlog._order


def test_a_map_that_is_given_up_counts_no_more_even_if_its_items_are_gone() -> None:
    backlog = Backlog()
    whole = segment(call(0.0), 100)
    backlog.submit([whole])
    backlog.take(1, 1)
    assert isinstance(whole.job, Job)
    whole.job.withdrawn = True
    whole.position = len(whole.items)
    backlog.release(0.0)
    assert (len(backlog), backlog.depth, bool(backlog)) == (0, 0, False)


def test_clear_returns_all_there_is() -> None:
    backlog = Backlog()
    of = call()
    suspect, delayed, fresh = tasks(of, 3)
    cut = segment(of, 5)
    backlog.suspect(suspect)
    backlog.delay(delayed, 5.0)
    backlog.submit([fresh, cut])
    assert backlog.clear() == [fresh, cut, suspect, delayed]
    assert (len(backlog), bool(backlog), backlog.depth) == (0, False, 0)


class Counted(RuleBasedStateMachine):
    """Whatever is done to it, the backlog counts what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.calls = [call(0.0, priority=0), call(0.001, priority=3), call(name="other")]
        self.out: list[Task] = []
        self.now = 0.0

    @rule(of=st.integers(0, 2), number=st.integers(1, 5))
    def submit(self, of: int, number: int) -> None:
        self.backlog.submit(tasks(self.calls[of], number))

    @rule(of=st.integers(0, 2), number=st.integers(1, 50), single=st.booleans())
    def submit_map(self, of: int, number: int, single: bool) -> None:
        self.backlog.submit([segment(self.calls[of], number, single=single)])

    @rule(limit=st.integers(1, 5), workers=st.integers(1, 4))
    def take(self, limit: int, workers: int) -> None:
        depth = self.backlog.depth
        got = self.backlog.take(limit, workers)
        assert len(got) <= limit
        assert bool(got) <= bool(depth)
        self.out.extend(got)

    @rule()
    def take_suspect(self) -> None:
        suspect = self.backlog.take_suspect()
        if suspect is not None:
            self.out.append(suspect)

    @rule(data=st.data(), fate=st.sampled_from(["back", "suspect", "delay", "done"]))
    def give_back(self, data: st.DataObject, fate: str) -> None:
        if not self.out:
            return
        task = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.backlog.cleared(task)
        if fate == "back":
            self.backlog.put_back([task])
        elif fate == "suspect":
            task.deaths += 1
            self.backlog.suspect(task)
        elif fate == "delay":
            task.attempts += 1
            self.backlog.delay(task, self.now + 1.0)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        held = self.backlog.clear()
        for entry in held:
            gone = data.draw(st.booleans())
            if isinstance(entry, Segment):
                entry.job.withdrawn = gone
            else:
                entry.withdrawn = gone
        self.backlog.submit(entry for entry in held if isinstance(entry, Segment))
        self.backlog.put_back([entry for entry in held if isinstance(entry, Task)])

    @rule()
    def release(self) -> None:
        self.now += 0.7
        self.backlog.release(self.now)
        head = self.backlog.head_call()
        suspect = self.backlog.suspect_waits
        assert self.backlog.runnable == (head is not None or suspect)

    @invariant()
    def the_counts_are_right(self) -> None:
        backlog = self.backlog
        lines = [entry for line in backlog._fresh.values() for entry in line]
        fresh = sum(entry.remaining if isinstance(entry, Segment) else 1 for entry in lines)
        waiting = len(backlog._again) + len(backlog._suspects)
        assert len(backlog) == fresh + waiting + len(backlog._delayed)
        assert backlog.depth == fresh + len(backlog._again) + backlog.suspect_waits
        assert bool(backlog) == (len(backlog) > 0)
        assert all(backlog._fresh.values()), "an empty line"
        assert sorted(backlog._fresh, reverse=True) == [-priority for priority in backlog._order]


TestCounted = Counted.TestCase
