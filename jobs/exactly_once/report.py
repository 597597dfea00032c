"""The audit on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from exactly_once.audit import Figures

__all__ = ["report", "show"]

TOP = 10


def show(figures: Figures, *, reused: int, starts: int, names: Sequence[tuple[str, str, int]], folder: Path) -> None:
    """Print the report to stdout; see ``report``."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or pipe has no width of its own
    console.print(report(figures, reused=reused, starts=starts, names=names, folder=folder))


def report(figures: Figures, *, reused: int, starts: int, names: Sequence[tuple[str, str, int]], folder: Path) -> Group:
    """Return all tables, the verdict last.

    Args:
        figures: what the ledger tells.
        reused: how many outcomes were recorded before the last interruption.
        starts: how often the indexer was started.
        names: what is defined most often: kind, name, places.
        folder: where all of it lies.
    """
    parts: list[Text | Table] = []
    if names:
        table = _table(Column("defined most often"), Column("kind"), Column("places", justify="right"))
        for kind, name, places in names:
            table.add_row(Text(name), kind, f"{places:,}")
        parts.append(table)
    if figures.repeated:
        table = _table(Column("executed more than once", overflow="fold"), Column("times", justify="right"))
        for key, count in list(figures.repeated.items())[:TOP]:
            table.add_row(Text(_printable(key)), f"{count:,}")
        if len(figures.repeated) > TOP:
            table.add_row(f"and {len(figures.repeated) - TOP:,} more", "")
        parts.append(table)
    table = _table(Column("the ledger"), Column("", justify="right"))
    for name, count in _counts(figures, reused, starts):
        table.add_row(name, f"{count:,}")
    verdict = (
        f"{figures.outcomes:,} outcomes, {figures.effects - figures.superseded:,} effects, each once; "
        f"{figures.repeats:,} repeated {'execution' if figures.repeats == 1 else 'executions'}"
    )
    return Group(*parts, table, Text(verdict, style="bold"), Text(f"  {_printable(str(folder))}"))


def _counts(figures: Figures, reused: int, starts: int) -> list[tuple[str, int]]:
    counts = [
        ("files", figures.keys),
        ("outcomes", figures.outcomes),
        ("  recorded before an interruption", reused),
        ("effects", figures.effects),
        ("  of earlier contents of a file", figures.superseded),
        ("executions", figures.executions),
        ("  repeated, because a process was killed", figures.repeats),
        ("  which found the effect done", figures.found),
        ("processes that have executed", figures.processes),
        ("starts of the indexer", starts),
        ("interruptions of the run", figures.begins - 1),
        ("lines cut short by a death", figures.torn),
    ]
    return [(name, count) for name, count in counts if count or not name.startswith("  ")]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _table(*columns: Column) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
