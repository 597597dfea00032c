"""A keeper that is detached leaves everything running, and the next one of its name takes it over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkeeper import InstanceLock, Keeper, PoolkeeperError
from poolkeeper.futures import TaskFuture
from poolkeeper.journal_file import open_for_reading
from poolkeeper.pidfile import read_pidfile
from tests import services, tasks
from tests.helpers import PATIENCE, is_running, wait_until
from tests.survivors import end_survivors, survivors_in


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The directory of homes; what a test leaves running is ended."""
    yield tmp_path / "home"
    end_survivors(tmp_path / "home" / "etl" / "default")


def begin(keeper: Keeper, folder: Path, *items: int) -> list[TaskFuture]:
    """Submit tasks that stand before closed gates; wait until they run."""
    view = keeper.options(key=lambda folder, item: str(item))
    return [view.submit(tasks.note_and_pass_gate, str(folder), item) for item in items]


def ran(folder: Path) -> list[str]:
    """What has been executed, by every execution of it."""
    return sorted(word for path in folder.glob("ran-*") for word in path.read_text().split())


def test_what_runs_goes_on_and_the_next_keeper_has_it(home: Path, tmp_path: Path) -> None:
    with Keeper(2, name="etl", home=home) as keeper:
        futures = begin(keeper, tmp_path, 1, 2, 3)
        web = keeper.service(services.serve, (tmp_path,), name="web")
        assert web.wait("running", PATIENCE)
        pid = web.pid
        wait_until(lambda: len(ran(tmp_path)) == 2)
        wait_until(lambda: len([one for one in survivors_in(keeper.home) if one.role == "worker"]) == 2)
        keeper.detach()
        for future in futures:
            with pytest.raises(PoolkeeperError, match="keeper etl/default was detached: what runs goes on"):
                future.result(0)
        with pytest.raises(RuntimeError, match="was detached"):
            keeper.submit(pow, 2, 2)
        keeper.detach()
    assert not InstanceLock("etl", home=home).is_locked()
    left = read_pidfile(keeper.home / "keeper.pid")
    assert sorted(child.role for child in left.children) == ["forkserver", "service", "worker", "worker"]
    assert pid is not None
    assert is_running(pid)
    reading = open_for_reading(keeper.home / "journal.db")
    assert reading.execute("SELECT state, reason FROM runs").fetchall() == [("interrupted", "detached")]
    reading.close()
    with Keeper(2, name="etl", home=home) as keeper:
        again = begin(keeper, tmp_path, 1, 2, 3)
        web = keeper.service(services.serve, (tmp_path,), name="web")
        assert web.pid == pid
        for item in (1, 2, 3):
            (tmp_path / f"gate-{item}").touch()
        assert [future.result(PATIENCE) for future in again] == [1, 2, 3]
    assert ran(tmp_path) == ["1", "2", "3"]
    assert not is_running(pid)


def test_outcomes_wait_for_the_next_keeper(home: Path, tmp_path: Path) -> None:
    keeper = Keeper(2, name="etl", home=home)
    begin(keeper, tmp_path, 1)
    wait_until(lambda: ran(tmp_path))
    keeper.detach()
    (tmp_path / "gate-1").touch()
    with Keeper(2, name="etl", home=home) as keeper:
        (future,) = begin(keeper, tmp_path, 1)
        assert future.result(PATIENCE) == 1
    assert ran(tmp_path) == ["1"]


def test_a_callback_may_detach(home: Path) -> None:
    keeper = Keeper(1, name="etl", home=home)
    keeper.submit(pow, 2, 3).add_done_callback(lambda _: keeper.detach())
    assert wait_until(lambda: not InstanceLock("etl", home=home).is_locked())
    with pytest.raises(RuntimeError):
        keeper.submit(pow, 2, 3)
    keeper.shutdown()


def test_a_keeper_that_has_shut_down_has_nothing_to_leave(home: Path) -> None:
    with Keeper(1, name="etl", home=home) as keeper:
        keeper.submit(pow, 2, 3).result(PATIENCE)
    with pytest.raises(RuntimeError, match="after shutdown"):
        keeper.detach()


def test_only_who_has_a_name_can_be_found_again() -> None:
    with Keeper(1) as keeper, pytest.raises(PoolkeeperError, match="give it a name"):
        keeper.detach()
    with Keeper(start_method="inline") as keeper, pytest.raises(PoolkeeperError, match="inline"):
        keeper.detach()
