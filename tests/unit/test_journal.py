"""The journal's thread: what waits is committed together, told that it is done, and owed while the disk fails."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolkeeper.journal import Journal
from poolkeeper.journal_file import back_up, open_for_reading, open_journal
from poolkeeper.journal_runs import (
    Resume,
    Run,
    discarded_runs,
    end_run,
    insert_run,
    leave_run,
    next_run,
    resume_run,
)
from poolkeeper.messages import Code
from poolkeeper.outcomes import Columns, Outcome
from poolkeeper.recall import Recall
from tests.helpers import wait_until

PATIENCE = 20.0
KEY = bytes(32)


def begin_run(connection: sqlite3.Connection, resume: Resume, now: float) -> tuple[Run, Run | None]:
    """Begin the next run, or go on with the last, as a keeper does."""
    run, last = next_run(connection, resume, now)
    connection.execute(*insert_run(run))
    if run.resumes:
        connection.execute(*resume_run(run))
    return run, last


class Task:
    """A job of one outcome; ``gate`` holds the journal's thread up."""

    def __init__(self, outcome: Outcome, gate: threading.Event | None = None) -> None:
        self.outcome = outcome
        self.gate = gate
        self.asked = threading.Event()
        self.ended = threading.Event()

    def outcomes(self) -> Columns:
        self.asked.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        return Columns.of([self.outcome])

    def done(self) -> None:
        self.ended.set()


def outcome(identity: str | int, value: object = None, *, code: int = Code.VALUE, batch: int = 1) -> Outcome:
    return Outcome(batch, identity, "arguments", int(code), 1, 0, 0.1, value)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path, KEY)
    journal.start(1)
    yield journal
    journal.close()


def groups(journal: Journal) -> list[int]:
    with closing(sqlite3.connect(journal.path)) as connection:
        return [count for (count,) in connection.execute("SELECT count FROM groups ORDER BY id")]


class TestCommits:
    def test_what_waits_goes_together(self, journal: Journal) -> None:
        gate = threading.Event()
        first = Task(outcome(0), gate)
        journal.record(first)
        assert first.asked.wait(PATIENCE)
        others = [Task(outcome(number)) for number in range(1, 100)]
        for task in others:
            journal.record(task)
        assert groups(journal) == []
        gate.set()
        assert others[-1].ended.wait(PATIENCE)
        assert groups(journal) == [1, 99]

    def test_nothing_is_done_before_it_is_committed(self, journal: Journal) -> None:
        seen: list[list[int]] = []

        class Looking(Task):
            def done(self) -> None:
                seen.append(groups(journal))
                super().done()

        task = Looking(outcome(0))
        journal.record(task)
        assert task.ended.wait(PATIENCE)
        assert seen == [[1]]

    def test_closing_waits_for_what_is_there(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, KEY)
        journal.start(1)
        tasks = [Task(outcome(number)) for number in range(1000)]
        for task in tasks:
            journal.record(task)
        journal.close()
        assert all(task.ended.is_set() for task in tasks)
        assert sum(groups(journal)) == 1000

    def test_a_delivery_that_raises_stops_nothing(self, journal: Journal) -> None:
        class Failing(Task):
            def done(self) -> None:
                raise ValueError("delivery")

        journal.record(Failing(outcome(0)))
        task = Task(outcome(1))
        journal.record(task)
        assert task.ended.wait(PATIENCE)
        assert sum(groups(journal)) == 2

    def test_a_delivery_that_raises_is_tried_again(self, tmp_path: Path) -> None:
        class Flaky(Task):
            fails = 1

            def done(self) -> None:
                if self.fails:
                    self.fails -= 1
                    raise MemoryError
                super().done()

        journal = Journal(tmp_path, KEY)
        journal.start(1)
        alone, last = Flaky(outcome(0)), Flaky(outcome(1))
        journal.record(alone)
        assert alone.ended.wait(PATIENCE)
        journal.record(last)
        journal.close()
        assert last.ended.is_set()

    def test_it_is_backed_up_now_and_then(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("poolkeeper.journal.BACKUP_SECONDS", 0.01)
        journal = Journal(tmp_path, KEY)
        journal.start(1)
        backup = tmp_path / "journal.db.bak"

        def recorded() -> int:
            with closing(open_for_reading(backup)) as copy:
                return sum(count for (count,) in copy.execute("SELECT count FROM groups"))

        for number in range(1, 4):
            journal.record(Task(outcome(number)))
            wait_until(lambda number=number: backup.exists() and recorded() == number, "the backup")
        journal.close()

    def test_a_damaged_one_does_not_replace_its_backup(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(open_journal(tmp_path / "journal.db")) as connection:
            connection.execute("INSERT INTO runs (id, state, began) VALUES (1, 'running', 1.0)")
            back_up(connection, tmp_path / "journal.db")
            before = (tmp_path / "journal.db.bak").read_bytes()
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET rootpage = 4711 WHERE name = 'groups'")
            with pytest.raises(sqlite3.DatabaseError):
                back_up(connection, tmp_path / "journal.db")
        assert (tmp_path / "journal.db.bak").read_bytes() == before
        assert not list(tmp_path.glob("*draft*"))

    def test_a_large_group_is_cut(self, journal: Journal) -> None:
        gate = threading.Event()
        first = Task(outcome(0), gate)
        journal.record(first)
        assert first.asked.wait(PATIENCE)
        tasks = [Task(outcome(number, bytes(400_000), code=Code.PICKLED)) for number in range(1, 5)]
        for task in tasks:
            journal.record(task)
        gate.set()
        assert tasks[-1].ended.wait(PATIENCE)
        assert groups(journal) == [1, 2, 2]

    def test_what_is_committed_survives_without_a_close(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, KEY)
        journal.start(1)
        task = Task(outcome(0))
        journal.record(task)
        assert task.ended.wait(PATIENCE)
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in tmp_path.glob("journal.db*"):  # as a crash would leave them
            (copy / path.name).write_bytes(path.read_bytes())
        journal.close()
        with closing(sqlite3.connect(copy / "journal.db")) as connection:
            assert connection.execute("SELECT count FROM groups").fetchall() == [(1,)]


class TestRuns:
    """Which run a keeper works on, by what the one before has left."""

    @pytest.fixture
    def connection(self, tmp_path: Path) -> Iterator[sqlite3.Connection]:
        journal = Journal(tmp_path, KEY)
        yield journal.connection
        journal.close()

    def test_the_first_is_new(self, connection: sqlite3.Connection) -> None:
        assert begin_run(connection, "interrupted", 5.0) == (Run(1, "new", 5.0, None, 0), None)

    @pytest.mark.parametrize(
        ("ending", "resume", "goes_on"),
        [
            ("finished", "interrupted", False),
            ("finished", "failed", True),
            ("finished", "never", False),
            ("interrupted", "interrupted", True),
            ("interrupted", "failed", True),
            ("interrupted", "never", False),
            ("running", "interrupted", True),
            ("running", "failed", True),
            ("running", "never", False),
        ],
    )
    def test_the_second(self, connection: sqlite3.Connection, ending: str, resume: Resume, goes_on: bool) -> None:
        run, _ = begin_run(connection, "interrupted", 5.0)
        if ending != "running":
            connection.execute(*end_run(run, None if ending == "finished" else "Ctrl-C", 6.0))
        connection.execute("INSERT INTO groups VALUES (17, 1, 5.5, 1, x'', x'')")
        after, before = begin_run(connection, resume, 7.0)
        if goes_on:
            reason = "Ctrl-C" if ending == "interrupted" else None
            assert after == Run(1, ending, 5.0, reason, 17 if resume == "failed" else 0)
            assert before is None
        else:
            assert after == Run(2, "new", 7.0, None, 0)
            assert before is not None
            assert before.state == ending
        (state,) = connection.execute("SELECT state FROM runs WHERE id = ?", (after.id,)).fetchone()
        assert state == "running"

    def test_one_can_be_left_as_it_was(self, connection: sqlite3.Connection) -> None:
        run, _ = begin_run(connection, "interrupted", 5.0)
        connection.execute(*end_run(run, "Ctrl-C", 6.0))
        for _ in range(2):
            run, _ = begin_run(connection, "interrupted", 7.0)
            assert (run.state, run.reason) == ("interrupted", "Ctrl-C")
            connection.execute(*leave_run(run))

    def test_old_ones_are_named(self, connection: sqlite3.Connection) -> None:
        for number in range(5):
            begin_run(connection, "never", float(number))
        old, statements = discarded_runs(connection, 3)
        assert sorted(old) == [1, 2]
        for statement in statements:
            connection.execute(*statement)
        assert discarded_runs(connection, 3) == ([], [])
        assert connection.execute("SELECT id FROM runs ORDER BY id").fetchall() == [(3,), (4,), (5,)]

    def test_a_row_is_made_anew_only_if_it_is_not_there(self, connection: sqlite3.Connection) -> None:
        run, _ = begin_run(connection, "interrupted", 5.0)
        connection.execute(*end_run(run, None, 6.0))
        connection.execute(*insert_run(run))
        assert connection.execute("SELECT state FROM runs").fetchall() == [("finished",)]


class TestRecall:
    @pytest.fixture
    def recall(self, tmp_path: Path) -> Iterator[Callable[..., Recall]]:
        made: list[Recall] = []

        def recall(*recorded: list[Outcome], failures_void: int = 0) -> Recall:
            """Write groups of outcomes, and open them for reading."""
            journal = Journal(tmp_path, KEY)
            for number, name in ((1, "work"), (2, "other")):
                sql = "INSERT INTO batches (id, run, name, code, began) VALUES (?, 1, ?, 'code', 1.0)"
                journal.execute(sql, (number, name))
            journal.start(1)
            for group in recorded:
                for each in group:
                    task = Task(each)
                    journal.record(task)
                assert task.ended.wait(PATIENCE)
            journal.close()
            run = Run(1, "running", 1.0, None, failures_void)
            made.append(Recall(open_for_reading(journal.path), journal.key, journal.files, run))
            return made[-1]

        yield recall
        for each in made:
            each.close()

    def test_all_must_agree(self, recall: Callable[..., Recall]) -> None:
        found = recall([outcome("a", 1), outcome(0, 2)], [outcome("a", 3, batch=2)])
        assert found.count == 3
        places = (("work", "a"), ("work", 0), ("other", "a"))
        answers = [found.find(name, "code", identity, "arguments") for name, identity in places]
        assert [answer and answer.payload for answer in answers] == [1, 2, 3]
        for name, code, identity, arguments in (
            ("work", "code", "b", "arguments"),
            ("work", "code", 1, "arguments"),
            ("work", "other code", "a", "arguments"),
            ("work", "code", "a", "other arguments"),
            ("nowhere", "code", "a", "arguments"),
        ):
            assert found.find(name, code, identity, arguments) is None

    def test_the_last_word_counts(self, recall: Callable[..., Recall]) -> None:
        found = recall([outcome("a", b"bad", code=Code.EXCEPTION)], [outcome("a", 2)], [outcome("a", 3)])
        answer = found.find("work", "code", "a", "arguments")
        assert answer is not None
        assert (answer.ok, answer.payload, found.count) == (True, 3, 1)

    def test_failures_can_be_void(self, recall: Callable[..., Recall]) -> None:
        bad = outcome("a", b"bad", code=Code.EXCEPTION)
        assert recall([bad]).find("work", "code", "a", "arguments") is not None
        void = recall(failures_void=1000)
        assert void.find("work", "code", "a", "arguments") is None
        assert void.count == 0

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        recorded=st.lists(
            st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.booleans(), st.booleans()), max_size=30
        )
    )
    def test_it_is_a_dictionary_of_last_words(
        self, tmp_path_factory: pytest.TempPathFactory, recorded: list[tuple[str, int, bool, bool]]
    ) -> None:
        """Against a dict: keys, versions of arguments, successes and failures, arguments without a canonical form."""
        journal = Journal(tmp_path_factory.mktemp("journal"), KEY)
        journal.execute("INSERT INTO batches (id, run, name, code, began) VALUES (1, 1, 'work', 'code', 1.0)", ())
        journal.start(1)
        expected: dict[str, tuple[str, int]] = {}
        for position, (key, version, good, canonical) in enumerate(recorded):
            arguments = str(version) if canonical else None
            code = int(Code.VALUE if good else Code.EXCEPTION)
            journal.record(Task(Outcome(1, key, arguments, code, 1, 0, None, position)))
            if arguments is None:
                expected.pop(key, None)
            else:
                expected[key] = (arguments, position)
        journal.close()
        run = Run(1, "running", 1.0, None, 0)
        recall = Recall(open_for_reading(journal.path), journal.key, journal.files, run)
        try:
            assert recall.count == len(expected)
            for key, (arguments, position) in expected.items():
                found = recall.find("work", "code", key, arguments)
                assert found is not None
                assert found.payload == position
        finally:
            recall.close()
