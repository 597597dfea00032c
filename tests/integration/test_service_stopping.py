"""How services end: in order when asked, by force when they do not, and what is left of them: nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tenacity import wait_none

from poolkeeper import Keeper, RestartPolicy, ServiceState
from poolkeeper.service_model import ExitReason
from poolkeeper.services import ServiceHandle
from tests import services, tasks
from tests.helpers import PATIENCE, is_running, wait_until

AT_ONCE = RestartPolicy(wait=wait_none())


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with Keeper(1, preload=["tests.services"]) as keeper:
        yield keeper


def reach(handle: ServiceHandle, state: str | list[str] = "running") -> ServiceHandle:
    assert handle.wait(state, PATIENCE), (handle, handle.exits, [replica.detail for replica in handle.replicas])
    return handle


def wait_for_note(folder: Path, name: str = "started", number: int = 1) -> list[int]:
    wait_until(lambda: len(tasks.notes(folder, name)) >= number, f"{number} notes {name!r}")
    return tasks.notes(folder, name)


def test_the_context_says_that_it_is_to_stop(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.serve, (tmp_path,)))
    wait_for_note(tmp_path)
    handle.stop()
    reach(handle, "stopped")
    (exit,) = handle.exits
    assert (exit.reason, exit.exitcode, exit.failure) == (ExitReason.STOPPED, 0, False)
    assert tasks.notes(tmp_path, "started-ended")


@pytest.mark.parametrize("target", [services.serve_blindly, services.wait_with_asyncio])
def test_who_does_not_look_is_left_as_by_sys_exit(
    keeper: Keeper, tmp_path: Path, target: Callable[[Path], None]
) -> None:
    handle = reach(keeper.service(target, (tmp_path,), name="blind"))
    wait_for_note(tmp_path)
    handle.stop()
    reach(handle, "stopped")
    assert handle.exits[0].exitcode == 0
    assert target is not services.serve_blindly or tasks.notes(tmp_path, "cleaned up")


def test_another_stop_signal(keeper: Keeper, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        folder = tmp_path / str(int(number))
        folder.mkdir()
        handle = reach(keeper.service(services.serve, (folder,), name=f"service-{number}", stop_signal=number))
        wait_for_note(folder)
        handle.stop()
        reach(handle, "stopped")
        assert tasks.notes(folder, "started-ended")


def test_a_stop_signal_that_ends_it_at_once(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.serve, (tmp_path,), stop_signal=signal.SIGKILL))
    (pid,) = wait_for_note(tmp_path)
    handle.stop()
    reach(handle, "stopped")
    assert not is_running(pid)
    assert not tasks.notes(tmp_path, "started-ended")


@pytest.mark.parametrize("target", [services.ignore_stop, services.swallow_stop])
def test_who_does_not_stop_is_killed_and_its_stacks_are_kept(
    keeper: Keeper, tmp_path: Path, target: Callable[[Path], None]
) -> None:
    handle = reach(keeper.service(target, (tmp_path,), name="deaf", stop_timeout=0.2))
    (pid,) = wait_for_note(tmp_path)
    handle.stop()
    reach(handle, "stopped")
    (exit,) = handle.exits
    assert exit.exitcode == -signal.SIGKILL
    assert exit.reason is ExitReason.STOPPED
    assert target.__name__ in exit.detail
    assert not is_running(pid)


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(None, marks=pytest.mark.soak),
        services.die,
        pytest.param(services.fail, marks=pytest.mark.soak),
        services.ignore_stop,
    ],
)
def test_descendants_end_with_it_also_those_that_have_left(
    keeper: Keeper, tmp_path: Path, then: Callable[..., None] | None
) -> None:
    last: Any = None if then is None else _Then(then, tmp_path)
    handle = keeper.service(
        services.leave_descendants, (tmp_path, last), name="parent", restart="never", stop_timeout=0.2
    )
    wait_for_note(tmp_path)
    if then is None or then is services.ignore_stop:
        reach(handle).stop()
    reach(handle, ["stopped", "failed"])
    for pid in tasks.notes(tmp_path, "descendants"):
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), f"the end of {pid}")  # type: ignore[misc]


class _Then:
    """What a service does when it has left its descendants."""

    def __init__(self, target: Callable[..., None], folder: Path) -> None:
        self.target = target
        self.folder = folder

    def __call__(self) -> None:
        if self.target is services.ignore_stop:
            self.target(self.folder)
        else:
            self.target()


def test_a_program_that_it_has_started_ends_with_it(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.start_program, (tmp_path,), restart="never")
    (pid,) = wait_for_note(tmp_path)
    os.kill(pid, signal.SIGKILL)
    reach(handle, "failed")
    wait_until(lambda: not psutil.pid_exists(int((tmp_path / "program").read_text())))


def test_one_that_is_stopped_by_a_signal_can_be_stopped_for_good(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.serve, (tmp_path,), stop_timeout=0.2))
    (pid,) = wait_for_note(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    handle.stop()
    reach(handle, "stopped")
    assert not is_running(pid)


# -- order ------------------------------------------------------------------------------------------------------------


def test_what_is_after_another_stops_first(keeper: Keeper) -> None:
    order: list[str] = []
    keeper.on("service.stopped", lambda event: order.append(event.name))
    keeper.service(services.serve, name="base")
    keeper.service(services.serve, name="middle", after=["base"])
    last = keeper.service(services.serve, name="top", after=["middle"])
    reach(last)
    keeper.shutdown()
    assert order == ["top", "middle", "base"]


# -- at awkward moments -----------------------------------------------------------------------------------------------


def test_stopped_while_it_starts(keeper: Keeper, tmp_path: Path) -> None:
    handles = [keeper.service(services.serve, name=f"service-{number}") for number in range(20)]
    for handle in handles:
        handle.stop()
    for handle in handles:
        reach(handle, "stopped")
        assert all(exit.reason is ExitReason.STOPPED and exit.exitcode != -signal.SIGKILL for exit in handle.exits)


def test_stopped_before_it_is_ready(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.serve_when_ready, (tmp_path,), ready="notify")
    wait_for_note(tmp_path)
    handle.stop()
    reach(handle, "stopped")


def test_asked_for_everything_at_once(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.serve, (tmp_path,))
    for number in range(30):
        (handle.stop, handle.start, handle.restart)[number % 3]()
    handle.start()
    reach(handle)
    handle.stop()
    reach(handle, "stopped")
    handle.restart()
    reach(handle)
    assert len([pid for pid in tasks.notes(tmp_path, "started") if is_running(pid)]) <= 1


def test_restarted_while_it_stops(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.swallow_stop, (tmp_path,), stop_timeout=0.3))
    wait_for_note(tmp_path)
    handle.stop()
    wait_for_note(tmp_path, "swallowed")
    handle.restart()
    wait_for_note(tmp_path, number=2)
    reach(handle)


def test_killed_while_it_stops(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.swallow_stop, (tmp_path,), restart=AT_ONCE, stop_timeout=60))
    (pid,) = wait_for_note(tmp_path)
    handle.stop()
    wait_for_note(tmp_path, "swallowed")
    os.kill(pid, signal.SIGKILL)
    reach(handle, "stopped")
    assert handle.exits[-1].reason is ExitReason.STOPPED
    assert len(tasks.notes(tmp_path, "started")) == 1


def test_asked_by_many_threads(keeper: Keeper) -> None:
    handle = keeper.service(services.serve)
    errors: list[BaseException] = []

    def push(number: int) -> None:
        try:
            for turn in range(20):
                if turn % 4 == 3:
                    handle.scale(1 + (turn + number) % 3)
                else:
                    (handle.stop, handle.start, handle.restart)[turn % 4]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    handle.scale(1)
    handle.start()
    reach(handle)
    wait_until(lambda: len(handle.replicas) == 1)


def test_the_keeper_ends_while_services_start_and_stop(tmp_path: Path) -> None:
    for turn in range(3):
        with Keeper(1, preload=["tests.services"]) as keeper:
            handles = [keeper.service(services.serve, name=f"service-{number}") for number in range(10)]
            if turn:
                for handle in handles:
                    handle.wait(timeout=0.005 * turn)
            handles[0].stop()
            handles[1].restart()
            home = keeper.home
        assert all(handle.state is ServiceState.STOPPED for handle in handles)
        assert not home.exists()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with Keeper(1, name="clean", home=tmp_path / "home", preload=["tests.services"]) as keeper:
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            target = services.leave_descendants
            keeper.service(target, (tmp_path / str(number),), name=f"parent-{number}", stop_timeout=0.2)
            wait_for_note(tmp_path / str(number))
        keeper.services["parent-0"].stop()
        reach(keeper.services["parent-0"], "stopped")
        for pid in tasks.notes(tmp_path / "0", "descendants"):
            wait_until(lambda pid=pid: not psutil.pid_exists(pid), "the end of what a service has left")  # type: ignore[misc]
        home = keeper.home
    assert [path for path in home.rglob("*") if path.is_socket() or path.match("parent-*.crash")] == []
    for number in range(3):
        for pid in tasks.notes(tmp_path / str(number), "descendants"):
            wait_until(lambda pid=pid: not psutil.pid_exists(pid))  # type: ignore[misc]
