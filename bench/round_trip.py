"""One no-op task at a time: from `submit` to its result in the caller's hands."""

from __future__ import annotations

from time import perf_counter

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import Peer
from bench.statistics import percentile

QUICK_SECONDS, FULL_SECONDS = 0.6, 2.0
AT_LEAST = 50


@benchmark(
    metrics=[
        Metric("p50", "µs", "lower", "p50, µs"),
        Metric("p99", "µs", "lower", "p99, µs"),
    ],
    cases=[Case("")],
)
def round_trip(peer: type[Peer], case: str, full: bool) -> Measured:
    """Round trip of one no-op task."""
    with peer(WORKERS) as pool:
        pool.warm_up()
        trips: list[float] = []
        end = perf_counter() + (FULL_SECONDS if full else QUICK_SECONDS)
        while len(trips) < AT_LEAST or perf_counter() < end:
            started = perf_counter()
            pool.result(pool.submit(tasks.noop, None))
            trips.append((perf_counter() - started) * 1e6)
    return Measured({"p50": percentile(trips, 50), "p99": percentile(trips, 99)})
