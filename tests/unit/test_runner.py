"""Runs of fleets on threads: order, arguments, failures, and stopping."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from poolkeeper.cancellation import CancellationToken
from poolkeeper.fleet import Fleet, FleetError
from poolkeeper.model import BatchResult, StepResult, TaskResult, TaskStatus
from poolkeeper.runner import RunObserver, run_fleet

DEADLINE = 30.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("poolkeeper-batch")] == []


@pytest.fixture
def fleet() -> Fleet:
    return Fleet("test")


def double(number: int) -> int:
    return 2 * number


def reciprocal(number: int) -> float:
    return 1 / number


class TestOrder:
    def test_steps_get_the_outcomes_of_what_they_are_after(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        fleet.batch(items=range(3))(double)
        fleet.batch(items=[1, 2])(reciprocal)

        @fleet.step(after=[reciprocal, double])
        def both(one: BatchResult[float], other: BatchResult[int]) -> float:
            return sum(one.values) + sum(other.values)

        @fleet.step(after=both)
        def last(total: float) -> str:
            return f"{total:.1f}"

        result = run_fleet(fleet, pool)
        assert result.steps["last"].returned == "7.5"
        assert result["double"].values == [0, 2, 4]
        assert result.ok
        assert list(result) == ["double", "reciprocal"]

    def test_a_batch_can_be_made_of_what_came_before(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        fleet.batch(items=range(3), name="first")(double)
        fleet.batch(items=lambda first: first.values, after="first", name="second")(double)
        assert run_fleet(fleet, pool)["second"].values == [0, 4, 8]

    def test_steps_run_in_the_calling_thread(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        fleet.batch(items=range(3))(double)
        fleet.step(after="double", name="where")(lambda parsed: threading.current_thread())
        assert run_fleet(fleet, pool).steps["where"].returned is threading.current_thread()

    def test_independent_batches_run_together(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        meeting = threading.Barrier(2, timeout=DEADLINE)
        fleet.batch(items=[0], name="one")(lambda item: meeting.wait())
        fleet.batch(items=[0], name="other")(lambda item: meeting.wait())
        assert run_fleet(fleet, pool).ok

    def test_a_wrong_fleet_runs_nothing(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        ran = []
        fleet.batch(items=[1])(ran.append)
        fleet.step(after="nothing", name="late")(lambda outcome: None)
        with pytest.raises(FleetError):
            run_fleet(fleet, pool)
        assert ran == []


class TestFailures:
    def test_failed_tasks_keep_no_step_from_running(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        fleet.batch(items=[1, 0])(reciprocal)
        fleet.step(after="reciprocal", name="count")(lambda outcome: len(outcome.failed))
        result = run_fleet(fleet, pool)
        assert result.steps["count"].returned == 1
        assert result.exit_code == 1

    def test_allowed_failures_do_not_fail_the_run(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        fleet.batch(items=[1, 0], allow_failures=ArithmeticError)(reciprocal)
        result = run_fleet(fleet, pool)
        assert len(result["reciprocal"].failed) == 1
        assert result.exit_code == 0

    def test_a_failed_step_keeps_what_comes_after_it_from_running(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        fleet.step(name="first")(lambda: 1 / 0)
        fleet.step(after="first", name="second")(lambda outcome: None)
        fleet.batch(items=[1], after="second", name="third")(double)
        fleet.step(name="apart")(lambda: "ran")
        result = run_fleet(fleet, pool)
        assert isinstance(result.steps["first"].error, ZeroDivisionError)
        assert result.steps["second"].status is TaskStatus.CANCELLED
        assert result.steps["second"].reason == "first failed"
        assert result.skipped == {"third": "second cancelled"}
        assert result.steps["apart"].returned == "ran"
        assert result.exit_code == 1

    def test_a_step_that_exits_has_failed(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        @fleet.step
        def leave() -> None:
            raise SystemExit("nothing to do")

        assert isinstance(run_fleet(fleet, pool).steps["leave"].error, SystemExit)

    @pytest.mark.parametrize("error", [OSError("no such folder"), SystemExit("no such folder")])
    def test_items_that_cannot_be_had(self, fleet: Fleet, pool: ThreadPoolExecutor, error: BaseException) -> None:
        def items() -> list[int]:
            raise error

        fleet.batch(items=items)(double)
        fleet.step(after="double", name="late")(lambda outcome: None)
        result = run_fleet(fleet, pool)
        assert result["double"].error is error
        assert result.steps["late"].reason == "double was cut short"

    def test_items_that_end_with_an_error_keep_what_was_done(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        def items() -> Iterator[int]:
            yield from range(5)
            raise OSError

        fleet.batch(items=items)(double)
        result = run_fleet(fleet, pool)
        assert result["double"].values == [0, 2, 4, 6, 8]
        assert isinstance(result["double"].error, OSError)

    def test_an_observer_that_raises_cuts_its_batch_short(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        class Broken(RunObserver):
            def task_ended(self, name: str, result: TaskResult[Any]) -> None:
                raise RuntimeError("no display")

        fleet.batch(items=range(1000))(double)
        assert "no display" in str(run_fleet(fleet, pool, observer=Broken())["double"].error)


class TestStopping:
    def test_what_runs_is_finished_and_nothing_new_starts(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        token = CancellationToken()

        def stop(number: int) -> int:
            token.cancel("enough")
            return number

        fleet.batch(items=range(100_000))(stop)
        fleet.step(after="stop", name="late")(lambda outcome: None)
        result = run_fleet(fleet, pool, cancel=token)
        assert 0 < len(result["stop"].succeeded) < 100_000
        assert result.stopped == "enough"
        assert result.steps["late"].reason == "stopped: enough"
        assert result.exit_code == 130

    def test_a_stop_that_comes_too_late_stops_nothing(self, fleet: Fleet, pool: ThreadPoolExecutor) -> None:
        token = CancellationToken()
        fleet.step(name="last")(token.cancel)
        assert run_fleet(fleet, pool, cancel=token).exit_code == 0

    def test_an_interrupt_of_the_caller_is_raised_when_the_threads_have_ended(
        self, fleet: Fleet, pool: ThreadPoolExecutor
    ) -> None:
        @fleet.step
        def interrupted() -> None:
            raise KeyboardInterrupt

        fleet.batch(items=iter(int, 1))(double)  # endless
        with pytest.raises(KeyboardInterrupt):
            run_fleet(fleet, pool)


def test_the_observer_is_told_everything(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    class Recorder(RunObserver):
        def __init__(self) -> None:
            self.told: list[tuple[Any, ...]] = []

        def run_started(self, fleet: Fleet) -> None:
            self.told.append(("run", fleet.name))

        def batch_started(self, name: str, total: int | None) -> None:
            self.told.append(("started", name, total))

        def task_ended(self, name: str, result: TaskResult[Any]) -> None:
            self.told.append(("task", name))

        def batch_ended(self, result: BatchResult[Any]) -> None:
            self.told.append(("ended", result.name, len(result)))

        def step_started(self, name: str) -> None:
            self.told.append(("step", name))

        def step_ended(self, result: StepResult) -> None:
            self.told.append(("step ended", result.name, result.status))

        def batch_skipped(self, name: str, reason: str) -> None:
            self.told.append(("skipped", name))

    fleet.batch(items=[1, 2])(double)
    fleet.step(after="double", name="fail")(lambda outcome: 1 / 0)
    fleet.batch(items=[1], after="fail", name="never")(double)
    recorder = Recorder()
    run_fleet(fleet, pool, observer=recorder)
    assert recorder.told == [
        ("run", "test"),
        ("started", "double", 2),
        ("task", "double"),
        ("task", "double"),
        ("ended", "double", 2),
        ("step", "fail"),
        ("step ended", "fail", TaskStatus.FAILED),
        ("skipped", "never"),
    ]
