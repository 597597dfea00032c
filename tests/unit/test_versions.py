"""Who can speak with whom."""

from __future__ import annotations

from typing import Any

import pytest

from poolkeeper.versions import Verdict, Versions, judge

SPEAK, DRAIN, REFUSE = Verdict
MINE = Versions(8, "3.12", "3.1.2")
SAME = {"protocol": 8, "python": "3.12", "cloudpickle": "3.1.2"}

# what the caller has, and what becomes of a child and of any other caller
TABLE = [
    ({}, SPEAK, SPEAK),
    ({"protocol": 7}, DRAIN, REFUSE),
    ({"protocol": 9}, DRAIN, REFUSE),
    ({"protocol": "8"}, DRAIN, REFUSE),
    ({"python": "3.11"}, DRAIN, SPEAK),
    ({"cloudpickle": "3.1.1"}, DRAIN, SPEAK),
    ({"cloudpickle": ""}, SPEAK, SPEAK),
    ({"protocol": 7, "python": "3.11"}, DRAIN, REFUSE),
    ({"unheard of": 1}, SPEAK, SPEAK),
    ({"leaving": False}, SPEAK, SPEAK),
    ({"leaving": True}, DRAIN, SPEAK),
]


@pytest.mark.parametrize(("theirs", "child", "other"), TABLE)
def test_what_becomes_of_a_caller(theirs: dict[str, Any], child: Verdict, other: Verdict) -> None:
    for role in ("worker", "service", "forkserver"):
        assert judge(MINE, {**SAME, **theirs, "role": role})[0] is child
    for role in ("control", "something new", None):
        assert judge(MINE, {**SAME, **theirs, "role": role})[0] is other


def test_who_does_not_say_what_it_has_counts_as_having_the_same() -> None:
    assert judge(MINE, {"role": "worker"}) == (SPEAK, "")
    assert judge(Versions(8), {**SAME, "role": "worker"})[0] is SPEAK


def test_the_reason_names_both_sides() -> None:
    _, why = judge(MINE, {**SAME, "role": "worker", "protocol": 7, "python": "3.11"})
    assert why == "has protocol 7 where this keeper has 8 and has python 3.11 where this keeper has 3.12"
    assert "told to leave" in judge(MINE, {**SAME, "role": "worker", "leaving": True})[1]
