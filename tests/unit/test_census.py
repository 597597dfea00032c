"""The census as a fleet: its parts, called as the plain functions that they stay."""

from __future__ import annotations

import sys
from pathlib import Path

import census
import pytest
from source_census.analysis import BrokenSource, ModuleStats

from poolkeeper import BatchResult, TaskResult, TaskStatus


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good and a broken file, which is the working directory and the census's argument."""
    (tmp_path / "good.py").write_text('"""Good."""\n')
    (tmp_path / "bad.py").write_text("x = = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["census.py", "."])
    return tmp_path


def test_the_fleet_parses_before_it_summarises() -> None:
    order = census.fleet.plan()
    assert order.get_ready() == ("parse",)
    order.done("parse")
    assert order.get_ready() == ("summarise",)


def test_the_items_are_the_files_named_on_the_command_line(folder: Path) -> None:
    assert census.python_files() == [folder / "bad.py", folder / "good.py"]


def test_broken_source_raises_with_file_and_line(folder: Path) -> None:
    assert census.parse(folder / "good.py").docstring == 1
    with pytest.raises(BrokenSource, match=r"bad\.py:1: syntax: invalid syntax"):
        census.parse(folder / "bad.py")


def test_the_summary_is_written_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = folder / "good.py", folder / "bad.py"
    with pytest.raises(BrokenSource) as caught:
        census.parse(bad)
    results: tuple[TaskResult[ModuleStats], ...] = (
        TaskResult(TaskStatus.SUCCEEDED, 0, good, str(good), returned=census.parse(good)),
        TaskResult(TaskStatus.FAILED, 1, bad, str(bad), error=caught.value),
    )
    census.summarise(BatchResult("parse", results))
    assert "1 file in 2 packages of 1 distribution" in capsys.readouterr().out
    written = sorted(path.name for path in (folder / "out" / "census").iterdir())
    assert written == ["broken.csv", "census.db", "files.csv", "packages.csv"]
