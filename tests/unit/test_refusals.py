"""Callers that are refused are spoken of, and not without end."""

from __future__ import annotations

from poolkeeper.refusals import CALLERS, Refusals


def test_each_is_spoken_of_once_and_then_ever_more_rarely() -> None:
    refusals = Refusals()
    assert [count for count in (refusals.note(7) for _ in range(1000)) if count is not None] == [1, 10, 100, 1000]
    assert refusals.note(8) == 1
    assert refusals.note(None) == 1


def test_not_all_that_ever_called_are_remembered() -> None:
    refusals = Refusals()
    for pid in range(CALLERS + 1):
        refusals.note(pid)
    assert refusals.note(CALLERS) is None
    assert refusals.note(0) == 1
