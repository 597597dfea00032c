"""The count of primes as a fleet: its parts, called as the plain functions that they stay."""

from __future__ import annotations

import sys

import primes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from primes import KNOWN, Segment

from poolkeeper import BatchResult, Fleet, Keeper, TaskResult, TaskStatus
from poolkeeper.runner import run_fleet


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


@given(st.integers(0, 3000), st.integers(0, 300))
def test_a_segment_has_as_many_primes_as_one_finds_by_dividing(start: int, size: int) -> None:
    assert primes.count(Segment(start, start + size)) == sum(map(is_prime, range(start, start + size)))


@pytest.mark.parametrize("power", range(1, 8))
def test_segments_add_up_to_what_is_known(monkeypatch: pytest.MonkeyPatch, power: int) -> None:
    monkeypatch.setattr(sys, "argv", ["primes.py", str(power)])
    monkeypatch.setattr(primes, "SEGMENT", 10**power // 7 + 1)
    segments = primes.segments()
    assert len(segments) >= 5
    assert sum(map(primes.count, segments)) == KNOWN[power]


def test_a_wrong_count_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["primes.py", "2"])
    right = BatchResult("count", (TaskResult(TaskStatus.SUCCEEDED, 0, Segment(0, 100), returned=25),))
    primes.check(right)
    wrong = BatchResult("count", (TaskResult(TaskStatus.SUCCEEDED, 0, Segment(0, 100), returned=26),))
    with pytest.raises(ArithmeticError, match="26 primes were counted below 10\\^2, but there are 25"):
        primes.check(wrong)


@pytest.mark.parametrize("words", [["-3"], ["many"], ["99"], ["3", "4"]])
def test_wrong_words_are_refused(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["primes.py", *words])
    with pytest.raises(SystemExit, match="usage"):
        primes.segments()


def test_the_whole_fleet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["primes.py", "5"])
    assert isinstance(primes.fleet, Fleet)
    with Keeper(start_method="inline") as keeper:
        assert run_fleet(primes.fleet, keeper).ok
    assert "9,592 primes below 10^5" in capsys.readouterr().out
