"""All of 100 services are SIGKILLed in the same instant: until all run again, and what `status` is like meanwhile.

The clock runs from the first kill to the first line of the last replacement, and until the supervisor itself says that
all are ready where it can be asked. Another process asks for the status of all services again and again, each time by a
new connection, and reports the answer that took longest. The median of three kills (two in quick runs) counts.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack
from statistics import median

from bench.asking import Asker
from bench.model import Case, Measured, Metric, benchmark
from bench.rendezvous import Meeting
from bench.supervisors import SUPERVISORS, PoolkeeperServices, Supervisor

SERVICES = 100
QUICK_KILLS, FULL_KILLS = 2, 3
PAUSE = 0.2  # seconds of idleness before each kill, at least
PATIENCE = 60.0


@benchmark(
    metrics=[
        Metric("seconds", "s", "lower", "all ready again, s"),
        Metric("status", "ms", "lower", "slowest status, ms"),
        Metric("answers", "", "higher", "answers"),
    ],
    cases=[
        Case(
            "",
            peers=("poolkeeper", "supervisord", "circus", "circus-fastest", "bare"),
            slow=("supervisord", "circus", "circus-fastest"),
        )
    ],
    references=("supervisord", "circus-fastest"),
    contenders=SUPERVISORS,
)
def services_mass_kill(supervisor: type[Supervisor], case: str, full: bool) -> Measured:
    """All of 100 services are killed in the same instant."""
    delays: list[float] = []
    figures: dict[str, float] = {}
    with Meeting() as meeting, ExitStack() as asking:
        if issubclass(supervisor, PoolkeeperServices):
            services: Supervisor = supervisor(SERVICES, meeting, home=meeting.folder)
            services.wait()
            asker = asking.enter_context(Asker(services.keeper.home))
        else:
            services, asker = supervisor(SERVICES, meeting), None
        pids = [ring.pid for ring in meeting.bell.wait_for(SERVICES, PATIENCE)]
        for _ in range(FULL_KILLS if full else QUICK_KILLS):
            time.sleep(PAUSE + random.uniform(0, supervisor.period))
            killed = time.monotonic()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            rings = meeting.bell.wait_for(SERVICES, PATIENCE)
            services.wait()
            delays.append(time.monotonic() - killed)
            pids = [ring.pid for ring in rings]
        if asker is not None:
            figures = asker.stop()
        services.kill()
    return Measured({"seconds": median(delays), **figures})
