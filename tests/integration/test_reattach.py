"""A keeper is killed and another one of its name comes: what runs goes on, and runs once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from poolkeeper import PoolkeeperError, TaskQuarantined
from poolkeeper.link import call_keeper
from poolkeeper.messages import Kind, pack
from poolkeeper.process_identity import ProcessIdentity
from poolkeeper.session import Session
from tests import tasks
from tests.disks import fill, small_disk
from tests.helpers import PATIENCE, a_program, is_running, wait_for_exit, wait_until
from tests.survivors import Lost, end_survivors, results, survivors_in


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    lost = Lost(tmp_path)
    yield lost
    end_survivors(lost.home)


def test_what_runs_goes_on_and_is_delivered_to_who_asks_again(lost: Lost) -> None:
    items = list(range(6))
    lost.kill(lost.begin(items))
    workers = lost.workers
    with lost.again() as keeper:
        futures = lost.submit(keeper, items)
        lost.open(*items)
        assert results(futures) == items
        assert {future.worker_pid for future in futures} <= set(workers)
        assert [row.pid for row in keeper.status().workers] == workers
    assert lost.ran == Counter(map(str, items))
    assert not any(map(is_running, workers)), "a keeper that ends takes all with it"


def test_what_ends_while_there_is_no_keeper_is_kept_for_the_next(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    lost.open(0, 1)
    wait_until(lambda: (lost.folder / "passed-0").exists() and (lost.folder / "passed-1").exists())
    with lost.again() as keeper:
        assert results(lost.submit(keeper, [0, 1])) == [0, 1]
    assert lost.ran == Counter({"0": 1, "1": 1})


def test_an_outcome_that_nobody_has_asked_for_yet_is_recorded(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    with lost.again() as keeper:
        lost.open(0, 1)
        wait_until(lambda: lost.recorded == 2)
        assert results(lost.submit(keeper, [0])) == [0]
        keeper._runtime.leave_unfinished("a test")  # type: ignore[union-attr]
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1])
        assert results(futures) == [0, 1]
        assert [future.reused for future in futures] == [True, True]
    assert lost.ran == Counter({"0": 1, "1": 1})


def test_keepers_that_are_killed_one_after_the_other(lost: Lost) -> None:
    items = list(range(4))
    for _ in range(4):
        lost.kill(lost.begin(items))
    with lost.again() as keeper:
        futures = lost.submit(keeper, items)
        lost.open(*items)
        assert results(futures) == items
    assert lost.ran == Counter(map(str, items))


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign", "directory", "symlink", "empty"])
def test_survivors_are_found_without_a_pidfile(lost: Lost, damage: str) -> None:
    lost.kill(lost.begin([0, 1]))
    workers, server = lost.workers, lost.server
    path = lost.home / "keeper.pid"
    content = path.read_bytes()
    path.unlink()
    if damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        path.write_text(str(os.getpid()))
    elif damage == "directory":
        path.mkdir()
        (path / "x").touch()
    elif damage == "symlink":
        path.symlink_to("/nowhere")
    elif damage == "empty":
        path.touch()
    with lost.again() as keeper:
        wait_until(lambda: sorted(row.pid or 0 for row in keeper.status().workers) == sorted(workers), "they call")
        futures = lost.submit(keeper, [0, 1])
        lost.open(0, 1)
        assert results(futures) == [0, 1]
    assert lost.ran == Counter({"0": 1, "1": 1})
    for pid in (*workers, server):
        wait_for_exit(pid)


def test_without_the_journal_no_keeper_begins_and_survivors_wait_for_one_that_has_it(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    workers = lost.workers
    (lost.home / "journal.db").rename(lost.home / "elsewhere")
    (lost.home / "journal.db").mkdir()
    with pytest.raises(PoolkeeperError, match=r"journal\.db cannot be opened"), lost.again():
        pass
    assert lost.workers == workers
    (lost.home / "journal.db").rmdir()
    (lost.home / "elsewhere").rename(lost.home / "journal.db")
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1])
        lost.open(0, 1)
        assert results(futures) == [0, 1]
    assert lost.ran == Counter({"0": 1, "1": 1})


def test_on_a_disk_that_has_become_full_survivors_are_taken_over(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        lost = Lost(disk)
        try:
            lost.kill(lost.begin([0, 1]))
            lost.open(0, 1)
            fill(disk)
            with lost.again() as keeper:
                assert results(lost.submit(keeper, [0, 1])) == [0, 1]
            assert lost.ran == Counter({"0": 1, "1": 1})
        finally:
            end_survivors(lost.home)


def test_a_stranger_with_a_recorded_pid_is_left_alone(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            path = lost.home / "keeper.pid"
            document = json.loads(path.read_text())
            mine = ProcessIdentity(stranger.pid, 12345).to_dict()
            fake = {**document["children"][-1], **mine, "id": "worker-77", "role": "worker"}
            old = {**fake, "pid": 1, "id": "worker-78"}
            path.write_text(json.dumps({**document, "children": [*document["children"], fake, old]}))
            with lost.again() as keeper:
                futures = lost.submit(keeper, [0, 1])
                lost.open(0, 1)
                assert results(futures) == [0, 1]
                assert len(keeper.status().workers) == 2
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_worker_that_has_died_meanwhile_is_replaced(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    victim, other = lost.workers
    os.kill(victim, signal.SIGKILL)
    wait_for_exit(victim)
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1])
        lost.open(0, 1)
        assert results(futures) == [0, 1]
        assert other in [future.worker_pid for future in futures]
    assert sorted(lost.ran.values()) == [1, 2]


def test_a_worker_that_dies_after_it_was_taken_over_is_blamed_for_what_it_ran(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    workers = lost.workers
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1], retry=tasks.no_deaths())
        wait_until(lambda: all(future.running() for future in futures))
        os.kill(workers[0], signal.SIGKILL)
        lost.open(0, 1)
        errors = [future.exception(PATIENCE) for future in futures]
        assert sum(isinstance(error, TaskQuarantined) for error in errors) == 1
        assert errors.count(None) == 1


def test_a_worker_whose_death_its_fork_server_has_not_seen_yet_is_not_taken_over_again(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    workers = lost.workers
    server = lost.server
    os.kill(server, signal.SIGKILL)
    wait_for_exit(server)
    with lost.again() as keeper, ExitStack() as late:
        futures = lost.submit(keeper, [0, 1], retry=tasks.no_deaths())
        wait_until(lambda: all(future.running() for future in futures))
        stand_in = late.enter_context(a_program()).pid
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: workers[0] not in [row.pid for row in keeper.status().workers], "it is missed")
        session, socket = Session(), json.loads((lost.home / "keeper.pid").read_text())["socket"]
        introduction = {"role": "forkserver", "id": 0, "birth": "an earlier keeper", "pid": stand_in}
        content = {"children": [("worker-1", "worker", workers[0], "its ticket")], "digest": "", "sources": {}}
        key = (lost.home / "authkey").read_bytes()
        link = call_keeper(socket, key, session, introduction, PATIENCE, attach=lambda: (pack([content]), ()))
        late.callback(link.close)
        link.send(session.send(pack([(Kind.EXITED, "its ticket", "worker-1", workers[0], -9, 0)])))
        lost.open(0, 1)
        errors = [future.exception(PATIENCE) for future in futures]
        assert sorted(map(type, errors), key=str) == [type(None), TaskQuarantined]
        assert sum(row.pid == workers[0] for row in keeper.status().workers) == 0


def test_the_fork_server_dies_as_well(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1, 2]))
    workers = lost.workers
    server = lost.server
    os.kill(server, signal.SIGKILL)
    wait_for_exit(server)
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1, 2])
        lost.open(0, 1, 2)
        assert results(futures) == [0, 1, 2]
        assert {future.worker_pid for future in futures} <= set(workers)
    assert lost.ran == Counter({"0": 1, "1": 1, "2": 1})
    for pid in workers:
        wait_for_exit(pid)


def test_all_die_at_once(lost: Lost) -> None:
    process = lost.begin([0, 1])
    children = survivors_in(lost.home)
    lost.kill(process)
    for child in children:
        child.identity.signal(signal.SIGKILL)
    with lost.again() as keeper:
        futures = lost.submit(keeper, [0, 1])
        lost.open(0, 1)
        assert results(futures) == [0, 1]
    assert lost.ran == Counter({"0": 2, "1": 2})


def test_a_frozen_worker_holds_up_nobody_for_long(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    frozen = lost.workers[0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        with lost.again() as keeper:
            lost.open(0, 1, 2)
            assert results(lost.submit(keeper, [2])) == [2]
            os.kill(frozen, signal.SIGCONT)
            wait_until(lambda: "detached" not in [row.state for row in keeper.status().workers])
            assert results(lost.submit(keeper, [0, 1])) == [0, 1]
    finally:
        if is_running(frozen):
            os.kill(frozen, signal.SIGCONT)
    assert sum(lost.ran.values()) == 3


def test_what_nobody_asks_for_ends_with_the_keeper(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    workers = lost.workers
    with lost.again() as keeper:
        wait_until(lambda: [row.state for row in keeper.status().workers] == ["busy", "busy"] or None)
    assert not any(map(is_running, workers))


def test_orphans_leave_when_no_keeper_comes(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1], orphan_grace=0.2))
    workers, server = lost.workers, lost.server
    lost.open(0)
    wait_until(lambda: not all(map(is_running, workers)), "the idle one leaves")
    assert any(map(is_running, workers)), "the busy one does not"
    assert is_running(server)
    lost.open(1)
    for pid in (*workers, server):
        wait_for_exit(pid)
    assert not survivors_in(lost.home)
    with lost.again() as keeper:
        assert results(lost.submit(keeper, [0, 1])) == [0, 1]
    assert lost.ran == Counter({"0": 1, "1": 1}), "they have left their results behind"


def test_large_results_wait_for_the_next_keeper(lost: Lost) -> None:
    lost.task = "note_and_return_bytes"
    lost.kill(lost.begin([3000000, 1]))
    lost.open(3000000, 1)
    with lost.again() as keeper:
        futures = lost.submit(keeper, [3000000, 1])
        assert [len(result) for result in results(futures)] == [3000000, 1]
    assert lost.ran == Counter({"3000000": 1, "1": 1})


def test_another_configuration_has_a_fork_server_of_its_own(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    workers, server = lost.workers, lost.server
    with lost.again(preload=["json"]) as keeper:
        futures = lost.submit(keeper, [0, 1])
        lost.open(0, 1)
        assert results(futures) == [0, 1]
        assert {future.worker_pid for future in futures} == set(workers)
        wait_until(lambda: lost.servers - {server})
    assert lost.ran == Counter({"0": 1, "1": 1})
    wait_for_exit(server)


def test_a_worker_that_knows_another_key_is_ended_and_what_it_runs_runs_again(lost: Lost) -> None:
    lost.kill(lost.begin([0, 1]))
    workers = lost.workers
    (lost.home / "authkey").unlink()
    with lost.again() as keeper:
        lost.open(0, 1)
        assert results(lost.submit(keeper, [0, 1])) == [0, 1]
        wait_until(lambda: not any(map(is_running, workers)))
    assert lost.ran == Counter({"0": 2, "1": 2})
