"""What a named keeper records of its tasks, and what it finds recorded by the keepers before it.

Guarantee: the journal commits, then the future resolves. Futures that carry an ``entry`` are handed to the journal's
thread, which settles them; all others never come here.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any

from .errors import PayloadError, PoolkeeperError
from .fingerprint import fingerprint_of_arguments, fingerprint_of_code
from .futures import TaskFuture, Unread
from .journal import JOURNAL, Journal
from .journal_file import ACCIDENTS, Durability, is_damage, lacks_room, open_for_reading, replace_journal
from .journal_runs import (
    Resume,
    Run,
    clock_time,
    discarded_runs,
    end_run,
    insert_run,
    leave_run,
    next_run,
    resume_run,
)
from .ledger import Call
from .logs import emit
from .messages import Code
from .outcomes import Columns, Outcome
from .payload import SCALARS, dumps_exception, loads_exception
from .recall import Recall
from .store import Entry, Recalled

__all__ = ["KeptShelf", "Recorder"]

Deliver = Callable[[list[TaskFuture], Sequence[Any]], None]

_SHORT = 200
_PLAIN = SCALARS | {str, bytes}

_new_tuple = tuple.__new__
"""Makes a NamedTuple in half the time that its own constructor takes."""


class Recorder:
    """The journal of one keeper, in terms of its tasks. It is the ``Store`` of the keeper's batches.

    Args:
        folder: the keeper's home.
        authkey: the home's secret.
        resume: what to take over; see ``Keeper``.
        durability: what records survive; see ``Keeper``.
        keep_runs: how many runs the journal keeps.
        deliver: settles futures with their results; called on the journal's thread.
        deliver_failure: settles a future with an exception; likewise.
        after_delivery: called when that has been done for many.

    Raises:
        OSError, sqlite3.Error: when there can be no journal.
        PoolkeeperError: when a newer poolkeeper has written it.
    """

    def __init__(
        self,
        folder: Path,
        authkey: bytes,
        resume: Resume,
        durability: Durability,
        keep_runs: int,
        deliver: Deliver,
        deliver_failure: Callable[[TaskFuture, BaseException], None],
        after_delivery: Callable[[], None],
    ) -> None:
        self._deliver = deliver
        self._deliver_failure = deliver_failure
        self._journal = journal = Journal(folder, authkey, durability, after_delivery)
        self._recall: Recall | None = None
        self._lock = threading.Lock()
        self._names: Counter[str] = Counter()
        self._open: dict[int, str] = {}
        self._keyed: dict[str | None, KeptShelf] = {}
        self._by_call: dict[int, KeptShelf] = {}
        self._by_function: dict[FunctionType, KeptShelf] = {}
        self._adopted: dict[tuple[str, str, str], KeptShelf] = {}
        self._taken = count()
        self._answered = 0
        self._reason: str | None = None
        self._closed = False
        try:
            self._run = self._begin(resume, keep_runs)
            (number,) = journal.connection.execute("SELECT coalesce(max(id), 0) FROM batches").fetchone()
        except BaseException:
            journal.close()
            raise
        self._numbers = count(number + 1)
        journal.start(self._run.id, back_up=self._run.resumes)

    def _begin(self, resume: Resume, keep_runs: int) -> Run:
        journal = self._journal
        run, last = next_run(journal.connection, resume, time.time())
        journal.execute(*insert_run(run), standing="run")
        if run.resumes:
            journal.execute(*resume_run(run))
        old, statements = discarded_runs(journal.connection, keep_runs - (not run.resumes))
        for number in old:
            journal.files.forget(number)
        for sql, values in statements:
            journal.execute(sql, values)
        if run.resumes:
            reading = open_for_reading(journal.path)
            try:
                self._recall = Recall(reading, journal.key, journal.files, run)
            except BaseException:
                reading.close()
                raise
            if self._recall.count:
                _announce(run, self._recall, resume)
        elif last is not None and last.state != "finished":
            emit("INFO", f"{last.title}, {last.ending}, is discarded: everything runs")
        return run

    # -- batches and keys ---------------------------------------------------------------------------------------------

    def shelf(self, name: str, function: Callable[..., Any]) -> KeptShelf:
        """Return the shelf of a new batch; the second batch of a name gets another one than the first."""
        with self._lock:
            self._names[name] += 1
            if self._names[name] > 1:
                name = f"{name}#{self._names[name]}"
            shelf = self._new_shelf(name, _fingerprint(function, name), "")
            self._open[shelf.number] = name
        return shelf

    def keyed(self, call: Call, function: Callable[..., Any]) -> KeptShelf:
        """Return the shelf of what is submitted by key to ``function``."""
        try:
            return self._by_call[call.id]
        except KeyError:
            return self._keyed_by(self._by_call, call.id, call.name, function)

    def keyed_unpickled(self, function: Callable[..., Any], name: str) -> KeptShelf | None:
        """As ``keyed`` for a function that is the same for as long as it is the same object; None for any other."""
        if type(function) is not FunctionType or function.__closure__ is not None:
            return None
        try:
            return self._by_function[function]
        except KeyError:
            return self._keyed_by(self._by_function, function, name, function)

    def _keyed_by(self, known: dict[Any, KeptShelf], by: Any, name: str, function: Callable[..., Any]) -> KeptShelf:
        code = _fingerprint(function, name)
        with self._lock:
            shelf = self._keyed.get(code)
            if shelf is None:
                shelf = self._keyed[code] = self._new_shelf("", code, _kin_of(function) or code or "")
            if len(known) >= 1000:
                known.clear()
            known[by] = shelf
        return shelf

    def _new_shelf(self, name: str, code: str | None, kin: str) -> KeptShelf:
        number = next(self._numbers)
        shelf = KeptShelf(self, number, name, code, kin, self._taken.__next__)
        self._journal.execute(
            "INSERT OR IGNORE INTO batches (id, run, name, code, began) VALUES (?, ?, ?, ?, ?)",
            (number, self._run.id, name, code, time.time()),
            standing=number,
        )
        return shelf

    def find(self, shelf: KeptShelf, entry: Entry) -> Outcome | None:
        """Return what earlier keepers have recorded of a task."""
        if self._recall is None or shelf.code is None or entry.arguments is None:
            return None
        return self._recall.find(shelf.name, shelf.code, entry.identity, entry.arguments)

    def completed(self, shelf: KeptShelf) -> None:
        """Every item of this batch has a final outcome."""
        if self._open.pop(shelf.number, None) is not None:
            self._journal.execute("UPDATE batches SET ended = ? WHERE id = ?", (time.time(), shelf.number))
            self._journal.forget(shelf.number)

    # -- outcomes; under the keeper's lock ----------------------------------------------------------------------------

    def settle(self, futures: list[TaskFuture], values: Sequence[Any]) -> tuple[list[TaskFuture], Sequence[Any]]:
        """Take charge of the futures that have entries; return the others, with their results."""
        unrecorded = [position for position, future in enumerate(futures) if future.entry is None]
        if len(unrecorded) == len(futures):
            return futures, values
        rest = [futures[position] for position in unrecorded], [values[position] for position in unrecorded]
        if unrecorded:
            kept = [position for position, future in enumerate(futures) if future.entry is not None]
            futures, values = [futures[position] for position in kept], [values[position] for position in kept]
        self._answered += len(futures)
        self._journal.record(_Results(futures, values, self._deliver))
        for future in futures:
            future.answered = True
        return rest

    def fail(self, future: TaskFuture, error: BaseException) -> None:
        """Record that a task has failed for good, and settle it."""
        self._answered += 1
        self._journal.record(_Failure(future, error, self._deliver_failure))
        future.answered = True

    def when_recorded(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, on the journal's thread, when all that it was given before is recorded."""
        self._journal.record(_Milestone(call))

    # -- what workers of an earlier keeper hold -----------------------------------------------------------------------

    def knows(self, name: str, code: str, identity: str | int, arguments: str) -> bool:
        """Whether the outcome of this task is recorded."""
        return self._recall is not None and self._recall.knows(name, code, identity, arguments)

    def answered_elsewhere(self) -> None:
        """A task that was submitted has the outcome of one that nobody had asked for."""
        self._answered += 1

    def adopted(self, name: str, code: str, kin: str) -> KeptShelf:
        """Return a shelf for outcomes that nobody has asked for in this run, or of code that is another by now."""
        shelf = self._adopted.get((name, code, kin))
        if shelf is None:
            with self._lock:
                shelf = self._adopted[name, code, kin] = self._new_shelf(name, code, kin)
        return shelf

    # -- the end ------------------------------------------------------------------------------------------------------

    def leave(self, reason: str) -> None:
        """Have the next run go on with this one, even if all its tasks should come to their end."""
        if self._reason is None:
            self._reason = reason

    def close(self) -> None:
        """Record what waits, settle it, and say whether the run is finished."""
        if self._closed:
            return
        self._closed = True
        touched = self._names or self._keyed
        if not touched and self._run.resumes:
            self._journal.execute(*leave_run(self._run))
        else:
            self._journal.execute(*end_run(self._run, self._why_unfinished(), time.time()))
        if self._recall is not None:
            self._recall.close()  # first: the last one to leave tidies up, which a reader cannot
        self._journal.close()

    def _why_unfinished(self) -> str | None:
        if self._reason is not None:
            return self._reason
        if self._open:
            return f"batch {next(iter(self._open.values()))} did not come to its end"
        missing = next(self._taken) - self._answered
        return f"{missing} tasks have no outcome" if missing else None

    def abandon_in_child(self) -> None:
        """In a fork of the application: the journal is the parent's."""
        self._closed = True
        self._journal.abandon_in_child()


class KeptShelf:
    """The record of one batch, or of what is submitted by key to one function.

    ``number`` is that of its row in the journal; ``code`` the fingerprint of the function, None: it has none; ``kin``
    what, with the name, tells the function from others when its code has changed. ``expect`` is to be called for each
    task that goes to a worker.
    """

    __slots__ = ("_recorder", "_warned", "code", "expect", "kin", "name", "number")

    def __init__(
        self, recorder: Recorder, number: int, name: str, code: str | None, kin: str, expect: Callable[[], object]
    ) -> None:
        self._recorder = recorder
        self.expect = expect
        self._warned = code is None
        self.number = number
        self.name = name
        self.code = code
        self.kin = kin

    def entry(self, identity: str | int, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Entry:
        """Return what one task is recorded under: its key or position, and its arguments. Never raises."""
        if not kwargs:
            for argument in args:  # quicker than to make a set of the few that there are
                if type(argument) not in _PLAIN:
                    break
            else:
                text = repr(args)  # for these types it is one and the same in every process
                if len(text) <= _SHORT:
                    return _new_tuple(Entry, (self, identity, text))
        try:
            arguments, why = fingerprint_of_arguments(args, kwargs)
        except Exception as error:  # whatever the objects of others do when they are looked at
            arguments, why = None, repr(error)
        if arguments is None and not self._warned:
            self._warned = True
            emit(
                "WARNING",
                f"{self.name or 'task'} {identity!r}: {why}; so nothing tells whether its arguments are the same next "
                "time, and it and others like it run again when the run is resumed",
            )
        return Entry(self, identity, arguments)

    def recall(self, entry: Entry) -> Recalled | None:
        """Return the outcome that an earlier run has recorded, if that may be reused."""
        outcome = self._recorder.find(self, entry)
        if outcome is None:
            return None
        value: Any = outcome.payload
        error: BaseException | None = None
        try:
            if outcome.code == Code.EXCEPTION:
                value, error = None, loads_exception(value)
                if isinstance(error, PayloadError):
                    raise error
            elif outcome.code != Code.VALUE:
                value = Unread(outcome.code, value).read()
        except PayloadError as problem:
            emit("WARNING", f"the recorded outcome of {self.name or 'the task with key'} {entry.identity!r} {problem}")
            return None
        return Recalled(value, error, outcome.attempts, outcome.deaths, outcome.seconds)

    def completed(self) -> None:
        """Every item of the batch has a final outcome."""
        self._recorder.completed(self)


class _Results:
    """Futures whose results are to be recorded."""

    __slots__ = ("_deliver", "_futures", "_values")

    def __init__(self, futures: list[TaskFuture], values: Sequence[Any], deliver: Deliver) -> None:
        self._futures = futures
        self._values = values
        self._deliver = deliver

    def outcomes(self) -> Columns:
        """Return what is to be recorded."""
        futures, values = self._futures, self._values
        shelves, identities, arguments = zip(*[future.entry for future in futures], strict=True)
        return Columns(
            [shelf.number for shelf in shelves],
            list(identities),
            list(arguments),
            [value.code if type(value) is Unread else 0 for value in values],
            [future.attempts for future in futures],
            [future.deaths for future in futures],
            [future.run_seconds for future in futures],
            [value.payload if type(value) is Unread else value for value in values],
        )

    def done(self) -> None:
        """It is recorded."""
        self._deliver(self._futures, self._values)


class _Failure:
    """A future that fails because of what became of its worker or its time."""

    __slots__ = ("_deliver", "_error", "_future")

    def __init__(
        self, future: TaskFuture, error: BaseException, deliver: Callable[[TaskFuture, BaseException], None]
    ) -> None:
        self._future = future
        self._error = error
        self._deliver = deliver

    def outcomes(self) -> Columns:
        """Return what is to be recorded."""
        future = self._future
        assert future.entry is not None
        shelf, identity, arguments = future.entry
        payload = dumps_exception(self._error, future.call.name)
        code = int(Code.EXCEPTION)
        outcome = Outcome(
            shelf.number, identity, arguments, code, future.attempts, future.deaths, future.run_seconds, payload
        )
        return Columns.of([outcome])

    def done(self) -> None:
        """It is recorded."""
        self._deliver(self._future, self._error)


class _Milestone:
    """Nothing to be recorded, but all before it is when it is done."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def outcomes(self) -> Columns:
        """Return nothing."""
        return Columns.of()

    def done(self) -> None:
        """Its turn has come."""
        self._call()


def open_recorder(folder: Path, *args: Any, survivors: int) -> Recorder | None:
    """Return a Recorder, or None while the disk is so full that there can be no journal, which is said.

    Args:
        folder: the keeper's home.
        args: the further arguments of ``Recorder``.
        survivors: how many processes an earlier keeper has left; without a journal they cannot be taken over.

    Raises:
        PoolkeeperError: when there can be no journal for another reason, or there are survivors.
    """
    try:
        try:
            return Recorder(folder, *args)
        except ACCIDENTS as error:
            if not is_damage(error):
                raise
            replace_journal(folder / JOURNAL, error).close()  # it was found when the records were read
            return Recorder(folder, *args)
    except ACCIDENTS as error:
        why = f"the journal {folder / JOURNAL} cannot be opened ({error})"
        if not lacks_room(error):
            raise PoolkeeperError(
                f"{why}, and what earlier runs have done is not known without it: make it accessible, or move it away "
                "to have all work run again, or give another run_id"
            ) from error
        if survivors:
            raise PoolkeeperError(
                f"{why}, and {survivors} processes of an earlier keeper cannot be taken over without it; they go on: "
                "make room on the disk and start again"
            ) from error
        emit("ERROR", f"{why}: nothing is recorded, all work runs")
        return None


def _fingerprint(function: Callable[..., Any], name: str) -> str | None:
    try:
        code, why = fingerprint_of_code(function)
    except Exception as error:  # whatever the objects of others do when they are looked at
        code, why = None, repr(error)
    if code is None:
        emit(
            "WARNING",
            f"{name}: {why}; so nothing tells whether the function is the same next time, and its tasks run again "
            "when the run is resumed",
        )
    return code


def _kin_of(function: Callable[..., Any]) -> str | None:
    """Return what is the same for a function of a module whatever its code; None where its name does not tell."""
    name = getattr(function, "__qualname__", "<")
    return None if "<" in name else f"{function.__module__}.{name}"


def _announce(run: Run, recall: Recall, resume: Resume) -> None:
    what = "its failures run again" if resume == "failed" else "it goes on"
    emit(
        "INFO",
        f"{run.title}, {run.ending}: {what}; {recall.count} recorded outcomes, the last from "
        f"{clock_time(recall.latest)}, are reused where code and arguments are the same",
    )
