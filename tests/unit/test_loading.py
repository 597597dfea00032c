"""Finding the fleet that a file declares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from poolkeeper.fleet import FleetError
from poolkeeper.loading import load_fleet

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes a file of a name that no test has used before, and undoes what importing it changes."""
    before = sys.argv, list(sys.path), set(sys.modules)

    def write(text: str, name: str | None = None) -> Path:
        path = tmp_path / (name or f"fleet_{uuid4().hex}.py")
        path.write_text(text)
        return path

    yield write
    sys.argv, sys.path[:] = before[0], before[1]
    for name in set(sys.modules) - before[2]:
        del sys.modules[name]


DECLARATION = "from poolkeeper.fleet import Fleet\nfleet = Fleet('jobs')\n"


def test_the_file_is_a_module_that_others_can_import(write: Write) -> None:
    path = write(DECLARATION + "fleet.batch(items=[1])(lambda x: x) if False else None\ndef work(x): return x\n")
    assert load_fleet(path).name == "jobs"
    assert sys.modules[path.stem].work.__module__ == path.stem
    assert sys.path[0] == str(path.parent)


def test_arguments_are_there_while_it_is_imported(write: Write) -> None:
    path = write(DECLARATION + "import sys\nseen = sys.argv[1:]\n")
    load_fleet(path, ["a", "-b"])
    assert sys.modules[path.stem].seen == ["a", "-b"]


def test_a_fleet_with_two_names_is_one_fleet(write: Write) -> None:
    assert load_fleet(write(DECLARATION + "other = fleet\n")).name == "jobs"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", None, "declares no fleet"),
        (DECLARATION + "other = Fleet('more')\n", None, r"declares 2 fleets \('jobs', 'more'\)"),
        ("import no_such_module_at_all\n", None, "cannot be imported: ModuleNotFoundError: No module named"),
        ("def broken(:\n", None, "cannot be imported: SyntaxError"),
        (DECLARATION, "json.py", "standard library; rename the file"),
        (DECLARATION, "rich.py", "a module that poolkeeper needs; rename the file"),
        (DECLARATION, "pytest.py", "belongs to another module, .*; rename the file"),
        (DECLARATION, "fleet.txt", "a name like census.py"),
        (DECLARATION, "my.fleet.py", "a name like census.py"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(write: Write, text: str, name: str | None, message: str) -> None:
    with pytest.raises(FleetError, match=message):
        load_fleet(write(text, name))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no such file"):
        load_fleet(tmp_path / "nothing.py")


def test_a_file_may_exit_by_itself(write: Write) -> None:
    with pytest.raises(SystemExit):
        load_fleet(write("raise SystemExit(0)\n"))
