"""How a run has ended, left in its home for those who look on from other terminals."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from .logs import emit

__all__ = ["RunOutcome", "forget_outcome", "leave_outcome", "read_outcome"]

OUTCOME = "outcome.json"


class RunOutcome(NamedTuple):
    """The end of a run: whose it was, when it was, in seconds since the epoch, and what it came to.

    ``data`` is that of ``run_as_data``.
    """

    pid: int
    ended: float
    exit_code: int
    data: dict[str, Any]


def leave_outcome(home: Path, outcome: RunOutcome) -> None:
    """Write it down; where that fails, which is said, those who look on do not learn how it has ended."""
    fresh = home / f"{OUTCOME}.{os.getpid()}"
    try:
        fresh.write_text(json.dumps(outcome._asdict()))
        fresh.replace(home / OUTCOME)
    except OSError as error:
        emit("WARNING", f"how the run has ended cannot be written down: {error}")
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def forget_outcome(home: Path) -> None:
    """A new run begins: that of the last one is of no interest any more."""
    with contextlib.suppress(OSError):
        (home / OUTCOME).unlink(missing_ok=True)


def read_outcome(home: Path) -> RunOutcome | None:
    """Return what the last run has left, None where it has left nothing that can be read."""
    try:
        data = json.loads((home / OUTCOME).read_text())
        return RunOutcome(int(data["pid"]), float(data["ended"]), int(data["exit_code"]), dict(data["data"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
