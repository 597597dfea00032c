"""Reading logs: generations, several files as one stream, and following across rotation."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.loglines import prefix
from poolkeeper.logreader import LogFollower, follow, read_logs
from poolkeeper.rotation import RotatingFile

START = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


def at(seconds: float, text: str = "", label: str = "web") -> bytes:
    """A line that was written ``seconds`` after the start."""
    return prefix(START + timedelta(seconds=seconds), label, 7, 1) + (text or f"{seconds:g}").encode() + b"\n"


def texts(lines: object) -> list[str]:
    return [line.words for line in lines]  # type: ignore[attr-defined]


def test_generations_are_one_log_the_oldest_first(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "web.log"), 110, 3)
    for number in range(8):
        file.write(at(number))
    assert len(list(tmp_path.iterdir())) == 4
    lines = list(read_logs(tmp_path, ["web"]))
    assert texts(lines) == [str(number) for number in range(8)]
    assert {(line.stem, line.label, line.pid, line.attempt) for line in lines} == {("web", "web", 7, 1)}


def test_several_logs_are_merged_by_time(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(at(1) + at(4))
    (tmp_path / "b.log").write_bytes(at(2) + at(3) + at(5))
    (tmp_path / "c.crash").write_bytes(b"no log\n")
    assert texts(read_logs(tmp_path)) == ["1", "2", "3", "4", "5"]
    assert texts(read_logs(tmp_path, ["b", "b", "missing"])) == ["2", "3", "5"]
    assert [line.stem for line in read_logs(tmp_path)] == ["a", "b", "b", "a", "b"]


def test_since_leaves_out_what_is_older(tmp_path: Path) -> None:
    (tmp_path / "a.log.1").write_bytes(at(1))
    os.utime(tmp_path / "a.log.1", (START.timestamp() + 1,) * 2)
    (tmp_path / "a.log").write_bytes(at(2) + at(3) + b"and more of it\n" + at(4))
    since = START + timedelta(seconds=3)
    assert texts(read_logs(tmp_path, since=since)) == ["3", "and more of it", "4"]


def test_lines_without_a_prefix_are_of_the_time_before_or_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"\xff plain\n" + at(2) + b"\nlast")
    os.utime(tmp_path / "a.log", (START.timestamp(), START.timestamp()))
    lines = list(read_logs(tmp_path))
    assert texts(lines) == ["\ufffd plain", "2", "", "last"]
    assert [line.time - START for line in lines] == [timedelta(0), *(3 * [timedelta(seconds=2)])]
    assert str(lines[0]).endswith(" a \ufffd plain")


def test_a_folder_that_is_missing_has_no_lines(tmp_path: Path) -> None:
    assert list(read_logs(tmp_path / "later")) == []
    assert LogFollower(tmp_path / "later").read() == []


def test_following_goes_on_behind_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_bytes(at(1) + at(2)[:20])
    follower = LogFollower(tmp_path)
    assert texts(follower.read()) == ["1"]
    with path.open("ab") as file:
        file.write(at(2)[20:])
    (tmp_path / "db.log").write_bytes(at(1.5))
    assert texts(follower.read()) == ["1.5", "2"]
    path.unlink()
    assert follower.read() == []
    path.write_bytes(at(3) + at(4))
    assert texts(follower.read()) == ["3", "4"]
    with path.open("ab") as file:
        file.write(b"unfinished")
    assert follower.read() == []
    assert texts(follower.close()) == ["unfinished"]


def test_following_may_begin_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_bytes(at(1))
    (tmp_path / "web.log.1").write_bytes(at(0))
    follower = LogFollower(tmp_path)
    follower.skip()
    RotatingFile(str(tmp_path / "web.log")).write(at(2))
    assert texts(follower.read()) == ["2"]
    follower.close()


@given(st.lists(st.booleans(), max_size=30))
def test_a_follower_that_looks_now_and_then_misses_nothing_and_repeats_nothing(
    tmp_path_factory: object, looks: list[bool]
) -> None:
    folder: Path = tmp_path_factory.mktemp("logs")  # type: ignore[attr-defined]
    file = RotatingFile(str(folder / "web.log"), 110, 40)
    follower = LogFollower(folder, ["web"])
    read: list[str] = []
    for number, look in enumerate(looks):
        file.write(at(number))
        if look:
            read += texts(follower.read())
    read += texts(follower.read())
    follower.close()
    file.close()
    assert read == [str(number) for number in range(len(looks))]


def test_follow_yields_what_is_there_and_what_comes_until_it_is_told_to_end(tmp_path: Path) -> None:
    file = RotatingFile(str(tmp_path / "web.log"), 110)
    for number in range(4):
        file.write(at(number))
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        file.write(at(3 + len(waits)))
        return len(waits) == 3

    lines = follow(tmp_path, ["web"], START + timedelta(seconds=2), wait=wait)
    assert texts(lines) == ["2", "3", "4", "5", "6"]
    assert waits == [0.2] * 3
