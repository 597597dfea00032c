"""100 services with nothing to do: what does looking after them cost?

Counted are the CPU time and the voluntary context switches of all threads of the caller, but for the one that measures,
and of all processes below it, the services included, over 10 s (3 s in quick runs) that begin one second after all are
ready.
"""

from __future__ import annotations

import os
import threading
import time

from bench.idle import switches
from bench.model import Case, Measured, Metric, benchmark
from bench.procfs import cpu_seconds, descendants
from bench.rendezvous import Meeting
from bench.supervisors import SUPERVISORS, Supervisor

SERVICES = 100
SETTLE = 1.0
QUICK_SECONDS, FULL_SECONDS = 3.0, 10.0
PATIENCE = 60.0


def consumed() -> float:
    """Seconds of CPU time that all but this thread have taken so far."""
    ours = cpu_seconds(os.getpid(), without=threading.get_native_id())
    return ours + sum(cpu_seconds(pid) for pid in descendants(os.getpid()))


@benchmark(
    metrics=[
        Metric("cpu", "% of a core", "lower", "% of a core"),
        Metric("wakeups", "per second", "lower", "wake-ups per second"),
    ],
    cases=[
        Case(
            "",
            peers=("poolkeeper", "supervisord", "circus", "circus-fastest"),
            slow=("supervisord", "circus", "circus-fastest"),
        )
    ],
    references=("supervisord", "circus"),
    contenders=SUPERVISORS,
)
def services_idle(supervisor: type[Supervisor], case: str, full: bool) -> Measured:
    """100 idle services."""
    with Meeting() as meeting:
        services = supervisor(SERVICES, meeting)
        meeting.bell.wait_for(SERVICES, PATIENCE)
        services.wait()
        time.sleep(SETTLE)
        spent, woken, started = consumed(), switches(), time.monotonic()
        time.sleep(FULL_SECONDS if full else QUICK_SECONDS)
        seconds = time.monotonic() - started
        wakeups = sum(count - woken.get(thread, 0) for thread, count in switches().items())
        cpu = consumed() - spent
        services.kill()
    return Measured({"cpu": 100 * cpu / seconds, "wakeups": wakeups / seconds})
