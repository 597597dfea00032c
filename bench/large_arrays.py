"""A float64 array of 64 MiB as argument, and as result, in the steady state after three calls.

Each call sends an array that was not sent before, so that nobody profits from having mapped it once; it is made
outside the clock. Results come from an array that the worker keeps, and are dropped outside the clock. The memory is
what the caller's peak grows by while the calls run; the array itself is counted where it is an argument and new.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import Peer
from bench.procfs import peak_rss, reset_peak_rss

if TYPE_CHECKING:
    import numpy as np

LENGTH = 8 * 1024 * 1024  # float64: 64 MiB
WARM_UP = 3
QUICK_CALLS, FULL_CALLS = 4, 20

SLOW = ("fork", "pool", "pebble", "mpire", "joblib")

ARGUMENT, RESULT = "argument", "result"


def send(pool: Peer, template: np.ndarray) -> float:
    """Milliseconds to send a fresh array and hear of it."""
    array = template.copy()
    started = perf_counter()
    answer = pool.result(pool.submit(tasks.ends, array))
    milliseconds = (perf_counter() - started) * 1e3
    assert answer == LENGTH - 1
    return milliseconds


def receive(pool: Peer) -> float:
    """Milliseconds to ask for an array and have it."""
    started = perf_counter()
    array = pool.result(pool.submit(tasks.large_array, LENGTH))
    milliseconds = (perf_counter() - started) * 1e3
    assert len(array) == LENGTH
    assert array[-1] == LENGTH - 1
    return milliseconds


@benchmark(
    metrics=[
        Metric("milliseconds", "ms", "lower", "ms"),
        Metric("growth", "MiB", "lower", "growth of the caller's peak, MiB"),
    ],
    cases=[Case(ARGUMENT, slow=SLOW), Case(RESULT, slow=SLOW)],
)
def large_arrays(peer: type[Peer], case: str, full: bool) -> Measured:
    """A 64 MiB array as argument and as result."""
    import numpy as np

    template = np.arange(LENGTH if case == ARGUMENT else 1, dtype=np.float64)
    with peer(WORKERS) as pool:
        pool.warm_up()
        before = reset_peak_rss()
        calls = [
            send(pool, template) if case == ARGUMENT else receive(pool)
            for _ in range(WARM_UP + (FULL_CALLS if full else QUICK_CALLS))
        ]
        growth = peak_rss() - before
    return Measured({"milliseconds": median(calls[WARM_UP:]), "growth": growth})
