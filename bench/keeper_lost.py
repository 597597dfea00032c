"""A keeper with 100 busy workers is replaced: by a re-exec, or SIGKILLed and started again at once.

Re-exec: from the moment when the new code is known to load to the first task that the new program has had executed.
SIGKILL: from the start of the new process, its imports included, until every worker has called it. The median of three
counts, and every task must be executed once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.model import OURS, Case, Measured, Metric, benchmark
from bench.peers import Peer

WORKERS = 100
ROUNDS = 3
REEXEC, KILLED = "re-exec", "SIGKILL"


@benchmark(
    metrics=[
        Metric("milliseconds", "ms", "lower", "until it goes on, ms"),
        Metric("wrong", "", "lower", "wrong results"),
    ],
    cases=[Case(REEXEC, peers=(OURS,)), Case(KILLED, peers=(OURS,))],
    references=(),
)
def keeper_lost(peer: type[Peer], case: str, full: bool) -> Measured:
    """100 busy workers lose their keeper."""
    rounds = [_round(case) for _ in range(ROUNDS)]
    return Measured({"milliseconds": median(times for times, _ in rounds), "wrong": sum(wrong for _, wrong in rounds)})


def _round(case: str) -> tuple[float, int]:
    with tempfile.TemporaryDirectory(prefix="bench-lost-") as home:
        program = _start(home)
        _hear(program, "ready")
        time.sleep(0.5)
        if case == REEXEC:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
            heard = _hear(program, "dispatched")
            took = heard["dispatched"] - float(Path(home, "replacing").read_text())
        else:
            program.kill()
            program.wait()
            started = time.monotonic()
            program = _start(home)
            took = _hear(program, "back")["back"] - started
        right = _hear(program, "results")["results"]
        program.wait()
        return took * 1000, 0 if right else 1


def _start(home: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.keeper_program", "busy", home, str(WORKERS)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _hear(program: subprocess.Popen[str], what: str) -> dict[str, Any]:
    """Return the first thing that the program says that has ``what``."""
    assert program.stdout is not None
    for line in program.stdout:
        said: dict[str, Any] = json.loads(line)
        if what in said:
            return said
    raise RuntimeError(f"the program has ended without a word of {what!r}")
