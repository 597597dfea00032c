"""Reports: what they derive, and that they never fail themselves."""

from __future__ import annotations

import pickle
from concurrent.futures import CancelledError
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from poolkeeper.errors import TaskTimeout
from poolkeeper.losses import TaskQuarantined, WorkerLost
from poolkeeper.model import BatchResult, RunResult, RunStatistics, StepResult, TaskResult, TaskStatus


def succeeded(index: int, value: object = None, **facts: object) -> TaskResult[object]:
    return TaskResult(TaskStatus.SUCCEEDED, index, index, returned=value, **facts)  # type: ignore[arg-type]


def failed(index: int, error: BaseException) -> TaskResult[object]:
    return TaskResult(TaskStatus.of(error), index, index, error=error)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, TaskStatus.SUCCEEDED),
        (ValueError(), TaskStatus.FAILED),
        (SystemExit(1), TaskStatus.FAILED),
        (TimeoutError(), TaskStatus.FAILED),
        (TaskTimeout(), TaskStatus.TIMED_OUT),
        (WorkerLost("gone"), TaskStatus.LOST),
        (TaskQuarantined("gone again"), TaskStatus.QUARANTINED),
        (CancelledError(), TaskStatus.CANCELLED),
    ],
)
def test_status_follows_from_the_error(error: BaseException | None, status: TaskStatus) -> None:
    assert TaskStatus.of(error) is status


def test_cancelled_is_neither_success_nor_failure() -> None:
    assert [status for status in TaskStatus if not status.is_failure] == [TaskStatus.SUCCEEDED, TaskStatus.CANCELLED]


class TestTaskResult:
    def test_value_is_what_the_task_returned(self) -> None:
        assert succeeded(0, 42).value == 42
        assert succeeded(0).value is None

    def test_value_of_a_failure_raises_its_error(self) -> None:
        error = KeyError("lost")
        with pytest.raises(KeyError) as raised:
            _ = failed(0, error).value
        assert raised.value is error

    @pytest.mark.parametrize(
        ("item", "label"),
        [("a  b\nc", "a b c"), (Path("x") / "y.py", str(Path("x") / "y.py")), (42, "42"), ("x" * 500, "x" * 119 + "…")],
    )
    def test_label_is_one_short_line(self, item: object, label: str) -> None:
        assert TaskResult(TaskStatus.SUCCEEDED, 0, item).label == label

    def test_label_is_the_key_if_there_is_one(self) -> None:
        assert TaskResult(TaskStatus.SUCCEEDED, 0, object(), key="row-1").label == "row-1"

    def test_a_repr_that_raises_harms_no_report(self) -> None:
        class Broken(Exception):
            def __repr__(self) -> str:
                raise RuntimeError("no repr")

            __str__ = __repr__

        result: TaskResult[object] = TaskResult(TaskStatus.FAILED, 0, Broken(), error=Broken())
        assert result.label.startswith("<Broken instance")
        assert result.message == "<no text: RuntimeError>"
        assert "Broken" in result.traceback

    def test_message_is_the_first_line_of_the_error(self) -> None:
        assert failed(0, ValueError("one\ntwo")).message == "one"
        assert succeeded(0).message == succeeded(0).traceback == ""

    def test_traceback_includes_the_cause(self) -> None:
        error = ValueError("here")
        error.__cause__ = RuntimeError("in the worker")
        assert "in the worker" in failed(0, error).traceback

    def test_it_cannot_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            succeeded(0).index = 1  # type: ignore[misc]


class TestBatchResult:
    batch: BatchResult[object] = BatchResult(
        "load",
        (
            succeeded(0, "a", seconds=2.0),
            succeeded(1, "b", attempts=2, deaths=1, seconds=1.0),
            failed(2, ValueError("bad")),
            failed(3, TaskTimeout("slow")),
            failed(4, CancelledError()),
        ),
        seconds=2.0,
    )

    def test_it_is_a_sequence(self) -> None:
        assert len(self.batch) == 5
        assert [result.index for result in self.batch] == [0, 1, 2, 3, 4]
        assert self.batch[-1].status is TaskStatus.CANCELLED
        assert len(self.batch[1:3]) == 2

    def test_views(self) -> None:
        assert [result.index for result in self.batch.succeeded] == [0, 1]
        assert [result.index for result in self.batch.failed] == [2, 3]
        assert [result.index for result in self.batch.cancelled] == [4]
        assert self.batch.values == ["a", "b"]

    def test_counts_name_every_status(self) -> None:
        assert set(self.batch.counts) == set(TaskStatus)
        assert self.batch.counts[TaskStatus.TIMED_OUT] == 1
        assert self.batch.counts[TaskStatus.LOST] == 0

    def test_statistics(self) -> None:
        assert self.batch.statistics == RunStatistics(
            tasks=5, succeeded=2, failed=2, cancelled=1, retried=1, attempts=6, deaths=1, seconds=2.0, task_seconds=3.0
        )
        assert self.batch.statistics.rate == 2.0

    def test_nothing_took_no_time(self) -> None:
        assert BatchResult("none").statistics.rate == 0.0

    def test_ok(self) -> None:
        assert BatchResult("none").ok
        assert BatchResult("one", (succeeded(0),)).ok
        assert not self.batch.ok
        assert not BatchResult("items", error=OSError()).ok
        assert not BatchResult("stopped", stopped="enough").ok

    def test_failures_alone_leave_a_batch_complete(self) -> None:
        assert BatchResult("some", (failed(0, ValueError()),)).complete
        assert not self.batch.complete

    def test_allowed_failures_are_reported_and_not_held_against_it(self) -> None:
        batch = BatchResult("some", (failed(0, FileNotFoundError("x")), succeeded(1)), allowed=(OSError,))
        assert batch.ok
        assert len(batch.failed) == batch.statistics.failed == 1
        batch.raise_for_failures()

    def test_other_failures_are(self) -> None:
        batch = BatchResult("some", (failed(0, OSError()), failed(1, ValueError())), allowed=(OSError,))
        assert not batch.ok
        with pytest.raises(ExceptionGroup, match="1 of 2 tasks") as raised:
            batch.raise_for_failures()
        assert [type(error) for error in raised.value.exceptions] == [ValueError]

    def test_raise_for_failures_raises_them_all(self) -> None:
        with pytest.raises(ExceptionGroup, match="3 of 5 tasks of batch 'load'") as raised:
            self.batch.raise_for_failures()
        assert [type(error) for error in raised.value.exceptions] == [ValueError, TaskTimeout, CancelledError]

    def test_raise_for_failures_leaves_success_alone(self) -> None:
        BatchResult("one", (succeeded(0),)).raise_for_failures()

    @pytest.mark.parametrize("batch", [BatchResult("b", error=OSError()), BatchResult("b", stopped="enough")])
    def test_raise_for_failures_raises_whenever_it_is_not_ok(self, batch: BatchResult[object]) -> None:
        with pytest.raises(ExceptionGroup):
            batch.raise_for_failures()

    def test_a_task_that_exits_makes_it_a_base_exception_group(self) -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            BatchResult("b", (failed(0, SystemExit(3)),)).raise_for_failures()
        assert not isinstance(raised.value, ExceptionGroup)

    def test_it_can_be_sent_elsewhere(self) -> None:
        copy = pickle.loads(pickle.dumps(self.batch))
        assert copy.statistics == self.batch.statistics
        assert copy.values == ["a", "b"]


class TestRunResult:
    well: BatchResult[object] = BatchResult("well", (succeeded(0, seconds=1.0),), seconds=1.0)
    ill: BatchResult[object] = BatchResult("ill", (failed(0, ValueError()),), seconds=3.0)
    done = StepResult("report", TaskStatus.SUCCEEDED)

    @pytest.mark.parametrize(
        ("run", "code"),
        [
            (RunResult("f"), 0),
            (RunResult("f", batches={"well": well}, steps={"report": done}), 0),
            (RunResult("f", batches={"well": well, "ill": ill}), 1),
            (RunResult("f", steps={"report": StepResult("report", TaskStatus.FAILED, error=ValueError())}), 1),
            (RunResult("f", skipped={"well": "upstream failed"}), 1),
            (RunResult("f", batches={"well": well}, stopped="SIGINT"), 130),
        ],
    )
    def test_exit_code(self, run: RunResult, code: int) -> None:
        assert run.exit_code == code
        assert run.ok is (code == 0)

    def test_it_maps_names_to_batches(self) -> None:
        run = RunResult("f", batches={"well": self.well, "ill": self.ill}, seconds=3.5)
        assert run["ill"] is self.ill
        assert list(run) == ["well", "ill"]
        assert run.statistics == RunStatistics(
            tasks=2, succeeded=1, failed=1, attempts=2, seconds=3.5, task_seconds=1.0
        )
