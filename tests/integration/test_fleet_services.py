"""Fleets with services: what comes after them, when a run ends, what hooks hear."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger
from tenacity import wait_none

from poolkeeper import Fleet, Keeper, RestartPolicy, RunResult, ServiceState, command
from poolkeeper.cancellation import CancellationToken
from poolkeeper.runner import run_fleet
from poolkeeper.service_model import ServiceEvent
from tests import services, tasks
from tests.helpers import PATIENCE, wait_until

AT_ONCE = RestartPolicy(wait=wait_none())


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with Keeper(2, preload=["tests.services"]) as keeper:
        yield keeper


def in_background(fleet: Fleet, keeper: Keeper, cancel: CancellationToken | None = None) -> _Run:
    run = _Run(fleet, keeper, cancel)
    run.start()
    return run


class _Run(threading.Thread):
    def __init__(self, fleet: Fleet, keeper: Keeper, cancel: CancellationToken | None) -> None:
        super().__init__()
        self._arguments = fleet, keeper, cancel
        self._result: RunResult | None = None

    def run(self) -> None:
        fleet, keeper, cancel = self._arguments
        self._result = run_fleet(fleet, keeper, cancel=cancel)

    def result(self) -> RunResult:
        self.join(PATIENCE)
        assert not self.is_alive()
        assert self._result is not None
        return self._result


def test_a_batch_waits_for_its_service_and_ends_it_with_the_run(keeper: Keeper, tmp_path: Path) -> None:
    fleet = Fleet("served")
    fleet.service(name="server", ready="notify")(_Call(services.serve_when_ready, tmp_path))
    fleet.batch(items=range(5), after="server", name="squares")(tasks.square)
    run = in_background(fleet, keeper)
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert not list(tmp_path.glob("squares"))
    (tmp_path / "ready").touch()
    result = run.result()
    assert result.ok
    assert sorted(each.value for each in result.batches["squares"]) == [0, 1, 4, 9, 16]
    assert result.services == {"server": ServiceState.RUNNING}
    assert keeper.services["server"].state is ServiceState.STOPPED


class _Call:
    """A callable with its arguments, for fleets give services none."""

    def __init__(self, function: object, *args: object) -> None:
        self.function = function
        self.args = args

    def __call__(self) -> None:
        self.function(*self.args)  # type: ignore[operator]


def test_a_step_gets_the_handle(keeper: Keeper) -> None:
    fleet = Fleet("stepped")
    fleet.service(name="server")(services.serve)
    seen: list[object] = []

    @fleet.step(after="server")
    def look(server: object) -> None:
        seen.append(server)

    assert keeper.run(fleet).ok
    assert getattr(seen[0], "name", None) == "server"


def test_what_is_after_a_service_that_fails_does_not_run(keeper: Keeper) -> None:
    fleet = Fleet("failing")
    fleet.service(name="server", restart="never", ready="notify")(_Call(services.fail))
    fleet.batch(items=range(5), after="server", name="squares")(tasks.square)
    result = keeper.run(fleet)
    assert not result.ok
    assert "server" in (result.failure or "")
    assert "failed" in result.skipped["squares"]


def test_services_alone_end_when_each_has_completed_or_failed(keeper: Keeper, tmp_path: Path) -> None:
    fleet = Fleet("alone")
    fleet.service(name="good", restart="on-failure")(_Call(services.note_attempt, tmp_path))
    fleet.service(name="bad", restart=RestartPolicy.on_failure(max_retries=1, delay=0.01))(_Call(services.fail))
    fleet.service(name="program", restart="on-failure")(command("true"))
    result = keeper.run(fleet)
    assert result.services == {
        "good": ServiceState.COMPLETED,
        "bad": ServiceState.FAILED,
        "program": ServiceState.COMPLETED,
    }
    assert result.failure == "bad failed"


def test_services_alone_go_on_until_they_are_cancelled(keeper: Keeper, tmp_path: Path) -> None:
    fleet = Fleet("lasting")
    fleet.service(name="server", restart=AT_ONCE)(_Call(services.serve, tmp_path))
    cancel = CancellationToken()
    run = in_background(fleet, keeper, cancel)
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert run.is_alive()
    cancel.cancel("enough")
    result = run.result()
    assert result.stopped == "enough"
    assert tasks.notes(tmp_path, "started-ended")


def test_the_end_of_the_keeper_ends_a_run_of_services(tmp_path: Path) -> None:
    fleet = Fleet("ended")
    fleet.service(name="server", restart=AT_ONCE)(_Call(services.serve, tmp_path))
    with Keeper(1, preload=["tests.services"]) as keeper:
        run = in_background(fleet, keeper)
        wait_until(lambda: tasks.notes(tmp_path, "started"))
    run.result()


def test_giving_up_can_stop_the_fleet(keeper: Keeper, tmp_path: Path) -> None:
    fleet = Fleet("collapsing")
    fleet.service(name="server")(_Call(services.serve, tmp_path))
    fleet.service(name="vital", restart="never", on_give_up="stop-fleet", after="server")(_Call(services.fail))
    result = keeper.run(fleet)
    assert not result.ok
    assert "vital" in (result.failure or "")


def test_hooks_hear_and_one_that_raises_is_logged_only(keeper: Keeper) -> None:
    fleet = Fleet("hooked")
    fleet.service(name="bad", restart=RestartPolicy.on_failure(max_retries=1, delay=0.01))(_Call(services.fail))
    heard: list[ServiceEvent] = []
    said: list[str] = []

    @fleet.on("service.failed")
    def remember(event: ServiceEvent) -> None:
        heard.append(event)

    @fleet.on("service.*")
    def raising(event: ServiceEvent) -> None:
        raise RuntimeError("a hook that raises")

    logger.enable("poolkeeper")
    sink = logger.add(lambda message: said.append(str(message)), level="ERROR", format="{message}")
    try:
        result = keeper.run(fleet)
        wait_until(lambda: heard)
        wait_until(lambda: any("a hook that raises" in line for line in said))
    finally:
        logger.remove(sink)
        logger.disable("poolkeeper")
    assert result.services == {"bad": ServiceState.FAILED}
    assert [event.name for event in heard] == ["bad"]
    assert "ValueError: no luck" in heard[0].reason


def test_a_fleet_can_run_again_on_the_same_keeper(keeper: Keeper, tmp_path: Path) -> None:
    fleet = Fleet("again")
    fleet.service(name="server")(_Call(services.serve, tmp_path))
    fleet.batch(items=range(3), after="server", name="squares")(tasks.square)
    heard: list[str] = []
    fleet.on("service.running")(lambda event: heard.append(event.name))
    for turn in (1, 2, 3):
        assert keeper.run(fleet).ok
        wait_until(lambda turn=turn: len(heard) == turn)  # type: ignore[misc]
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    assert heard == ["server"] * 3


def test_services_stop_in_reverse_order(keeper: Keeper) -> None:
    fleet = Fleet("ordered")
    stopped: list[str] = []
    fleet.service(name="top", after="base")(services.serve)
    fleet.service(name="base")(services.serve)
    fleet.batch(items=range(3), after="top", name="squares")(tasks.square)
    fleet.on("service.stopped")(lambda event: stopped.append(event.name))
    assert keeper.run(fleet).ok
    wait_until(lambda: len(stopped) == 2)
    assert stopped == ["top", "base"]
