"""The census on the terminal: what is largest, most complex, least documented, and what is broken and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from source_census.analysis import share
from source_census.store import printable
from source_census.totals import BrokenEntry, Census, FileEntry, PackageEntry

__all__ = ["report", "show"]

TOP = 10
BROKEN_SHOWN = 20
WORTH_DOCUMENTING = 50
"""The public definitions that a package must have to be among the least documented."""


def show(census: Census, written: Sequence[Path]) -> None:
    """Print the report on ``census``, which is in the files ``written``, to stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or pipe has no width of its own, and 80 columns would fold most rows
    console.print(report(census, written))


def report(census: Census, written: Sequence[Path]) -> Group:
    """Return all tables, the totals last: that is where the eye is when the run ends."""
    sections = [
        ("Largest packages", _largest_packages(census.packages)),
        ("Largest files", _largest_files(census.files)),
        ("Most complex functions (the worst of each file; McCabe 1976)", _most_complex(census.files)),
        (
            f"Least documented packages (of those with at least {WORTH_DOCUMENTING} public definitions)",
            _least_documented(census.packages),
        ),
        (f"Broken files: {len(census.broken):,}", _broken(census.broken)),
    ]
    tables = [part for title, table in sections if table.row_count for part in (Text(title, style="bold"), table)]
    return Group(*tables, Text(_summary(census), style="bold"), *(Text(f"  {printable(path)}") for path in written))


def _largest_packages(packages: Sequence[PackageEntry]) -> Table:
    table = _table(
        _text("package"), _text("distribution"), *_numbers("files", "code lines", "functions", "classes", "documented")
    )
    for entry in sorted(packages, key=lambda entry: -entry.totals.code)[:TOP]:
        totals = entry.totals
        counts = (totals.files, totals.code, totals.functions, totals.classes)
        _add(table, entry.package, entry.distribution, *counts, _percent(totals.docstring_coverage))
    return table


def _largest_files(files: Sequence[FileEntry]) -> Table:
    table = _table(_text("file"), *_numbers("code lines", "docstrings", "comments", "tokens", "functions", "nesting"))
    for entry in sorted(files, key=lambda entry: -entry.stats.code)[:TOP]:
        stats = entry.stats
        counts = (stats.code, stats.docstring, stats.comment, stats.tokens, stats.functions, stats.nesting)
        _add(table, entry.origin.file, *counts)
    return table


def _most_complex(files: Sequence[FileEntry]) -> Table:
    table = _table(_text("function"), *_numbers("complexity"), _text("file and line"))
    for entry in sorted(files, key=lambda entry: -(entry.stats.worst_complexity or 0))[:TOP]:
        stats = entry.stats
        if stats.worst_function is not None:
            _add(table, stats.worst_function, stats.worst_complexity, f"{entry.origin.file}:{stats.worst_line}")
    return table


def _least_documented(packages: Sequence[PackageEntry]) -> Table:
    table = _table(_text("package"), _text("distribution"), *_numbers("public definitions", "documented"))
    candidates = [entry for entry in packages if entry.totals.documentable >= WORTH_DOCUMENTING]
    for entry in sorted(candidates, key=_by_coverage)[:TOP]:
        totals = entry.totals
        _add(table, entry.package, entry.distribution, totals.documentable, _percent(totals.docstring_coverage))
    return table


def _by_coverage(entry: PackageEntry) -> tuple[float, int]:
    """Sort the least documented first, and of equals the one with the most to document."""
    return entry.totals.docstring_coverage or 0.0, -entry.totals.documentable


def _broken(broken: Sequence[BrokenEntry]) -> Table:
    table = _table(_text("why"), _text("file and line"), _text("reason"))
    previous = None
    for entry in sorted(broken, key=lambda entry: entry.why)[:BROKEN_SHOWN]:
        place = entry.origin.file if entry.line is None else f"{entry.origin.file}:{entry.line}"
        _add(table, "" if entry.why == previous else entry.why, place, entry.reason)
        previous = entry.why
    if len(broken) > BROKEN_SHOWN:
        _add(table, "", f"and {len(broken) - BROKEN_SHOWN:,} more", "")
    return table


def _summary(census: Census) -> str:
    if not census.packages:
        return "There are no Python files to count."
    totals = census.totals
    distributions = len({entry.distribution for entry in census.packages})
    shares = ", ".join(
        f"{_percent(share(count, totals.lines))} {kind}"
        for count, kind in ((totals.code, "code"), (totals.docstring, "docstring"), (totals.comment, "comment"))
    )
    return (
        f"{_count(totals.files, 'file')} in {_count(len(census.packages), 'package')} of "
        f"{_count(distributions, 'distribution')}, {decimal(totals.size)}: {totals.lines:,} lines ({shares}), "
        f"{totals.tokens:,} tokens, {totals.functions:,} functions, {totals.classes:,} classes, "
        f"{_percent(totals.docstring_coverage)} documented; {_count(len(census.broken), 'file')} broken"
    )


# Cells --------------------------------------------------------------------------------------------------------------


def _table(*columns: Column) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _text(heading: str) -> Column:
    return Column(heading, overflow="fold")


def _numbers(*headings: str) -> list[Column]:
    return [Column(heading, justify="right", no_wrap=True) for heading in headings]


def _add(table: Table, *cells: object) -> None:
    """Add a row; texts are shown as they are, never taken for markup."""
    table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else printable(cell)) for cell in cells))


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
