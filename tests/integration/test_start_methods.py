"""Workers by fork server, by loky's fork and exec, and no workers at all."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import as_completed, wait
from pathlib import Path

import pytest
from tenacity import wait_none

from poolkeeper import Keeper, PayloadError, RetryPolicy, TaskQuarantined, TaskTimeout
from tests import payload_cases, tasks
from tests.helpers import PATIENCE


def test_workers_of_the_fork_server_are_multiprocessing_workers() -> None:
    with Keeper(1) as keeper:
        name, _daemon, parent, _method = keeper.submit(_multiprocessing_facts).result()
        assert name.startswith("worker-")
        assert parent is not None
        assert keeper.submit(_pool_within).result(PATIENCE) == [0, 1, 4]


def _multiprocessing_facts() -> tuple[str, bool, int | None, str | None]:
    process = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    return process.name, process.daemon, parent and parent.pid, multiprocessing.get_start_method(allow_none=True)


def _pool_within() -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(tasks.square, range(3))


def test_loky_workers_do_everything_too(tmp_path: Path) -> None:
    with Keeper(2, start_method="loky") as keeper:
        captured = 5
        assert keeper.submit(lambda: captured).result(PATIENCE) == 5
        futures = [keeper.submit(tasks.square, number) for number in range(500)]
        assert [future.result(PATIENCE) for future in futures] == [number**2 for number in range(500)]
        assert list(keeper.map(tasks.square, range(500))) == [number**2 for number in range(500)]
        assert keeper.submit(tasks.die_once, tmp_path, "again").result(PATIENCE) == "again"
        error = keeper.submit(tasks.exit_hard, 4).exception(PATIENCE)
        assert isinstance(error, TaskQuarantined)
        assert "exited with status 4" in str(error)
        with pytest.raises(TaskTimeout):
            keeper.options(timeout=2).submit(tasks.sleep_forever).result(PATIENCE)
        assert keeper.submit(tasks.filled, 100_000, 3).result(PATIENCE).sum() == 300_000


def test_a_spawn_context_means_loky() -> None:
    with Keeper(1, multiprocessing.get_context("spawn")) as keeper:
        assert keeper._runtime.settings.start_method == "loky"
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    with Keeper(1, mp_context=multiprocessing.get_context("fork")) as keeper:
        assert keeper._runtime.settings.start_method == "forkserver"


def test_an_initializer_runs_under_loky() -> None:
    with Keeper(1, start_method="loky", initializer=tasks.set_global, initargs=(5,)) as keeper:
        assert keeper.submit(tasks.get_global).result(PATIENCE) == 5


# -- inline -----------------------------------------------------------------------------------------------------------


def test_inline_tasks_run_in_this_process_and_thread() -> None:
    with Keeper(4, start_method="inline") as keeper:
        assert keeper.submit(os.getpid).result() == os.getpid()
        assert keeper.submit(threading.get_ident).result() == threading.get_ident()
        assert list(keeper.map(tasks.square, range(10))) == [number**2 for number in range(10)]
        assert sorted(keeper.map(tasks.square, range(10), ordered=False)) == [number**2 for number in range(10)]
        assert list(keeper.map(tasks.square, range(10), buffersize=3)) == [number**2 for number in range(10)]
        futures = [keeper.submit(tasks.square, number) for number in range(10)]
        assert wait(futures).not_done == set()
        assert len(list(as_completed(futures))) == 10
        assert keeper.status().workers == ()
        assert keeper.status().pid == os.getpid()
    with pytest.raises(RuntimeError, match="after shutdown"):
        keeper.submit(tasks.square, 1)


def test_inline_treats_arguments_as_a_worker_would() -> None:
    with Keeper(1, start_method="inline") as keeper:
        values = [1, 2]
        keeper.submit(values.append, 3).result()
        keeper.submit(list.append, values, 3).result()
        assert values == [1, 2]
        with pytest.raises(PayloadError, match="argument of echo"):
            keeper.submit(tasks.echo, threading.Lock()).result()
        with pytest.raises(PayloadError, match="argument of echo.* cannot be unpickled"):
            keeper.submit(tasks.echo, payload_cases.Unloadable()).result()


def test_inline_exceptions_are_results() -> None:
    with Keeper(1, start_method="inline") as keeper:
        with pytest.raises(ValueError, match="reason"):
            keeper.submit(tasks.fail, "reason").result()
        with pytest.raises(ValueError, match="item 3"):
            list(keeper.map(tasks.fail_at, range(5), [3] * 5))
        policy = RetryPolicy(attempts=3, wait=wait_none())
        assert keeper.options(retry=policy).submit(tasks.fail_before, 3).result() == 3


def test_inline_sys_exit_ends_the_task_alone() -> None:
    from poolkeeper.errors import TaskExited

    with Keeper(1, start_method="inline") as keeper:
        with pytest.raises(TaskExited, match="leave ended with SystemExit"):
            keeper.submit(tasks.leave, 3).result()
        assert keeper.submit(tasks.square, 3).result() == 9


def test_inline_an_interrupt_reaches_the_caller() -> None:
    with Keeper(1, start_method="inline") as keeper, pytest.raises(KeyboardInterrupt):
        keeper.submit(payload_cases.raise_error, KeyboardInterrupt)


def test_inline_has_a_home_and_an_initializer() -> None:
    with Keeper(1, start_method="inline", initializer=tasks.set_global, initargs=(8,)) as keeper:
        assert keeper.submit(tasks.get_global).result() == 8
        calls: list[object] = []
        keeper.submit(tasks.square, 1).add_done_callback(calls.append)
        assert len(calls) == 1
