"""What each service may use: set in its process, or watched."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tenacity import wait_none

from poolkeeper import Keeper, RestartPolicy, WorkerPolicy
from poolkeeper.service_model import ExitReason
from poolkeeper.services import ServiceHandle
from tests import services, tasks
from tests.helpers import PATIENCE, wait_until

AT_ONCE = RestartPolicy(wait=wait_none())


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with Keeper(1, preload=["tests.services"]) as keeper:
        yield keeper


def reach(handle: ServiceHandle, state: str | list[str] = "running") -> ServiceHandle:
    assert handle.wait(state, PATIENCE), (handle, handle.exits, [replica.detail for replica in handle.replicas])
    return handle


def test_its_surroundings(keeper: Keeper, tmp_path: Path) -> None:
    worker = WorkerPolicy(env={"OF_THE_SERVICE": "here"}, cwd=str(tmp_path), umask=0o027, nice=os.nice(0) + 3)
    handle = keeper.service(services.write_environment, (tmp_path, "OF_THE_SERVICE"), name="limited", worker=worker)
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen == ["here", os.path.realpath(tmp_path), "27", str(os.nice(0) + 3)]
    assert reach(handle).exits == ()
    assert keeper.submit(tasks.environment, "OF_THE_SERVICE").result(PATIENCE) is None


def test_files_and_processors(keeper: Keeper, tmp_path: Path) -> None:
    processor = min(os.sched_getaffinity(0))
    worker = WorkerPolicy(open_files=64, affinity=(processor,))
    handle = reach(keeper.service(services.serve, (tmp_path,), worker=worker))
    (pid,) = wait_until(lambda: tasks.notes(tmp_path, "started"))
    process = psutil.Process(pid)
    assert process.cpu_affinity() == [processor]
    assert process.rlimit(psutil.RLIMIT_NOFILE)[0] == 64
    assert handle.exits == ()


def test_more_than_there_is_limits_nothing(keeper: Keeper, tmp_path: Path) -> None:
    worker = WorkerPolicy(hard_memory=10**30, cpu_seconds=1e15)
    handle = reach(keeper.service(services.serve, (tmp_path,), worker=worker))
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert handle.exits == ()


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        (WorkerPolicy(cwd="/nonexistent/folder"), "/nonexistent/folder"),
        (WorkerPolicy(affinity=(1000,)), "WorkerPolicy"),
    ],
)
def test_what_cannot_be_set_is_a_failure_that_says_so(keeper: Keeper, worker: WorkerPolicy, words: str) -> None:
    handle = reach(keeper.service(services.serve, restart="never", worker=worker), "failed")
    (exit,) = handle.exits
    assert "could not be set up" in exit.message
    assert words in exit.message


def test_too_much_memory_is_the_end_in_order(keeper: Keeper, tmp_path: Path) -> None:
    worker = WorkerPolicy(max_memory=100 << 20)
    handle = keeper.service(services.grow, (200 << 20, tmp_path), worker=worker, restart="never")
    wait_until(lambda: handle.exits)
    exit = handle.exits[0]
    assert exit.reason is ExitReason.RECYCLED
    assert exit.exitcode == 0
    assert not exit.failure
    assert "max_memory" in exit.message
    wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)  # restarted, whatever its policy


def test_far_too_much_memory_is_a_failure(keeper: Keeper, tmp_path: Path) -> None:
    worker = WorkerPolicy(hard_memory="1GiB")
    handle = keeper.service(services.grow, (2 << 30, tmp_path), worker=worker, restart="never")
    reach(handle, "failed")
    (exit,) = handle.exits
    assert "MemoryError" in exit.message
    assert not tasks.notes(tmp_path, "grown")


def test_too_much_time_of_the_processor(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.burn_once, (tmp_path,), worker=WorkerPolicy(cpu_seconds=1), restart=AT_ONCE)
    wait_until(lambda: handle.exits)
    exit = handle.exits[0]
    assert exit.reason is ExitReason.SIGNAL
    assert exit.exitcode == -signal.SIGXCPU
    assert "SIGXCPU" in exit.message
    wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)


def test_one_that_is_old_is_replaced_in_order(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.serve, (tmp_path,), worker=WorkerPolicy(max_age=0.3), restart="never")
    wait_until(lambda: len(tasks.notes(tmp_path, "started")) >= 2)
    exit = handle.exits[0]
    assert exit.reason is ExitReason.RECYCLED
    assert "max_age" in exit.message
    assert handle.restarts == 0
