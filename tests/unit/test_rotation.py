"""Log files that rotate, and that lose whole lines or none when they cannot be written."""

from __future__ import annotations

import os
import re
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from poolkeeper.rotation import RotatingFile

LINE = b"123456789\n"


def in_child(test: Callable[[], None]) -> None:
    """Run ``test`` in a fork, for limits that hold for a whole process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            test()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def contents(path: Path) -> list[bytes]:
    """What is in the generations, the newest first."""
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 9))]
    return [name.read_bytes() for name in names if name.exists()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.log"


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def file(path: Path, now: list[float]) -> RotatingFile:
    return RotatingFile(str(path), 25, 2, clock=lambda: now[0])


def test_the_file_is_private_and_made_with_its_first_line(file: RotatingFile, path: Path) -> None:
    file.write(b"")
    assert not path.exists()
    file.write(LINE)
    assert path.read_bytes() == LINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not os.get_inheritable(file._fd)


def test_generations_move_on_and_the_oldest_goes(file: RotatingFile, path: Path) -> None:
    for number in range(9):
        file.write(b"line %04d\n" % number)
    assert contents(path) == [b"line 0008\n", b"line 0006\nline 0007\n", b"line 0004\nline 0005\n"]
    assert file.dropped == 0


def test_what_is_there_is_appended_to_and_counts(path: Path) -> None:
    path.write_bytes(2 * LINE)
    RotatingFile(str(path), 25).write(b"new line\n")
    assert contents(path) == [b"new line\n", 2 * LINE]


def test_a_block_larger_than_the_file_stays_in_one_piece(file: RotatingFile, path: Path) -> None:
    file.write(9 * LINE)
    file.write(LINE)
    assert contents(path) == [LINE, 9 * LINE]


def test_without_backups_the_file_begins_anew(path: Path) -> None:
    file = RotatingFile(str(path), 25, 0)
    for _ in range(3):
        file.write(LINE)
    assert contents(path) == [LINE]


@pytest.mark.parametrize("remove", [Path.unlink, lambda path: path.rename(path.with_suffix(".old"))])
def test_a_file_that_is_taken_away_is_made_again(
    file: RotatingFile, path: Path, now: list[float], remove: Callable[[Path], object]
) -> None:
    file.write(LINE)
    remove(path)
    file.write(LINE)
    assert not path.exists()  # it looks once a second
    now[0] = 1.0
    file.write(b"again\n")
    assert path.read_bytes() == b"again\n"


def test_a_file_that_another_has_rotated_is_not_rotated_again(path: Path) -> None:
    first, second = (RotatingFile(str(path), 25, 3, clock=lambda: 0.0) for _ in range(2))
    first.write(LINE)
    second.write(LINE)
    second.write(b"B23456789\n")
    first.write(LINE)
    first.write(b"A23456789\n")
    assert contents(path) == [b"B23456789\nA23456789\n", 3 * LINE]


def test_a_full_device_drops_lines_and_the_notice_comes_when_there_is_room(
    file: RotatingFile, path: Path, now: list[float]
) -> None:
    path.symlink_to("/dev/full")
    file.write(2 * LINE)
    file.write(LINE)
    assert file.dropped == 3
    path.unlink()
    now[0] = 1.0
    file.write(b"back\n")
    assert path.read_bytes() == b"... 3 lines dropped: No space left on device\nback\n"
    file.write(b"on\n")
    assert path.read_bytes().endswith(b"device\nback\n") or contents(path)[0] == b"on\n"
    assert file.dropped == 0


def test_lines_that_never_came_are_told_of_with_the_others(file: RotatingFile, path: Path) -> None:
    file.lose(2, "no room")
    file.lose(3, "still no room")
    file.write(b"")
    file.write(b"")
    assert path.read_bytes() == b"... 5 lines dropped: still no room\n"


def test_no_half_line_stays_where_the_space_ends(path: Path) -> None:
    def run() -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (35, hard))
        file = RotatingFile(str(path))
        file.write(2 * LINE)
        file.write(b"A23456789\nB23456789\nC23456789\n")  # one and a half fit
        assert (path.read_bytes(), file.dropped) == (2 * LINE + b"A23456789\n", 2)
        file.write(b"D23456789\n")
        assert file.dropped == 3
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
        file.write(b"E23456789\n")  # not even the notice fits
        assert file.dropped == 4
        resource.setrlimit(resource.RLIMIT_FSIZE, (75, hard))
        file.write(b"F23456789\n")  # the notice fits, the line does not
        assert file.dropped == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        file.write(b"G23456789\n")
        assert file.dropped == 0

    in_child(run)
    lines = path.read_bytes().splitlines()
    assert lines[:3] == [LINE.strip(), LINE.strip(), b"A23456789"]
    assert [line[:12] for line in lines[3:]] == [b"... 4 lines ", b"... 1 line d", b"G23456789"]
    assert all(re.search(rb"dropped: File too large$", line) for line in lines[3:5])


def test_a_line_that_a_killed_writer_left_unfinished_stays_alone(path: Path) -> None:
    path.write_bytes(b"whole\nhal")
    RotatingFile(str(path)).write(b"next\n")
    assert path.read_bytes() == b"whole\nhal\nnext\n"


def test_a_folder_that_is_missing_drops_and_a_folder_that_comes_is_used(tmp_path: Path) -> None:
    path = tmp_path / "later" / "web.log"
    file = RotatingFile(str(path))
    file.write(LINE)
    path.parent.mkdir()
    file.write(LINE)
    assert path.read_bytes() == b"... 1 line dropped: No such file or directory\n" + LINE


def test_where_nothing_may_be_renamed_the_file_grows(file: RotatingFile, path: Path) -> None:
    (path.parent / "web.log.2").mkdir()  # as good as a folder that may not be written to, and root cannot pass it
    (path.parent / "web.log.2" / "x").touch()
    (path.parent / "web.log.1").write_bytes(b"")
    for _ in range(5):
        file.write(LINE)
    assert path.read_bytes() == 5 * LINE
    assert file.dropped == 0


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    def run() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        file = RotatingFile(str(tmp_path / "web.log"))
        file.write(LINE)
        assert file.dropped == 1

    tmp_path.chmod(0o555)
    in_child(run)
