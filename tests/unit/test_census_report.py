"""What the census adds up, writes down and shows."""

from __future__ import annotations

import csv
import io
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from source_census import store
from source_census.analysis import Breakage, BrokenSource, ModuleStats, analyse
from source_census.sources import Origin
from source_census.tables import BROKEN_SHOWN, WORTH_DOCUMENTING, report
from source_census.totals import Census, Outcome, take


def origin(path: Path) -> Origin:
    """Take a path's parts for distribution, package and file."""
    distribution, package, file = path.parts
    return Origin(distribution, package, file)


def measured(path: str, source: str) -> tuple[Path, ModuleStats]:
    return Path(path), analyse(Path(path), source.encode())


def broken(path: str, line: int | None = 1, reason: str = "invalid syntax") -> tuple[Path, BrokenSource]:
    return Path(path), BrokenSource(Path(path), line, Breakage.SYNTAX, reason)


def census_of(*outcomes: Outcome) -> Census:
    return take(outcomes, origin)


@pytest.fixture
def census() -> Census:
    return census_of(
        measured("Two 2.0/web/b.py", '"""Doc."""\nclass C:\n    def f(self):\n        return 1 or 2\n'),
        measured("Two 2.0/web/a.py", "# comment\n\nx = 1\n"),
        broken("One 1.0/tests/bad.py"),
        measured("One 1.0/core/a.py", "if x:\n    def f(): ...\n"),
        (Path("One 1.0/core/slow.py"), TimeoutError("it took more than 30 s")),
    )


def shown(census: Census, written: tuple[Path, ...] = ()) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(report(census, written))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# Totals -------------------------------------------------------------------------------------------------------------


def test_files_and_packages_are_in_order(census: Census) -> None:
    assert [entry.origin.file for entry in census.files] == ["a.py", "a.py", "b.py"]
    assert [entry.package for entry in census.packages] == ["core", "tests", "web"]


def test_a_package_is_the_sum_of_its_files(census: Census) -> None:
    web = census.packages[2]
    assert (web.distribution, web.package, web.broken) == ("Two 2.0", "web", 0)
    totals = web.totals
    assert (totals.files, totals.lines, totals.code, totals.docstring, totals.comment, totals.blank) == (
        2,
        7,
        4,
        1,
        1,
        1,
    )
    assert (totals.functions, totals.classes, totals.complexity) == (1, 1, 4)
    assert (totals.documented, totals.documentable) == (1, 4)
    assert (web.nesting, web.worst_complexity) == (2, 2)


def test_a_package_of_broken_files_has_no_figures(census: Census) -> None:
    tests = census.packages[1]
    assert (tests.broken, tests.totals.files, tests.nesting, tests.worst_complexity) == (1, 0, 0, 0)


def test_whatever_keeps_a_file_from_being_measured_is_told(census: Census) -> None:
    assert [(entry.origin.file, entry.line, entry.why, entry.reason) for entry in census.broken] == [
        ("slow.py", None, "TimeoutError", "it took more than 30 s"),
        ("bad.py", 1, "syntax", "invalid syntax"),
    ]


def test_the_whole_is_the_sum_of_the_packages(census: Census) -> None:
    assert census.totals.files == 3
    assert census.totals.lines == sum(entry.totals.lines for entry in census.packages)


# On disk ------------------------------------------------------------------------------------------------------------


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_the_database_holds_files_packages_and_broken_files(census: Census, tmp_path: Path) -> None:
    database = store.save(census, tmp_path / "out")[0]
    assert rows(database, "SELECT path, lines, worst_function, worst_complexity FROM files ORDER BY path") == [
        ("One 1.0/core/a.py", 2, "f", 1),
        ("Two 2.0/web/a.py", 3, None, None),
        ("Two 2.0/web/b.py", 4, "C.f", 2),
    ]
    assert rows(database, "SELECT package, files, broken, docstring_coverage FROM packages ORDER BY 1") == [
        ("core", 1, 1, 0.0),
        ("tests", 0, 1, None),
        ("web", 2, 0, 0.25),
    ]
    assert rows(database, "SELECT file, line, why FROM broken ORDER BY 1") == [
        ("bad.py", 1, "syntax"),
        ("slow.py", None, "TimeoutError"),
    ]
    assert rows(database, "PRAGMA foreign_key_check") == []


def test_csv_files_hold_the_same_as_the_database(census: Census, tmp_path: Path) -> None:
    database, *files = store.save(census, tmp_path)
    assert [path.name for path in files] == ["packages.csv", "files.csv", "broken.csv"]
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            heading, *found = csv.reader(file)
        stored = rows(database, f"SELECT {', '.join(heading)} FROM {path.stem}")
        assert found == [["" if cell is None else str(cell) for cell in row] for row in stored]


def test_a_second_census_replaces_the_first(census: Census, tmp_path: Path) -> None:
    store.save(census, tmp_path)
    database = store.save(census_of(measured("One 1.0/core/a.py", "")), tmp_path)[0]
    assert rows(database, "SELECT count(*) FROM files") == [(1,)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.csv", "census.db", "files.csv", "packages.csv"]


def test_a_census_that_fails_leaves_the_earlier_one_alone(census: Census, tmp_path: Path) -> None:
    store.save(census, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    twice = replace(census, files=census.files * 2)
    with pytest.raises(sqlite3.IntegrityError):
        store.save(twice, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_file_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    undecodable = os.fsdecode(b"One 1.0/core/caf\xe9.py")  # no valid UTF-8, which file systems of Unix allow
    census = census_of(measured(undecodable, "x = 1"), broken(undecodable.replace("caf", "th")))
    database = store.save(census, tmp_path)[0]
    assert rows(database, "SELECT file FROM files") == [(r"caf\udce9.py",)]
    assert r"th\udce9.py" in shown(census)


# On the terminal ----------------------------------------------------------------------------------------------------


def test_the_report_has_a_table_for_each_question(census: Census) -> None:
    text = shown(census, (Path("out/census.db"),))
    for title in ("Largest packages", "Largest files", "Most complex functions", "Broken files: 2"):
        assert title in text
    assert "3 files in 3 packages of 2 distributions" in text
    assert text.rstrip().endswith("out/census.db")


def test_the_summary_of_nothing_says_so() -> None:
    assert shown(census_of()).strip() == "There are no Python files to count."


def test_broken_files_are_grouped_by_why() -> None:
    outcomes = [broken(f"One 1.0/tests/{number}.py", line=7) for number in range(3)]
    outcomes[1][1].why = Breakage.ENCODING
    lines = [line.split() for line in shown(census_of(*outcomes)).splitlines() if ".py:7" in line]
    assert [line[:2] for line in lines] == [["encoding", "1.py:7"], ["syntax", "0.py:7"], ["2.py:7", "invalid"]]


def test_a_long_list_of_broken_files_is_cut() -> None:
    text = shown(census_of(*(broken(f"One 1.0/tests/{number}.py") for number in range(BROKEN_SHOWN + 5))))
    assert "Broken files: 25" in text
    assert "and 5 more" in text


def test_packages_with_little_to_document_are_not_blamed() -> None:
    big = "".join(f"def f{number}(): ...\n" for number in range(WORTH_DOCUMENTING))
    text = shown(census_of(measured("One 1.0/big/a.py", big), measured("One 1.0/little/a.py", "def f(): ...\n")))
    blamed = text.partition("Least documented")[2]
    assert "big" in blamed
    assert "little" not in blamed


def test_text_is_never_taken_for_markup() -> None:
    assert "[bold]no[/bold]" in shown(census_of(broken("One 1.0/tests/a.py", reason="[bold]no[/bold]")))
