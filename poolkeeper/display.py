"""What a person sees of a run: a live display on a terminal, log lines elsewhere, and a summary at the end.

The live display is drawn on standard error and clears itself: standard output belongs to the steps and the summary.
While a step runs the display is put away, so that the step can print, and draw progress bars, as it likes.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .bars import STATES, draw, workers_line
from .fleet import Fleet
from .logs import emit
from .model import BatchResult, KeeperStatus, RunResult, StepResult, TaskResult
from .progress import RunProgress, duration, reused, troubles
from .runner import RunObserver
from .summary import error_name, failure_groups

__all__ = ["Display", "LineDisplay", "LiveDisplay", "summary"]


class Display(RunObserver):
    """A run observer that shows something from ``with`` on to its end.

    ``progress`` is told by whoever is told in its place; others may look at it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress = RunProgress(clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def leave(self) -> None:
        """Show nothing any more, for another program is to have the terminal."""

    def stay(self) -> None:
        """There is no other program: go on."""

    def run_started(self, fleet: Fleet) -> None:
        """The run starts."""
        self.progress.run_started(fleet)

    def batch_started(self, name: str, total: int | None) -> None:
        """A batch starts."""
        self.progress.batch_started(name, total)

    def task_ended(self, name: str, result: TaskResult[Any]) -> None:
        """Count one task."""
        self.progress.task_ended(name, result)

    def batch_ended(self, result: BatchResult[Any]) -> None:
        """A batch is over."""
        self.progress.batch_ended(result)

    def batch_skipped(self, name: str, reason: str) -> None:
        """A batch is not run."""
        self.progress.batch_skipped(name, reason)

    def step_started(self, name: str) -> None:
        """A step starts."""
        self.progress.step_started(name)

    def step_ended(self, result: StepResult) -> None:
        """A step is over."""
        self.progress.step_ended(result)


class LineDisplay(Display):
    """Plain log lines: when a part starts, when it ends, and now and then in between.

    Args:
        interval: seconds between two lines about the same batch.
        clock: gives seconds of a monotonic clock.
    """

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._interval = interval
        self._clock = clock
        self._due: dict[str, float] = {}

    def batch_started(self, name: str, total: int | None) -> None:
        """Begin to count."""
        super().batch_started(name, total)
        self._due[name] = self._clock() + self._interval
        emit("INFO", f"{name}: started, {'an unknown number of' if total is None else total} tasks", batch=name)

    def task_ended(self, name: str, result: TaskResult[Any]) -> None:
        """Count one task."""
        super().task_ended(name, result)
        now = self._clock()
        if now >= self._due[name]:
            self._due[name] = now + self._interval
            row = self.progress.row(name)
            of = "" if row.total is None else f" of {row.total}"
            eta = "" if row.remaining is None else f", {duration(row.remaining)} left"
            emit("INFO", f"{name}: {row.done}{of} done, {troubles(row)}{row.rate:.0f}/s{eta}", batch=name)

    def batch_ended(self, result: BatchResult[Any]) -> None:
        """Tell how it went."""
        super().batch_ended(result)
        figures = result.statistics
        cut = reused(figures) + ("" if result.complete else ", cut short")
        emit(
            "INFO" if result.ok else "WARNING",
            f"{result.name}: {figures.succeeded} of {figures.tasks} tasks succeeded in {duration(result.seconds)}{cut}",
            batch=result.name,
        )

    def batch_skipped(self, name: str, reason: str) -> None:
        """Tell why."""
        super().batch_skipped(name, reason)
        emit("WARNING", f"{name}: not run, {reason}", batch=name)

    def step_started(self, name: str) -> None:
        """Tell."""
        super().step_started(name)
        emit("INFO", f"{name}: started", step=name)

    def step_ended(self, result: StepResult) -> None:
        """Tell how it went."""
        super().step_ended(result)
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
        super().__init__(clock)
        self._console = console
        self._status = status
        self._redirect = redirect
        self._clock = clock
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
        self.progress.notice = text

    def step_started(self, name: str) -> None:
        """Leave the terminal to the step."""
        super().step_started(name)
        self.hide()

    def step_ended(self, result: StepResult) -> None:
        """Draw the display again."""
        super().step_ended(result)
        self.show()

    def render(self) -> RenderableType:
        """Return what is to be drawn now."""
        status = None if self._status is None else self._status()
        workers = "" if status is None else _workers(status)
        services = () if status is None else status.services
        return draw(self.progress.rows(), services, workers, self.progress.notice, self._clock())


def _workers(status: KeeperStatus) -> str:
    busy = sum(worker.task is not None for worker in status.workers)
    memory = sum(worker.rss or 0 for worker in status.workers)
    return workers_line(len(status.workers), busy, status.queued, status.running, memory)


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
        parts.append(Text.assemble((name, "bold"), " ", (state.value, STATES.get(state.value, "cyan"))))
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
