"""Checkpoints with real keepers: what is killed goes on where it was, shown by counting what it has done."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tenacity import wait_none

from poolkeeper import CheckpointUnreadable, Keeper, RetryPolicy, ServiceState, context
from tests import tasks
from tests.disks import small_disk
from tests.helpers import PATIENCE, wait_until
from tests.scripts import start_script
from tests.survivors import end_survivors, survivors_in


def times(folder: Path, what: str) -> int:
    return len(tasks.notes(folder, what))


def files(keeper_home: Path) -> list[str]:
    folder = keeper_home / "checkpoints"
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.mark.parametrize("key", [None, "mine"])
@pytest.mark.parametrize("name", [None, "named"])
def test_a_task_that_is_killed_goes_on_where_it_was(tmp_path: Path, name: str | None, key: str | None) -> None:
    with Keeper(2, name=name, home=tmp_path / "home") as keeper:
        future = keeper.options(key=key).submit(tasks.count_in_steps, tmp_path, 10, 6)
        assert future.result(PATIENCE) == 6
        assert future.deaths == 1
        assert [times(tmp_path, f"step {step}") for step in range(10)] == [1] * 6 + [2] + [1] * 3
        wait_until(lambda: not files(keeper.home))  # the result may be here before the worker has removed them


@pytest.mark.parametrize("iterator", [False, True])
def test_a_tracked_loop_skips_what_is_done(tmp_path: Path, iterator: bool) -> None:
    with Keeper(1) as keeper:
        future = keeper.submit(tasks.track_and_die, tmp_path, list(range(8)), 5, iterator)
        assert future.result(PATIENCE) == [5, 6, 7]
        assert [times(tmp_path, f"item {item}") for item in range(8)] == [1] * 5 + [2] + [1] * 2


def test_an_exception_costs_a_tracked_loop_nothing_that_is_done(tmp_path: Path) -> None:
    with Keeper(1) as keeper:
        view = keeper.options(retry=RetryPolicy(attempts=2, wait=wait_none()))
        assert view.submit(tasks.track_and_fail, tmp_path, list(range(6)), 4).result(PATIENCE) == [4, 5]


def test_items_of_a_map_find_what_they_have_saved_themselves(tmp_path: Path) -> None:
    with Keeper(1) as keeper:
        found = dict(keeper.map(tasks.track_item_and_die, [str(tmp_path)] * 8, range(8), chunksize=4))
        assert found[3] == 3
        assert found[7] == -1
        wait_until(lambda: not files(keeper.home))


def test_tasks_of_one_worker_do_not_see_each_other(tmp_path: Path) -> None:
    with Keeper(1) as keeper:
        futures = [keeper.submit(tasks.checkpoint_and_return, number) for number in range(50)]
        assert [future.result(PATIENCE) for future in futures] == list(range(50))
        assert keeper.submit(tasks.checkpoint_and_hold, tmp_path / "x", 1).exception(PATIENCE) is not None  # no folder
        assert keeper.options(key="other").submit(tasks.checkpoint_and_return, 1).result(PATIENCE) == 1


RUN = """
    import os, sys
    from pathlib import Path
    from poolkeeper import Keeper
    from tests import tasks

    if __name__ == "__main__":
        folder = Path(sys.argv[1])
        with Keeper(1, name="again", home=folder / "home", preload=["tests.tasks"]) as keeper:
            print(keeper.options(key="one").submit(tasks.checkpoint_and_hold, folder, {"saved": 1}).result())
"""


def test_a_task_with_a_key_goes_on_under_the_next_keeper_of_the_name(tmp_path: Path) -> None:
    home = tmp_path / "home" / "again" / "default"
    with start_script(tmp_path, RUN, tmp_path) as process:
        wait_until(lambda: times(tmp_path, "started"))
        wait_until(lambda: any(child.role == "worker" for child in survivors_in(home)))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    end_survivors(home)
    with start_script(tmp_path, RUN, tmp_path) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert output == "{'saved': 1}\n", errors
    assert times(tmp_path, "started") == 1


ALONE = """
    import sys
    from pathlib import Path
    from poolkeeper import Keeper
    from tests import tasks

    if __name__ == "__main__":
        with Keeper(1, home=sys.argv[1]) as keeper:
            print(keeper.submit(tasks.checkpoint_in_steps, Path(sys.argv[1])).result())
"""


def test_a_worker_writes_while_its_keeper_stands_still(tmp_path: Path) -> None:
    with start_script(tmp_path, ALONE, tmp_path) as process:
        wait_until(lambda: times(tmp_path, "steps"))
        process.send_signal(signal.SIGSTOP)
        try:
            seen = times(tmp_path, "steps")
            wait_until(lambda: times(tmp_path, "steps") > seen + 20)
        finally:
            process.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()
        assert process.communicate(timeout=PATIENCE) == ("None\n", "")


def test_a_service_keeps_its_state_across_restarts_and_keepers(tmp_path: Path) -> None:
    for first in (1, 4):
        with Keeper(1, name="services", home=tmp_path / "home") as keeper:
            service = keeper.service(tasks.counting_service, (tmp_path,), name="counting", ready="notify")
            for count in range(first, first + 2):
                wait_until(lambda count=count: times(tmp_path, f"process {count}"))  # type: ignore[misc]
                service.wait(ServiceState.RUNNING, PATIENCE)
                assert service.pid is not None
                os.kill(service.pid, signal.SIGKILL)
            wait_until(lambda first=first: times(tmp_path, f"process {first + 2}"))  # type: ignore[misc]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    with Keeper(1, name="damaged", home=tmp_path / "home") as keeper:
        view = keeper.options(key="one")
        checkpoints = keeper.home / "checkpoints"

        def spoil(name: str) -> None:
            content = bytearray((checkpoints / name).read_bytes())
            content[-40] ^= 1
            (checkpoints / name).write_bytes(content)

        for generations, expected in ((1, 1), (2, None)):
            with pytest.raises(ConnectionError):
                view.submit(tasks.save_and_fail, [0, 1, 2]).result(PATIENCE)
            newest, previous = files(keeper.home)
            spoil(newest)
            if generations == 2:
                spoil(previous)
                with pytest.raises(CheckpointUnreadable, match=r"save_and_fail one.*damaged.*damaged.*starts afresh"):
                    view.submit(tasks.save_and_fail, []).result(PATIENCE)
            assert view.submit(tasks.save_and_fail, None).result(PATIENCE) == expected
            wait_until(lambda: not files(keeper.home))


def test_a_full_disk_costs_the_checkpoint_and_not_the_task(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk, Keeper(1, home=disk) as keeper:
        assert keeper.submit(tasks.fill_checkpoint, 4_000_000).result(PATIENCE) is False
        assert keeper.submit(tasks.fill_checkpoint, 1000).result(PATIENCE) is True


def test_a_home_that_is_gone_costs_the_checkpoint_and_not_the_task(tmp_path: Path) -> None:
    with Keeper(1, home=tmp_path) as keeper:
        assert keeper.submit(tasks.checkpoint_without_home, keeper.home).result(PATIENCE) is False
        assert keeper.submit(tasks.fill_checkpoint, 1).result(PATIENCE) is True


def test_an_end_in_order_leaves_nothing_of_tasks_without_a_key(tmp_path: Path) -> None:
    with Keeper(1, name="tidy", home=tmp_path) as keeper:
        home = keeper.home
        with pytest.raises(ConnectionError):
            keeper.submit(tasks.save_and_fail, [1]).result(PATIENCE)
        with pytest.raises(ConnectionError):
            keeper.options(key="kept").submit(tasks.save_and_fail, [1]).result(PATIENCE)
        assert len(files(home)) == 2
    assert [name.split("-")[0] for name in files(home)] == ["task"]


def test_inline_tasks_keep_their_state_between_attempts() -> None:
    with Keeper(1, start_method="inline") as keeper:
        view = keeper.options(retry=RetryPolicy(attempts=3, wait=wait_none()))
        assert view.submit(tasks.count_attempts_in_state).result() == 3
        assert view.submit(tasks.count_attempts_in_state).result() == 3


def test_outside_a_worker_nothing_is_kept() -> None:
    mine = context()
    assert mine.checkpoint(1) is False
    assert mine.restore("default") == "default"
    assert list(mine.track(range(3))) == [0, 1, 2]
    assert list(mine.track(iter("ab"), every=0, key="letters")) == ["a", "b"]
