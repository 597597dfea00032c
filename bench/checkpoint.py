"""Saving a state from within a worker: 1 KB, and 10 MB of what does not shrink, as an array and as bytes.

The figures are medians of what the task itself waits; nothing is flushed to the disk. Nobody else offers this.
"""

from __future__ import annotations

from statistics import median

from bench import tasks
from bench.model import OURS, Case, Measured, Metric, benchmark
from bench.peers import Peer

SMALL, ARRAY, BYTES = "1 KB", "10 MB, an array", "10 MB, bytes"
SIZES = {SMALL: 1_000, ARRAY: 10_000_000, BYTES: 10_000_000}
QUICK_SAVES, FULL_SAVES = 30, 200


@benchmark(
    metrics=[
        Metric("milliseconds", "ms", "lower", "ms"),
        Metric("rate", "MB/s", "higher", "MB/s"),
        Metric("restore", "ms", "lower", "to restore it, ms"),
    ],
    cases=[Case(name, peers=(OURS,)) for name in SIZES],
    references=(),
)
def checkpoint(peer: type[Peer], case: str, full: bool) -> Measured:
    """A task saves its state, and restores it."""
    with peer(1) as pool:
        pool.warm_up()
        saves = FULL_SAVES if full else QUICK_SAVES
        seconds, restored = pool.result(pool.submit(tasks.save_states, SIZES[case], saves, case == ARRAY))
    typical = median(seconds)
    return Measured(
        {"milliseconds": typical * 1e3, "rate": SIZES[case] / typical / 1e6, "restore": median(restored) * 1e3}
    )
