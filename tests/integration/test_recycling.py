"""Workers are replaced after so many tasks, or beyond so much memory, and nobody notices."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from poolkeeper import Keeper, WorkerPolicy
from tests import tasks
from tests.helpers import PATIENCE, is_running, wait_until


@pytest.mark.parametrize("limit", [1, 3])
def test_a_worker_runs_so_many_tasks_and_no_more(limit: int) -> None:
    with Keeper(2, max_tasks_per_child=limit, preload=["tests.tasks"]) as keeper:
        futures = [keeper.submit(tasks.pid) for _ in range(20)]
        pids = Counter(future.result(PATIENCE) for future in futures)
    assert max(pids.values()) <= limit
    assert sum(pids.values()) == 20


def test_a_map_counts_item_by_item_or_at_least_ends() -> None:
    with Keeper(2, max_tasks_per_child=5, preload=["tests.tasks"]) as keeper:
        assert list(keeper.map(tasks.square, range(200))) == [number**2 for number in range(200)]
        pids = set(keeper.map(tasks.pid, range(50), chunksize=1))
    assert len(pids) >= 2


def test_the_worker_policy_says_the_same() -> None:
    with Keeper(1, worker=WorkerPolicy(max_tasks=2), preload=["tests.tasks"]) as keeper:
        pids = Counter(keeper.submit(tasks.pid).result(PATIENCE) for _ in range(6))
    assert set(pids.values()) == {2}


def test_replaced_workers_are_gone() -> None:
    with Keeper(1, max_tasks_per_child=1, preload=["tests.tasks"]) as keeper:
        pids = [keeper.submit(tasks.pid).result(PATIENCE) for _ in range(5)]
        for pid in pids:
            wait_until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
    assert len(set(pids)) == 5


def test_the_initializer_runs_in_every_replacement() -> None:
    with Keeper(1, max_tasks_per_child=1, initializer=tasks.set_global, initargs=("ready",)) as keeper:
        assert [keeper.submit(tasks.get_global).result(PATIENCE) for _ in range(3)] == ["ready"] * 3


def test_deaths_and_recycling_together(tmp_path: Path) -> None:
    with Keeper(2, max_tasks_per_child=2, preload=["tests.tasks"]) as keeper:
        futures = []
        for number in range(20):
            folder = tmp_path / str(number)
            folder.mkdir()
            futures.append(keeper.submit(tasks.die_once, folder, number))
        assert [future.result(PATIENCE) for future in futures] == list(range(20))


def test_a_worker_that_has_grown_is_replaced() -> None:
    with Keeper(1, worker=WorkerPolicy(max_memory="200MiB"), preload=["tests.tasks"]) as keeper:
        first = keeper.submit(tasks.pid).result(PATIENCE)
        assert keeper.submit(tasks.pid).result(PATIENCE) == first
        assert keeper.submit(tasks.grow, 300 * 2**20).result(PATIENCE) == first  # it ends what it runs

        def replaced() -> bool:
            return keeper.submit(tasks.pid).result(PATIENCE) != first

        wait_until(replaced, "the worker to be replaced")
        assert keeper.submit(tasks.kept_bytes).result(PATIENCE) == 0


def test_growing_workers_lose_no_task() -> None:
    with Keeper(2, worker=WorkerPolicy(max_memory="150MiB"), preload=["tests.tasks"]) as keeper:
        futures = [keeper.submit(tasks.grow_slowly, number, 2**20) for number in range(600)]
        assert [future.result(PATIENCE) for future in futures] == list(range(600))
        assert list(keeper.map(tasks.grow_slowly, range(300), [2**20] * 300)) == list(range(300))


def test_a_worker_that_is_too_old_is_replaced_between_two_tasks() -> None:
    with Keeper(1, worker=WorkerPolicy(max_age=0.001), preload=["tests.tasks"]) as keeper:
        first = keeper.submit(tasks.pid).result(PATIENCE)
        wait_until(lambda: keeper.submit(tasks.pid).result(PATIENCE) != first)
