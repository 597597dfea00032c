"""Services: started, watched, restarted by policy, seen."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from tenacity import stop_after_attempt, wait_none

from poolkeeper import (
    Keeper,
    PayloadError,
    PoolkeeperError,
    RestartPolicy,
    RestartRefused,
    ServiceState,
    stop_after_burst,
)
from poolkeeper.service_model import ExitReason, ServiceEvent
from poolkeeper.service_spec import DeclarationError, ServiceGroup
from poolkeeper.services import ServiceHandle
from tests import services, tasks
from tests.helpers import PATIENCE, is_running, wait_until

AT_ONCE = RestartPolicy(wait=wait_none())


@pytest.fixture(scope="module")
def shared() -> Iterator[Keeper]:
    with Keeper(2, preload=["tests.services"]) as keeper:
        yield keeper


@pytest.fixture
def keeper(shared: Keeper) -> Iterator[Keeper]:
    """A keeper that others have used; the services of a test are stopped with it."""
    before = set(shared.services)
    yield shared
    for name in reversed(shared.services):
        if name not in before:
            shared.services[name].stop()
    for name, handle in shared.services.items():
        if name not in before:
            assert handle.wait([state for state in ServiceState if state.at_rest], PATIENCE), handle


_numbers = iter(range(10**6))


def name() -> str:
    return f"service-{next(_numbers)}"


def reach(handle: ServiceHandle, state: str | list[str] = "running") -> ServiceHandle:
    assert handle.wait(state, PATIENCE), (handle, handle.exits, [replica.detail for replica in handle.replicas])
    return handle


def replaced(handle: ServiceHandle, times: int = 1) -> ServiceHandle:
    """Wait until a service has been started anew ``times`` times, and runs."""
    wait_until(lambda: handle.restarts >= times and handle.state is ServiceState.RUNNING, f"{times} restarts: {handle}")
    return handle


# -- restart policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "args", "reason", "exitcode", "words"),
    [
        (services.fail, ("no luck",), ExitReason.RAISED, 1, "ValueError: no luck"),
        (services.exit_with, (3,), ExitReason.EXIT_STATUS, 3, "exited with status 3"),
        (services.exit_with, ("some words",), ExitReason.EXIT_STATUS, 1, "some words"),
        (services.exit_hard, (4,), ExitReason.EXIT_STATUS, 4, "exited with status 4"),
        (services.die, (), ExitReason.SIGNAL, -9, "SIGKILL"),
        (services.die, (signal.SIGUSR1,), ExitReason.SIGNAL, -signal.SIGUSR1, "SIGUSR1"),
        (services.die, (signal.SIGINT,), None, None, ""),
    ],
)
def test_a_failure_is_told_apart(
    keeper: Keeper, target: Callable[..., object], args: Any, reason: ExitReason | None, exitcode: int, words: str
) -> None:
    handle = keeper.service(target, args, name=name(), restart="never")
    if reason is None:  # SIGINT is the keeper's to handle: the service has not noticed it
        reach(handle)
        handle.stop()
        reach(handle, "stopped")
        return
    reach(handle, "failed")
    (exit,) = handle.exits
    assert (exit.reason, exit.exitcode) == (reason, exitcode)
    assert exit.failure
    assert words in exit.describe()
    assert handle.pid is None
    assert handle.restarts == 0


def test_what_was_raised_is_in_the_record_without_our_frames(keeper: Keeper) -> None:
    handle = reach(keeper.service(services.fail, name=name(), restart="never"), "failed")
    (exit,) = handle.exits
    assert "in fail" in exit.detail
    assert "ValueError: no luck" in exit.detail
    assert "service_worker" not in exit.detail


def test_the_stack_of_a_crash_is_in_the_record(keeper: Keeper) -> None:
    handle = reach(keeper.service(services.crash, name=name(), restart="never"), "failed")
    (exit,) = handle.exits
    assert exit.exitcode == -signal.SIGSEGV
    assert "in crash" in exit.detail


def test_always_means_after_success_too(keeper: Keeper, tmp_path: Path) -> None:
    keeper.service(services.note_attempt, (tmp_path,), name=name(), restart=AT_ONCE)
    wait_until(lambda: len(tasks.notes(tmp_path, "attempts")) >= 3)


def test_on_failure_leaves_success_alone(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.note_attempt, (tmp_path,), name=name(), restart="on-failure")
    reach(handle, "completed")
    assert len(tasks.notes(tmp_path, "attempts")) == 1
    assert not handle.exits[0].failure
    handle.start()  # by hand it can be had again
    wait_until(lambda: len(tasks.notes(tmp_path, "attempts")) == 2)
    reach(handle, "completed")


def test_on_failure_ends_after_so_many_restarts_and_can_be_started_by_hand(keeper: Keeper, tmp_path: Path) -> None:
    restart = RestartPolicy.on_failure(max_retries=3, delay=0.01)
    handle = keeper.service(services.fail_unless, (tmp_path,), name=name(), restart=restart)
    reach(handle, "failed")
    assert len(tasks.notes(tmp_path, "attempts")) == 4
    assert len(handle.exits) == 4
    assert handle.restarts == 3
    assert handle.pid is None
    (row,) = (row for row in keeper.status().services if row.name == handle.name)
    assert row.state is ServiceState.FAILED
    assert "exhausted" in row.detail
    assert "ConnectionError: not yet" in row.detail
    (tmp_path / "mended").touch()
    handle.start()
    reach(handle)


def test_a_burst_ends_it(keeper: Keeper, tmp_path: Path) -> None:
    restart = RestartPolicy(wait=wait_none(), stop=stop_after_burst(5, 3600))
    handle = keeper.service(services.fail_unless, (tmp_path,), name=name(), restart=restart)
    reach(handle, "failed")
    assert len(tasks.notes(tmp_path, "attempts")) == 5


def test_healthy_running_forgets_earlier_failures(keeper: Keeper, tmp_path: Path) -> None:
    restart = RestartPolicy(wait=wait_none(), stop=stop_after_attempt(3), reset_after=1e-6)
    handle = reach(keeper.service(services.serve, (tmp_path,), name=name(), restart=restart))
    for count in range(1, 6):
        wait_until(lambda count=count: len(tasks.notes(tmp_path, "started")) == count)  # type: ignore[misc]
        os.kill(tasks.notes(tmp_path, "started")[-1], signal.SIGKILL)
        replaced(handle, count)


def test_a_policy_that_raises_is_final_and_says_why(keeper: Keeper) -> None:
    def broken(_: object) -> float:
        raise RuntimeError("broken strategy")

    handle = keeper.service(services.fail, name=name(), restart=RestartPolicy(wait=broken))
    reach(handle, "failed")
    assert "broken strategy" in handle.replicas[0].detail


def test_a_lambda_and_a_closure_can_be_services(keeper: Keeper, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    reach(keeper.service(lambda: seen.touch(exist_ok=True), name=name(), restart="on-failure"), "completed")
    assert seen.exists()


# -- readiness, order -------------------------------------------------------------------------------------------------


def test_ready_when_it_says_so(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.serve_when_ready, (tmp_path,), name=name(), ready="notify")
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert handle.state is ServiceState.STARTING
    assert not handle.wait(timeout=0.0)
    (tmp_path / "ready").touch()
    reach(handle)
    wait_until(lambda: handle.replicas[0].detail == "all systems go")


def test_what_is_after_another_waits_until_that_is_ready(keeper: Keeper, tmp_path: Path) -> None:
    first = keeper.service(services.serve_when_ready, (tmp_path, "first"), name=name(), ready="notify")
    second = keeper.service(services.serve, (tmp_path, "second"), name=name(), after=[first])
    wait_until(lambda: tasks.notes(tmp_path, "first"))
    assert second.state is ServiceState.WAITING
    assert first.name in second.replicas[0].detail
    (tmp_path / "ready").touch()
    reach(second)
    assert first.state is ServiceState.RUNNING


def test_an_end_before_ready_is_a_failure(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.note_attempt, (tmp_path,), name=name(), ready="notify", restart="never")
    reach(handle, "failed")
    assert handle.exits[0].reason is ExitReason.BEFORE_READY


def test_too_long_until_ready_is_a_failure_with_stacks(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(
        services.never_ready, (tmp_path,), name=name(), ready="notify", start_timeout=0.5, restart="never"
    )
    reach(handle, "failed")
    (exit,) = handle.exits
    assert exit.reason is ExitReason.START_TIMEOUT
    if tasks.notes(tmp_path, "started"):  # a busy machine may not have got that far
        assert "never_ready" in exit.detail


def test_a_service_cannot_be_after_what_is_not_there(keeper: Keeper) -> None:
    with pytest.raises(DeclarationError, match="no service"):
        keeper.service(services.serve, name=name(), after=["nobody"])


# -- watchdog ---------------------------------------------------------------------------------------------------------


def test_a_service_that_hangs_is_replaced_and_leaves_its_stacks(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.hang, (tmp_path,), name=name(), watchdog=0.5, restart=AT_ONCE, ready="notify")
    wait_until(lambda: handle.exits)
    exit = handle.exits[0]
    assert exit.reason is ExitReason.WATCHDOG
    assert exit.exitcode == -signal.SIGKILL
    assert "stuck_here" in exit.detail
    assert "stuck_thread" in exit.detail  # all threads
    assert "stopped (by SIGSTOP" not in exit.detail
    wait_until(lambda: handle.restarts)


def test_heartbeats_keep_it(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.beat, (tmp_path,), name=name(), watchdog=10))
    wait_until(lambda: len(tasks.notes(tmp_path, "beats")) > 100)
    assert handle.exits == ()


def test_one_that_was_stopped_is_told_apart_and_replaced(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.beat_then_stop_myself, (tmp_path,), name=name(), watchdog=0.5, restart=AT_ONCE)
    wait_until(lambda: handle.exits)
    exit = handle.exits[0]
    assert exit.reason is ExitReason.WATCHDOG
    assert "stopped (by SIGSTOP" in exit.detail
    assert "beat_then_stop_myself" in exit.detail
    replaced(handle)


# -- groups, giving up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"), [("one_for_one", (1, 2, 1)), ("rest_for_one", (1, 2, 2)), ("one_for_all", (2, 2, 2))]
)
def test_groups_share_their_fate(keeper: Keeper, tmp_path: Path, strategy: Any, expected: tuple[int, int, int]) -> None:
    group = ServiceGroup(name(), strategy)
    parts = [
        keeper.service(services.serve, (tmp_path, part), name=name(), group=group, restart=AT_ONCE) for part in "abc"
    ]
    for part in parts:
        reach(part)
    wait_until(lambda: all(tasks.notes(tmp_path, part) for part in "abc"))
    os.kill(tasks.notes(tmp_path, "b")[0], signal.SIGKILL)
    wait_until(lambda: tuple(len(tasks.notes(tmp_path, part)) for part in "abc") == expected)
    for part in parts:
        reach(part)


def test_a_failed_group_takes_its_parent_along(keeper: Keeper, tmp_path: Path) -> None:
    outer = ServiceGroup(name(), "one_for_all", max_restarts=1, within=3600, on_give_up="ignore")
    inner = ServiceGroup(name(), max_restarts=1, within=3600, parent=outer)
    beside = keeper.service(services.serve, (tmp_path, "beside"), name=name(), group=outer, restart=AT_ONCE)
    bad = keeper.service(services.fail_unless, (tmp_path,), name=name(), group=inner, restart=AT_ONCE)
    reach(bad, "failed")
    reach(beside, "stopped")
    assert "group" in bad.replicas[0].detail


def test_giving_up_can_stop_all_services(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.services"]) as keeper:
        good = reach(keeper.service(services.serve, name="good"))
        bad = keeper.service(services.fail, name="bad", restart="never", on_give_up="stop-fleet")
        reach(bad, "failed")
        reach(good, "stopped")
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_restart_by_hand_is_no_failure(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.serve, (tmp_path,), name=name()))
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    handle.restart()
    wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
    assert handle.exits[0].reason is ExitReason.RESTARTED
    assert not handle.exits[0].failure
    assert handle.restarts == 0
    assert tasks.notes(tmp_path, "started-ended") == tasks.notes(tmp_path, "started")[:1]


def test_scaling_up_and_down(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.slot, (tmp_path,), name=name(), replicas=2))
    handle.scale(4)
    wait_until(lambda: all(tasks.notes(tmp_path, f"slot-{number}") for number in range(4)))
    reach(handle)
    assert len({replica.pid for replica in handle.replicas}) == 4
    handle.scale(1)
    wait_until(lambda: len(handle.replicas) == 1)
    for number in (1, 2, 3):
        (pid,) = tasks.notes(tmp_path, f"slot-{number}")
        wait_until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
    handle.scale(2)
    wait_until(lambda: len(tasks.notes(tmp_path, "slot-1")) == 2)
    handle.scale(0)
    wait_until(lambda: not handle.replicas)
    handle.scale(1)
    reach(handle)
    for number in (-1, 1.5, True):
        with pytest.raises((ValueError, TypeError)):
            handle.scale(number)  # type: ignore[arg-type]


def test_more_replicas_than_there_can_be_descriptors_for_are_refused(keeper: Keeper) -> None:
    handle = reach(keeper.service(services.serve, name=name()))
    with pytest.raises(ValueError, match=r"open files .*\(ulimit -Hn\); at most \d+ fit"):
        handle.scale(99_999_999_999_999)
    assert len(handle.replicas) == 1
    with pytest.raises(ValueError, match="at most"):
        keeper.service(services.serve, name=name(), replicas=99_999_999_999_999)
    assert len(keeper.services) == len({service.name for service in keeper.services.values()})


def test_waiting_for_a_state_gives_up_in_time(keeper: Keeper) -> None:
    handle = reach(keeper.service(services.serve, name=name()))
    assert not handle.wait("failed", timeout=0.01)
    assert handle.wait(["failed", ServiceState.RUNNING], timeout=0.0)
    with pytest.raises(ValueError, match="nonsense"):
        handle.wait("nonsense")


def test_handles_by_name_and_rows(keeper: Keeper) -> None:
    handle = reach(keeper.service(services.serve, name=name()))
    assert keeper.services[handle.name].pid == handle.pid
    assert handle.name in list(keeper.services)
    (row,) = (row for row in keeper.status().services if row.name == handle.name)
    assert (row.state, row.pid, row.restarts, row.last_exit) == (ServiceState.RUNNING, handle.pid, 0, None)
    assert row.uptime is not None
    assert handle.name in repr(handle)


def test_a_restart_by_hand_takes_the_code_on_disk_if_it_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from poolkeeper import context\n\ndef serve():\n    context().ready('one')\n    context().wait(600)\n"
    (tmp_path / "sold_here.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    module = importlib.import_module("sold_here")
    monkeypatch.delitem(sys.modules, "sold_here")
    monkeypatch.setitem(sys.modules, "sold_here", module)
    with Keeper(1, preload=["sold_here"]) as keeper:
        handle = reach(keeper.service(module.serve, name="shop", ready="notify"))
        pid = handle.pid
        (tmp_path / "sold_here.py").write_text("raise OSError('sold out')")
        with pytest.raises(RestartRefused, match="sold out"):
            handle.restart()
        assert (handle.pid, handle.exits) == (pid, ())
        (tmp_path / "sold_here.py").write_text(source.replace("one", "another"))
        handle.restart()
        wait_until(lambda: handle.replicas[0].detail == "another")
        assert [exit.reason for exit in handle.exits] == [ExitReason.RESTARTED]


# -- events -----------------------------------------------------------------------------------------------------------


def test_events_come_in_order_and_a_callback_that_raises_is_logged(keeper: Keeper) -> None:
    heard: list[ServiceEvent] = []
    said: list[str] = []
    ours = name()

    def raising(event: ServiceEvent) -> None:
        raise RuntimeError(f"about {event.name}")

    logger.enable("poolkeeper")
    sink = logger.add(lambda message: said.append(str(message)), level="ERROR", format="{message}")
    try:
        keeper.on("service.*", lambda event: heard.append(event) if event.name == ours else None)
        keeper.on("service.running", raising)
        handle = reach(keeper.service(services.serve, name=ours))
        handle.stop()
        reach(handle, "stopped")
        wait_until(lambda: heard and heard[-1].state == "stopped")
        wait_until(lambda: any(f"about {ours}" in line for line in said))
    finally:
        logger.remove(sink)
        logger.disable("poolkeeper")
    assert [event.state for event in heard] == ["waiting", "starting", "running", "stopping", "stopped"]
    assert [event.previous for event in heard][1:] == [event.state for event in heard][:-1]
    assert heard[-1].exitcode == 0


def test_the_very_first_event_has_the_time_of_day() -> None:
    heard: list[ServiceEvent] = []
    began = time.time()
    with Keeper(1) as keeper:
        keeper.on("*", heard.append)
        reach(keeper.service(services.serve, name="first"))
        wait_until(lambda: len(heard) >= 3)
    assert began - 1 <= heard[0].time <= heard[1].time <= time.time() + 1


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "a/b", "a\0b", ".", "..", "a b", "ü" * 200])
def test_names_that_cannot_be_are_refused(keeper: Keeper, bad: str) -> None:
    with pytest.raises(ValueError, match="name"):
        keeper.service(services.serve, name=bad)


def test_a_name_is_given_once(keeper: Keeper) -> None:
    handle = keeper.service(services.serve, name=name())
    with pytest.raises(DeclarationError, match="already"):
        keeper.service(services.serve, name=handle.name)
    reach(handle)


@pytest.mark.parametrize("target", [services.makes_a_coroutine, services.generator, services.asynchronous_generator])
def test_what_only_makes_something_to_be_run_has_not_completed(keeper: Keeper, target: Callable[[], object]) -> None:
    handle = reach(keeper.service(target, name=name(), restart="never"), "failed")
    (exit,) = handle.exits
    assert "that nobody runs" in exit.message


def test_what_cannot_travel_is_refused_at_once(keeper: Keeper) -> None:
    with pytest.raises(PayloadError, match="service 'unpicklable'"):
        keeper.service(services.serve, (threading.Lock(),), name="unpicklable")
    with pytest.raises(TypeError, match="coroutine"):
        keeper.service(services.coroutine, name=name())
    with pytest.raises(TypeError, match="callable"):
        keeper.service(3, name=name())  # type: ignore[arg-type]
    with pytest.raises(PoolkeeperError, match="inline"), Keeper(1, start_method="inline") as inline:
        inline.service(services.serve)
    assert "unpicklable" not in keeper.services


def test_a_module_that_raises_at_import_is_a_failure_that_names_it(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"broken_{os.getpid()}"
    path = tmp_path / f"{module}.py"
    path.write_text("def target(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    target = __import__(module).target
    path.write_text("raise RuntimeError('this module is broken')\n")
    handle = reach(keeper.service(target, name=name(), restart="never"), "failed")
    (exit,) = handle.exits
    assert exit.reason is ExitReason.RAISED
    assert "this module is broken" in exit.message
    assert "import the module" in exit.message


# -- keepers ----------------------------------------------------------------------------------------------------------


def test_tasks_and_services_side_by_side(keeper: Keeper) -> None:
    handles = [keeper.service(services.serve, name=name()) for _ in range(3)]
    assert list(keeper.map(tasks.square, range(100))) == [number * number for number in range(100)]
    for handle in handles:
        reach(handle)


def test_services_of_a_named_keeper_write_into_logs_of_their_own(tmp_path: Path) -> None:
    with Keeper(1, name="logged", home=tmp_path, preload=["tests.services"]) as keeper:
        chatty = keeper.service(services.say, ("hello", "there"), name="chatty", restart=AT_ONCE)
        log = keeper.home / "logs" / "chatty.log"
        wait_until(lambda: log.exists() and "hello there" in log.read_text())
        os.kill(reach(chatty).pid or 0, signal.SIGKILL)
        wait_until(lambda: log.read_text().count("hello there") == 2)
        first, second = (line for line in log.read_text().splitlines() if "hello there" in line)
        assert "chatty" in first
        assert str(chatty.exits[0].pid) in first
        assert str(reach(chatty).pid) in second
        failing = keeper.service(services.fail, name="failing", restart="never")
        reach(failing, "failed")
        log = keeper.home / "logs" / "failing.log"
        wait_until(lambda: log.exists() and "ValueError: no luck" in log.read_text())
    assert not list((keeper.home / "logs").glob("*.crash"))


@pytest.mark.parametrize("named", [False, True])
def test_services_by_fork_and_exec(tmp_path: Path, named: bool) -> None:
    where: dict[str, Any] = {"name": "executed", "home": tmp_path / "home"} if named else {}
    with Keeper(1, start_method="loky", **where) as keeper:
        handle = reach(keeper.service(services.serve, (tmp_path,), restart=AT_ONCE))
        wait_until(lambda: tasks.notes(tmp_path, "started"))
        os.kill(tasks.notes(tmp_path, "started")[0], signal.SIGKILL)
        replaced(handle)
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        assert handle.exits[0].exitcode == -9
    assert len(tasks.notes(tmp_path, "started-ended")) == 1


def test_a_keeper_that_nobody_holds_ends_its_services(tmp_path: Path) -> None:
    keeper = Keeper(1, preload=["tests.services"])
    keeper.service(services.serve, (tmp_path,))
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    home = keeper.home
    del keeper
    wait_until(lambda: tasks.notes(tmp_path, "started-ended"))
    wait_until(lambda: not home.exists())


def test_nothing_can_be_asked_of_a_keeper_that_has_ended(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.services"]) as keeper:
        handle = reach(keeper.service(services.serve, (tmp_path,)))
        waiters = [threading.Thread(target=handle.wait, args=("failed",)) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
    for waiter in waiters:
        waiter.join(PATIENCE)
        assert not waiter.is_alive()
    assert handle.state is ServiceState.STOPPED
    for ask in (handle.start, handle.stop, handle.restart, lambda: handle.scale(2)):
        with pytest.raises(RuntimeError):
            ask()
    with pytest.raises(RuntimeError):
        keeper.service(services.serve, name="late")


def test_the_end_of_a_program_stops_its_services(tmp_path: Path) -> None:
    from tests.scripts import run_script

    source = """
        import sys
        from pathlib import Path
        from poolkeeper import Keeper
        from tests import services

        keeper = Keeper(1)
        assert keeper.service(services.serve, (Path(sys.argv[1]),)).wait(timeout=20)
        """
    run_script(tmp_path, source, tmp_path)
    assert tasks.notes(tmp_path, "started") == tasks.notes(tmp_path, "started-ended")


# -- what services do -------------------------------------------------------------------------------------------------


def test_a_service_may_be_its_threads(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.with_threads, (tmp_path,), name=name()))
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert handle.state is ServiceState.RUNNING
    handle.stop()
    reach(handle, "stopped")
    assert tasks.notes(tmp_path, "thread ended")
    assert handle.exits[0].exitcode == 0


def test_a_child_that_returns_is_not_the_service(keeper: Keeper, tmp_path: Path) -> None:
    handle = reach(keeper.service(services.fork_and_return, (tmp_path,), name=name()))
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert handle.pid == tasks.notes(tmp_path, "parent")[0]
    assert handle.exits == ()
    handle.stop()
    reach(handle, "stopped")


def test_a_fork_of_a_service_that_is_ended_at_once_ends(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.fork_under_fire, (tmp_path,), name=name(), restart="never")
    reach(handle, "completed")
    assert tasks.notes(tmp_path, "started")


def test_a_service_may_use_pools_of_multiprocessing(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.terminate_pool, (tmp_path,), name=name(), restart="never")
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    reach(handle)


def test_a_service_may_use_a_keeper(keeper: Keeper, tmp_path: Path) -> None:
    handle = keeper.service(services.nest, (tmp_path,), name=name(), restart="never")
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    handle.stop()
    reach(handle, "stopped")
    assert handle.exits[0].exitcode == 0
    assert tasks.notes(tmp_path, "inner") == tasks.notes(tmp_path, "inner-ended")


@pytest.mark.parametrize("target", [services.close_everything, services.take_all_descriptors])
def test_a_service_may_close_all_descriptors(keeper: Keeper, tmp_path: Path, target: Callable[[Path], None]) -> None:
    assert keeper.submit(tasks.die).exception(PATIENCE) is not None  # from now on processes are made ahead
    handle = keeper.service(target, (tmp_path,), name=name(), restart="never", ready="notify")
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    (tmp_path / "go").touch()
    reach(handle)
    handle.stop()
    reach(handle, "stopped")
    assert tasks.notes(tmp_path, "stopped in order")
    assert {path.read_bytes() for path in tmp_path.glob("file-*")} <= {b"mine"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its user")
def test_a_service_may_change_its_user(keeper: Keeper) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # unlike tmp_path, which stands in a folder of root's
        folder = Path(open_to_all)
        folder.chmod(0o777)
        handle = reach(keeper.service(services.change_user, (folder,), name=name(), restart="never"))
        wait_until(lambda: tasks.notes(folder, "started"))
        handle.stop()
        reach(handle, "stopped")
        assert tasks.notes(folder, "stopped in order")


def test_output_that_is_binary_or_a_flood_harms_nobody(tmp_path: Path) -> None:
    with Keeper(1, name="loud", home=tmp_path / "home", preload=["tests.services"]) as keeper:
        keeper.service(services.print_binary, (tmp_path,), name="binary")
        keeper.service(services.flood, (tmp_path, 20000), name="flood")
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        assert keeper.submit(tasks.square, 4).result(PATIENCE) == 16
        log = keeper.home / "logs" / "binary.log"
        wait_until(lambda: log.exists() and b"ABCDEFG" in log.read_bytes())
