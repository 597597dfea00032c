"""What is drawn, logged and summed up, on a console that the test reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import loguru
import pytest
from rich.console import Console

from poolkeeper.bars import workers_line
from poolkeeper.display import LineDisplay, LiveDisplay, summary
from poolkeeper.fleet import Fleet
from poolkeeper.logs import configure
from poolkeeper.model import (
    BatchResult,
    KeeperStatus,
    RunResult,
    StepResult,
    TaskResult,
    TaskStatus,
    WorkerStatus,
)
from poolkeeper.progress import duration


def done(index: int) -> TaskResult[Any]:
    return TaskResult(TaskStatus.SUCCEEDED, index)


def failed(index: int, error: BaseException) -> TaskResult[Any]:
    return TaskResult(TaskStatus.of(error), index, f"item-{index}", error=error)


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.042, "0.042 s"), (3.14, "3.1 s"), (12.4, "12 s"), (59.7, "1:00 min"), (185, "3:05 min"), (7389, "2:03:09 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class TestLines:
    @pytest.fixture
    def lines(self) -> Iterator[list[str]]:
        written: list[str] = []
        configure(lambda line: written.append(line.rstrip().split(" ", 1)[1].strip()))
        yield written
        loguru.logger.remove()
        loguru.logger.disable("poolkeeper")

    def test_parts_are_told_when_they_start_and_end(self, lines: list[str]) -> None:
        display = LineDisplay()
        display.batch_started("load", 2)
        for index in range(2):
            display.task_ended("load", done(index))
        display.batch_ended(BatchResult("load", (done(0), done(1)), seconds=0.5))
        display.step_started("report")
        display.step_ended(StepResult("report", TaskStatus.SUCCEEDED, seconds=1.0))
        assert lines == [
            "INFO    load: started, 2 tasks",
            "INFO    load: 2 of 2 tasks succeeded in 0.5 s",
            "INFO    report: started",
            "INFO    report: done in 1.0 s",
        ]

    def test_now_and_then_one_in_between(self, lines: list[str]) -> None:
        clock = Clock()
        display = LineDisplay(interval=10.0, clock=clock)
        display.batch_started("load", 40)
        for index in range(20):
            clock.now += 1.0
            display.task_ended("load", done(index) if index else failed(0, ValueError()))
        assert lines[1:] == [
            "INFO    load: 10 of 40 done, 1 failed, 1/s, 30 s left",
            "INFO    load: 20 of 40 done, 1 failed, 1/s, 20 s left",
        ]

    def test_troubles_are_told(self, lines: list[str]) -> None:
        display = LineDisplay()
        display.batch_started("load", None)
        display.batch_ended(BatchResult("load", (failed(0, ValueError("{braces}")),), error=OSError()))
        display.step_ended(StepResult("a", TaskStatus.FAILED, error=KeyError("k")))
        display.step_ended(StepResult("b", TaskStatus.CANCELLED, reason="a failed"))
        display.batch_skipped("c", "b cancelled")
        assert lines == [
            "INFO    load: started, an unknown number of tasks",
            "WARNING load: 0 of 1 tasks succeeded in 0 s, cut short",
            "ERROR   a: failed, KeyError: 'k'",
            "WARNING b: not run, a failed",
            "WARNING c: not run, b cancelled",
        ]


class TestLive:
    @pytest.fixture
    def console(self) -> Console:
        return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)

    def test_a_batch_has_a_bar_with_its_figures(self, console: Console) -> None:
        clock = Clock()
        display = LiveDisplay(console, clock=clock)
        fleet = Fleet("test")
        fleet.batch(items=[], name="load")(abs)
        fleet.batch(items=[], name="later")(abs)
        display.run_started(fleet)
        display.batch_started("load", 100)
        for index in range(20):
            display.task_ended("load", failed(index, ValueError()) if index < 3 else done(index))
        clock.now = 10.0
        load, later, *_ = text_of(display.render()).splitlines()
        assert "━" in load
        assert "20/100 3 failed" in load
        assert "2/s, 40 s left" in load
        assert later.split() == ["later", "waiting"]

    def test_what_has_ended_is_a_line(self, console: Console) -> None:
        display = LiveDisplay(console)
        display.batch_ended(BatchResult("load", (done(0), failed(1, ValueError())), seconds=2.0))
        display.batch_skipped("late", "load was cut short")
        display.notice("stopping")
        text = text_of(display.render())
        assert "1 done, 1 failed in 2.0 s" in text
        assert "not run: load was cut short" in text
        assert "stopping" in text

    def test_the_workers_are_on_a_line(self, console: Console) -> None:
        status = KeeperStatus(
            "etl",
            "default",
            pid=1,
            uptime=1.0,
            queued=5,
            running=1,
            workers=(
                WorkerStatus("w1", 10, "ready", task="load", rss=64 * 2**20),
                WorkerStatus("w2", 11, "ready", rss=64 * 2**20),
            ),
        )
        line = "2 workers, 1 busy, 5 queued, 1 running, 128 MiB"
        assert workers_line(2, 1, 5, 1, 128 * 2**20) == line
        assert line in text_of(LiveDisplay(console, lambda: status).render())

    def test_it_is_put_away_while_a_step_runs(self, console: Console) -> None:
        display = LiveDisplay(console, redirect=False)
        with display:
            display.batch_started("load", None)
            display.step_started("report")
            before = console.file.getvalue()  # type: ignore[attr-defined]
            console.print("the step's own output")
            after = console.file.getvalue()  # type: ignore[attr-defined]
            assert after == before + "the step's own output\n"
            display.step_ended(StepResult("report", TaskStatus.SUCCEEDED))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back


class TestSummary:
    def test_a_good_run_is_a_table(self) -> None:
        batch = BatchResult("load", tuple(done(index) for index in range(20)), seconds=2.0)
        run = RunResult("etl", batches={"load": batch}, steps={"report": StepResult("report", TaskStatus.SUCCEEDED)})
        text = text_of(summary(run))
        assert "etl · default" in text
        assert text.splitlines()[2].split() == ["load", "20", "20", "0", "0", "0", "0", "2.0", "s", "10"]
        assert "report: done" in text

    def test_failures_are_grouped_and_the_first_shown(self) -> None:
        results = [failed(index, ValueError(f"[red]bad[/] {index}")) for index in range(5)]
        text = text_of(summary(RunResult("etl", batches={"load": BatchResult("load", tuple(results))})))
        assert "load: 5 × ValueError" in text
        assert "item-2: [red]bad[/] 2" in text
        assert "item-3" not in text
        assert "… and 2 more" in text

    def test_all_that_went_wrong_is_said(self) -> None:
        def report() -> None:
            raise KeyError("missing")

        try:
            report()
        except KeyError as caught:
            error = caught
        run = RunResult(
            "etl",
            batches={"load": BatchResult("load", error=OSError("gone"))},
            steps={
                "a": StepResult("a", TaskStatus.FAILED, error=error),
                "b": StepResult("b", TaskStatus.CANCELLED, reason="a failed"),
            },
            skipped={"late": "b cancelled"},
            stopped="SIGINT received",
        )
        text = text_of(summary(run))
        assert "load: cut short by OSError: gone" in text
        assert "a: failed after" in text
        assert "in report" in text
        assert "b: not run, a failed" in text
        assert "late: not run, b cancelled" in text
        assert "stopped after 0 s: SIGINT received" in text
