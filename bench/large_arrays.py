"""A float64 array of 64 MiB as argument, and as result, in the steady state after three calls.

Each call sends an array that was not sent before, so that nobody profits from having mapped it once; it is made
outside the clock. Results come from an array that the worker keeps; the caller looks at the last number within the
clock, then, for a second figure, sums up all of them: who maps pages lazily pays there. The memory is what the caller's
peak grows by while the calls run; the array itself is counted where it is an argument and new.
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


def send(pool: Peer, template: np.ndarray) -> dict[str, float]:
    """Send a fresh array and hear of it."""
    array = template.copy()
    started = perf_counter()
    answer = pool.result(pool.submit(tasks.ends, array))
    answered = perf_counter()
    assert answer == LENGTH - 1
    return {"milliseconds": (answered - started) * 1e3}


def receive(pool: Peer) -> dict[str, float]:
    """Ask for an array and have it, then read it."""
    started = perf_counter()
    array = pool.result(pool.submit(tasks.large_array, LENGTH))
    last = array[-1]
    received = perf_counter()
    total = array.sum()
    read = perf_counter()
    assert (last, total) == (LENGTH - 1, LENGTH * (LENGTH - 1) / 2)
    return {"milliseconds": (received - started) * 1e3, "read": (read - started) * 1e3}


@benchmark(
    metrics=[
        Metric("milliseconds", "ms", "lower", "ms"),
        Metric("read", "ms", "lower", "ms, and read it all"),
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
    steady = calls[WARM_UP:]
    return Measured({key: median(call[key] for call in steady) for key in steady[0]} | {"growth": growth})
