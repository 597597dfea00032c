"""The pipeline as a user runs it: to its end, with everything in it killed, with a ledger that somebody has touched.

Who holds the lock of the ledger keeps every execution from having its effect: so these tests choose their moments.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from exactly_once.ledger import Entry, Kind, Ledger, Pen

import poolkeeper
from tests.helpers import PATIENCE, wait_for_exit, wait_until

ROOT = Path(poolkeeper.__file__).parent.parent
FILES = 24


class Pipeline:
    """Runs the pipeline in a folder of its own, over a small tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        (folder / "tree").mkdir()
        for number in range(FILES):
            size = 4000 if number == 0 else number  # the first takes its time
            (folder / "tree" / f"{number:02}.py").write_text("def f(x):\n    return [x, x + 1]\n" * size)

    def start(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "poolkeeper", "run", str(ROOT / "jobs" / "pipeline.py"), "--workers", "2"]
        process = subprocess.Popen(
            [*words, "--", "tree"],
            cwd=self.folder,
            env=os.environ | {"POOLKEEPER_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for the end of a run; return its exit code and what it has said."""
        output, _ = process.communicate(timeout=2 * PATIENCE)
        return process.returncode, output

    @property
    def current(self) -> Path:
        return self.folder / "out" / "pipeline" / "current"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.current.resolve() / "ledger.jsonl")

    @property
    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads((self.current / "audit.json").read_text())
        return figures

    @contextmanager
    def halted(self) -> Iterator[tuple[Pen, list[Entry]]]:
        """Hold the ledger while an execution is under way and some effects have happened; yield what is under way."""
        wait_until((self.current / "ledger.jsonl").exists, "the ledger")

        def effects() -> int:
            return sum(entry.kind is Kind.EFFECT for entry in self.ledger.read()[0])

        while True:
            wait_until(effects, "the first effect")
            with self.ledger.writing() as pen:
                under_way = {entry.pid: entry for entry in pen.entries() if entry.kind is Kind.EXECUTION}
                for entry in pen.entries():
                    if entry.kind is Kind.END:
                        raise AssertionError("the run has ended before it could be halted")
                    if entry.kind is Kind.EFFECT and under_way[entry.pid].key == entry.key:
                        del under_way[entry.pid]
                if under_way:
                    yield pen, list(under_way.values())
                    return

    def interrupt(self) -> None:
        """Run, and kill the keeper mid-way; its workers may survive it, or not."""
        process = self.start()
        with self.halted():
            process.kill()
            process.communicate(timeout=PATIENCE)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path)
    yield pipeline
    for process in pipeline.started:
        with process:
            process.kill()


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for_exit(pid)


def pids(pipeline: Pipeline, role: str) -> list[int]:
    (path,) = pipeline.folder.glob("home/*/default/keeper.pid")
    return [child["pid"] for child in json.loads(path.read_text())["children"] if child["role"] == role]


def starts(folder: Path) -> int:
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{folder / 'index.db'}?mode=ro", uri=True)) as index,
    ):
        return int(index.execute("SELECT starts FROM position").fetchone()[0])
    return 0


def test_it_ends_by_itself_and_a_second_run_has_a_ledger_of_its_own(pipeline: Pipeline) -> None:
    folders = []
    for _ in range(2):
        code, output = pipeline.end(pipeline.start())
        assert code == 0, output
        assert f"{FILES} outcomes, {FILES} effects, each once; 0 repeated executions" in output
        assert pipeline.figures["executions"] == FILES
        folders.append(pipeline.current.resolve())
    assert folders[0] != folders[1]
    with closing(sqlite3.connect(pipeline.current / "index.db")) as index:
        (count,) = index.execute("SELECT count(*) FROM definitions WHERE name = 'f'").fetchone()
        assert count == 4000 + sum(range(FILES))


def test_killed_workers_and_a_killed_indexer_repeat_executions_but_no_effects(pipeline: Pipeline) -> None:
    process = pipeline.start()
    with pipeline.halted() as (_, under_way):
        for entry in under_way:
            kill(entry.pid)
        folder = pipeline.current.resolve()
        wait_until(lambda: starts(folder), "the indexer")
        for pid in pids(pipeline, "service"):
            kill(pid)
    code, output = pipeline.end(process)
    assert code == 0, output
    assert pipeline.figures["effects"] == FILES
    assert pipeline.figures["repeats"] >= len(under_way)
    assert {entry.key for entry in under_way} <= pipeline.figures["repeated"].keys()
    assert starts(folder) >= 2
    assert "repeated, because a process was killed" in output


def test_after_the_death_of_the_keeper_it_goes_on_with_its_ledger(pipeline: Pipeline) -> None:
    pipeline.interrupt()
    folder = pipeline.current.resolve()
    code, output = pipeline.end(pipeline.start())
    assert code == 0, output
    assert "whose keeper died" in output
    assert pipeline.current.resolve() == folder
    assert pipeline.figures["begins"] == 2
    assert pipeline.figures["outcomes"] == pipeline.figures["effects"] == FILES


def test_after_ctrl_c_likewise(pipeline: Pipeline) -> None:
    process = pipeline.start()
    assert process.stdout is not None
    with pipeline.halted():
        process.send_signal(signal.SIGINT)
        while "SIGINT received" not in process.stdout.readline():
            assert process.poll() is None
    assert pipeline.end(process)[0] == 130
    code, output = pipeline.end(pipeline.start())
    assert code == 0, output
    assert pipeline.figures["begins"] == 2
    assert pipeline.figures["executions"] == FILES  # what was under way came to its end


def test_a_ledger_that_was_edited_fails_the_run(pipeline: Pipeline) -> None:
    pipeline.interrupt()
    with pipeline.ledger.writing():
        path = pipeline.ledger.path
        path.write_bytes(path.read_bytes().replace(b'"attempt":1', b'"attempt":2', 1))
    code, output = pipeline.end(pipeline.start())
    assert code == 1
    assert "audit: failed, " in output
    assert "line 3 of the ledger (number 3) does not follow from what stands before it" in output


def test_an_effect_that_happened_twice_fails_the_run(pipeline: Pipeline) -> None:
    pipeline.interrupt()
    with pipeline.ledger.writing() as pen:
        effect = next(entry for entry in pen.entries() if entry.kind is Kind.EFFECT)
        pen.write(Kind.EXECUTION, effect.key)
        again = pen.write(Kind.EFFECT, effect.key, effect.digest)
    code, output = pipeline.end(pipeline.start())
    assert code == 1
    assert f"{effect.key} has had its effect twice, in lines {effect.seq} and {again.seq}" in output
