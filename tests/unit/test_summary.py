"""Grouped failures, and a run as JSON."""

from __future__ import annotations

import json
import subprocess

import pytest

from poolkeeper.errors import TaskTimeout
from poolkeeper.model import BatchResult, RunResult, StepResult, TaskResult, TaskStatus
from poolkeeper.summary import error_name, failure_groups, run_as_data


def failed(index: int, error: BaseException) -> TaskResult[object]:
    return TaskResult(TaskStatus.of(error), index, f"item-{index}", error=error)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(), "ValueError"),
        (TaskTimeout(), "TaskTimeout"),
        (subprocess.TimeoutExpired("x", 1), "subprocess.TimeoutExpired"),
        (None, "unknown"),
    ],
)
def test_errors_are_named_as_in_except_clauses(error: BaseException | None, name: str) -> None:
    assert error_name(error) == name


def test_groups_are_ordered_by_size_and_show_the_first() -> None:
    results = [failed(0, OSError("a")), *(failed(index, ValueError(str(index))) for index in range(1, 6))]
    results.append(TaskResult(TaskStatus.SUCCEEDED, 6))
    groups = failure_groups(results, samples=2)
    assert [(group.error, group.count) for group in groups] == [("ValueError", 5), ("OSError", 1)]
    assert [result.message for result in groups[0].first] == ["1", "2"]


def test_a_run_is_plain_data() -> None:
    batch = BatchResult("load", (failed(0, ValueError("bad")), TaskResult(TaskStatus.SUCCEEDED, 1)), seconds=2.0)
    run = RunResult(
        "census",
        batches={"load": batch},
        steps={"report": StepResult("report", TaskStatus.FAILED, error=KeyError("k"))},
        skipped={"late": "report failed"},
    )
    data = json.loads(json.dumps(run_as_data(run)))
    assert data["exit_code"] == 1
    assert data["batches"]["load"]["succeeded"] == 1
    assert data["batches"]["load"]["failures"] == [
        {"error": "ValueError", "count": 1, "first": [{"task": "item-0", "status": "failed", "message": "bad"}]}
    ]
    assert data["steps"]["report"]["error"] == "KeyError: 'k'"
    assert data["skipped"] == {"late": "report failed"}
