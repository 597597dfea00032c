"""The journal: a thread that writes down how tasks have ended, many in one transaction, and says when it is done.

Whatever waits when a transaction ends goes into the next one (group commit). When the disk is full, read-only or gone,
the journal says so once, keeps what it owes in memory up to a bound, tries again every second, and holds nobody up:
outcomes are delivered all the same, and would be had again by running the tasks again.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import sqlite3
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from .errors import PoolkeeperError
from .journal_file import ACCIDENTS, Durability, back_up, is_damage, open_journal, replace_journal
from .outcomes import FILE_BYTES, Columns, Filed, grouped, pack, weight
from .reporting import at_any_rate, report
from .result_files import ResultFiles

__all__ = ["JOURNAL", "Job", "Journal"]

JOURNAL = "journal.db"

OWED_BYTES = 64 << 20
"""What may wait in memory for a disk that cannot be written to."""

RETRY_SECONDS = 1.0

BACKUP_SECONDS = 300.0
"""How old the backup of a journal that grows may be, and a moment older: it is made when there is nothing to write."""

FAILURE_SECONDS = 0.05
FAILURES_LIMIT = 100
"""After a failure it pauses for so long; at its end it gives up after so many."""

_NOTHING = object()

Statement = tuple[str, Sequence[Any]]
_GROUP = "INSERT INTO groups (run, recorded, count, head, body) VALUES (?, ?, ?, ?, ?)"


class Job(Protocol):
    """Something to be recorded."""

    def outcomes(self) -> Columns:
        """Return it; called on the journal's thread."""

    def done(self) -> None:
        """It is recorded, or cannot be for the time being; called on the journal's thread, again where it raises."""


class Journal:
    """The journal of one named keeper.

    Args:
        folder: the keeper's home.
        authkey: the home's secret, from which the key that seals records is derived.
        durability: "process": what is recorded survives whatever becomes of processes; "power": of the machine too.
        after_commit: called on the journal's thread when jobs have been told that they are done.

    Raises:
        OSError, sqlite3.Error: when the journal cannot be opened.
        PoolkeeperError: when a newer poolkeeper has written it.
    """

    def __init__(
        self,
        folder: Path,
        authkey: bytes,
        durability: Durability = "process",
        after_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = folder / JOURNAL
        self.key = hmac.digest(authkey, b"poolkeeper journal", "sha256")
        self.files = ResultFiles(folder / "spool", self.key, durable=durability == "power")
        self.run = 0
        self._durability: Durability = durability
        self._after_commit = after_commit
        self._connection: sqlite3.Connection | None = open_journal(self.path, durability)
        self._inode = self.path.stat().st_ino
        self._queue: SimpleQueue[Job | Statement | None] = SimpleQueue()
        self._entry: Any = _NOTHING
        self._jobs: list[Job] = []
        self._statements: list[Statement] = []
        self._undelivered: list[Job] = []
        self._stuck: Job | None = None
        self._tried = self._closing = self._closed = False
        self._standing: dict[object, Statement] = {}
        self._backup_due: float | None = None
        self._damage: Exception | None = None
        self._owed: deque[tuple[Statement, int, int]] = deque()
        self._owed_bytes = 0
        self._lost = 0
        self._trouble: str | None = None
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="poolkeeper-journal", daemon=True)

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for use before ``start``."""
        assert self._connection is not None
        return self._connection

    def start(self, run: int, *, back_up: bool = False) -> None:
        """Begin to record outcomes as those of ``run``; with ``back_up``, when there is a copy of what was recorded."""
        self.run = run
        self._backup_due = 0.0 if back_up else None
        self._thread.start()

    def record(self, job: Job) -> None:
        """Write down what ``job`` says; returns at once."""
        self._queue.put(job)

    def execute(self, sql: str, values: Sequence[Any], *, standing: object = None) -> None:
        """Carry out a statement in its turn.

        Args:
            sql: an INSERT OR IGNORE, UPDATE or DELETE.
            values: its parameters.
            standing: a name for what is to be done again, should the file have to be made anew: what follows would
                make no sense without it.
        """
        if standing is not None:
            self._standing[standing] = (sql, values)
        self._queue.put((sql, values))

    def forget(self, standing: object) -> None:
        """Nothing will follow any more that refers to this statement."""
        self._standing.pop(standing, None)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._disconnect()

    def abandon_in_child(self) -> None:
        """In a fork of the application: the connection is the parent's, and closing it would harm the file."""
        if self._connection is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._backup_due is not None:
            self._back_up()
        failures = 0
        while not self._closed and failures < FAILURES_LIMIT:
            try:
                self._turn()
            except Exception:  # as for want of memory; what was in hand comes up again
                failures = failures + 1 if self._closing else 0
                report("ERROR", f"the journal has failed; this is a defect of poolkeeper\n{traceback.format_exc()}")
                time.sleep(FAILURE_SECONDS)
        at_any_rate(self._say_what_is_lost)
        self._disconnect()

    def _turn(self) -> None:
        """Write what waits, and tell that it is written; what fails is done again in the next turn."""
        self._take()
        if self._jobs or self._statements or self._owed:
            self._write_in_hand()
        elif not self._closing:
            self._back_up_if_due()
        self._undelivered += self._jobs
        self._jobs = []
        for _ in range(1 + self._closing):  # at its end, what has failed gets another chance
            if self._undelivered:
                self._deliver()
        self._closed = self._closing

    def _write_in_hand(self) -> None:
        try:
            self._write(self._jobs, self._statements, last=self._closing)
        except Exception:
            if not self._tried:
                self._tried = True
                raise
            why = traceback.format_exc()
            report("ERROR", f"what has ended cannot be recorded, and would run again: the journal has failed\n{why}")
        self._tried = False
        self._statements = []

    def _deliver(self) -> None:
        """Tell jobs that they are done; those that fail are told again later, for their tasks would never end."""
        failed: list[Job] = []
        for job in self._undelivered:
            try:
                job.done()
            except Exception:
                failed.append(job)
                if job is not self._stuck:
                    self._stuck = job
                    report("ERROR", f"an outcome cannot be delivered, and will be later\n{traceback.format_exc()}")
        self._undelivered = failed
        self._after_commit()

    def _back_up_if_due(self) -> None:
        if self._backup_due is not None and self._trouble is None and time.monotonic() >= self._backup_due:
            self._back_up()

    def _back_up(self) -> None:
        self._backup_due = None
        try:
            back_up(self.connection, self.path)
        except ACCIDENTS as error:
            report("WARNING", f"there is no new backup of the journal {self.path}: {error}")

    def _take(self) -> None:
        """Wait for something to write, and take all that waits in hand: jobs, statements, and whether this is the end.

        What has left the queue is in ``_entry`` until it is in its list.
        """
        try:
            if not (self._jobs or self._statements or self._entry is not _NOTHING):
                self._entry = self._queue.get(timeout=self._patience())
            while self._entry is not None:
                if isinstance(self._entry, tuple):
                    self._statements.append(self._entry)
                elif self._entry is not _NOTHING:
                    self._jobs.append(self._entry)
                self._entry = _NOTHING
                self._entry = self._queue.get_nowait()
            self._closing = True
        except Empty:
            pass

    def _patience(self) -> float | None:
        """Return for how many seconds there is nothing to do unless something comes, None for ever."""
        if self._owed or self._undelivered:
            return RETRY_SECONDS
        return None if self._backup_due is None else max(0.0, self._backup_due - time.monotonic())

    def _write(self, jobs: list[Job], statements: list[Statement], *, last: bool) -> None:
        """Commit all of it, or what fails is owed. Statements go first: they name batches, or nothing comes behind."""
        fresh: list[tuple[Statement, int, int]] = [(statement, 0, 0) for statement in statements]
        now = time.time()
        for group in grouped(self._in_files(job.outcomes()) for job in jobs):
            head, body = pack(group, self.key)
            count = len(group.payloads)
            fresh.append(((_GROUP, (self.run, now, count, head, body)), len(head) + len(body), count))
        if not fresh and not self._owed:
            return
        if self._trouble is None or last or time.monotonic() >= self._retry_at:
            try:
                self._commit([statement for statement, _, _ in (*self._owed, *fresh)])
            except (*ACCIDENTS, PoolkeeperError) as error:
                self._fall_ill(error)
            else:
                self._recover()
                return
        for entry in fresh:
            self._owe(entry)

    def _in_files(self, outcomes: Columns) -> Columns:
        """Put what is too heavy for a row into files; what no file can be had for is lost."""
        payloads = outcomes.payloads
        heavy = [position for position, payload in enumerate(payloads) if weight(payload) > FILE_BYTES]
        for position in reversed(heavy):
            try:
                payloads[position] = Filed(self.files.write(self.run, payloads[position]))
            except OSError as error:
                self._lost += 1
                self._fall_ill(error)
                for column in outcomes.lists:
                    del column[position]
        return outcomes

    def _commit(self, statements: list[Statement]) -> None:
        connection = self._connect()
        if len(statements) == 1:
            connection.execute(*statements[0])  # a transaction of its own
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                connection.execute(sql, values)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise

    # -- trouble ------------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """Return a connection to the file that is there; raises sqlite3.Error, OSError or PoolkeeperError."""
        if self._connection is not None:
            try:
                if os.stat(self.path).st_ino == self._inode:
                    return self._connection
            except FileNotFoundError:
                pass
            self._disconnect()
            raise FileNotFoundError(f"{self.path} is gone")
        if self._damage is None:
            connection = open_journal(self.path, self._durability)
        else:
            connection = replace_journal(self.path, self._damage, self._durability)
            self._damage = None
        try:
            self._inode = self.path.stat().st_ino
            connection.execute("BEGIN IMMEDIATE")
            for sql, values in list(self._standing.values()):
                connection.execute(sql, values)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _fall_ill(self, error: Exception) -> None:
        if is_damage(error):
            self._damage = error
            self._disconnect()
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if self._trouble is None:
            self._trouble = str(error)
            report(
                "ERROR",
                f"the journal cannot be written to ({error}): work goes on, but what ends from now on is not recorded, "
                f"and would run again, until this succeeds: {self.path}",
            )

    def _recover(self) -> None:
        if self._backup_due is None:
            self._backup_due = time.monotonic() + BACKUP_SECONDS
        self._owed.clear()
        self._owed_bytes = 0
        if self._trouble is not None:
            self._trouble = None
            self._say_what_is_lost()
            report("WARNING", f"the journal can be written to again: {self.path}")

    def _owe(self, entry: tuple[Statement, int, int]) -> None:
        _, size, count = entry
        if self._owed_bytes + size > OWED_BYTES:
            self._lost += count
            return
        self._owed.append(entry)
        self._owed_bytes += size

    def _say_what_is_lost(self) -> None:
        lost = self._lost + sum(count for _, _, count in self._owed)
        if lost:
            report("ERROR", f"{lost} outcomes could not be recorded in {self.path}: these tasks would run again")
        self._lost = 0
