"""Tables of fleets, services and workers for people."""

from __future__ import annotations

import signal
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .progress import duration

__all__ = ["status_table", "top_table"]

_COLOURS = {
    "running": "green",
    "completed": "green",
    "busy": "green",
    "failed": "bold red",
    "backoff": "yellow",
    "orphaned": "yellow",
    "starting": "cyan",
    "waiting": "cyan",
    "stopping": "cyan",
}


def status_table(data: dict[str, Any]) -> RenderableType:
    """Return a table of the services, below a line about the keeper."""
    return Group(_headline(data), *_services(data))


def top_table(data: dict[str, Any], cpu: dict[int, float]) -> RenderableType:
    """Return a table of services and one of workers; ``cpu`` has the share of a processor that each pid uses."""
    parts: list[RenderableType] = [_headline(data), *_services(data, cpu)]
    if data["workers"]:
        table = _table("WORKER", "STATE", "PID", "TASK", "UPTIME", "MEMORY", "CPU")
        for row in data["workers"]:
            table.add_row(
                str(row["id"]),
                _state(row),
                _number(row["pid"]),
                row["task"] or "",
                _duration(row["uptime"]),
                _memory(row["memory"]),
                _share(cpu.get(row["pid"])),
            )
        parts.append(table)
    return Group(*parts)


def _headline(data: dict[str, Any]) -> Text:
    text = Text()
    text.append(f"{data['name']}/{data['run_id']}", "bold")
    if data["keeper"] == "running":
        text.append(f"  keeper {data['pid']}, up {_duration(data['uptime'])}")
        text.append(f", {data['running']} tasks running, {data['queued']} queued, {len(data['workers'])} workers")
    else:
        text.append(f"  no keeper runs ({data['keeper']})", "yellow")
    return text


def _services(data: dict[str, Any], cpu: dict[int, float] | None = None) -> list[RenderableType]:
    if not data["services"]:
        return []
    table = _table("SERVICE", "STATE", "PID", "UPTIME", "RESTARTS", "LAST EXIT", "MEMORY", "CPU", "")
    for row in data["services"]:
        used = row["cpu_seconds"]
        table.add_row(
            row["name"],
            _state(row),
            _number(row["pid"]),
            _duration(row["uptime"]),
            _number(row["restarts"]),
            _exit(row["last_exit"]),
            _memory(row["memory"]),
            ("" if used is None else duration(used)) if cpu is None else _share(cpu.get(row["pid"])),
            Text(row["detail"] or "", "dim"),
        )
    return [table]


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        right = column in ("PID", "UPTIME", "RESTARTS", "MEMORY", "CPU")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "")
    return table


def _state(row: dict[str, Any]) -> Text:
    frozen = row.get("frozen")
    if frozen:
        return Text(f"{row['state']} ({frozen})", "bold yellow")
    return Text(row["state"], _COLOURS.get(row["state"], "dim"))


def _exit(code: int | None) -> str:
    if code is None:
        return ""
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _memory(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f} MiB"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
