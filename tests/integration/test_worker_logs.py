"""What workers of a named keeper write, in whatever way, stands in its logs: whole lines that say who and when."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poolkeeper import Keeper, TaskQuarantined
from poolkeeper.loglines import CUT, LINE_LIMIT, LogLine
from poolkeeper.logreader import follow, read_logs
from tests import speakers, tasks
from tests.helpers import PATIENCE, wait_until


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    with Keeper(1, name="logs", home=tmp_path / "homes", preload=["tests.speakers"]) as keeper:
        yield keeper


def said(keeper: Keeper, *, until: str) -> list[LogLine]:
    """The lines in the logs, as soon as the text ``until`` is one of them."""

    def lines() -> list[LogLine]:
        found = list(read_logs(keeper.home / "logs"))
        return found if any(line.words == until for line in found) else []

    return wait_until(lines, f"the line {until!r}")


def last_words(keeper: Keeper, text: str) -> str:
    """Have a worker say ``text`` and die; return its last words as the report has them.

    There may be none, for the report waits 50 ms for the log writer, and a busy machine may take longer.
    """
    error = keeper.submit(speakers.say_and_die, text).exception(PATIENCE)
    assert isinstance(error, TaskQuarantined)
    assert error.report is not None
    assert error.report.log_tail in ("", text)  # without what stands before it in the file
    return error.report.log_tail


def test_whatever_way_it_is_written_it_is_a_line_with_its_author(keeper: Keeper) -> None:
    before = datetime.now(UTC)
    pid = keeper.submit(speakers.say_in_every_way).result(PATIENCE)
    lines = said(keeper, until="by C")
    words = ["by print", "by print to stderr", "by descriptor", "by a child", "by C"]
    assert [line.words for line in lines] == words
    assert {(line.stem, line.label, line.pid, line.attempt) for line in lines} == {("worker-1", "worker-1", pid, 1)}
    assert before - timedelta(seconds=1) <= lines[0].time <= lines[-1].time <= datetime.now(UTC)
    assert (keeper.home / "logs" / "worker-1.log").stat().st_mode & 0o777 == 0o600


def test_bytes_stay_what_they_are_and_long_lines_are_cut(keeper: Keeper) -> None:
    binary = bytes(set(range(256)) - {10})
    keeper.submit(speakers.say_bytes, binary + b"\n" + b"y" * (LINE_LIMIT + 1) + b"\nend\n").result(PATIENCE)
    lines = said(keeper, until="end")
    assert [line.text for line in lines] == [binary, b"y" * LINE_LIMIT + CUT, b"y", b"end"]


def test_a_line_without_its_end_is_there_when_the_keeper_has_ended(keeper: Keeper) -> None:
    keeper.submit(speakers.say_bytes, b"no newline").result(PATIENCE)
    keeper.shutdown()
    assert [line.words for line in read_logs(keeper.home / "logs")] == ["no newline"]


def test_a_flood_is_written_in_order_and_a_quiet_worker_is_heard(tmp_path: Path) -> None:
    number = 20_000
    with Keeper(3, name="logs", home=tmp_path / "homes", preload=["tests.speakers"]) as keeper:
        quiet = keeper.submit(speakers.say_and_hold, tmp_path, "quiet")
        wait_until(lambda: tasks.notes(tmp_path, "started"))
        floods = [keeper.submit(speakers.flood, name, number) for name in ("a", "b")]
        assert [flood.result(PATIENCE) for flood in floods] == [number, number]
        (tmp_path / "go").touch()
        quiet.result(PATIENCE)
    lines = list(read_logs(keeper.home / "logs"))
    assert not [line for line in lines if line.label == "poolkeeper"]  # the notice of lines that were dropped
    for name in ("a", "b"):
        numbers = [int(line.words[2:]) for line in lines if line.words.startswith(name + " ")]
        assert numbers == list(range(number))
    assert [line.words for line in lines if "quiet" in line.words] == ["quiet", "then quiet"]


def test_a_worker_says_its_last_words_in_the_report_of_its_death(keeper: Keeper) -> None:
    for number in range(5):
        wait_until(lambda number=number: last_words(keeper, f"good-bye {number}"))  # type: ignore[misc]


def test_a_report_has_the_words_of_its_own_worker_alone(tmp_path: Path) -> None:
    for text in ("first", "second"):  # both are worker 1, 2 and 3, and append to the same files
        with Keeper(1, name="again", home=tmp_path / "homes", preload=["tests.speakers"]) as keeper:
            wait_until(lambda: last_words(keeper, text))  # noqa: B023 - it is called here and now


def test_workers_hold_no_descriptor_of_other_workers_logs(tmp_path: Path) -> None:
    with Keeper(3, name="logs", home=tmp_path / "homes", preload=["tests.speakers"]) as keeper:
        holding = [keeper.submit(tasks.hold, tmp_path) for _ in range(2)]
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        others = {os.readlink(f"/proc/{pid}/fd/1") for pid in tasks.notes(tmp_path, "started")}
        own = keeper.submit(_own_descriptors).result(PATIENCE)
        (tmp_path / "go").touch()
        for future in holding:
            future.result(PATIENCE)
    assert [fd for fd, name in own.items() if name == own[1]] == [1, 2]
    assert len(others) == 2
    assert others.isdisjoint(own.values())


def _own_descriptors() -> dict[int, str]:
    found = {}
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        with suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def test_a_worker_that_is_exec_ed_writes_its_file_itself(tmp_path: Path) -> None:
    with Keeper(1, name="logs", home=tmp_path / "homes", start_method="loky") as keeper:
        keeper.submit(speakers.say, "plain").result(PATIENCE)
        assert [(line.words, line.label) for line in said(keeper, until="plain")] == [("plain", "worker-1")]
    assert (keeper.home / "logs" / "worker-1.log").read_text() == "plain\n"


def test_an_ephemeral_keepers_workers_write_to_the_output_of_the_application(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Keeper(1, preload=["tests.speakers"]) as keeper:
        keeper.submit(speakers.say_bytes, b"to the application\n").result(PATIENCE)
        assert list((keeper.home / "logs").glob("*.log")) == []
    assert "to the application\n" in capfd.readouterr().out


def test_logs_can_be_followed_while_they_grow(keeper: Keeper) -> None:
    lines = follow(keeper.home / "logs", interval=0.01)
    for text in ("one", "two", "three"):
        keeper.submit(speakers.say, text).result(PATIENCE)
        assert next(lines).words == text
    lines.close()  # type: ignore[attr-defined]


def test_the_file_is_made_again_when_somebody_removes_it(keeper: Keeper) -> None:
    path = keeper.home / "logs" / "worker-1.log"
    keeper.submit(speakers.say, "before").result(PATIENCE)
    wait_until(path.exists)
    path.unlink()

    def is_there_again() -> bool:
        keeper.submit(speakers.say, "after").result(PATIENCE)
        return path.exists() and bool(path.read_text())

    wait_until(is_there_again)
    assert re.fullmatch(r"\S+ worker-1\[\d+\]#1 after", path.read_text().splitlines()[0])
