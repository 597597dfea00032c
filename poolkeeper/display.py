"""What a person sees of a run: a live display on a terminal, log lines elsewhere, and a summary at the end.

The live display is drawn on standard error and clears itself: standard output belongs to the steps and the summary.
While a step runs the display is put away, so that the step can print, and draw progress bars, as it likes.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .fleet import BatchSpec, Fleet
from .logs import emit
from .model import BatchResult, KeeperStatus, RunResult, RunStatistics, StepResult, TaskResult
from .progress import BatchProgress
from .runner import RunObserver
from .service_model import ServiceStatus
from .summary import error_name, failure_groups

__all__ = ["Display", "LineDisplay", "LiveDisplay", "summary"]


class Display(RunObserver):
    """A run observer that shows something from ``with`` on to its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def leave(self) -> None:
        """Show nothing any more, for another program is to have the terminal."""

    def stay(self) -> None:
        """There is no other program: go on."""


class LineDisplay(Display):
    """Plain log lines: when a part starts, when it ends, and now and then in between.

    Args:
        interval: seconds between two lines about the same batch.
        clock: gives seconds of a monotonic clock.
    """

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._batches: dict[str, BatchProgress] = {}
        self._due: dict[str, float] = {}

    def batch_started(self, name: str, total: int | None) -> None:
        """Begin to count."""
        now = self._clock()
        self._batches[name] = BatchProgress(name, total, now)
        self._due[name] = now + self._interval
        emit("INFO", f"{name}: started, {'an unknown number of' if total is None else total} tasks", batch=name)

    def task_ended(self, name: str, result: TaskResult[Any]) -> None:
        """Count one task."""
        batch, now = self._batches[name], self._clock()
        batch.ended(result)
        if now >= self._due[name]:
            self._due[name] = now + self._interval
            of = "" if batch.total is None else f" of {batch.total}"
            left = batch.remaining(now)
            eta = "" if left is None else f", {duration(left)} left"
            emit("INFO", f"{name}: {batch.done}{of} done, {_troubles(batch)}{batch.rate(now):.0f}/s{eta}", batch=name)

    def batch_ended(self, result: BatchResult[Any]) -> None:
        """Tell how it went."""
        figures = result.statistics
        cut = _reused(figures) + ("" if result.complete else ", cut short")
        emit(
            "INFO" if result.ok else "WARNING",
            f"{result.name}: {figures.succeeded} of {figures.tasks} tasks succeeded in {duration(result.seconds)}{cut}",
            batch=result.name,
        )

    def batch_skipped(self, name: str, reason: str) -> None:
        """Tell why."""
        emit("WARNING", f"{name}: not run, {reason}", batch=name)

    def step_started(self, name: str) -> None:
        """Tell."""
        emit("INFO", f"{name}: started", step=name)

    def step_ended(self, result: StepResult) -> None:
        """Tell how it went."""
        if result.reason is not None:
            emit("WARNING", f"{result.name}: not run, {result.reason}", step=result.name)
        elif result.error is not None:
            emit("ERROR", f"{result.name}: failed, {error_name(result.error)}: {result.error}", step=result.name)
        else:
            emit("INFO", f"{result.name}: done in {duration(result.seconds)}", step=result.name)


class LiveDisplay(Display):
    """A line with a bar for each batch and one for the workers, drawn anew a few times a second.

    Args:
        console: a terminal, that of standard error.
        status: gives a snapshot of the keeper, for the line of the workers.
        redirect: whether what is printed on standard output goes above the display, to the same terminal.
        clock: gives seconds of a monotonic clock.
    """

    def __init__(
        self,
        console: Console,
        status: Callable[[], KeeperStatus] | None = None,
        *,
        redirect: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._status = status
        self._redirect = redirect
        self._clock = clock
        self._rows: dict[str, BatchProgress | str] = {}
        self._notice = ""
        self._live: Live | None = None
        self._left = False
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def show(self) -> None:
        """Draw the display, and keep it up to date."""
        with self._lock:
            if self._live is None and not self._left:
                # A new one each time: a Live that is started again would first move the cursor up over other output.
                self._live = Live(
                    get_renderable=self.render,
                    console=self._console,
                    refresh_per_second=8,
                    transient=True,
                    redirect_stdout=self._redirect,
                    redirect_stderr=True,
                )
                self._live.start()

    def hide(self) -> None:
        """Clear the display."""
        with self._lock:
            if self._live is not None:
                with contextlib.suppress(OSError):  # the terminal is gone
                    self._live.stop()
                self._live = None

    def leave(self) -> None:
        """Clear the display for good: the cursor is shown, and the streams are the terminal's again."""
        with self._lock:
            self._left = True
            self.hide()

    def stay(self) -> None:
        """Draw the display again."""
        with self._lock:
            self._left = False
            self.show()

    def notice(self, text: str) -> None:
        """Show ``text`` below everything else from now on."""
        self._notice = text

    def run_started(self, fleet: Fleet) -> None:
        """Make room for every batch."""
        # Only what has a bar gets a line before its time: a step is over before one has read that it waits.
        self._rows.update((name, "waiting") for name, spec in fleet.parts.items() if isinstance(spec, BatchSpec))

    def batch_started(self, name: str, total: int | None) -> None:
        """Draw its bar."""
        self._rows[name] = BatchProgress(name, total, self._clock())

    def task_ended(self, name: str, result: TaskResult[Any]) -> None:
        """Count one task."""
        row = self._rows[name]
        if isinstance(row, BatchProgress):
            row.ended(result)

    def batch_ended(self, result: BatchResult[Any]) -> None:
        """Put one line in the place of its bar."""
        figures = result.statistics
        failed = f", {figures.failed} failed" if figures.failed else ""
        self._rows[result.name] = f"{figures.succeeded} done{failed} in {duration(result.seconds)}{_reused(figures)}"

    def batch_skipped(self, name: str, reason: str) -> None:
        """Tell why."""
        self._rows[name] = f"not run: {reason}"

    def step_started(self, name: str) -> None:
        """Leave the terminal to the step."""
        self.hide()

    def step_ended(self, result: StepResult) -> None:
        """Draw the display again."""
        self.show()

    def render(self) -> RenderableType:
        """Return what is to be drawn now."""
        now = self._clock()
        table = Table.grid(padding=(0, 1))
        for name, row in list(self._rows.items()):
            if isinstance(row, str):
                table.add_row(Text(name, "bold"), Text(row, "dim"))
            else:
                table.add_row(Text(name, "bold"), _bar(row, now), _counts(row), _pace(row, now))
        lines: list[RenderableType] = [table]
        if self._status is not None:
            status = self._status()
            if status.services:
                lines.insert(0, _service_rows(status.services))
            lines.append(Text(workers_line(status), "dim"))
        if self._notice:
            lines.append(Text(self._notice, "yellow"))
        return Group(*lines)


_STATES = {"running": "green", "completed": "green", "failed": "bold red", "backoff": "yellow"}
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
        table.add_row(Text(row.name, "bold"), Text(state, _STATES.get(state, "cyan")), Text(facts, "dim"))
    if len(services) > _SERVICES_SHOWN:
        table.add_row(Text(f"and {len(services) - _SERVICES_SHOWN} more", "dim"))
    return table


def workers_line(status: KeeperStatus) -> str:
    """Return one line about a keeper's workers: how many, how many are busy, and their memory."""
    busy = sum(worker.task is not None for worker in status.workers)
    memory = sum(worker.rss or 0 for worker in status.workers)
    parts = [f"{len(status.workers)} workers, {busy} busy", f"{status.queued} queued", f"{status.running} running"]
    if memory:
        parts.append(f"{memory / 2**20:.0f} MiB")
    return ", ".join(parts)


def summary(result: RunResult, samples: int = 3) -> RenderableType:
    """Return the end of a run as a table, and below it the failures grouped by error, the first few with their text."""
    table = Table(
        title=f"{result.fleet} · {result.run_id}", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    reuses = any(batch.statistics.reused for batch in result.batches.values())
    reused = ("reused",) if reuses else ()
    for column in ("", "tasks", "done", "failed", "cancelled", *reused, "retried", "deaths", "time", "tasks/s"):
        table.add_column(column, justify="left" if not column else "right")
    for name, batch in result.batches.items():
        figures = batch.statistics
        table.add_row(
            Text(name, "bold"),
            str(figures.tasks),
            Text(str(figures.succeeded), "green"),
            _if_any(figures.failed, "red"),
            _if_any(figures.cancelled, "yellow"),
            *((_if_any(figures.reused, "cyan"),) if reuses else ()),
            _if_any(figures.retried, "yellow"),
            _if_any(figures.deaths, "red"),
            duration(batch.seconds),
            f"{figures.rate:,.0f}" if figures.rate >= 10 else f"{figures.rate:.2g}",
        )
    title = Text(f"{result.fleet} · {result.run_id}", "bold italic")
    parts: list[RenderableType] = [table] if result.batches or result.steps else [title]
    for name, state in result.services.items():
        parts.append(Text.assemble((name, "bold"), " ", (state.value, _STATES.get(state.value, "cyan"))))
    parts += [Text(f"{name}: not run, {reason}", "yellow") for name, reason in result.skipped.items()]
    for step in result.steps.values():
        parts.append(_step_line(step))
    for batch in result.batches.values():
        parts.extend(_failure_lines(batch, samples))
    if result.failure is not None:
        parts.append(Text(f"failed after {duration(result.seconds)}: {result.failure}", "red"))
    if result.stopped is not None:
        parts.append(Text(f"stopped after {duration(result.seconds)}: {result.stopped}", "yellow"))
    return Group(*parts)


def duration(seconds: float) -> str:
    """Return ``seconds`` as people say it: 0.42 s, 12 s, 3:05 min, 2:03:09 h."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def _reused(figures: RunStatistics) -> str:
    return f", {figures.reused} of them reused" if figures.reused else ""


def _bar(batch: BatchProgress, now: float) -> ProgressBar:
    return ProgressBar(total=batch.total, completed=batch.done, width=30, pulse=batch.total is None, animation_time=now)


def _counts(batch: BatchProgress) -> Text:
    of = "" if batch.total is None else f"/{batch.total}"
    return Text.assemble(
        f"{batch.done}{of}", (f" {_troubles(batch).rstrip(', ')}", "red" if batch.failed else "yellow")
    )


def _pace(batch: BatchProgress, now: float) -> Text:
    left = batch.remaining(now)
    return Text(f"{batch.rate(now):,.0f}/s" + ("" if left is None else f", {duration(left)} left"), "cyan")


def _troubles(batch: BatchProgress) -> str:
    failed = f"{batch.failed} failed, " if batch.failed else ""
    return failed + (f"{batch.retried} retried, " if batch.retried else "")


def _if_any(count: int, style: str) -> Text:
    return Text(str(count), style if count else "dim")


def _step_line(step: StepResult) -> RenderableType:
    if step.reason is not None:
        return Text(f"{step.name}: not run, {step.reason}", "yellow")
    if step.error is None:
        return Text(f"{step.name}: done in {duration(step.seconds)}")
    # The first frame is the runner's.
    trace = step.error.__traceback__
    shown = trace.tb_next if trace is not None else None
    text = "".join(traceback.format_exception(type(step.error), step.error, shown)).rstrip()
    return Group(Text(f"{step.name}: failed after {duration(step.seconds)}", "red"), Text(text))


def _failure_lines(batch: BatchResult[Any], samples: int) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if batch.error is not None:
        lines.append(Text(f"{batch.name}: cut short by {error_name(batch.error)}: {batch.error}", "red"))
    for group in failure_groups(batch, samples):
        lines.append(Text.from_markup(f"[red]{escape(batch.name)}: {group.count} × {escape(group.error)}[/]"))
        lines += [Text(f"    {each.label}: {each.message}") for each in group.first]
        if group.count > len(group.first):
            lines.append(Text(f"    … and {group.count - len(group.first)} more", "dim"))
    return lines
