"""A worker is SIGKILLed: how long until its replacement runs the first line of a task?

Both workers hold a task and a third one waits, so that only the replacement can begin it. The task's module is
preloaded and the application is idle. What dies is not retried. ProcessPoolExecutor, loky, joblib and mpire do not take
part: the first kill breaks them.
"""

from __future__ import annotations

import os
import signal
import time

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import Peer, Poolkeeper
from bench.rendezvous import Meeting
from bench.statistics import percentile

QUICK_KILLS, FULL_KILLS = 60, 200
QUICK_SECONDS, FULL_SECONDS = 2.0, 20.0
PAUSE = 0.02  # seconds of idleness before each kill
PATIENCE = 10.0


@benchmark(
    metrics=[
        Metric("p50", "ms", "lower", "p50, ms"),
        Metric("p99", "ms", "lower", "p99, ms"),
        Metric("kills", "", "higher", "kills"),
    ],
    cases=[Case("", peers=("poolkeeper", "pool", "pebble"))],
    references=("pool", "pebble"),
)
def replacement(peer: type[Peer], case: str, full: bool) -> Measured:
    """From SIGKILL to the first line of a task in the replacement."""
    delays: list[float] = []
    with Meeting() as meeting:
        pool = peer(WORKERS, preload=["bench.tasks"])
        if isinstance(pool, Poolkeeper):
            pool.without_retries()
        pool.warm_up()
        handles = [pool.submit(tasks.hold, meeting.bell.path, meeting.gate.path) for _ in range(WORKERS + 1)]
        pids = [ring.pid for ring in meeting.bell.wait_for(WORKERS, PATIENCE)]
        end = time.monotonic() + (FULL_SECONDS if full else QUICK_SECONDS)
        while len(delays) < (FULL_KILLS if full else QUICK_KILLS) and time.monotonic() < end:
            time.sleep(PAUSE)
            killed = time.monotonic()
            os.kill(pids.pop(0), signal.SIGKILL)
            ring = meeting.bell.wait(PATIENCE)
            delays.append((ring.at - killed) * 1e3)
            pids.append(ring.pid)
            handles.append(pool.submit(tasks.hold, meeting.bell.path, meeting.gate.path))
    figures = {"p50": percentile(delays, 50), "p99": percentile(delays, 99), "kills": float(len(delays))}
    return Measured(figures, abandon=True)
