"""Named keepers record how tasks end, and the next keeper of the name reuses what it may; in one process."""

from __future__ import annotations

import functools
import operator
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from poolkeeper import (
    CancellationToken,
    ExecutionPolicy,
    Keeper,
    PoolkeeperError,
    RateLimit,
    RetryPolicy,
    TaskQuarantined,
    TaskStatus,
    TaskTimeout,
    command,
    journal_file,
)
from poolkeeper.program import Program
from poolkeeper.reporting import flush
from tests.disks import fill, small_disk
from tests.helpers import remove_in_use, wait_until


class Notes:
    """The traces that tasks leave in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def take(self) -> list[str]:
        """Return what was called since the last time."""
        path = Path(self.folder) / "ran"
        try:
            return path.read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        finally:
            path.unlink(missing_ok=True)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


@pytest.fixture
def note(notes: Notes) -> Callable[[Any], Any]:
    folder = notes.folder

    def note(item: Any) -> Any:
        with open(f"{folder}/ran", "a") as file:
            file.write(f"{item}\n")
        return item

    return note


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    logger.enable("poolkeeper")
    yield lines
    logger.disable("poolkeeper")
    logger.remove(sink)


@pytest.fixture
def open_keeper(tmp_path: Path) -> Callable[..., Keeper]:
    def make(**options: Any) -> Keeper:
        return Keeper(2, **{"name": "test", "home": tmp_path / "home", **options})

    return make


class Interruption(Exception):
    """Leaves the with block."""


def interrupt() -> None:
    raise Interruption


def rows(keeper: Keeper, sql: str = "SELECT coalesce(sum(count), 0) FROM groups") -> Any:
    with closing(sqlite3.connect(keeper.home / "journal.db")) as connection:
        return connection.execute(sql).fetchall()


def state(keeper: Keeper) -> tuple[str, str | None]:
    return rows(keeper, "SELECT state, reason FROM runs ORDER BY id DESC")[0]  # type: ignore[no-any-return]


class TestKeys:
    def test_an_interrupted_run_gives_the_recorded_outcome(
        self, open_keeper: Any, notes: Notes, note: Callable[[Any], Any], said: list[str]
    ) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            first = keeper.options(key="a").submit(note, 1)
            assert first.result() == 1
            assert not first.reused
            interrupt()
        assert state(keeper) == ("interrupted", "Interruption left the with block")
        with open_keeper() as keeper:
            future = keeper.options(key="a").submit(note, 1)
            assert future.done()
            assert (future.result(), future.reused, future.attempts) == (1, True, 1)
            assert keeper.options(key="b").submit(note, 1).result() == 1
        assert notes.take() == ["1", "1"]
        assert "1 recorded outcomes" in "".join(said)

    def test_a_finished_one_starts_afresh(self, open_keeper: Any, note: Callable[[Any], Any], notes: Notes) -> None:
        for _ in range(2):
            with open_keeper() as keeper:
                assert not keeper.options(key="a").submit(note, 1).reused
            assert state(keeper) == ("finished", None)
        assert notes.take() == ["1", "1"]

    def test_other_arguments_are_another_task(self, open_keeper: Any, note: Callable[[Any], Any], notes: Notes) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.options(key="a").submit(note, 1).result()
            interrupt()
        with open_keeper() as keeper:
            assert keeper.options(key="a").submit(note, 1.0).result() == 1.0
            assert keeper.options(key="a").submit(note, [1, {"x": {2, 3}}]).result() == [1, {"x": {2, 3}}]
        assert len(notes.take()) == 3

    def test_other_code_is_another_task(self, open_keeper: Any) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.options(key="a").submit(lambda item: item + 1, 1).result()
            interrupt()
        with open_keeper() as keeper:
            same = keeper.options(key="a").submit(lambda item: item + 1, 1)
            other = keeper.options(key="a").submit(lambda item: item + 2, 1)
            assert (same.reused, same.result()) == (True, 2)
            assert (other.reused, other.result()) == (False, 3)

    def test_map_with_a_key_resumes(self, open_keeper: Any, note: Callable[[Any], Any], notes: Notes) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            assert list(keeper.options(key=str).map(note, range(5))) == list(range(5))
            interrupt()
        notes.take()
        with open_keeper() as keeper:
            assert list(keeper.options(key=str).map(note, range(7))) == list(range(7))
        assert sorted(notes.take()) == ["5", "6"]

    def test_without_a_key_nothing_is_recorded(self, open_keeper: Any, note: Callable[[Any], Any]) -> None:
        with open_keeper() as keeper:
            keeper.submit(note, 1).result()
            assert rows(keeper) == [(0,)]

    def test_the_outcome_is_recorded_when_the_future_resolves(self, open_keeper: Any) -> None:
        with open_keeper() as keeper:
            for number in range(20):
                keeper.options(key=str(number)).submit(abs, number).result()
                assert rows(keeper) == [(number + 1,)]
            done = threading.Event()
            counts: list[Any] = []
            future = keeper.options(key="late").submit(abs, 20)
            future.add_done_callback(lambda _: (counts.append(rows(keeper)), done.set()))
            assert done.wait(20)
            assert counts == [[(21,)]]

    def test_what_does_not_unpickle_any_more_runs_again(
        self, open_keeper: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.options(key="a").submit(_Vanishing, 1).result()
            interrupt()
        monkeypatch.setenv("VANISHED", "1")
        with open_keeper() as keeper:
            future = keeper.options(key="a").submit(_Vanishing, 1)
            assert not future.reused
        assert "cannot be unpickled" in "".join(said)


class _Vanishing:
    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: Any) -> None:
        if "VANISHED" in os.environ:
            raise ValueError("there is no such thing any more")
        self.__dict__.update(state)


class TestFailures:
    def fail_in_each_way(self, keeper: Keeper) -> list[BaseException | None]:
        futures = [
            keeper.options(key="raises").submit(divmod, 1, 0),
            keeper.options(key="dies", retry=RetryPolicy(deaths=1)).submit(os._exit, 3),
            keeper.options(key="hangs", timeout=0.2).submit(_sleep, 60),
        ]
        return [future.exception() for future in futures]

    def test_they_are_recorded_and_reused(self, open_keeper: Any) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            before = self.fail_in_each_way(keeper)
            interrupt()
        with open_keeper() as keeper:
            after = self.fail_in_each_way(keeper)
            assert rows(keeper) == [(3,)]
        kinds = [ZeroDivisionError, TaskQuarantined, TaskTimeout]
        assert [type(error) for error in before] == [type(error) for error in after] == kinds
        assert list(map(str, before)) == list(map(str, after))

    def test_resume_failed_runs_them_again(self, open_keeper: Any, note: Callable[[Any], Any], notes: Notes) -> None:
        with open_keeper() as keeper:
            self.fail_in_each_way(keeper)
            keeper.options(key="well").submit(note, 1).result()
        with open_keeper(resume="failed") as keeper:
            self.fail_in_each_way(keeper)
            assert keeper.options(key="well").submit(note, 1).reused
            assert rows(keeper) == [(7,)]
        assert notes.take() == ["1"]

    def test_what_was_cancelled_has_no_outcome(self, open_keeper: Any) -> None:
        with open_keeper() as keeper:
            blocked = [keeper.options(key=f"blocks {number}").submit(_sleep, 0.3) for number in range(2)]
            future = keeper.options(key="late").submit(abs, 1)
            assert future.cancel() or future.result() == 1
            cancelled = future.cancelled()
            assert [each.result() for each in blocked] == [None, None]
        assert state(keeper)[0] == ("interrupted" if cancelled else "finished")


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


class TestBatches:
    def test_items_are_known_by_their_order(self, open_keeper: Any, note: Callable[[Any], Any], notes: Notes) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.batch(note, ["a", "b", "b"]).result()
            interrupt()
        notes.take()
        with open_keeper() as keeper:
            result = keeper.batch(note, ["a", "B", "b", "c"]).result()
        assert sorted(notes.take()) == ["B", "c"]
        assert [each.reused for each in result] == [True, False, True, False]
        assert result.values == ["a", "B", "b", "c"]
        assert result.statistics.reused == 2

    def test_two_of_one_name_are_two(self, open_keeper: Any, note: Callable[[Any], Any], notes: Notes) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.batch(note, [1]).result()
            keeper.batch(note, [2]).result()
            interrupt()
        notes.take()
        with open_keeper() as keeper:
            assert keeper.batch(note, [1]).result()[0].reused
            assert keeper.batch(note, [2]).result()[0].reused
            assert not keeper.batch(note, [1]).result()[0].reused

    def test_one_that_was_cancelled_goes_on(self, open_keeper: Any, note: Callable[[Any], Any], notes: Notes) -> None:
        token = CancellationToken()
        with open_keeper() as keeper:
            for result in keeper.batch(note, range(10_000), key=str, cancel=token):
                if result.index == 50:
                    token.cancel("enough")
        done = len(notes.take())
        assert state(keeper)[0] == "interrupted"
        with open_keeper() as keeper:
            result = keeper.batch(note, range(10_000), key=str).result()
        assert result.ok
        assert len(notes.take()) == 10_000 - done == 10_000 - result.statistics.reused

    def test_a_rate_limit_does_not_hold_back_what_is_reused(self, open_keeper: Any, note: Callable[[Any], Any]) -> None:
        policy = ExecutionPolicy(rate_limit=RateLimit(1, per=3600, burst=3))
        with suppress(Interruption), open_keeper() as keeper:
            keeper.batch(note, range(3), policy=policy).result()
            interrupt()
        with open_keeper() as keeper:  # would take hours
            result = keeper.batch(note, range(6), policy=policy).result()
        assert [each.reused for each in result] == [True] * 3 + [False] * 3

    def test_failures_keep_their_status(self, open_keeper: Any) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.batch(_invert, [1, 0], policy=ExecutionPolicy(retry=2)).result()
            interrupt()
        with open_keeper() as keeper:
            good, bad = keeper.batch(_invert, [1, 0], policy=ExecutionPolicy(retry=2)).result()
        assert (good.status, bad.status) == (TaskStatus.SUCCEEDED, TaskStatus.FAILED)
        assert (good.attempts, bad.attempts, bad.reused) == (1, 2, True)
        assert isinstance(bad.error, ZeroDivisionError)
        assert "_invert" in bad.traceback

    def test_arguments_without_a_canonical_form_run_again_with_one_warning(
        self, open_keeper: Any, said: list[str]
    ) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.batch(len, [_Odd(), _Odd(), _Odd()]).result()
            interrupt()
        assert "".join(said).count("no canonical form") == 1
        with open_keeper() as keeper:
            assert keeper.batch(len, [_Odd()]).result().statistics.reused == 0


class _Odd(list):  # type: ignore[type-arg]
    """Pickles differently each time."""

    def __reduce__(self) -> Any:
        if sys._getframe(1).f_code.co_name != "dumps" or "fingerprint" in sys._getframe(2).f_code.co_filename:
            raise TypeError("not for your eyes")
        return _Odd, ()


def _invert(number: int) -> float:
    return 1 / number


class TestHeavyResults:
    @pytest.mark.parametrize("size", [100_000, 2_000_000, 20_000_000])
    def test_they_come_back(self, open_keeper: Any, size: int) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            assert keeper.options(key="bytes").submit(bytes, size).result() == bytes(size)
            assert keeper.options(key="array").submit(bytearray, size).result() == bytearray(size)
            interrupt()
        assert len(list((keeper.home / "spool").glob("run-1-*"))) == (2 if size > 4 << 20 else 0)
        with open_keeper() as keeper:
            first = keeper.options(key="bytes").submit(bytes, size)
            second = keeper.options(key="array").submit(bytearray, size)
            assert first.reused
            assert second.reused
            assert first.result() == bytes(size)
            second.result()[0] = 1
            assert len(second.result()) == size

    def test_a_missing_or_torn_file_is_noticed(self, open_keeper: Any, said: list[str]) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            for number in range(3):
                keeper.options(key=str(number)).submit(bytes, 5_000_000 + number).result()
            interrupt()
        one, other, _ = sorted((keeper.home / "spool").iterdir(), key=lambda path: path.stat().st_size)
        one.unlink()
        with open(other, "r+b") as file:
            file.seek(1000)
            file.write(b"!")
        with open_keeper() as keeper:
            futures = [keeper.options(key=str(number)).submit(bytes, 5_000_000 + number) for number in range(3)]
            assert [future.reused for future in futures] == [False, False, True]
            assert [len(future.result()) for future in futures] == [5_000_000, 5_000_001, 5_000_002]
        assert "cannot be read: No such file" in "".join(said)
        assert "does not agree with its checksum" in "".join(said)


class TestRuns:
    def test_never_begins_anew(self, open_keeper: Any, note: Callable[[Any], Any], said: list[str]) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.options(key="a").submit(note, 1).result()
            interrupt()
        with open_keeper(resume="never") as keeper:
            assert not keeper.options(key="a").submit(note, 1).reused
        assert "is discarded" in "".join(said)

    def test_a_keeper_that_does_nothing_leaves_the_run_as_it_is(
        self, open_keeper: Any, note: Callable[[Any], Any]
    ) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.options(key="a").submit(note, 1).result()
            interrupt()
        with open_keeper():
            pass
        assert state(keeper) == ("interrupted", "Interruption left the with block")
        with open_keeper() as keeper:
            assert keeper.options(key="a").submit(note, 1).reused

    def test_only_so_many_are_kept(self, open_keeper: Any) -> None:
        for _ in range(5):
            with open_keeper(keep_runs=2) as keeper:
                keeper.options(key="a").submit(bytes, 5_000_000).result()
        assert rows(keeper, "SELECT id FROM runs ORDER BY id") == [(4,), (5,)]
        assert rows(keeper, "SELECT DISTINCT run FROM groups ORDER BY run") == [(4,), (5,)]
        assert len(list((keeper.home / "spool").iterdir())) == 2

    def test_an_uncaught_exception_without_a_with_block_interrupts(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "import sys\nfrom poolkeeper import Keeper\n"
            f"keeper = Keeper(1, name='test', home={str(tmp_path / 'home')!r})\n"
            "future = keeper.options(key='a').submit(abs, 1)\nfuture.result()\n"
            "print(future.reused)\n1 / int(sys.argv[1])\n"
        )
        answers = []
        for argument in ("0", "1", "1"):
            words = [sys.executable, str(script), argument]
            done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=Path.cwd())
            answers.append(done.stdout.strip())
        assert answers == ["False", "True", "False"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"resume": "always"}, "resume='always' must be one of 'interrupted', 'failed', 'never'"),
            ({"durability": "none"}, "durability='none' must be one of"),
            ({"keep_runs": 0}, "keep_runs=0 must be at least 1"),
        ],
    )
    def test_wrong_words_are_refused(self, open_keeper: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            open_keeper(**options)

    def test_power(self, open_keeper: Any) -> None:
        with open_keeper(durability="power") as keeper:
            assert list(keeper.options(key=str).map(abs, range(100))) == list(range(100))
            assert keeper.options(key="large").submit(bytes, 5_000_000).result() == bytes(5_000_000)
            assert rows(keeper) == [(101,)]


class TestTrouble:
    """Whatever becomes of the disk, work goes on, it is said, and what was acknowledged stays."""

    def test_a_damaged_journal_is_set_aside(self, open_keeper: Any, said: list[str]) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            list(keeper.options(key=str).map(abs, range(100)))
            interrupt()
        (keeper.home / "journal.db").write_bytes(b"garbage" * 1000)
        with open_keeper() as keeper:
            assert list(keeper.options(key=str).map(abs, range(100))) == list(range(100))
            assert rows(keeper) == [(100,)]
        assert len(list(keeper.home.glob("journal.db.corrupt-*"))) == 1
        flush()
        assert "is damaged" in "".join(said)

    def test_a_run_that_goes_on_has_a_backup_of_what_it_found(self, open_keeper: Any) -> None:
        for number in range(2):
            with suppress(Interruption), open_keeper() as keeper:
                keeper.options(key=str(number)).submit(abs, number).result()
                interrupt()
        (keeper.home / "journal.db").write_bytes(b"garbage" * 1000)
        with open_keeper() as keeper:
            reused = [keeper.options(key=str(number)).submit(abs, number).reused for number in range(2)]
        assert reused == [True, False]

    def test_rows_that_were_tampered_with_are_not_used(self, open_keeper: Any, said: list[str]) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            for number in range(3):
                keeper.options(key=str(number)).submit(abs, number).result()
            interrupt()
        with closing(sqlite3.connect(keeper.home / "journal.db")) as connection:
            connection.execute("UPDATE groups SET body = CAST(body || 'x' AS BLOB) WHERE id = 1")
            connection.execute("UPDATE groups SET head = zeroblob(100) WHERE id = 2")
            connection.commit()
        with open_keeper() as keeper:
            futures = [keeper.options(key=str(number)).submit(abs, number) for number in range(3)]
            assert [future.reused for future in futures] == [False, False, True]
            assert [future.result() for future in futures] == [0, 1, 2]
        assert "".join(said).count("checksum") == 2

    def test_a_full_disk(self, tmp_path: Path, said: list[str]) -> None:
        with small_disk(tmp_path) as disk:
            with Keeper(2, name="test", home=disk / "home") as keeper:
                keeper.options(key="before").submit(abs, 1).result()
                fill(disk)
                results = list(keeper.options(key=str).map(bytes, range(1, 400)))
                assert list(map(len, results)) == list(range(1, 400))
                flush()
                assert "cannot be written to" in "".join(said)
                (disk / "ballast").unlink()
                wait_until(lambda: flush() or "can be written to again" in "".join(said), "the recovery")
                keeper.options(key="after").submit(abs, 2).result()
                keeper._runtime.leave_unfinished("test")
            with Keeper(2, name="test", home=disk / "home") as keeper:
                assert keeper.options(key="before").submit(abs, 1).reused
                assert keeper.options(key="after").submit(abs, 2).reused

    def test_a_home_that_is_gone(self, open_keeper: Any, said: list[str]) -> None:
        with open_keeper() as keeper:
            keeper.options(key="before").submit(abs, 1).result()
            remove_in_use(keeper.home)
            assert [keeper.options(key=str(number)).submit(abs, number).result() for number in range(100)] == list(
                range(100)
            )
            flush()
            assert "is gone" in "".join(said)
        flush()
        assert "100 outcomes could not be recorded" in "".join(said)

    def test_a_journal_that_another_program_has_replaced(self, open_keeper: Any, said: list[str]) -> None:
        with suppress(Interruption), open_keeper() as keeper:
            keeper.options(key="before").submit(abs, 1).result()
            (keeper.home / "journal.db").unlink()
            keeper.options(key="during").submit(abs, 1).result()
            wait_until(lambda: flush() or "can be written to again" in "".join(said), "the recovery")
            keeper.options(key="after").submit(abs, 1).result()
            interrupt()
        with open_keeper() as keeper:
            reused = [keeper.options(key=key).submit(abs, 1).reused for key in ("before", "during", "after")]
        assert reused == [False, True, True]

    def test_a_reader_of_the_journal_is_no_trouble(self, open_keeper: Any) -> None:
        with open_keeper() as keeper:
            with closing(sqlite3.connect(keeper.home / "journal.db")) as connection:
                connection.execute("BEGIN")
                assert connection.execute("SELECT count(*) FROM groups").fetchone() == (0,)
                list(keeper.options(key=str).map(abs, range(100)))
            assert rows(keeper) == [(100,)]

    def test_a_fork_of_the_application_does_no_harm(self, open_keeper: Any) -> None:
        with open_keeper() as keeper:
            keeper.options(key="before").submit(abs, 1).result()
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            keeper.options(key="after").submit(abs, 1).result()
            assert rows(keeper) == [(2,)]

    def test_a_journal_that_cannot_be_opened(self, open_keeper: Any) -> None:
        with open_keeper() as keeper:
            pass
        (keeper.home / "journal.db").unlink()
        (keeper.home / "journal.db").mkdir()
        with pytest.raises(PoolkeeperError, match=r"journal\.db cannot be opened .*directory.*move it away"):
            open_keeper()
        (keeper.home / "journal.db").rmdir()
        with open_keeper() as keeper:
            assert keeper.options(key="a").submit(abs, -1).result() == 1

    def test_a_disk_that_is_full_from_the_start(self, tmp_path: Path, said: list[str]) -> None:
        with small_disk(tmp_path) as disk:
            with Keeper(2, name="test", home=disk / "home") as keeper:
                pass
            (keeper.home / "journal.db").unlink()
            fill(disk)
            with Keeper(2, name="test", home=disk / "home") as keeper:
                assert keeper.options(key="a").submit(abs, -1).result() == 1
                assert keeper.batch(abs, [-1, -2]).result().values == [1, 2]
        flush()
        assert "cannot be opened" in "".join(said)
        assert "all work runs" in "".join(said)

    def test_what_is_recorded_is_reused_on_a_disk_that_is_full_from_the_start(self, tmp_path: Path) -> None:
        with small_disk(tmp_path) as disk:
            with Keeper(2, name="test", home=disk / "home") as keeper:
                keeper.options(key="a").submit(abs, -1).result()
                keeper._runtime.leave_unfinished("test")
            with closing(sqlite3.connect(keeper.home / "journal.db")) as reader:
                reader.execute("SELECT count(*) FROM runs").fetchone()  # as if the keeper had died: its log is there
                fill(disk)
                with Keeper(2, name="test", home=disk / "home") as keeper:
                    assert keeper.options(key="a").submit(abs, -1).reused
                    assert keeper.options(key="b").submit(abs, -2).result() == 2

    def test_one_of_a_newer_poolkeeper_is_refused(self, open_keeper: Any) -> None:
        with open_keeper() as keeper:
            pass
        with closing(sqlite3.connect(keeper.home / "journal.db")) as connection:
            connection.execute("PRAGMA user_version = 1000")
        with pytest.raises(PoolkeeperError, match="newer poolkeeper"):
            open_keeper()
        with open_keeper(run_id="other"):  # and the lock is free again
            pass
        (keeper.home / "journal.db").unlink()
        with open_keeper():
            pass

    def test_damage_that_is_found_late(
        self, open_keeper: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A journal that is too large to be read through when it is opened."""
        with suppress(Interruption), open_keeper() as keeper:
            for number in range(200):
                keeper.options(key=str(number)).submit(bytes, 2000 + number).result()
            interrupt()
        path = keeper.home / "journal.db"
        size = path.stat().st_size
        with open(path, "r+b") as file:
            for at in range(size // 2, size // 2 + 20 * 4096, 4096):
                file.seek(at // 4096 * 4096)
                file.write(os.urandom(100))
        monkeypatch.setattr(journal_file, "CHECK_BYTES", 0)
        with open_keeper() as keeper:
            futures = [keeper.options(key=str(number)).submit(bytes, 2000 + number) for number in range(200)]
            assert [len(future.result()) for future in futures] == list(range(2000, 2200))
            reused = sum(future.reused for future in futures)
        assert 50 < reused < 200
        flush()
        assert "outcomes that could still be read" in "".join(said)

    def test_damage_while_it_is_written_to(
        self, open_keeper: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_file, "CHECK_BYTES", 0)
        with open_keeper() as keeper:
            keeper.options(key="before").submit(abs, 1).result()
            with open(keeper.home / "journal.db", "r+b") as file:
                file.write(os.urandom(20 * 4096))
            with open(keeper.home / "journal.db-wal", "r+b") as file:
                file.write(os.urandom(os.fstat(file.fileno()).st_size))
            for number in range(100):
                assert keeper.options(key=str(number)).submit(abs, number).result() == number


class TestCallables:
    """Whatever can be called has a fingerprint, and its outcomes are found again."""

    @pytest.mark.parametrize(
        "function",
        [command("true", "{}"), functools.partial(divmod, 7), len, "".join, _invert, Interruption, operator.neg],
        ids=lambda function: type(function).__name__,
    )
    def test_resumes(self, open_keeper: Any, function: Any) -> None:
        item: Any = {"".join: "abc", len: "abc"}.get(function, "x" if isinstance(function, Program) else 3)
        with suppress(Interruption), open_keeper() as keeper:
            keeper.batch(function, [item]).result().raise_for_failures()
            interrupt()
        with open_keeper() as keeper:
            (result,) = keeper.batch(function, [item]).result()
        assert result.reused
