"""``command`` in the workers of a real keeper."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import psutil
import pytest

from poolkeeper import CommandFailed, Keeper, TaskTimeout, command
from tests import tasks
from tests.helpers import PATIENCE, is_running, wait_until

NOTE = "echo $$ > started.new; mv started.new started; "
"""Says which process it is, whole at once."""


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(2) as shared:
        yield shared


def pid_in(path: Path) -> int:
    wait_until(path.exists, f"{path.name} to be there")
    return int(path.read_text())


def test_a_command_is_a_task_like_any_other(keeper: Keeper, tmp_path: Path) -> None:
    assert keeper.submit(command("touch", tmp_path / "here")).result(PATIENCE) is None
    assert (tmp_path / "here").exists()


def test_its_failure_names_program_and_exit_code(keeper: Keeper) -> None:
    with pytest.raises(CommandFailed, match="sh -c 'exit 3' ended with exit code 3") as caught:
        keeper.submit(command("sh", "-c", "exit 3")).result(PATIENCE)
    assert (caught.value.argv, caught.value.exit_code) == (("sh", "-c", "exit 3"), 3)
    with pytest.raises(CommandFailed, match="SIGKILL") as killed:
        keeper.submit(command("sh", "-c", "kill -KILL $$")).result(PATIENCE)
    assert killed.value.exit_code == -signal.SIGKILL
    with pytest.raises(CommandFailed, match="not in any directory of PATH"):
        keeper.submit(command("no-such-program-here")).result(PATIENCE)


def test_it_is_retried_as_its_policy_says(keeper: Keeper, tmp_path: Path) -> None:
    script = "echo >> tries; test $(wc -l < tries) -ge 3"
    keeper.options(retry=3).submit(command("sh", "-c", script, cwd=tmp_path)).result(PATIENCE)
    assert len((tmp_path / "tries").read_text()) == 3


def test_map_and_batch_run_it_for_each_item(keeper: Keeper, tmp_path: Path) -> None:
    items = [tmp_path / f"{number} of them" for number in range(20)]
    assert list(keeper.map(command("touch", "{}"), items)) == [None] * 20
    assert all(item.exists() for item in items)
    batch = keeper.batch(command("rm", "--", "{}"), [*items, tmp_path / "missing"])
    assert batch.name == "rm"
    results = list(batch)
    assert len(results) == 21
    (failed,) = [result for result in results if result.error is not None]
    assert isinstance(failed.error, CommandFailed)
    assert failed.error.argv[-1] == str(tmp_path / "missing")
    assert not any(item.exists() for item in items)


def test_a_killed_task_takes_its_program_along(keeper: Keeper, tmp_path: Path) -> None:
    script = "trap '' TERM; " + NOTE + "while :; do sleep 1000; done"
    future = keeper.options(cancel="kill").submit(command("sh", "-c", script, cwd=tmp_path))
    pid = pid_in(tmp_path / "started")
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(PATIENCE)
    wait_until(lambda: not is_running(pid), "the program to end")


def test_a_timeout_takes_the_program_along(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.options(timeout=0.5).submit(command("sh", "-c", NOTE + "exec sleep 1000", cwd=tmp_path))
    with pytest.raises(TaskTimeout):
        future.result(PATIENCE)
    if (tmp_path / "started").exists():
        pid = pid_in(tmp_path / "started")
        wait_until(lambda: not is_running(pid), "the program to end")


def test_a_task_that_is_asked_to_stop_ends_its_program_and_what_that_has_started(
    keeper: Keeper, tmp_path: Path
) -> None:
    script = "sleep 1000 & echo $! > child; " + NOTE + "wait"
    future = keeper.submit(command("sh", "-c", script, cwd=tmp_path))
    pid = pid_in(tmp_path / "started")
    child = pid_in(tmp_path / "child")
    assert not future.cancel()  # it runs; it is asked to stop
    with pytest.raises(CommandFailed, match="its task was cancelled; it was killed by signal 15 .SIGTERM.") as caught:
        future.result(PATIENCE)
    assert caught.value.exit_code == -signal.SIGTERM
    assert not is_running(pid)
    wait_until(lambda: not psutil.pid_exists(child), "what the program has started to end and be reaped")


def test_a_program_that_stops_cleanly_when_asked_has_not_done_its_work(keeper: Keeper, tmp_path: Path) -> None:
    script = "trap 'touch cleaned; exit 0' TERM; " + NOTE + "while :; do sleep 1000 & wait; done"
    future = keeper.submit(command("sh", "-c", script, cwd=tmp_path))
    pid_in(tmp_path / "started")
    future.cancel()
    with pytest.raises(CommandFailed, match="cancelled; it ended with exit code 0"):
        future.result(PATIENCE)
    assert (tmp_path / "cleaned").exists()


def stubborn(folder: Path) -> None:
    from poolkeeper import program

    program.TERM_SECONDS = 0.2
    program.LOOK_SECONDS = 1000.0  # in a worker a cancellation wakes; nothing looks for one again and again
    command("sh", "-c", "trap '' TERM; " + NOTE + "while :; do sleep 1000; done", cwd=folder)()


def test_a_program_that_does_not_want_to_end_is_killed(tmp_path: Path) -> None:
    with Keeper(1) as keeper:
        future = keeper.submit(stubborn, tmp_path)
        pid = pid_in(tmp_path / "started")
        future.cancel()
        with pytest.raises(CommandFailed, match="SIGKILL"):
            future.result(PATIENCE)
        assert not is_running(pid)
        assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4  # the worker goes on


def test_inline_it_runs_too(tmp_path: Path) -> None:
    with Keeper(start_method="inline") as keeper:
        keeper.submit(command("touch", tmp_path / "here")).result()
        with pytest.raises(CommandFailed, match="exit code 1"):
            keeper.submit(command("false")).result()
    assert (tmp_path / "here").exists()
