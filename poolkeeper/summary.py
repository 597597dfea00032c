"""The end of a run in few words: failures grouped by what went wrong, and the whole as plain data for JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .model import BatchResult, RunResult, StepResult, TaskResult

__all__ = ["FailureGroup", "error_name", "failure_groups", "run_as_data"]


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of the same kind: how many there are, and the first few of them."""

    error: str
    count: int
    first: tuple[TaskResult[Any], ...]


def error_name(error: BaseException | None) -> str:
    """Return the error's class as one would write it in an except clause."""
    if error is None:
        return "unknown"
    kind = type(error)
    known = kind.__module__ in ("builtins", "poolkeeper.errors")
    return kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"


def failure_groups(results: Iterable[TaskResult[Any]], samples: int = 3) -> list[FailureGroup]:
    """Group the failures among ``results`` by their error's class, the largest first, with ``samples`` of each."""
    groups: dict[str, list[TaskResult[Any]]] = {}
    for result in results:
        if result.status.is_failure:
            groups.setdefault(error_name(result.error), []).append(result)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [FailureGroup(name, len(failed), tuple(failed[:samples])) for name, failed in ordered]


def run_as_data(result: RunResult, samples: int = 3) -> dict[str, Any]:
    """Return ``result`` as what ``json.dumps`` takes; of each kind of failure only ``samples`` are described."""
    return {
        "fleet": result.fleet,
        "run_id": result.run_id,
        "ok": result.ok,
        "exit_code": result.exit_code,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 6),
        "batches": {name: _batch_as_data(batch, samples) for name, batch in result.batches.items()},
        "steps": {name: _step_as_data(step) for name, step in result.steps.items()},
        "skipped": dict(result.skipped),
        "services": {name: state.value for name, state in result.services.items()},
        "failure": result.failure,
    }


def _batch_as_data(batch: BatchResult[Any], samples: int) -> dict[str, Any]:
    return {
        **asdict(batch.statistics),
        "ok": batch.ok,
        "error": _error_text(batch.error),
        "stopped": batch.stopped,
        "failures": [
            {
                "error": group.error,
                "count": group.count,
                "first": [
                    {"task": each.label, "status": each.status.value, "message": each.message} for each in group.first
                ],
            }
            for group in failure_groups(batch, samples)
        ],
    }


def _step_as_data(step: StepResult) -> dict[str, Any]:
    return {
        "status": step.status.value,
        "seconds": round(step.seconds, 6),
        "error": _error_text(step.error),
        "reason": step.reason,
    }


def _error_text(error: BaseException | None) -> str | None:
    return None if error is None else f"{error_name(error)}: {error}"
