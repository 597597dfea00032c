"""The fork server dies, is stopped, or imports what a forking process must not have."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loguru import logger

from poolkeeper import Keeper
from tests import services, tasks
from tests.helpers import PATIENCE, children, is_running, wait_until


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What poolkeeper says in the log."""
    heard: list[str] = []
    logger.enable("poolkeeper")
    number = logger.add(lambda message: heard.append(str(message)), level="DEBUG", format="{level} {message}")
    yield heard
    logger.remove(number)
    logger.disable("poolkeeper")


def fork_server(keeper: Keeper) -> psutil.Process:
    """The parent of a worker."""
    pid = keeper.submit(os.getppid).result(PATIENCE)
    return psutil.Process(pid)


def test_a_fork_server_that_is_killed_while_idle_is_replaced(messages: list[str]) -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        first = fork_server(keeper)
        first.kill()
        wait_until(lambda: not is_running(first.pid))
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None  # now a worker must be started
        assert keeper.submit(tasks.square, 4).result(PATIENCE) == 16
        assert fork_server(keeper).pid != first.pid
    assert any("the fork server has ended" in message for message in messages)


def test_a_fork_server_that_is_killed_again_and_again_fails_no_task(tmp_path: Path) -> None:
    (tmp_path / "waits_at_import.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with Keeper(1, preload=["waits_at_import"]) as keeper:
            future = keeper.submit(tasks.square, 3)
            nursery = keeper._runtime.incarnation.nursery  # type: ignore[union-attr]
            killed: set[int | None] = {None}
            for _ in range(6):
                wait_until(lambda: nursery.pid not in killed, "another fork server")
                pid = nursery.pid
                killed.add(pid)
                os.kill(pid or 0, signal.SIGKILL)
            assert not future.done()
            (tmp_path / "go").touch()
            assert future.result(PATIENCE) == 9


def test_a_fork_server_that_is_killed_while_workers_are_busy_costs_no_result(tmp_path: Path) -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        futures = [keeper.submit(tasks.hold, tmp_path, number) for number in range(6)]
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        pids = tasks.notes(tmp_path, "started")
        psutil.Process(pids[0]).parent().kill()  # type: ignore[union-attr]
        (tmp_path / "go").touch()
        assert [future.result(PATIENCE) for future in futures] == list(range(6))
        assert len(tasks.notes(tmp_path, "started")) == 6  # its workers have lived on, and nothing ran twice
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]


def test_a_fork_server_that_is_killed_while_it_starts_workers_is_replaced() -> None:
    before = children()
    for _ in range(4):
        with Keeper(4, preload=["tests.tasks"]) as keeper:
            (server,) = children() - before
            futures = [keeper.submit(tasks.spin, 0.001) for _ in range(40)]
            os.kill(server, signal.SIGKILL)
            assert all(future.result(PATIENCE) for future in futures)


def test_killing_fork_servers_again_and_again() -> None:
    with Keeper(2, preload=["tests.tasks"], max_tasks_per_child=5) as keeper:
        for _ in range(5):
            futures = [keeper.submit(tasks.square, number) for number in range(40)]
            fork_server(keeper).kill()
            assert [future.result(PATIENCE) for future in futures] == [number**2 for number in range(40)]


def test_workers_whose_fork_server_has_died_can_still_be_killed_and_mourned(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        server = fork_server(keeper)
        future = keeper.submit(tasks.die_once, tmp_path, "again")
        server.kill()
        assert future.result(PATIENCE) == "again"
        victim = keeper.options(timeout=0.3).submit(tasks.sleep_forever)
        assert isinstance(victim.exception(PATIENCE), TimeoutError)


def test_a_stopped_fork_server_delays_and_loses_nothing() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        server = fork_server(keeper)
        server.suspend()
        try:
            killer = keeper.submit(tasks.die)
            future = keeper.submit(tasks.square, 3)
            with pytest.raises(TimeoutError):
                killer.result(0.3)
        finally:
            server.resume()
        assert killer.exception(PATIENCE) is not None
        assert future.result(PATIENCE) == 9


def test_a_preload_that_leaves_threads_changes_to_fork_and_exec(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "leaves_threads.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with Keeper(1, preload=["leaves_threads"]) as keeper:
            assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
            assert keeper.submit(tasks.square, 4).result(PATIENCE) == 16
            assert keeper.submit(tasks.exit_hard, 2).exception(PATIENCE) is not None
    assert any("leaves_threads" in message and "threads running" in message for message in messages)


@pytest.mark.parametrize("content", ["raise ValueError('at import')", "import sys; sys.exit(3)", "1 +"])
def test_a_preload_that_fails_is_reported_and_workers_go_on(tmp_path: Path, messages: list[str], content: str) -> None:
    (tmp_path / "fails_at_import.py").write_text(content + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with Keeper(1, preload=["fails_at_import"]) as keeper:
            assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    assert any("preload of 'fails_at_import' failed" in message for message in messages)


def test_a_preload_that_kills_the_fork_server_fails_what_is_queued(tmp_path: Path) -> None:
    (tmp_path / "exits_at_import.py").write_text("import os; os._exit(7)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with Keeper(1, preload=["exits_at_import"]) as keeper:
            error = keeper.submit(tasks.square, 3).exception(PATIENCE)
    assert error is not None
    assert "the fork server has ended" in str(error)


def test_a_preload_may_print_and_read_standard_input(tmp_path: Path) -> None:
    (tmp_path / "greedy_at_import.py").write_text("import sys\nassert sys.stdin.read() == ''\nprint('imported')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with Keeper(1, preload=["greedy_at_import"]) as keeper:
            assert keeper.submit(tasks.is_loaded, "greedy_at_import").result(PATIENCE)


def test_what_a_dead_worker_leaves_behind_is_ended_and_reaped(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        server = fork_server(keeper)
        error = keeper.submit(tasks.orphan_then_die, tmp_path).exception(PATIENCE)
        assert error is not None
        assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4
        for pid in tasks.notes(tmp_path, "orphans"):
            wait_until(lambda pid=pid: not is_running(pid), "an orphan to end")  # type: ignore[misc]
        # Its workers run; what is among its children and does not is a zombie, or gone by now.
        wait_until(lambda: all(is_running(child.pid) for child in server.children()), "zombies to be reaped")


def test_a_process_inherits_nothing_of_those_before_it() -> None:
    with Keeper(1, preload=["tests.services"]) as keeper:
        handles = [keeper.service(services.serve, name=f"service-{number}") for number in range(5)]
        for handle in handles:
            assert handle.wait("running", PATIENCE)
        first, *_, last = (psutil.Process(handle.pid) for handle in handles)
        assert last.num_fds() == first.num_fds()


def _outlive_parent() -> bool:
    parent = multiprocessing.parent_process()
    assert parent is not None
    was_alive = parent.is_alive()
    os.kill(os.getppid(), signal.SIGKILL)
    parent.join(PATIENCE)
    return was_alive and not parent.is_alive()


def test_workers_see_the_end_of_their_parent(tmp_path: Path) -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        held = [keeper.submit(tasks.hold, tmp_path, number) for number in range(2)]
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        (tmp_path / "go").touch()
        assert [future.result(PATIENCE) for future in held] == [0, 1]
        assert keeper.submit(_outlive_parent).result(PATIENCE)


def spare_of(keeper: Keeper) -> psutil.Process:
    """The process that is forked ahead once another has died."""
    server = fork_server(keeper)

    def strangers() -> list[psutil.Process]:
        workers = {row.pid for row in keeper.status().workers}
        return [child for child in server.children() if child.pid not in workers]

    wait_until(lambda: len(strangers()) == 1, "the spare process")
    return strangers()[0]


def test_a_spare_process_takes_the_place_of_the_next_that_dies() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None
        spare = spare_of(keeper)
        os.kill(keeper.submit(tasks.pid).result(PATIENCE), signal.SIGKILL)
        wait_until(lambda: keeper.submit(tasks.pid).result(PATIENCE) == spare.pid, "the spare process to work")
        assert keeper.submit(lambda: multiprocessing.current_process().name).result(PATIENCE).startswith("worker-")
        assert keeper.submit(tasks.echo, bytes(2**20)).result(PATIENCE) == bytes(2**20)


def test_what_reads_functions_that_travel_by_value_is_loaded_once_for_all_workers() -> None:
    with Keeper(1) as keeper:
        pid = keeper.submit(lambda: os.getpid()).result(PATIENCE)  # noqa: PLW0108 - by value
        os.kill(pid, signal.SIGKILL)
        assert keeper.submit(eval, "'cloudpickle' in __import__('sys').modules").result(PATIENCE)


def test_a_spare_process_takes_any_role(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks", "tests.services"]) as keeper:
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None
        spare = spare_of(keeper)
        handle = keeper.service(services.serve, (tmp_path,), restart="never")
        assert handle.wait("running", PATIENCE), handle.exits
        assert handle.pid == spare.pid, "though it was forked before there were services"


def test_a_spare_process_that_is_killed_is_no_loss() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None
        spare = spare_of(keeper)
        spare.kill()
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9


def test_a_spare_process_ends_with_its_fork_server() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None
        spare = spare_of(keeper)
        fork_server(keeper).kill()
        wait_until(lambda: not is_running(spare.pid), "the end of the spare process")
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
