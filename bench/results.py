"""Runs as they are stored, one JSON file per benchmark, and figures looked up in them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.catalogue import NAMES
from bench.contenders import CONTENDERS
from bench.model import Sample

__all__ = ["Results", "Run", "describe_machine", "load_runs", "save_run"]


@dataclass(frozen=True, slots=True)
class Run:
    """All samples of one benchmark from one run, with when, where and with what they were taken."""

    benchmark: str
    date: str
    mode: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    samples: Sequence[Sample]

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return max((sample.round for sample in self.samples), default=0)

    def peers(self) -> list[str]:
        """Who took part, in the usual order."""
        present = {sample.peer for sample in self.samples}
        return [peer for peer in CONTENDERS if peer in present]

    def of(self, case: str, peer: str) -> list[Sample]:
        """The samples of one peer in one case."""
        return [sample for sample in self.samples if (sample.case, sample.peer) == (case, peer)]

    def series(self, case: str, peer: str, metric: str) -> dict[int, float]:
        """One figure of one peer in one case, by round."""
        return {each.round: each.figures[metric] for each in self.of(case, peer) if metric in each.figures}


class Results:
    """The latest run of each benchmark."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = {run.benchmark: run for run in runs}

    def series(self, benchmark: str, case: str, peer: str, metric: str) -> dict[int, float]:
        """One figure by round; empty where it was not measured."""
        run = self.runs.get(benchmark)
        return run.series(case, peer, metric) if run else {}


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, and how busy the machine was beforehand."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def save_run(run: Run, folder: Path) -> None:
    """Write a run to ``folder/<benchmark>.json``."""
    stored = {
        "benchmark": run.benchmark,
        "date": run.date,
        "mode": run.mode,
        "machine": dict(run.machine),
        "versions": dict(run.versions),
        "samples": [sample.to_json() for sample in run.samples],
    }
    (folder / f"{run.benchmark}.json").write_text(json.dumps(stored, indent=1) + "\n")


def load_runs(folder: Path) -> list[Run]:
    """The stored runs of all benchmarks that there are."""
    runs = []
    for name in NAMES:
        path = folder / f"{name}.json"
        if path.exists():
            stored = json.loads(path.read_text())
            stored["samples"] = [Sample(**sample) for sample in stored["samples"]]
            runs.append(Run(**stored))
    return runs
