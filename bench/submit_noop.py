"""20,000 no-op tasks are submitted one by one; the clock stops when the last result is in.

The workers are up and have run tasks before.
"""

from __future__ import annotations

from time import perf_counter

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import Peer
from bench.procfs import peak_rss

TASKS = 20_000


@benchmark(
    metrics=[
        Metric("rate", "tasks/s", "higher", "tasks/s"),
        Metric("peak_rss", "MiB", "lower", "caller's peak memory, MiB"),
    ],
    cases=[Case("", slow=("joblib",))],
)
def submit_noop(peer: type[Peer], case: str, full: bool) -> Measured:
    """20,000 no-op tasks submitted one by one."""
    with peer(WORKERS) as pool:
        pool.warm_up()
        count = int(TASKS * peer.share)
        started = perf_counter()
        results = pool.results(pool.submit_all(tasks.noop, [(None,)] * count))
        seconds = perf_counter() - started
        assert results == [None] * count
    return Measured({"rate": count / seconds, "peak_rss": peak_rss()})
