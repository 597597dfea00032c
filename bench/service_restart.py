"""A service is SIGKILLed: how long until its replacement runs the first line of user code?

One service, its module preloaded where there is such a thing, and an idle application. Kills do not march in step with
those who look for ended processes by the clock: the pause before each is a random part of that period longer. Who takes
seconds gets few kills: its p99 is the longest of them.
"""

from __future__ import annotations

import os
import random
import signal
import time

from bench.model import Case, Measured, Metric, benchmark
from bench.rendezvous import Meeting
from bench.statistics import percentile
from bench.supervisors import SUPERVISORS, Supervisor

QUICK_KILLS, FULL_KILLS = 60, 300
QUICK_SECONDS, FULL_SECONDS = 2.0, 20.0
PAUSE = 0.02  # seconds of idleness before each kill, at least
PATIENCE = 20.0


@benchmark(
    metrics=[
        Metric("p50", "ms", "lower", "p50, ms"),
        Metric("p99", "ms", "lower", "p99, ms"),
        Metric("kills", "", "higher", "kills"),
    ],
    cases=[Case("", slow=("circus", "circus-fastest"))],
    references=("supervisord", "shell"),
    contenders=SUPERVISORS,
)
def service_restart(supervisor: type[Supervisor], case: str, full: bool) -> Measured:
    """From SIGKILL to the first line of a service's replacement."""
    delays: list[float] = []
    with Meeting() as meeting:
        services = supervisor(1, meeting)
        pid = meeting.bell.wait(PATIENCE).pid
        end = time.monotonic() + (FULL_SECONDS if full else QUICK_SECONDS)
        while len(delays) < (FULL_KILLS if full else QUICK_KILLS) and time.monotonic() < end:
            time.sleep(PAUSE + random.uniform(0, supervisor.period))
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            ring = meeting.bell.wait(PATIENCE)
            delays.append((ring.at - killed) * 1e3)
            pid = ring.pid
        services.kill()
    return Measured({"p50": percentile(delays, 50), "p99": percentile(delays, 99), "kills": float(len(delays))})
