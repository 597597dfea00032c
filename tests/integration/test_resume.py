"""Runs that are interrupted go on, and runs that are finished begin anew: the command line, killed and run again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import poolkeeper
from tests.helpers import PATIENCE, wait_until

ROOT = Path(poolkeeper.__file__).parent.parent

FLEET = """
import os
from pathlib import Path
from poolkeeper import BatchResult, Fleet

HERE = Path(__file__).parent
fleet = Fleet("demo")

@fleet.batch(items=ITEMS, key=str)
def work(item):
    with open(HERE / f"ran-{os.getpid()}", "a") as ran:
        ran.write(f"{item}\\n")
    if (HERE / "halt").exists() and Path(str(item)).stem in (HERE / "halt").read_text().split():
        (HERE / f"halted-{Path(str(item)).stem}").touch()
        with open(HERE / "gate") as gate:
            gate.read()
    if (HERE / "fail").exists() and str(item) in (HERE / "fail").read_text().split():
        raise ValueError(f"no luck with {item}")
    return RETURNED

@fleet.step(after=work)
def conclude(done: BatchResult):
    print("steps got", sorted(done.values))
"""


class Runs:
    """Runs the fleet of a folder again and again, and tells which tasks each of them has executed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = "range(20)"
        self.returned = "item * 10"
        self.halt(())
        os.mkfifo(folder / "gate")

    @property
    def environment(self) -> dict[str, str]:
        settings = {"POOLKEEPER_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT), "COLUMNS": "150"}
        return os.environ | settings | {"NO_COLOR": "1", "PYTHONHASHSEED": "random"}

    def halt(self, items: Any) -> None:
        """Have these tasks stop where they are."""
        (self.folder / "halt").write_text(" ".join(map(str, items)))

    def fail(self, *items: Any) -> None:
        """Have these tasks raise."""
        (self.folder / "fail").write_text(" ".join(map(str, items)))

    def start(self, *options: str) -> subprocess.Popen[str]:
        path = self.folder / "fleet.py"
        path.write_text(FLEET.replace("ITEMS", self.items).replace("RETURNED", self.returned))
        for ran in self.folder.glob("ran-*"):
            ran.unlink()
        return subprocess.Popen(
            [sys.executable, "-B", "-m", "poolkeeper", "run", str(path), "--workers", "2", "--json", *options],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *options: str) -> tuple[dict[str, Any], str]:
        """Run the fleet to its end; return its figures and what it has said."""
        with self.start(*options) as process:
            output, said = process.communicate(timeout=2 * PATIENCE)
        return json.loads(output), said

    def run_until(self, halted: tuple[int, ...], *options: str) -> subprocess.Popen[str]:
        """Start the fleet and return when it has recorded all that comes before two tasks that stop where they are."""
        self.halt(halted)
        before = self.recorded()
        process = self.start(*options)

        def is_there() -> bool:
            assert process.poll() is None, process.communicate()
            return all((self.folder / f"halted-{item}").exists() for item in halted)

        wait_until(is_there, f"the tasks {halted}")
        expected = before + len(self.executed) - len(halted)
        wait_until(lambda: self.recorded() >= expected, f"{expected} recorded outcomes")
        return process

    @property
    def executed(self) -> Counter[str]:
        """How often each task has been executed since the last start."""
        return Counter(line for ran in self.folder.glob("ran-*") for line in ran.read_text().split())

    def recorded(self) -> int:
        """How many outcomes the journal has."""
        path = next(self.folder.glob("home/*/default/journal.db"), None)
        if path is None:
            return 0
        with closing(sqlite3.connect(path)) as connection:
            return int(connection.execute("SELECT coalesce(sum(count), 0) FROM groups").fetchone()[0])


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    yield Runs(tmp_path)
    for path in tmp_path.glob("ran-*"):
        pid = int(path.name.partition("-")[2])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it may wait at the gate for ever


def kill(process: subprocess.Popen[str], runs: Runs) -> None:
    """Kill a run, and wait for the end of its workers: their sockets lie in the home."""
    process.kill()
    process.communicate(timeout=PATIENCE)
    for path in runs.folder.glob("ran-*"):
        pid = int(path.name.partition("-")[2])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in runs.folder.glob("halted-*"):
        path.unlink()
    runs.halt(())


def all_of(items: Any) -> Counter[str]:
    return Counter(map(str, items))


class TestInterrupted:
    def test_a_killed_run_executes_only_the_rest(self, runs: Runs) -> None:
        kill(runs.run_until((10, 11)), runs)
        before = runs.recorded()
        assert before >= 8
        figures, said = runs.run()
        batch = figures["batches"]["work"]
        assert figures["ok"], said
        assert batch["reused"] == before
        assert sum(runs.executed.values()) == 20 - before
        assert set(runs.executed.values()) == {1}
        first = said.splitlines()[0]
        assert "whose keeper died" in first
        assert f"{before} recorded outcomes" in first
        assert f"steps got {[10 * item for item in range(20)]}" in said

    def test_so_does_one_that_was_killed_twice(self, runs: Runs) -> None:
        kill(runs.run_until((4, 5)), runs)
        kill(runs.run_until((4, 5)), runs)  # the only ones that are sure not to have run: they stood at the gate
        before = runs.recorded()
        figures, _ = runs.run()
        assert figures["batches"]["work"]["reused"] == before
        assert sum(runs.executed.values()) == 20 - before

    def test_ctrl_c_likewise(self, runs: Runs) -> None:
        process = runs.run_until((10, 11))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "SIGINT received" not in process.stderr.readline():
            pass
        for _ in range(2):
            wait_until(lambda: open_gate(runs.folder) or process.poll() is not None, "a task at the gate")
        wait_until(lambda: open_gate(runs.folder) is None or process.poll() is not None)
        wait_until(lambda: (open_gate(runs.folder), process.poll())[1] is not None, "the end")
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        runs.halt(())
        before = runs.recorded()
        figures, said = runs.run()
        assert "was interrupted (SIGINT received)" in said.splitlines()[0]
        assert figures["batches"]["work"]["reused"] == before >= 10
        assert sum(runs.executed.values()) == 20 - before

    def test_fresh_discards(self, runs: Runs) -> None:
        kill(runs.run_until((10, 11)), runs)
        figures, said = runs.run("--fresh")
        assert figures["batches"]["work"]["reused"] == 0
        assert runs.executed == all_of(range(20))
        assert "is discarded" in said

    def test_changed_code_runs_again(self, runs: Runs) -> None:
        kill(runs.run_until((10, 11)), runs)
        runs.returned = "item * 1000"
        figures, said = runs.run()
        assert figures["batches"]["work"]["reused"] == 0
        assert f"steps got {[1000 * item for item in range(20)]}" in said

    def test_other_keys_in_another_order_are_found_all_the_same(self, runs: Runs) -> None:
        kill(runs.run_until((10, 11)), runs)
        before = runs.recorded()
        runs.items = "range(29, -1, -1)"
        figures, _ = runs.run()
        assert figures["batches"]["work"]["reused"] == before
        assert sum(runs.executed.values()) == 30 - before

    def test_a_file_that_has_changed_runs_again(self, runs: Runs) -> None:
        (runs.folder / "data").mkdir()
        for number in range(12):
            (runs.folder / "data" / str(number)).write_text(f"{number}")
        runs.items = "sorted((HERE / 'data').iterdir(), key=lambda path: int(path.name))"
        runs.returned = "int(item.read_text())"
        kill(runs.run_until((10, 11)), runs)
        before = runs.recorded()
        (runs.folder / "data" / "3").write_text("3000")
        figures, said = runs.run()
        assert figures["batches"]["work"]["reused"] == before - 1
        assert str(runs.folder / "data" / "3") in runs.executed
        assert "3000" in said

    def test_failures_are_outcomes_too(self, runs: Runs) -> None:
        runs.fail(3)
        kill(runs.run_until((10, 11)), runs)
        figures, _ = runs.run()
        assert "3" not in runs.executed
        assert figures["batches"]["work"]["failures"][0]["first"][0]["message"] == "no luck with 3"

    def test_they_run_again_if_that_is_asked_for(self, runs: Runs) -> None:
        runs.fail(3)
        kill(runs.run_until((10, 11)), runs)
        runs.fail()
        figures, _ = runs.run("--retry-failed")
        assert runs.executed["3"] == 1
        assert figures["ok"]


class TestFinished:
    def test_it_starts_afresh(self, runs: Runs) -> None:
        for _ in range(2):
            figures, said = runs.run()
            assert figures["batches"]["work"]["reused"] == 0
            assert runs.executed == all_of(range(20))
            assert "reused" not in said

    def test_with_failures_likewise(self, runs: Runs) -> None:
        runs.fail(3, 7)
        for _ in range(2):
            figures, _ = runs.run()
            assert figures["batches"]["work"]["failed"] == 2
            assert runs.executed == all_of(range(20))

    def test_retry_failed_runs_the_failures_alone(self, runs: Runs) -> None:
        runs.fail(3, 7)
        runs.run()
        runs.fail(7)
        figures, said = runs.run("--retry-failed")
        assert runs.executed == all_of([3, 7])
        assert figures["batches"]["work"]["reused"] == 18
        assert "its failures run again" in said.splitlines()[0]
        runs.fail()
        figures, said = runs.run("--retry-failed")
        assert runs.executed == all_of([7])
        assert figures["ok"]
        assert f"steps got {[10 * item for item in range(20)]}" in said
        figures, _ = runs.run()
        assert runs.executed == all_of(range(20))

    def test_a_retry_that_is_killed_goes_on(self, runs: Runs) -> None:
        runs.fail(3, 7, 8)
        runs.run()
        runs.fail()
        kill(runs.run_until((7, 8), "--retry-failed"), runs)
        figures, _ = runs.run()
        assert runs.executed == all_of([7, 8])
        assert figures["ok"]

    def test_a_failed_step_leaves_the_run_unfinished(self, runs: Runs) -> None:
        runs.returned = "str(item) if item == 5 else item"  # which cannot be sorted
        runs.run()
        figures, said = runs.run()
        assert figures["batches"]["work"]["reused"] == 20
        assert "conclude did not come to a good end" in said.splitlines()[0]
        assert not runs.executed

    def test_fresh_and_retry_failed_exclude_each_other(self, runs: Runs) -> None:
        with runs.start("--fresh", "--retry-failed") as process:
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "give one of them" in said


def open_gate(folder: Path) -> bool | None:
    """Let one task go that waits at the gate; None if there is none."""
    try:
        os.close(os.open(folder / "gate", os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return None
    return True
