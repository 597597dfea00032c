"""No descriptors, no disk, no processes: an error that says so, or a delay; never a hang, a leak or a broken keeper."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from poolkeeper import Keeper, TaskQuarantined
from tests import tasks
from tests.disks import small_disk
from tests.helpers import PATIENCE, children, remove_in_use, wait_until
from tests.scripts import run_script


def test_no_descriptor_left_in_the_application(tmp_path: Path) -> None:
    """Everything that was submitted meanwhile arrives in the end, or says why not."""
    run_script(
        tmp_path,
        """
        import os, resource
        import numpy as np
        from poolkeeper import Keeper
        from tests import tasks

        with Keeper(2, preload=["tests.tasks"]) as keeper:
            assert keeper.submit(tasks.square, 2).result(20) == 4
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            taken = []
            while True:
                try:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
                except OSError:
                    break
            small = [keeper.submit(tasks.square, n) for n in range(500)]
            assert [future.result(20) for future in small] == [n * n for n in range(500)]
            arguments = [keeper.submit(tasks.total, np.ones(50_000)) for n in range(10)]
            results = [keeper.submit(tasks.filled, 100_000, n) for n in range(10)]
            victims = [keeper.submit(tasks.die) for n in range(2)]  # workers must be replaced
            after = [keeper.submit(tasks.square, n) for n in range(50)]
            refused = sum(isinstance(future.exception(0), OSError) for future in arguments if future.done())
            for fd in taken:
                os.close(fd)
            for future in arguments:
                error = future.exception(20)
                assert error is None or "open files" in str(error), error
            assert [future.result(20).sum() for future in results] == [100_000 * n for n in range(10)]
            assert [future.result(20) for future in after] == [n * n for n in range(50)]
            assert all(victim.exception(20) is not None for victim in victims)
            assert keeper.submit(tasks.total, np.ones(50_000)).result(20) == 50_000
        """,
        timeout=50,
    )


def test_no_descriptor_left_for_a_new_keeper(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import os, resource
        from poolkeeper import Keeper

        def used():
            count = 0
            for fd in range(128):
                try:
                    os.fstat(fd)
                    count += 1
                except OSError:
                    pass
            return count

        Keeper(1).shutdown()  # everything is imported
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        for spare in range(0, 30):
            taken = []
            while True:
                try:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
                except OSError:
                    break
            for fd in taken[:spare]:
                os.close(fd)
            before = used()
            try:
                with Keeper(1) as keeper:
                    future = keeper.submit(pow, 2, 2)
                    error = future.exception(20)
                    assert error is not None or future.result() == 4
            except OSError:
                pass
            except ValueError as error:
                assert "open files" in str(error)
            assert used() == before, f"{used() - before} descriptors leak when {spare} are free"
            for fd in taken[spare:]:
                os.close(fd)
        with Keeper(1) as keeper:
            assert keeper.submit(pow, 2, 3).result(20) == 8
        """,
        timeout=50,
    )


def test_a_full_disk_under_the_home_fails_what_must_be_spilled_and_nothing_else(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path) as disk,
        Keeper(1, home=disk, queue_memory=1, preload=["tests.tasks"]) as keeper,
    ):
        blocker = keeper.submit(tasks.hold, tmp_path)
        wait_until(blocker.running)
        futures = [keeper.submit(tasks.total, np.ones(50_000)) for _ in range(20)]  # of 400 kB each
        full = [future for future in futures if future.done()]
        assert full
        for future in full:
            error = future.exception()
            assert isinstance(error, OSError)
            assert "No space left" in str(error)
        (tmp_path / "go").touch()
        good = [future for future in futures if future not in full]
        assert good
        assert [future.result(PATIENCE) for future in good] == [50_000.0] * len(good)
        wait_until(lambda: keeper.status().queued == 0)
        # There is room again.
        blocker = keeper.submit(tasks.nap, 0.1)
        assert keeper.submit(tasks.total, np.ones(50_000)).result(PATIENCE) == 50_000.0


def test_a_full_disk_from_the_start_hinders_only_what_needs_it(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk, Keeper(2, home=disk, name="full", preload=["tests.tasks"]) as keeper:
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                pass
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        error = keeper.submit(print, "a line that finds no room").exception(PATIENCE)
        assert error is None or "No space left" in str(error)
        assert keeper.submit(tasks.filled, 300_000, 1).result(PATIENCE).sum() == 300_000
        assert keeper.submit(tasks.exit_hard, 1).exception(PATIENCE) is not None
        assert keeper.submit(tasks.square, 4).result(PATIENCE) == 16
        (disk / "filler").unlink()


def test_a_home_that_is_removed_under_a_running_keeper(tmp_path: Path) -> None:
    with Keeper(2, home=tmp_path, name="gone", preload=["tests.tasks"]) as keeper:
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        remove_in_use(keeper.home)
        assert keeper.submit(tasks.square, 4).result(PATIENCE) == 16
        with pytest.raises(TaskQuarantined):
            keeper.submit(tasks.die).result(PATIENCE)
        assert keeper.submit(tasks.square, 5).result(PATIENCE) == 25
        service = keeper.service(tasks.square, [6], name="square", restart="never")
        assert service.wait("completed", timeout=PATIENCE)


def test_no_process_left(tmp_path: Path) -> None:
    """RLIMIT_NPROC reached: what is queued fails with the reason, and the keeper recovers."""
    if os.geteuid() == 0:
        pytest.skip("the superuser has no such limit")
    run_script(
        tmp_path,
        """
        import resource
        from poolkeeper import Keeper, WorkerStartFailed

        with Keeper(1) as keeper:
            assert keeper.submit(pow, 2, 2).result(20) == 4
            server = keeper.submit(__import__("os").getppid).result(20)
            soft, hard = resource.prlimit(server, resource.RLIMIT_NPROC)
            resource.prlimit(server, resource.RLIMIT_NPROC, (1, hard))
            keeper.submit(__import__("os")._exit, 1).exception(20)
            assert isinstance(keeper.submit(pow, 2, 2).exception(20), WorkerStartFailed)
            resource.prlimit(server, resource.RLIMIT_NPROC, (soft, hard))
            assert keeper.submit(pow, 2, 2).result(20) == 4
        """,
    )


# -- leaks ------------------------------------------------------------------------------------------------------------


def test_many_keepers_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Keeper(1) as warm:
        warm.submit(tasks.square, 1).result()
    gc.collect()
    process = psutil.Process()
    before = (process.num_fds(), threading.active_count(), children())
    for number in range(15):
        with Keeper(1 + number % 3) as keeper:
            futures = [keeper.submit(tasks.square, n) for n in range(number * 10)]
            if number % 5 == 0:
                keeper.submit(tasks.echo, np.ones(20_000)).result()
            if number % 5 == 1:
                keeper.submit(tasks.exit_hard, 1).exception(PATIENCE)
            if number % 5 == 2:
                futures[-1].cancel()
            if number % 5 == 3:
                keeper.shutdown(wait=False, cancel_futures=True)
        del futures, keeper
    gc.collect()
    wait_until(lambda: threading.active_count() <= before[1], "threads to end")
    assert process.num_fds() == before[0]
    assert list(tmp_path.iterdir()) == []
    assert children() <= before[2]


def test_many_keepers_at_once() -> None:
    keepers = [Keeper(1) for _ in range(8)]
    try:
        futures = [keeper.submit(tasks.add, number, n) for n in range(30) for number, keeper in enumerate(keepers)]
        assert [future.result(PATIENCE) for future in futures] == [number + n for n in range(30) for number in range(8)]
    finally:
        for keeper in keepers:
            keeper.shutdown()


def test_nested_keepers_that_are_left_open_leave_nothing_behind(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        from poolkeeper import Keeper
        from tests import tasks

        with Keeper(2, preload=["tests.tasks"]) as keeper:
            assert list(keeper.map(tasks.nested_left_open, range(3))) == [0, 1, 4]
        """,
        leaves=True,
    )
    wait_until(lambda: not os.listdir(tmp_path / "tmp"), "the homes of the inner keepers to be removed")


def test_a_nested_keeper_ends_when_its_worker_is_killed(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        from poolkeeper import Keeper
        from tests import tasks

        with Keeper(1, preload=["tests.tasks"]) as keeper:
            pid = keeper.submit(tasks.pid).result()
            assert keeper.submit(tasks.nested_left_open, 3).result() == 9
            keeper.submit(tasks.die).exception(20)
            assert keeper.submit(tasks.square, 3).result(20) == 9
        """,
        leaves=True,
    )
    wait_until(lambda: not os.listdir(tmp_path / "tmp"), "the home of the inner keeper to be removed")


def test_memory_of_the_caller_does_not_grow_with_the_number_of_tasks() -> None:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        process = psutil.Process()

        def work() -> None:
            for number in keeper.map(tasks.square, range(30_000), buffersize=500):
                assert number >= 0
            futures = [keeper.submit(tasks.square, number) for number in range(5000)]
            assert sum(future.result() for future in futures) > 0
            for _ in range(30):
                keeper.submit(tasks.echo, np.ones(200_000)).result()

        for _ in range(2):
            work()
        gc.collect()
        before = process.memory_info().rss
        for _ in range(3):
            work()
        gc.collect()
        assert process.memory_info().rss - before < 20 * 2**20
