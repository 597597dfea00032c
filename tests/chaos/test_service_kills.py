"""Services, their fork server and their keeper are killed at all moments."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tenacity import wait_none

from poolkeeper import Keeper, RestartPolicy, ServiceState
from poolkeeper.service_model import ExitReason
from poolkeeper.services import ServiceHandle
from tests import services, tasks
from tests.helpers import PATIENCE, is_running, wait_for_exit, wait_until
from tests.scripts import start_script

AT_ONCE = RestartPolicy(wait=wait_none())


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with Keeper(1, preload=["tests.services"]) as keeper:
        yield keeper


def reach(handle: ServiceHandle, state: str | list[str] = "running", timeout: float = PATIENCE) -> ServiceHandle:
    assert handle.wait(state, timeout), (handle, handle.exits, [replica.detail for replica in handle.replicas])
    return handle


def fork_server(handle: ServiceHandle) -> psutil.Process:
    """The parent of a service."""
    parent = psutil.Process(reach(handle).pid).parent()
    assert parent is not None
    return parent


def test_a_hundred_killed_in_one_instant_are_all_back(keeper: Keeper) -> None:
    handle = keeper.service(services.serve, name="many", replicas=100, restart=AT_ONCE)
    reach(handle, timeout=3 * PATIENCE)
    pids = [replica.pid for replica in handle.replicas]
    assert len(set(pids)) == 100
    for pid in pids:
        os.kill(pid or 0, signal.SIGKILL)
    wait_until(lambda: handle.restarts == 100, timeout=3 * PATIENCE)
    reach(handle, timeout=3 * PATIENCE)
    after = {replica.pid for replica in handle.replicas}
    assert len(after) == 100
    assert after.isdisjoint(pids)
    assert {exit.exitcode for exit in handle.exits} == {-signal.SIGKILL}
    assert len(handle.exits) == 100


def test_killed_again_and_again_as_soon_as_it_is_there(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.serve, (tmp_path,), restart=AT_ONCE)
    killed: set[int] = set()
    while len(killed) < 100:
        wait_until(lambda: handle.pid not in (None, *killed))
        pid = handle.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    reach(handle)
    wait_until(lambda: handle.pid not in killed and handle.state is ServiceState.RUNNING)
    assert handle.restarts == 100


def test_services_outlive_their_fork_server_and_a_new_one_restarts_them(keeper: Keeper, tmp_path: Path) -> None:
    handles = [
        keeper.service(services.serve, (tmp_path, f"service-{number}"), name=f"service-{number}", restart=AT_ONCE)
        for number in range(3)
    ]
    for number, handle in enumerate(handles):
        reach(handle)
        wait_until(lambda number=number: tasks.notes(tmp_path, f"service-{number}"))  # type: ignore[misc]
    pids = [handle.pid for handle in handles]
    server = fork_server(handles[0])
    server.kill()
    wait_for_exit(server.pid)
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    assert [handle.pid for handle in handles] == pids
    assert all(is_running(pid or 0) for pid in pids)
    os.kill(pids[0] or 0, signal.SIGKILL)
    wait_until(lambda: handles[0].restarts == 1)
    reach(handles[0])
    assert handles[0].exits[0].reason is ExitReason.UNKNOWN
    handles[1].restart()  # of the second generation, too, and it ends in order
    wait_until(lambda: len(tasks.notes(tmp_path, "service-1")) == 2)
    assert tasks.notes(tmp_path, "service-1-ended") == [pids[1]]
    assert fork_server(handles[0]).pid == fork_server(handles[1]).pid != server.pid


def test_what_services_leave_behind_ends_also_without_their_fork_server(keeper: Keeper, tmp_path: Path) -> None:
    handles = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        handle = keeper.service(
            services.leave_descendants, (folder,), name=f"parent-{number}", stop_timeout=0.2, restart="never"
        )
        handles.append(reach(handle))
        wait_until(lambda folder=folder: tasks.notes(folder, "started"))  # type: ignore[misc]
    server = fork_server(handles[0])
    server.kill()
    wait_for_exit(server.pid)
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9  # the keeper knows, too
    handles[0].stop()
    reach(handles[0], "stopped")
    for pid in tasks.notes(tmp_path / "0", "descendants"):
        wait_until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
    os.kill(handles[1].pid or 0, signal.SIGKILL)
    reach(handles[1], "failed")
    wait_until(lambda: any(not is_running(pid) for pid in tasks.notes(tmp_path / "1", "descendants")))
    for pid in tasks.notes(tmp_path / "1", "descendants"):  # those of other sessions nobody can know any more
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("turn", range(5))
def test_the_fork_server_is_killed_while_services_start(keeper: Keeper, tmp_path: Path, turn: int) -> None:
    first = keeper.service(services.serve, name="first", restart=AT_ONCE)
    server = fork_server(first)
    handles = [
        keeper.service(services.serve, (tmp_path, str(number)), name=f"service-{number}", restart=AT_ONCE)
        for number in range(10)
    ]
    if turn:
        wait_until(lambda: tasks.notes(tmp_path, str(2 * turn - 2)))
    server.kill()
    for number, handle in enumerate(handles):
        reach(handle)
        wait_until(lambda number=number: tasks.notes(tmp_path, str(number)))  # type: ignore[misc]
    # Each runs once: who was not heard of in time has left by itself.
    for number, handle in enumerate(handles):
        wait_until(
            lambda number=number, handle=handle: (
                [  # type: ignore[misc]
                    pid for pid in tasks.notes(tmp_path, str(number)) if is_running(pid)
                ]
                == [handle.pid]
            )
        )


def test_fork_server_and_services_die_together(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.serve, (tmp_path,), replicas=5, restart=AT_ONCE)
    server = fork_server(handle)
    pids = [replica.pid for replica in handle.replicas]
    os.kill(server.pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid or 0, signal.SIGKILL)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: handle.restarts == 5)
    reach(handle)


def test_a_killed_keeper_leaves_nothing(tmp_path: Path) -> None:
    source = """
        import signal
        import sys
        from pathlib import Path
        from poolkeeper import Keeper, command
        from tests import services

        folder = Path(sys.argv[1])
        keeper = Keeper(1)
        keeper.service(services.leave_descendants, (folder,)).wait()
        keeper.service(services.ignore_stop, (folder,)).wait()
        keeper.service(command("sleep", "600"), name="program").wait()
        print(keeper.services["program"].pid, flush=True)
        signal.pause()
        """
    with start_script(tmp_path, source, tmp_path) as process:
        assert process.stdout is not None
        program = int(process.stdout.readline())
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        process.kill()
        process.wait()
    for pid in [program, *tasks.notes(tmp_path, "started"), *tasks.notes(tmp_path, "descendants")]:
        wait_until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
    from tests.scripts import left_in

    wait_until(lambda: left_in(tmp_path) == [])


def test_random_kills_of_everything(keeper: Keeper, tmp_path: Path) -> None:
    import random

    chance = random.Random(7)
    handles = [
        keeper.service(services.serve, (tmp_path, str(number)), name=f"service-{number}", restart=AT_ONCE)
        for number in range(8)
    ]
    for handle in handles:
        reach(handle)
    for turn in range(40):
        living = [handle.pid for handle in handles if handle.pid is not None]
        for pid in chance.sample(living, min(len(living), chance.randint(1, 4))):
            with suppress(ProcessLookupError):
                os.kill(pid, chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGABRT]))
        if turn % 10 == 5 and living:
            with suppress(psutil.Error, AttributeError):
                parent = psutil.Process(living[0]).parent()
                if parent is not None and parent.ppid() == os.getpid():
                    parent.kill()
        chance.choice(handles).wait(timeout=0.05)
    for number, handle in enumerate(handles):
        reach(handle)
        wait_until(
            lambda number=number, handle=handle: (
                [  # type: ignore[misc]
                    pid for pid in tasks.notes(tmp_path, str(number)) if is_running(pid)
                ]
                == [handle.pid]
            )
        )


SOAK_SECONDS = float(os.environ.get("POOLKEEPER_SOAK_SECONDS", "600"))


@pytest.mark.soak
def test_services_that_are_killed_for_minutes_cost_no_descriptor_and_little_memory(tmp_path: Path) -> None:
    """The keeper's own descriptors and memory after the first tenth of the time are what it has at the end."""
    ours = psutil.Process()
    chance = random.Random(20261121)
    with Keeper(2, name="soak", home=tmp_path, preload=["tests.services"]) as keeper:
        handle = keeper.service(services.serve, name="many", replicas=20, restart=AT_ONCE)
        reach(handle, timeout=3 * PATIENCE)
        began = time.monotonic()
        settled: tuple[int, int] | None = None
        while (elapsed := time.monotonic() - began) < SOAK_SECONDS:
            pids = [replica.pid for replica in handle.replicas if replica.pid is not None]
            for pid in chance.sample(pids, min(len(pids), chance.choice([1, 1, 1, 2, 20]))):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert list(keeper.map(tasks.square, range(50), timeout=PATIENCE)) == [number**2 for number in range(50)]
            if settled is None and elapsed > SOAK_SECONDS / 10:
                reach(handle, timeout=3 * PATIENCE)
                settled = ours.num_fds(), ours.memory_info().rss
        reach(handle, timeout=3 * PATIENCE)
        assert settled is not None
        fds, memory = settled
        wait_until(lambda: ours.num_fds() <= fds + 5, "the descriptors to be given back")
        assert ours.memory_info().rss <= memory + 30 * 2**20
        assert handle.restarts > 100 * SOAK_SECONDS / 60
