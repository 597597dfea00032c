"""Workers are killed, stopped and crashed at every moment: nothing is lost, nobody else is blamed."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from poolkeeper import Keeper, RetryPolicy, TaskQuarantined, TaskTimeout
from tests import tasks
from tests.helpers import PATIENCE, wait_until

ENDURING = RetryPolicy(deaths=1000)
"""For tasks that are killed from outside, again and again, through no fault of their own."""


@contextmanager
def killer(keeper: Keeper, pause: tuple[float, float]) -> Iterator[list[int]]:
    """Kill a random worker again and again, ``pause`` seconds apart; gives the pids of those killed.

    None that is still starting: where new workers die before their first task, three times in a row, what is queued
    fails, and a busy machine is slow to start them.
    """
    killed: list[int] = []
    stop = threading.Event()
    randomness = random.Random(1)

    def kill() -> None:
        while not stop.wait(randomness.uniform(*pause)):
            workers = keeper.status().workers
            pids = [worker.pid for worker in workers if worker.pid is not None and worker.state != "starting"]
            if pids:
                pid = randomness.choice(pids)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_thousands_of_tasks_while_a_worker_is_killed_every_30_ms() -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        enduring = keeper.options(retry=ENDURING)
        with killer(keeper, (0.02, 0.05)) as killed:
            futures = [enduring.submit(tasks.nap, 0.001, number) for number in range(1500)]
            assert [future.result(PATIENCE) for future in futures] == list(range(1500))
        assert len(killed) >= 5


def test_short_tasks_by_the_thousand_while_workers_are_killed() -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper, killer(keeper, (0.02, 0.05)) as killed:
        for _ in itertools.count():
            futures = [keeper.submit(tasks.square, number) for number in range(4000)]
            assert [future.result(PATIENCE) for future in futures] == [number**2 for number in range(4000)]
            if len(killed) >= 15:
                break


def test_maps_while_workers_are_killed() -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        enduring = keeper.options(retry=ENDURING)
        with killer(keeper, (0.02, 0.05)) as killed:
            for chunksize in itertools.cycle((None, 1, 50, 1000)):
                results = enduring.map(tasks.square, range(20_000), chunksize=chunksize)
                assert list(results) == [number**2 for number in range(20_000)]
                lazily = enduring.map(tasks.square, range(2000), buffersize=100, ordered=False)
                assert sorted(lazily) == [number**2 for number in range(2000)]
                if len(killed) >= 20:
                    break


def test_large_arrays_while_workers_are_killed() -> None:
    process = psutil.Process()
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        enduring = keeper.options(retry=ENDURING)
        before = process.num_fds()
        # On a busy machine a worker takes a tenth of a second to start; killed sooner, none would ever begin.
        with killer(keeper, (0.1, 0.2)) as killed:
            while len(killed) < 15:
                futures = [enduring.submit(tasks.echo, np.full(30_000, number)) for number in range(60)]
                for number, future in enumerate(futures):
                    assert (future.result(PATIENCE) == number).all()
                del futures, future
        assert process.num_fds() <= before + 60


def test_tasks_that_run_are_never_run_twice_at_the_same_time(tmp_path: Path) -> None:
    """With deaths=0 a task starts at most once, whatever is killed."""
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        once = keeper.options(retry=RetryPolicy(deaths=0))
        with killer(keeper, (0.02, 0.04)):
            futures = [once.submit(tasks.note_number, tmp_path, number) for number in range(800)]
            lost = [number for number, future in enumerate(futures) if future.exception(PATIENCE) is not None]
    runs = {number: len(tasks.notes(tmp_path, str(number))) for number in range(800)}
    assert set(runs.values()) <= {0, 1}
    assert all(runs[number] == 1 for number in range(800) if number not in lost)


def test_retries_timeouts_and_kills_together() -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        view = keeper.options(timeout=0.03, retry=RetryPolicy(attempts=2, deaths=1000))
        with killer(keeper, (0.03, 0.1)):
            futures = [view.submit(tasks.hang_if, number, number % 50 == 7) for number in range(200)]
            for number, future in enumerate(futures):
                error = future.exception(PATIENCE)
                assert isinstance(error, TaskTimeout) if number % 50 == 7 else error is None


def test_cancelling_while_workers_are_killed() -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        view = keeper.options(cancel="kill", retry=ENDURING)
        with killer(keeper, (0.02, 0.04)):
            futures = [view.submit(tasks.nap, 0.001, number) for number in range(400)]
            withdrawn = {number for number in range(0, 400, 7) if futures[number].cancel()}
            for number, future in enumerate(futures):
                if number in withdrawn:
                    assert future.cancelled()
                else:
                    assert future.result(PATIENCE) == number


def test_several_keepers_are_killed_at_the_same_time() -> None:
    keepers = [Keeper(1, preload=["tests.tasks"]) for _ in range(3)]
    try:
        with killer(keepers[0], (0.02, 0.04)), killer(keepers[1], (0.02, 0.04)):
            futures = [
                keeper.options(retry=ENDURING).submit(tasks.nap, 0.001, number)
                for number in range(200)
                for keeper in keepers
            ]
            assert [future.result(PATIENCE) for future in futures] == [n for n in range(200) for _ in keepers]
        assert all(future.deaths == 0 for future in futures[2::3])
    finally:
        for keeper in keepers:
            keeper.shutdown()


# -- stopped ----------------------------------------------------------------------------------------------------------


def test_a_stopped_worker_keeps_its_task_and_goes_on_later(tmp_path: Path) -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        future = keeper.submit(tasks.hold, tmp_path, "done")
        wait_until(lambda: tasks.notes(tmp_path, "started"))
        (pid,) = tasks.notes(tmp_path, "started")
        os.kill(pid, signal.SIGSTOP)
        try:
            (tmp_path / "go").touch()
            # The other worker goes on, and takes over what was fed ahead.
            assert [keeper.submit(tasks.square, n).result(PATIENCE) for n in range(200)] == [n * n for n in range(200)]
            assert not future.done()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert future.result(PATIENCE) == "done"
        assert tasks.notes(tmp_path, "started") == [pid]


def test_tasks_fed_ahead_to_a_worker_that_stops_go_elsewhere() -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        list(keeper.map(tasks.square, range(2000)))
        for _ in range(3):
            futures = [keeper.submit(tasks.nap, 0.0005, number) for number in range(400)]
            pid = next(worker.pid for worker in keeper.status().workers if worker.pid)
            os.kill(pid, signal.SIGSTOP)
            try:
                wait_until(lambda futures=futures: sum(not future.done() for future in futures) <= 1)  # type: ignore[misc]
            finally:
                os.kill(pid, signal.SIGCONT)
            assert [future.result(PATIENCE) for future in futures] == list(range(400))


def test_a_stopped_worker_is_killed_by_its_timeout() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        future = keeper.options(timeout=0.2).submit(tasks.stop_myself)
        assert isinstance(future.exception(PATIENCE), TaskTimeout)
        assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_running_out_of_address_space_is_an_exception_or_a_death_but_no_hang() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        error = keeper.submit(tasks.exhaust_memory, 64 * 2**20).exception(PATIENCE)
        assert isinstance(error, MemoryError | TaskQuarantined)
        error = keeper.submit(tasks.return_more_than_fits, 64 * 2**20).exception(PATIENCE)
        assert error is None or isinstance(error, Exception)
        assert keeper.options(retry=RetryPolicy(deaths=1)).submit(tasks.exit_hard, 1).exception(PATIENCE) is not None
        assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A memory control group of 100 MB (version 1 or 2), where this process may make one."""
    made = filter(None, map(_make_group, (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))))
    group = next(made, None)
    if group is None:
        pytest.skip("no memory control group can be made here")
    yield group
    wait_until(lambda: _is_removed(group), "the control group to be empty and removed")


def _make_group(root: Path) -> Path | None:
    group = root / f"poolkeeper-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    limits = {
        "memory.limit_in_bytes": 100 * 2**20,
        "memory.memsw.limit_in_bytes": 100 * 2**20,
        "memory.max": 100 * 2**20,
        "memory.swap.max": 0,
    }
    written = 0
    for name, limit in limits.items():
        with suppress(OSError):
            if (group / name).exists():
                (group / name).write_text(str(limit))
                written += 1
    if written:
        return group
    group.rmdir()
    return None


def _is_removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def test_an_out_of_memory_kill_is_told_from_other_kills(memory_cgroup: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        future = keeper.options(retry=RetryPolicy(deaths=1)).submit(tasks.fill_memory_in, memory_cgroup, 400 * 2**20)
        error = future.exception(PATIENCE)
        assert isinstance(error, TaskQuarantined)
        assert error.report is not None
        assert error.report.exitcode == -signal.SIGKILL
        assert error.report.out_of_memory in ("yes", "likely")
        assert error.report.peak_memory > 50 * 2**20
        assert "out of memory" in str(error)
        other = keeper.options(retry=RetryPolicy(deaths=1)).submit(tasks.die).exception(PATIENCE)
        assert isinstance(other, TaskQuarantined)
        assert other.report is not None
        assert other.report.out_of_memory == "no"
        assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4


@pytest.mark.parametrize("crash", [tasks.die, tasks.segfault, tasks.abort])
def test_a_crash_among_thousands_costs_one_task(crash: Callable[[], None]) -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        futures = [keeper.submit(tasks.square, number) for number in range(1000)]
        bad = keeper.submit(crash)
        futures += [keeper.submit(tasks.square, number) for number in range(1000)]
        assert [future.result(PATIENCE) for future in futures] == [number**2 for number in range(1000)] * 2
        assert isinstance(bad.exception(PATIENCE), TaskQuarantined)
        assert {future.deaths for future in futures} == {0}


def test_a_stack_overflow_in_c_is_a_death() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        error = keeper.options(retry=RetryPolicy(deaths=1)).submit(tasks.overflow_stack).exception(PATIENCE)
        assert error is None or isinstance(error, TaskQuarantined | RecursionError)  # 3.13 has stack enough for it
        assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4
