"""100 workers each run a first task, from the pool's constructor to the first line of the last one.

Each task holds its worker until all have begun, so that no worker takes two. Then the memory of each worker is read:
its proportional set size, where a page that n processes share counts 1/n. Fork servers and other
helpers are not counted.
"""

from __future__ import annotations

import time
from statistics import fmean

from bench import tasks
from bench.model import Case, Measured, Metric, benchmark
from bench.peers import Peer
from bench.procfs import pss
from bench.rendezvous import Meeting

MANY = 100
PATIENCE = 100.0


@benchmark(
    metrics=[
        Metric("seconds", "s", "lower", "seconds"),
        Metric("pss", "MiB", "lower", "PSS per worker, MiB"),
    ],
    cases=[Case("", slow=("joblib", "loky", "dask", "ray"))],
)
def many_workers(peer: type[Peer], case: str, full: bool) -> Measured:
    """100 workers each run a first task."""
    peer.load()
    with Meeting() as meeting:
        started = time.monotonic()
        pool = peer(MANY)
        handles = pool.submit_all(tasks.hold, [(meeting.bell.path, meeting.gate.path)] * MANY)
        rings = meeting.bell.wait_for(MANY, PATIENCE)
        seconds = max(ring.at for ring in rings) - started
        memory = fmean(pss(ring.pid) for ring in rings)
        meeting.gate.open()
        assert len(set(pool.results(handles))) == MANY, "a worker ran two tasks"
        pool.close()
    return Measured({"seconds": seconds, "pss": memory})
