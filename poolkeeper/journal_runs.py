"""Runs in the journal: which one goes on, which one begins, and which ones have been kept long enough."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Literal, NamedTuple

__all__ = [
    "Resume",
    "Run",
    "clock_time",
    "discarded_runs",
    "end_run",
    "insert_run",
    "leave_run",
    "next_run",
    "resume_run",
]

Resume = Literal["interrupted", "failed", "never"]

Statement = tuple[str, tuple[object, ...]]


def clock_time(seconds: float) -> str:
    """Return seconds since the epoch as people write a time."""
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


class Run(NamedTuple):
    """One run as the journal has it, at the time when a keeper opens it.

    ``state`` is that which the keeper before has left: "new" where there was none, "finished", "interrupted" (by
    ``reason``), or "running", if it died. Failures in groups up to ``failures_void`` are to be run again.
    """

    id: int
    state: str
    began: float
    reason: str | None
    failures_void: int

    @property
    def resumes(self) -> bool:
        """Whether there is an earlier part of it."""
        return self.state != "new"

    @property
    def title(self) -> str:
        """What to call it when talking to people."""
        return f"the run of {clock_time(self.began)}"

    @property
    def ending(self) -> str:
        """What has become of it, as a clause."""
        if self.state == "running":
            return "whose keeper died"
        if self.state == "interrupted":
            return f"which was interrupted ({self.reason})"
        return "which is finished"


def next_run(connection: sqlite3.Connection, resume: Resume, now: float) -> tuple[Run, Run | None]:
    """Return the run to work on and, if that is a new one, the run before it.

    Args:
        connection: to the journal.
        resume: "interrupted": an interrupted run goes on, after a finished one a new one begins; "failed": the last
            run goes on and its failures run again; "never": a new one begins.
        now: seconds since the epoch.
    """
    row = connection.execute(
        "SELECT id, state, began, reason, failures_void FROM runs ORDER BY id DESC LIMIT 1"
    ).fetchone()
    last = None if row is None else Run(*row)
    if last is None or resume == "never" or (resume == "interrupted" and last.state == "finished"):
        return Run(1 if last is None else last.id + 1, "new", now, None, 0), last
    if resume == "failed":
        (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM groups").fetchone()
        last = last._replace(failures_void=newest)
    return last, None


def insert_run(run: Run) -> Statement:
    """Return the statement that makes the row of ``run``, if there is none."""
    sql = "INSERT OR IGNORE INTO runs (id, state, began, failures_void) VALUES (?, 'running', ?, ?)"
    return sql, (run.id, run.began, run.failures_void)


def resume_run(run: Run) -> Statement:
    """Return the statement that marks ``run`` as one that goes on."""
    sql = "UPDATE runs SET state = 'running', ended = NULL, reason = NULL, failures_void = ? WHERE id = ?"
    return sql, (run.failures_void, run.id)


def end_run(run: Run, reason: str | None, now: float) -> Statement:
    """Return the statement that marks ``run`` as finished, or as interrupted for a ``reason``."""
    state = "finished" if reason is None else "interrupted"
    return "UPDATE runs SET state = ?, reason = ?, ended = ? WHERE id = ?", (state, reason, now, run.id)


def leave_run(run: Run) -> Statement:
    """Return the statement that leaves ``run`` as it was found."""
    return "UPDATE runs SET state = ?, reason = ? WHERE id = ?", (run.state, run.reason, run.id)


def discarded_runs(connection: sqlite3.Connection, keep: int) -> tuple[list[int], list[Statement]]:
    """Return the runs beyond the newest ``keep``, and the statements that remove them."""
    rows = connection.execute("SELECT id FROM runs ORDER BY id DESC LIMIT -1 OFFSET ?", (keep,)).fetchall()
    old = [id for (id,) in rows]
    if not old:
        return [], []
    newest = max(old)
    return old, [
        ("DELETE FROM groups WHERE run <= ?", (newest,)),
        ("DELETE FROM batches WHERE run <= ?", (newest,)),
        ("DELETE FROM runs WHERE id <= ?", (newest,)),
    ]
