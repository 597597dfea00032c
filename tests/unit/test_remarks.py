"""What is said while nobody listens stays small, and the newest of it is said."""

from __future__ import annotations

from poolkeeper.messages import Kind
from poolkeeper.remarks import NOTICES, TASKS, Remarks


def test_of_progress_the_newest_is_kept_for_each_task() -> None:
    remarks = Remarks()
    for done in range(10_000):
        for task in (1, 2):
            remarks.add((Kind.PROGRESS, task, done, None))
    assert remarks.take() == [(Kind.PROGRESS, task, 9_999, None) for task in (1, 2)]
    assert not remarks


def test_of_many_tasks_those_that_have_spoken_last_are_kept() -> None:
    remarks = Remarks()
    for task in range(1_000):
        remarks.add((Kind.PROGRESS, task, 1, 2))
    assert [message[1] for message in remarks.take()] == list(range(1_000 - TASKS, 1_000))


def test_of_notices_the_last_are_kept_and_the_others_counted() -> None:
    remarks = Remarks()
    for number in range(100):
        remarks.add((Kind.NOTICE, str(number)))
    first, *rest = remarks.take()
    assert first[1].startswith(f"{100 - NOTICES} earlier")
    assert [text for _, text in rest] == [str(number) for number in range(100 - NOTICES, 100)]
    remarks.add((Kind.NOTICE, "later"))
    assert remarks.take() == [(Kind.NOTICE, "later")]
