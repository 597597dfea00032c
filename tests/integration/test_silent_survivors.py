"""A keeper is killed, and a worker of it cannot call the next one: what it executes runs nowhere else."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkeeper import TaskQuarantined
from poolkeeper.process_identity import process_state
from tests import tasks
from tests.helpers import is_running, wait_until
from tests.survivors import Lost, end_survivors, results

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="pages have no names here")


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lost]:
    monkeypatch.setattr("poolkeeper.recovery.RECOVERY_SECONDS", 0.2)  # whoever can call does so at once
    lost = Lost(tmp_path)
    yield lost
    end_survivors(lost.home)


def stop(lost: Lost, item: object) -> int:
    """Have the worker stand still that executes ``item``; return its pid."""
    pid = lost.worker_at(item)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_state(pid) == "T")
    return pid


def test_what_a_stopped_worker_executes_is_waited_for_and_nothing_else(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1, 2, 3]))
    stopped = stop(lost, 0)
    with lost.again() as keeper:
        first, *others = lost.submit(keeper, range(5))
        lost.open(0, 1, 2, 3, 4)
        assert results(others) == [1, 2, 3, 4]
        assert first.running()
        assert ("busy", first) in [(row.state, row.task) for row in keeper._runtime.snapshot()[2]]  # type: ignore[union-attr]
        recovered = keeper.recovered
        assert recovered is not None
        assert recovered.silent == (stopped,)
        os.kill(stopped, signal.SIGCONT)
        assert results([first]) == [0]
        assert first.worker_pid == stopped
        lost.open(5)
        assert results(lost.submit(keeper, [5])) == [5]
    assert lost.ran == Counter(map(str, range(6)))


def test_others_are_in_the_place_of_stopped_workers_until_these_go_on(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    stopped = [stop(lost, item) for item in (0, 1)]
    with lost.again() as keeper:
        *waiting, other = lost.submit(keeper, [0, 1, 2])
        lost.open(2)
        assert results([other]) == [2]
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: {row.pid for row in keeper.status().workers} == set(stopped), "the others leave")
        lost.open(0, 1)
        assert results(waiting) == [0, 1]
    assert lost.ran == Counter({"0": 1, "1": 1, "2": 1})


def test_who_asks_later_waits_for_it_as_well(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    stopped = stop(lost, 0)
    lost.open(0, 1, 2)
    with lost.again() as keeper:
        assert results(lost.submit(keeper, [1, 2])) == [1, 2]
        (first,) = lost.submit(keeper, [0])
        wait_until(first.running)
        os.kill(stopped, signal.SIGCONT)
        assert results([first]) == [0]
    assert lost.ran == Counter({"0": 1, "1": 1, "2": 1})


def test_a_worker_that_cannot_be_signalled_is_no_different(lost: Lost) -> None:
    lost.task = "note_and_pass_gate_in_silence"
    lost.kill(lost.begin([0, 1]))
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1])
        wait_until(lambda: all(future.running() for future in futures))
        lost.open(0, 1)
        assert results(futures) == [0, 1]
    assert lost.ran == Counter({"0": 1, "1": 1})


@pytest.mark.parametrize("final", [False, True])
def test_a_stopped_worker_that_dies_is_blamed_for_what_it_executed(lost: Lost, final: bool) -> None:
    lost.kill(lost.begin([0, 1]))
    stopped = stop(lost, 0)
    with lost.again() as keeper:
        first, other = lost.submit(keeper, [0, 1], **({"retry": tasks.no_deaths()} if final else {}))
        lost.open(0, 1)
        assert results([other]) == [1]
        wait_until(first.running)
        os.kill(stopped, signal.SIGKILL)
        if final:
            assert isinstance(first.exception(20), TaskQuarantined)
        else:
            assert results([first]) == [0]
        assert (first.deaths, other.deaths) == (1, 0)
    assert lost.ran == Counter({"0": 1 if final else 2, "1": 1})


def test_what_a_silent_worker_was_fed_ahead_runs_elsewhere_and_there_alone(lost: Lost) -> None:
    """It goes on with it at once when it has done what it was at; what it says of itself comes too late."""
    lost.task = "note_and_pass_gate_in_silence"
    warm = [f"warm-{number}" for number in range(30)]
    lost.open(*warm)
    lost.kill(lost.begin(list(range(8)), 1, warm, max_workers=1))
    with lost.again() as keeper:
        first, *others = lost.submit(keeper, range(8))
        lost.open(*range(1, 8))
        assert results(others) == list(range(1, 8))
        lost.open(0)
        assert results([first]) == [0]
        wait_until(lambda: [row.state for row in keeper.status().workers] == ["ready", "ready"])
        lost.open("more", "and more")
        assert results(lost.submit(keeper, ["more", "and more"])) == ["more", "and more"]
    assert lost.ran == Counter([*warm, *map(str, range(8)), "more", *["and", "more"]])


def test_where_the_page_cannot_be_had_the_first_outcome_counts(lost: Lost) -> None:
    lost.task = "note_and_pass_gate_without_descriptors"
    lost.kill(lost.begin([0, 1]))
    stopped = stop(lost, 0)
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1, 2])
        lost.open(0, 1, 2)
        assert results(futures) == [0, 1, 2]
        assert lost.ran["0"] == 2
        os.kill(stopped, signal.SIGCONT)
    assert not is_running(stopped)
