"""Runs measurements: each in a fresh process, peers interleaved, round after round while the budget lasts.

The order is round, benchmark, case, peer. So the figures that a ratio compares lie seconds apart, and those that
a spread describes minutes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.model import Benchmark, Sample, Status
from bench.procfs import descendants
from bench.statistics import fits

__all__ = ["adopt_orphans", "measure", "run"]

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
COMPILE_EACH_TIME = "PYTHONDONTWRITEBYTECODE"  # would make whoever starts interpreters look slow
GRACE = 3.0  # seconds for what a finished measurement leaves behind to end by itself


def adopt_orphans() -> None:
    """Become the parent of whatever measurements leave behind, so that it can be found and ended (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def measure(benchmark: Benchmark, case: str, peer: str, *, round_number: int, full: bool) -> Sample:
    """One measurement in a process of its own; who exceeds the benchmark's deadline is ended and counts as hung."""
    request = json.dumps({"benchmark": benchmark.name, "case": case, "peer": peer, "full": full})
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, open(Path(folder) / "output", "w+b") as output:
        answer = Path(folder) / "answer"
        command = [sys.executable, "-m", "bench.child", request, str(answer)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != COMPILE_EACH_TIME},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        started = time.monotonic()
        hung = False
        try:
            process.wait(benchmark.deadline)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            _end(process)
        took = round(time.monotonic() - started, 2)
        status: Status
        figures: dict[str, float] = {}
        if answer.exists():
            found = json.loads(answer.read_text())
            status, figures, note = "ok", found["figures"], found["note"]
            if hung:
                note = ", ".join(filter(None, (note, "hung at its end")))
        elif hung:
            status, note = "hung", f"cut off after {benchmark.deadline:g} s"
        else:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            status, note = "failed", lines[-1].replace(f"{ROOT}/", "") if lines else f"exit status {process.returncode}"
    return Sample(round_number, case, peer, status, figures, note, took)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a measurement: after a while where it ended well, else at once."""
    patience = time.monotonic() + (GRACE if process.poll() == 0 else 0)
    if process.poll() is None:
        process.kill()
    while left := descendants(os.getpid()):
        if time.monotonic() > patience:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    process.wait()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def run(
    benchmarks: Sequence[Benchmark],
    peers: Sequence[str],
    *,
    full: bool,
    repeat: int,
    budget: float | None,
    report: Callable[[Benchmark, Sample], None],
) -> Iterator[tuple[Benchmark, Sample]]:
    """Yield every sample of up to ``repeat`` rounds.

    The first round is always complete. A later one of a benchmark starts only if, going by the first, it ends within
    ``budget`` seconds of the whole run's start. ``report`` hears of each sample at once.
    """
    started = time.monotonic()
    costs: dict[str, float] = {}
    for number in range(1, repeat + 1):
        for benchmark in benchmarks:
            if not fits(costs.get(benchmark.name, 0.0), time.monotonic() - started, budget if number > 1 else None):
                continue
            began = time.monotonic()
            for case in benchmark.cases:
                for peer in peers:
                    if benchmark.admits(peer, case, full):
                        sample = measure(benchmark, case.name, peer, round_number=number, full=full)
                        report(benchmark, sample)
                        yield benchmark, sample
            costs[benchmark.name] = time.monotonic() - began
