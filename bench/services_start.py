"""100 services, and 1,000: until all are ready, what each takes, until all are stopped, and what is left behind.

The clock runs from the constructor to the first line of the last service, and until the supervisor itself says that all
are ready where it can be asked; the fork server's start is part of it, imports are not. The memory is the mean
proportional set size of the services, which wait for a file to open. Left behind are processes and, in the caller, open
descriptors. supervisord, which ends its services one after the other, is asked to stop in full runs only.
"""

from __future__ import annotations

import os
import resource
import time
from statistics import fmean

from bench.harness import adopt_orphans
from bench.model import Case, Measured, Metric, benchmark
from bench.procfs import descendants, pss
from bench.rendezvous import Meeting
from bench.supervisors import SUPERVISORS, Supervisor

HUNDRED, THOUSAND = "100 services", "1,000 services"
COUNTS = {HUNDRED: 100, THOUSAND: 1_000}
PATIENCE = 60.0


def belongings() -> int:
    """Count the processes below this one, and its open descriptors."""
    return len(descendants(os.getpid())) + len(os.listdir("/proc/self/fd"))


@benchmark(
    metrics=[
        Metric("seconds", "s", "lower", "all ready, s"),
        Metric("pss", "MiB", "lower", "PSS per service, MiB"),
        Metric("stop", "s", "lower", "all stopped, s"),
        Metric("left", "", "lower", "left behind"),
    ],
    cases=[
        Case(HUNDRED, peers=("poolkeeper", "supervisord", "circus", "circus-fastest", "bare")),
        Case(THOUSAND, peers=("poolkeeper", "bare"), slow=("bare",)),
    ],
    references=("supervisord", "circus-fastest"),
    contenders=SUPERVISORS,
)
def services_start(supervisor: type[Supervisor], case: str, full: bool) -> Measured:
    """Many services start and stop."""
    adopt_orphans()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 1,000 services take more than the usual 1,024
    supervisor.load()
    count = COUNTS[case]
    with Meeting() as meeting:
        before, started = belongings(), time.monotonic()
        services = supervisor(count, meeting)
        services.wait()
        known = time.monotonic()
        rings = meeting.bell.wait_for(count, PATIENCE)
        memory = fmean(pss(ring.pid) for ring in rings)
        stopping = time.monotonic()
        if supervisor.slow_to_stop and not full:
            services.kill()
            ends = {}
        else:
            services.close()
            ends = {"stop": time.monotonic() - stopping, "left": float(belongings() - before)}
    return Measured({"seconds": max(known, *(ring.at for ring in rings)) - started, "pss": memory, **ends})
