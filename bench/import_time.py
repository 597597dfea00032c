"""What an application pays before its first task: the import, and the pool's constructor.

The import is timed as a whole interpreter, above one that does nothing, the two by turns. The constructor is timed in
an interpreter that has imported the pool; then the first result is awaited, from the constructor on.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from time import perf_counter

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import Peer

QUICK_PAIRS, FULL_PAIRS = 5, 20

IMPORT, READY = "import", "construct"


def interpreter(program: str) -> float:
    """Milliseconds that an interpreter takes to run a program, from start to end."""
    started = perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return (perf_counter() - started) * 1e3


def imported(peer: type[Peer], pairs: int) -> Measured:
    """The import above a bare interpreter."""
    program = f"from {peer.module} import {peer.entry}"
    interpreter(program)
    differences = [interpreter(program) - interpreter("pass") for _ in range(pairs)]
    return Measured({"above_bare": median(differences)})


def constructed(peer: type[Peer]) -> Measured:
    """The constructor, and the first result."""
    peer.load()
    started = perf_counter()
    pool = peer(WORKERS)
    ready = perf_counter()
    pool.result(pool.submit(tasks.noop, None))
    answered = perf_counter()
    pool.close()
    return Measured({"ready": (ready - started) * 1e3, "first_result": (answered - started) * 1e3})


@benchmark(
    metrics=[
        Metric("above_bare", "ms", "lower", "above a bare interpreter, ms"),
        Metric("ready", "ms", "lower", "constructor, ms"),
        Metric("first_result", "ms", "lower", "first result, ms"),
    ],
    cases=[Case(IMPORT), Case(READY)],
)
def import_time(peer: type[Peer], case: str, full: bool) -> Measured:
    """Import, and readiness for the first submit."""
    return imported(peer, FULL_PAIRS if full else QUICK_PAIRS) if case == IMPORT else constructed(peer)
