"""Batches and fleets on a real keeper: what its futures tell, and what only it can carry out."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tenacity import wait_none

from poolkeeper import (
    BatchResult,
    CancellationToken,
    ExecutionPolicy,
    Fleet,
    Keeper,
    RetryPolicy,
    TaskQuarantined,
    TaskStatus,
    TaskTimeout,
    context,
)
from tests.helpers import wait_until


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(2) as shared:
        yield shared


def square(number: int) -> int:
    return number * number


def fail_before(attempt: int) -> int:
    if context().attempt < attempt:
        raise ConnectionError("not yet")
    return context().attempt


def die(mark: Path) -> int:
    """Kill the worker, once for each mark; always if there is none."""
    if mark.name == "always" or not mark.exists():
        if mark.name != "always":
            mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def touch_and_wait(mark: Path) -> None:
    mark.touch()
    while not mark.with_name("go").exists():
        time.sleep(0.01)


def test_results_come_with_the_facts_of_their_tasks(keeper: Keeper) -> None:
    result = keeper.batch(square, range(500), key=str).result()
    assert result.values == [number * number for number in range(500)]
    assert {task.attempts for task in result} == {1}
    assert [task.key for task in result] == [str(number) for number in range(500)]
    assert all(task.worker_pid not in (None, os.getpid()) for task in result)
    assert all(task.seconds is not None and task.seconds >= 0 for task in result)


def test_lambdas_and_closures(keeper: Keeper) -> None:
    offset = 10
    assert keeper.batch(lambda number: number + offset, [1, 2]).result().values == [11, 12]


def test_failed_attempts_are_retried(keeper: Keeper) -> None:
    policy = ExecutionPolicy(retry=RetryPolicy(attempts=3, wait=wait_none()))
    result = keeper.batch(fail_before, [1, 3, 4], policy=policy).result()
    assert result.values == [1, 3]
    assert [task.attempts for task in result] == [1, 3, 3]
    assert isinstance(result[2].error, ConnectionError)
    assert result.statistics.retried == 2


def test_a_timeout_is_the_task_s_own(keeper: Keeper) -> None:
    result = keeper.batch(time.sleep, [0, 600], policy=ExecutionPolicy(timeout=0.2)).result()
    assert [task.status for task in result] == [TaskStatus.SUCCEEDED, TaskStatus.TIMED_OUT]
    assert isinstance(result[1].error, TaskTimeout)


def test_a_death_is_the_task_s_own_and_is_made_good(keeper: Keeper, tmp_path: Path) -> None:
    result = keeper.batch(die, [tmp_path / str(number) for number in range(4)]).result()
    assert result.ok
    assert [task.deaths for task in result] == [1, 1, 1, 1]


def test_a_task_that_always_kills_is_quarantined(keeper: Keeper, tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    result = keeper.batch(die, [tmp_path / "always", tmp_path / "done"]).result()
    assert [task.status for task in result] == [TaskStatus.QUARANTINED, TaskStatus.SUCCEEDED]
    assert isinstance(result[0].error, TaskQuarantined)
    assert result[0].deaths == 3


def test_what_cannot_be_pickled_fails_its_own_task(keeper: Keeper) -> None:
    result = keeper.batch(str, [1, (number for number in ()), 3]).result()
    assert [task.ok for task in result] == [True, False, True]
    assert "pickle" in result[1].message


def test_cancelling_takes_back_what_has_not_started(keeper: Keeper, tmp_path: Path) -> None:
    token = CancellationToken()
    batch = keeper.batch(touch_and_wait, (tmp_path / str(number) for number in range(1000)), cancel=token)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "two tasks that run")
    token.cancel("enough")
    (tmp_path / "go").touch()
    result = batch.result()
    assert result.stopped == "enough"
    assert len(result.succeeded) == 2
    assert len(result.failed) == 0


def test_concurrency_is_honoured_across_processes(tmp_path: Path) -> None:
    with Keeper(3) as keeper:
        marks = [tmp_path / str(number) for number in range(3)]
        batch = keeper.batch(touch_and_wait, marks, policy=ExecutionPolicy(concurrency=1))
        wait_until(marks[0].exists, "the first task")
        assert [mark.exists() for mark in marks] == [True, False, False]
        (tmp_path / "go").touch()
        assert batch.result().ok


def test_it_can_be_awaited(keeper: Keeper) -> None:
    async def main() -> BatchResult[int]:
        return await keeper.batch(square, range(10))

    assert asyncio.run(main()).values == [number * number for number in range(10)]


def test_a_fleet_runs(keeper: Keeper) -> None:
    fleet = Fleet("squares")
    fleet.batch(items=range(10))(square)
    fleet.batch(items=lambda squares: squares.values, after=square, name="again")(square)
    fleet.step(after="again", name="total")(lambda again: sum(again.values))
    result = keeper.run(fleet)
    assert result.ok
    assert result.steps["total"].returned == sum(number**4 for number in range(10))
    assert result.run_id == keeper.run_id


def test_a_fleet_runs_in_the_caller_s_process() -> None:
    fleet = Fleet("inline")
    fleet.batch(items=range(3), policy=ExecutionPolicy(retry=2), name="where")(lambda number: (number, os.getpid()))
    with Keeper(start_method="inline") as keeper:
        result = keeper.run(fleet)
    assert result["where"].values == [(number, os.getpid()) for number in range(3)]
