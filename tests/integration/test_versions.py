"""A keeper of another version comes: its predecessor's children end in good order, and nothing runs twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import is_running, wait_for_exit, wait_until
from tests.keeper_program import KeeperProgram, keepers
from tests.survivors import survivors_in
from tests.versions import copy_of_this_version, next_version, upgrade

Start = Callable[..., KeeperProgram]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with keepers(tmp_path / "home") as start:
        yield start


@pytest.fixture
def other(tmp_path: Path) -> Path:
    (tmp_path / "other").mkdir()
    return next_version(tmp_path / "other")


def submit(keeper: KeeperProgram, folder: Path, *items: int) -> None:
    """Submit tasks by their keys; each waits for its gate."""
    for item in items:
        view = f"keeper.options(key={str(item)!r})"
        keeper(f"futures.append({view}.submit(tasks.note_and_pass_gate, {str(folder)!r}, {item}))")


def ran(folder: Path) -> Counter[str]:
    """How often each task has been executed."""
    return Counter(word for path in folder.glob("ran-*") for word in path.read_text().split())


def pids(keeper: KeeperProgram, role: str) -> list[int]:
    """The pids of what the last keeper has left."""
    return [child.identity.pid for child in survivors_in(keeper.folder) if child.role == role]


def kill(keeper: KeeperProgram, workers: int) -> list[int]:
    """Kill a keeper when its pidfile tells of its workers; return their pids."""
    wait_until(lambda: len(pids(keeper, "worker")) == workers, "the pidfile says so")
    keeper.kill()
    return pids(keeper, "worker")


def await_drained(keeper: KeeperProgram, workers: list[int]) -> None:
    wait_until(lambda: sorted(keeper("keeper.recovered.drained")) == sorted(workers), "all are told to leave")


@pytest.mark.parametrize("newer", [True, False], ids=["upgrade", "downgrade"])
def test_what_runs_comes_to_its_end_once_and_the_rest_runs_elsewhere(
    start: Start, other: Path, tmp_path: Path, newer: bool
) -> None:
    first, second = ({}, {"version": other}) if newer else ({"version": other}, {})
    keeper = start(**first)
    submit(keeper, tmp_path, *range(6))
    wait_until(lambda: len(ran(tmp_path)) == 2, "two of them run")
    busy = set(ran(tmp_path))
    (server,) = pids(keeper, "forkserver")
    workers = kill(keeper, 2)

    keeper = start(**second)
    await_drained(keeper, workers)
    submit(keeper, tmp_path, *range(6))
    last = busy.pop()
    for item in {*map(str, range(6))} - {last}:
        (tmp_path / f"gate-{item}").touch()
    wait_until(
        lambda: keeper("sum(future.done() for future in futures)") == 5, "the rest runs in the place of the first"
    )
    assert any(map(is_running, workers))
    (tmp_path / f"gate-{last}").touch()
    assert keeper("[future.result(20) for future in futures]") == list(range(6))
    assert ran(tmp_path) == Counter(map(str, range(6)))
    for pid in (*workers, server):
        wait_for_exit(pid)
    wait_until(lambda: not list((keeper.folder / "spool").glob("left-*")), "nothing is left in the spool")
    keeper.end()
    assert not survivors_in(keeper.folder)


def test_one_that_has_ended_its_task_before_the_other_version_comes(start: Start, other: Path, tmp_path: Path) -> None:
    keeper = start()
    submit(keeper, tmp_path, 0, 1)
    wait_until(lambda: len(ran(tmp_path)) == 2, "they run")
    workers = kill(keeper, 2)
    for item in (0, 1):
        (tmp_path / f"gate-{item}").touch()
        wait_until((tmp_path / f"passed-{item}").exists, "it has ended")
    keeper = start(version=other)
    submit(keeper, tmp_path, 0, 1)
    assert keeper("[future.result(20) for future in futures]") == [0, 1]
    assert ran(tmp_path) == Counter({"0": 1, "1": 1})
    for pid in workers:
        wait_for_exit(pid)
    keeper.end()


@pytest.mark.soak
def test_a_keeper_that_is_killed_while_others_leave_and_one_more_comes(
    start: Start, other: Path, tmp_path: Path
) -> None:
    keeper = start()
    submit(keeper, tmp_path, 0, 1)
    wait_until(lambda: len(ran(tmp_path)) == 2, "they run")
    workers = kill(keeper, 2)
    for version in ({"version": other}, {}, {"version": other}):  # there, back, and there again
        keeper = start(**version)
        await_drained(keeper, workers)
        keeper.kill()
    keeper = start()
    await_drained(keeper, workers)
    submit(keeper, tmp_path, 0, 1)
    for item in (0, 1):
        (tmp_path / f"gate-{item}").touch()
    assert keeper("[future.result(20) for future in futures]") == [0, 1]
    assert ran(tmp_path) == Counter({"0": 1, "1": 1})
    keeper.end()


def test_one_that_dies_while_it_leaves_is_blamed_for_what_it_ran(start: Start, other: Path, tmp_path: Path) -> None:
    keeper = start()
    submit(keeper, tmp_path, 0)
    wait_until(lambda: len(ran(tmp_path)) == 1, "it runs")
    (worker,) = kill(keeper, 1)
    keeper = start(version=other)
    await_drained(keeper, [worker])
    submit(keeper, tmp_path, 0)
    wait_until(lambda: keeper("futures[0].running()"), "it has said so")
    os.kill(worker, signal.SIGKILL)
    (tmp_path / "gate-0").touch()
    assert keeper("futures[0].result(20)") == 0
    assert keeper("futures[0].deaths") == 1
    assert ran(tmp_path) == Counter({"0": 2})
    keeper.end()


def test_services_are_stopped_and_started_anew(start: Start, other: Path) -> None:
    keeper = start()
    keeper.service("serve")
    before = keeper.reach("running")["pid"]
    wait_until(lambda: pids(keeper, "service") == [before])
    keeper.kill()
    keeper = start(version=other)
    keeper.service("serve")
    keeper.reach("running", but=before)
    assert not is_running(before)
    (exit,) = keeper.row()["exits"]
    assert exit[0] == "upgraded"
    keeper.end()


def test_a_service_that_still_starts_is_replaced_though_it_can_never_say_that_it_is_ready(
    start: Start, other: Path, tmp_path: Path
) -> None:
    """So is one of which the pidfile says so because its keeper was killed before it could write more."""
    keeper = start()
    keeper.service("serve_when_ready", tmp_path, ready="'notify'", start_timeout=600.0)
    before = keeper.reach("starting")["pid"]
    wait_until(lambda: pids(keeper, "service") == [before])
    keeper.kill()
    keeper = start(version=other)
    (tmp_path / "ready").touch()
    keeper.service("serve_when_ready", tmp_path, ready="'notify'", start_timeout=600.0)
    keeper.reach("running", but=before)
    assert not is_running(before)
    assert [exit[0] for exit in keeper.row()["exits"]] == ["upgraded"]
    keeper.end()


@pytest.mark.parametrize("start_method", ["forkserver", "loky"])
def test_who_replaces_poolkeeper_under_a_running_program_is_told_so(
    start: Start, tmp_path: Path, start_method: str
) -> None:
    (tmp_path / "copy").mkdir()
    keeper = start(version=copy_of_this_version(tmp_path / "copy"), options=f"start_method={start_method!r}")
    assert keeper("keeper.submit(tasks.square, 3).result(20)") == 9
    upgrade(tmp_path / "copy")
    for pid in (*pids(keeper, "worker"), *(pids(keeper, "forkserver") if start_method == "forkserver" else ())):
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid)
    error = keeper("str(keeper.submit(tasks.square, 3).exception(20))")
    assert "has protocol" in error
    assert "what is on disk has changed since this program began" in error
    keeper.end()
