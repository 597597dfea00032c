"""Tasks that misuse the process they run in: the next task finds a worker that works."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from poolkeeper import Keeper
from tests import messes, tasks
from tests.helpers import PATIENCE, is_running, wait_until
from tests.scripts import run_script


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with Keeper(1, preload=["tests.tasks", "tests.messes"]) as shared:
        shared.submit(tasks.square, 1).result()
        yield shared


@pytest.mark.parametrize("mess", messes.ALL, ids=lambda mess: mess.__name__)
def test_after_a_mess_the_worker_works_or_is_replaced(keeper: Keeper, mess: Callable[[], None]) -> None:
    if mess is messes.remove_own_directory and sys.version_info[:3] == (3, 13, 0):
        pytest.skip("CPython 3.13.0 imports nothing without a working directory: SystemError without an exception set")
    for _ in range(2):
        assert keeper.submit(mess).result(PATIENCE) is None
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        assert list(keeper.map(tasks.square, range(200), timeout=PATIENCE)) == [number**2 for number in range(200)]
        array = keeper.submit(tasks.scale, np.ones(50_000), 2.0).result(PATIENCE)
        assert (array == 2.0).all()


@pytest.mark.parametrize("mess", messes.ALL, ids=lambda mess: mess.__name__)
def test_a_mess_among_many_tasks_costs_none_of_them(keeper: Keeper, mess: Callable[[], None]) -> None:
    arrays = [np.full(20_000, number) for number in range(8)]
    futures = [keeper.submit(tasks.square, number) for number in range(100)]
    large = [keeper.submit(tasks.echo, array) for array in arrays]
    dirty = keeper.submit(mess)
    large += [keeper.submit(tasks.echo, array) for array in arrays]
    futures += [keeper.submit(tasks.square, number) for number in range(100)]
    assert [future.result(PATIENCE) for future in futures] == [number**2 for number in range(100)] * 2
    assert dirty.result(PATIENCE) is None
    for future, array in zip(large, arrays * 2, strict=True):
        assert (future.result(PATIENCE) == array).all()


def test_large_arguments_that_are_fed_ahead_survive_a_task_that_closes_all_descriptors(keeper: Keeper) -> None:
    arrays = [np.full(20_000, number) for number in range(40)]
    for _ in range(50):
        keeper.submit(messes.echo_or_close, arrays[0]).result(PATIENCE)  # so short that they are fed ahead
    futures = []
    for number, array in enumerate(arrays):
        futures.append(keeper.submit(messes.echo_or_close, array))
        if number % 10 == 5:
            futures.append(keeper.submit(messes.echo_or_close, None))
    results = [future.result(PATIENCE) for future in futures]
    kept = [result for result in results if result is not None]
    assert len(kept) == 40
    assert all((result == array).all() for result, array in zip(kept, arrays, strict=True))


def test_a_worker_never_writes_into_files_that_a_task_has_opened_in_the_place_of_its_own(
    keeper: Keeper, tmp_path: Path
) -> None:
    for number in range(4):
        large = keeper.submit(tasks.filled, 200_000, number).result(PATIENCE)
        assert (large == number).all()
        del large
    keeper.submit(messes.close_all_and_open, tmp_path).result(PATIENCE)
    for number in range(4):
        large = keeper.submit(tasks.filled, 200_000, number).result(PATIENCE)
        assert (large == number).all()
        del large
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {0}


def test_a_keeper_never_takes_a_file_for_a_page_that_a_task_has_opened_in_its_place(tmp_path: Path) -> None:
    """Whoever takes over is sent the worker's page, and writes into it."""
    (tmp_path / "files").mkdir()
    content = bytes(1 << 16)
    with Keeper(1, name="messy", home=tmp_path / "home", preload=["tests.tasks", "tests.messes"]) as keeper:
        keeper.submit(messes.close_all_and_open, tmp_path / "files", content).result(PATIENCE)
        keeper.detach()
    with Keeper(1, name="messy", home=tmp_path / "home", preload=["tests.tasks", "tests.messes"]) as keeper:
        assert keeper.recovered is not None
        results = [keeper.submit(tasks.square, number).result(PATIENCE) for number in range(20)]
        assert results == [number * number for number in range(20)]
    files = list((tmp_path / "files").iterdir())
    assert len(files) == 64
    assert {path.read_bytes() for path in files} == {content}


def test_children_that_tasks_leave_behind_end_with_the_worker_and_daemons_hold_nobody_up(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks", "tests.messes"]) as keeper:
        keeper.submit(messes.leave_children, tmp_path).result(PATIENCE)
        assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4
        assert all(is_running(pid) for kind in ("child", "grandchild") for pid in tasks.notes(tmp_path, kind))
    for kind in ("child", "grandchild"):
        (pid,) = tasks.notes(tmp_path, kind)
        wait_until(lambda pid=pid: not is_running(pid), f"the {kind} to end")  # type: ignore[misc]
    (daemon,) = tasks.notes(tmp_path, "daemon")  # it has made a session of its own, and may live on
    with suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGKILL)


def test_a_fork_that_returns_into_the_worker_ends_there(keeper: Keeper, tmp_path: Path) -> None:
    """A task that forks and forgets to exit in the child: one result, and no second worker on the same link."""
    parent = keeper.submit(messes.fork_and_return, tmp_path).result(PATIENCE)
    assert parent == keeper.submit(tasks.pid).result(PATIENCE)
    assert [keeper.submit(tasks.square, n).result(PATIENCE) for n in range(100)] == [n * n for n in range(100)]
    wait_until(lambda: len(tasks.notes(tmp_path, "forked")) == 2, "both have come to it")
    (child,) = set(tasks.notes(tmp_path, "forked")) - {parent}
    wait_until(lambda: not is_running(child), "the forked child to end")


def test_a_thread_that_goes_on_after_its_task_disturbs_nobody(keeper: Keeper, tmp_path: Path) -> None:
    keeper.submit(messes.leave_busy_thread, tmp_path).result(PATIENCE)
    assert [keeper.submit(tasks.square, n).result(PATIENCE) for n in range(200)] == [n * n for n in range(200)]
    wait_until(lambda: len(tasks.notes(tmp_path, "beats")) > 3)


def test_a_thread_in_a_worker_may_use_its_context(keeper: Keeper) -> None:
    assert keeper.submit(messes.progress_from_threads).result(PATIENCE) == 4


def test_output_by_the_megabyte_blocks_nobody(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        from poolkeeper import Keeper
        from tests import messes

        with Keeper(2, name="loud", home="homes") as keeper:
            assert list(keeper.map(messes.shout, [200_000] * 20)) == [200_000] * 20
        # all that workers have said is on disk when their keeper has ended
        print(sum(path.read_text().count("x") for path in (keeper.home / "logs").glob("*.log")))
        """,
    )
    assert int(output) == 20 * 200_000


def test_the_callers_process_is_not_touched(keeper: Keeper) -> None:
    before = (os.getcwd(), sys.stdout, sys.stderr, threading.active_count(), dict(os.environ))
    for mess in messes.ALL:
        keeper.submit(mess).result(PATIENCE)
    assert (os.getcwd(), sys.stdout, sys.stderr, threading.active_count(), dict(os.environ)) == before
