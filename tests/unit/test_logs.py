"""Silence as a library, lines as a program, and the mirror of worker logs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from poolkeeper.logmirror import LogMirror
from poolkeeper.logs import configure, emit


@pytest.fixture
def lines() -> Iterator[list[str]]:
    written: list[str] = []
    yield written
    logger.remove()
    logger.disable("poolkeeper")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stderr


def test_nobody_hears_what_nobody_has_asked_for() -> None:
    code = "import sys, poolkeeper.logs as logs; logs.emit('INFO', 'x'); assert 'loguru' not in sys.modules"
    assert run(code) == ""


@pytest.mark.parametrize("first", ["loguru", "poolkeeper"])
def test_an_application_with_loguru_hears_nothing_until_it_asks(first: str) -> None:
    # Messages are poolkeeper's if they come from a module of that name.
    imports = ["from loguru import logger", "from poolkeeper.logs import emit"]
    code = "\n".join(
        [
            *(imports if first == "loguru" else reversed(imports)),
            "say = {'emit': emit, '__name__': 'poolkeeper.test'}",
            "exec(\"emit('INFO', 'before')\", say)",
            "logger.enable('poolkeeper')",
            "exec(\"emit('INFO', 'after')\", say)",
        ]
    )
    heard = run(code)
    assert "before" not in heard
    assert "after" in heard


def test_an_application_may_ask_before_there_is_anything_to_hear() -> None:
    code = (
        "from loguru import logger\n"
        "logger.enable('poolkeeper')\n"
        "from poolkeeper.logs import emit\n"
        "exec(\"emit('INFO', 'heard')\", {'emit': emit, '__name__': 'poolkeeper.test'})\n"
    )
    assert "heard" in run(code)


def test_a_program_has_lines(lines: list[str]) -> None:
    configure(lines.append)
    emit("INFO", "all {braces} stay", task="t")
    emit("DEBUG", "not at this level")
    assert len(lines) == 1
    assert lines[0].endswith("INFO    all {braces} stay\n")


def test_facts_are_bound_for_structured_sinks(lines: list[str]) -> None:
    configure(lines.append)
    records = []
    logger.add(lambda message: records.append(message.record["extra"]), level="INFO")
    emit("INFO", "text", worker="w1", pid=42)
    assert records == [{"worker": "w1", "pid": 42}]


class TestMirror:
    def test_what_is_appended_is_copied_line_by_line(self, tmp_path: Path) -> None:
        old = tmp_path / "w1.log"
        old.write_text("from an earlier run\n")
        copied: list[str] = []
        with LogMirror(tmp_path, copied.append, interval=3600) as mirror:
            with old.open("a") as file:
                file.write("one\ntw")
            (tmp_path / "w2.log").write_bytes(b"\xff\n")
            mirror.copy()
            assert copied == ["w1 | one", "w2 | \ufffd"]
            with old.open("a") as file:
                file.write("o\nunfinished")
        assert copied[2:] == ["w1 | two", "w1 | unfinished"]

    def test_the_last_lines_survive_the_removal_of_the_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "w1.log"
        path.touch()
        copied: list[str] = []
        with LogMirror(tmp_path, copied.append, interval=3600):
            path.write_text("last words\n")
            path.unlink()
        assert copied == ["w1 | last words"]

    def test_a_folder_that_is_not_there_yet_has_no_lines(self, tmp_path: Path) -> None:
        copied: list[str] = []
        with LogMirror(tmp_path / "later", copied.append, interval=3600):
            pass
        assert copied == []
