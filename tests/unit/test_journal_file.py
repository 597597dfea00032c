"""The journal's file: made, brought up to date, refused, or set aside when it is damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from poolkeeper import journal_file
from poolkeeper.errors import PoolkeeperError
from poolkeeper.journal_file import MIGRATIONS, VERSION, back_up, open_journal
from poolkeeper.reporting import flush
from tests.disks import small_disk


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    logger.enable("poolkeeper")
    yield lines
    logger.disable("poolkeeper")
    logger.remove(sink)


def filled(path: Path, groups: int = 50) -> bytes:
    """Make a journal with some rows, and return its bytes."""
    with closing(open_journal(path)) as connection:
        connection.execute("INSERT INTO runs (id, state, began) VALUES (1, 'running', 1.0)")
        connection.execute("INSERT INTO batches (id, run, name, code, began) VALUES (1, 1, 'work', 'c', 1.0)")
        connection.executemany(
            "INSERT INTO groups (run, recorded, count, head, body) VALUES (1, 2.0, 3, ?, ?)",
            [(b"head", bytes(1000))] * groups,
        )
    assert not path.with_name(f"{path.name}-wal").exists()
    return path.read_bytes()


def torn(path: Path) -> bytes:
    """Make a journal with an index that cannot be read, and return its bytes."""
    content = bytearray(filled(path, groups=200))
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'groups_of_run'").fetchone()
    at = (page - 1) * 4096
    content[at : at + 200] = b"x" * 200
    path.write_bytes(content)
    return bytes(content)


def backed_up(folder: Path) -> Path:
    """Make a journal of which there is a backup, and return its path."""
    path = folder / "journal.db"
    filled(path)
    with closing(open_journal(path)) as connection:
        back_up(connection, path)
    return path


def count(path: Path) -> int:
    with closing(open_journal(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM groups").fetchone()[0])


def aside(path: Path) -> list[Path]:
    return sorted(each for each in path.parent.glob("journal.db.corrupt-*") if not each.name.endswith(("-wal", "-shm")))


def columns(path: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {(table, row[1]) for table in tables for row in connection.execute(f"PRAGMA table_info({table})")}


class TestOpening:
    def test_a_new_one_is_private_and_up_to_date(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        with closing(open_journal(path)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
        assert path.stat().st_mode & 0o777 == 0o600

    def test_power_means_that_every_commit_waits_for_the_disk(self, tmp_path: Path) -> None:
        with closing(open_journal(tmp_path / "journal.db", "power")) as connection:
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_it_is_opened_again_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        filled(path)
        assert count(path) == 50
        assert not aside(path)

    @pytest.mark.parametrize("version", range(1, VERSION))
    def test_an_older_one_is_brought_up_to_date_with_what_is_in_it(self, tmp_path: Path, version: int) -> None:
        path, fresh = tmp_path / "journal.db", tmp_path / "fresh.db"
        with closing(sqlite3.connect(path)) as connection:
            for migration in MIGRATIONS[:version]:
                connection.executescript(migration)
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("INSERT INTO runs (id, state, began) VALUES (7, 'finished', 1.5)")
            connection.commit()
        with closing(open_journal(path)) as connection:
            assert connection.execute("SELECT id, state, began, failures_void FROM runs").fetchall() == [
                (7, "finished", 1.5, 0)
            ]
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        open_journal(fresh).close()
        assert columns(path) == columns(fresh)

    def test_a_newer_one_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        filled(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")
        before = path.read_bytes()
        with pytest.raises(PoolkeeperError, match=f"newer poolkeeper .schema {VERSION + 1}"):
            open_journal(path)
        assert path.read_bytes() == before
        assert not aside(path)

    def test_a_folder_that_is_gone_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            open_journal(tmp_path / "gone" / "journal.db")


class TestDamage:
    @pytest.mark.parametrize(
        "content",
        [b"garbage" * 1000, b"SQLite format 3\0" + bytes(100), b"x", os.urandom(8192), b"SQLite format 4\0" * 512],
        ids=["garbage", "a header alone", "one byte", "noise", "wrong magic"],
    )
    def test_what_is_no_journal_is_set_aside(self, tmp_path: Path, content: bytes, said: list[str]) -> None:
        path = tmp_path / "journal.db"
        path.write_bytes(content)
        assert count(path) == 0
        (kept,) = aside(path)
        assert kept.read_bytes() == content
        flush()
        assert "is damaged" in said[0]
        assert f"kept as {kept.name}" in said[0]

    def test_the_database_of_another_program_is_set_aside(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
        assert count(path) == 0
        assert len(aside(path)) == 1

    def test_so_is_one_that_lacks_a_table(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        filled(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE runs")
        assert count(path) == 50
        assert len(aside(path)) == 1

    def test_what_can_be_read_of_a_truncated_one_is_taken_over(self, tmp_path: Path, said: list[str]) -> None:
        path = tmp_path / "journal.db"
        content = filled(path, groups=200)
        path.write_bytes(content[: len(content) // 2 // 4096 * 4096])
        assert 20 < count(path) < 200
        with closing(open_journal(path)) as connection:
            assert connection.execute("SELECT id, name FROM batches").fetchall() == [(1, "work")]
        flush()
        assert "outcomes that could still be read" in said[0]

    def test_no_room_for_what_can_be_read_of_it(self, tmp_path: Path) -> None:
        content = torn(tmp_path / "journal.db")
        with small_disk(tmp_path) as disk:
            path = disk / "journal.db"
            path.write_bytes(content)
            filling = disk / "filling"
            filling.write_bytes(bytes((2 << 20) - len(content) - (64 << 10)))
            for _ in range(2):
                with pytest.raises(sqlite3.OperationalError, match=r"full|I/O"):
                    open_journal(path)
                assert path.read_bytes() == content
                assert not aside(path)
            filling.unlink()
            assert count(path) == 200
            assert aside(path)[0].read_bytes() == content

    def test_two_on_one_day_have_two_names(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        for _ in range(3):
            path.write_bytes(b"garbage" * 1000)
            open_journal(path).close()
        assert len(aside(path)) == 3

    @pytest.mark.parametrize("content", [b"garbage" * 1000, b""], ids=["garbage", "empty"])
    def test_its_backup_has_what_was_recorded_before(self, tmp_path: Path, content: bytes) -> None:
        path = backed_up(tmp_path)
        path.write_bytes(content)
        assert count(path) == 50
        assert aside(path)[0].read_bytes() == content
        assert len(list(tmp_path.iterdir())) == 3, list(tmp_path.iterdir())  # with the backup

    def test_what_is_in_both_is_there_once(self, tmp_path: Path) -> None:
        path = backed_up(tmp_path)
        with closing(open_journal(path)) as connection:
            connection.execute("UPDATE runs SET state = 'finished'")
            connection.execute("DELETE FROM groups WHERE id = 7")
            connection.execute("INSERT INTO groups (run, recorded, count, head, body) VALUES (1, 2.0, 3, x'', x'')")
            connection.execute("DROP INDEX groups_of_run")
            connection.execute("DROP TABLE batches")
        assert count(path) == 51
        with closing(open_journal(path)) as connection:
            assert connection.execute("SELECT state FROM runs").fetchall() == [("finished",)]
            assert connection.execute("SELECT name FROM batches").fetchall() == [("work",)]

    def test_a_backup_goes_with_its_journal(self, tmp_path: Path) -> None:
        path = backed_up(tmp_path)
        path.unlink()
        assert count(path) == 0
        assert list(tmp_path.iterdir()) == [path]

    def test_of_a_large_one_no_backup_is_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = backed_up(tmp_path)
        before = (tmp_path / "journal.db.bak").stat()
        monkeypatch.setattr(journal_file, "BACKUP_BYTES", 1000)
        with closing(open_journal(path)) as connection:
            back_up(connection, path)
        assert (tmp_path / "journal.db.bak").stat().st_ino == before.st_ino
        assert before.st_mode & 0o777 == 0o600

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_whatever_happens_to_it_it_can_be_opened_or_is_kept(self, tmp_path: Path, data: st.DataObject) -> None:
        folder = tmp_path / os.urandom(8).hex()
        folder.mkdir()
        path = folder / "journal.db"
        content = bytearray(filled(path, groups=20))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + 16] = data.draw(st.binary(max_size=64))
        path.write_bytes(content)
        try:
            with closing(open_journal(path)) as connection:
                connection.execute("INSERT INTO runs (id, state, began) VALUES (1000, 'new', 1.0)")
                connection.execute("SELECT * FROM groups").fetchall()
        except PoolkeeperError:
            assert b"SQLite format 3" in content  # the version number itself was hit
        if aside(path):
            assert aside(path)[0].read_bytes() == bytes(content)
