"""How a run is drawn while it goes on: a line with a bar for each batch, the services, the workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .progress import ProgressRow, duration, troubles
from .service_model import ServiceStatus

__all__ = ["STATES", "draw", "workers_line"]


def draw(
    rows: Iterable[ProgressRow], services: Sequence[ServiceStatus], workers: str, notice: str, now: float
) -> RenderableType:
    """Return the picture of a run; ``now``, in seconds of any clock, moves bars whose end is not known."""
    table = Table.grid(padding=(0, 1))
    for row in rows:
        if row.text:
            table.add_row(Text(row.name, "bold"), Text(row.text, "dim"))
        else:
            table.add_row(Text(row.name, "bold"), _bar(row, now), _counts(row), _pace(row))
    lines: list[RenderableType] = [table]
    if services:
        lines.insert(0, _service_rows(services))
    if workers:
        lines.append(Text(workers, "dim"))
    if notice:
        lines.append(Text(notice, "yellow"))
    return Group(*lines)


def workers_line(workers: int, busy: int, queued: int, running: int, memory: int) -> str:
    """Return one line about a keeper's workers: how many, how many are busy, and their memory."""
    parts = [f"{workers} workers, {busy} busy", f"{queued} queued", f"{running} running"]
    if memory:
        parts.append(f"{memory / 2**20:.0f} MiB")
    return ", ".join(parts)


STATES = {"running": "green", "completed": "green", "failed": "bold red", "backoff": "yellow"}
_SERVICES_SHOWN = 20


def _service_rows(services: Sequence[ServiceStatus]) -> RenderableType:
    """Return a line for each service; of many, those that do not run come first."""
    table = Table.grid(padding=(0, 1))
    ordered = (
        sorted(services, key=lambda row: row.state.value == "running") if len(services) > _SERVICES_SHOWN else services
    )
    for row in ordered[:_SERVICES_SHOWN]:
        state = row.state.value
        up = f"up {duration(row.uptime)}" if row.uptime is not None else ""
        restarts = f"{row.restarts} restart{'' if row.restarts == 1 else 's'}" if row.restarts else ""
        facts = ", ".join(filter(None, (f"pid {row.pid}" if row.pid else "", up, restarts, row.detail)))
        table.add_row(Text(row.name, "bold"), Text(state, STATES.get(state, "cyan")), Text(facts, "dim"))
    if len(services) > _SERVICES_SHOWN:
        table.add_row(Text(f"and {len(services) - _SERVICES_SHOWN} more", "dim"))
    return table


def _bar(row: ProgressRow, now: float) -> ProgressBar:
    return ProgressBar(total=row.total, completed=row.done, width=30, pulse=row.total is None, animation_time=now)


def _counts(row: ProgressRow) -> Text:
    of = "" if row.total is None else f"/{row.total}"
    return Text.assemble(f"{row.done}{of}", (f" {troubles(row).rstrip(', ')}", "red" if row.failed else "yellow"))


def _pace(row: ProgressRow) -> Text:
    left = row.remaining
    return Text(f"{row.rate:,.0f}/s" + ("" if left is None else f", {duration(left)} left"), "cyan")
