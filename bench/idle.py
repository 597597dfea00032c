"""A pool with nothing to do: how often do its threads and processes wake up?

Counted are the voluntary context switches of all threads of the caller, but for the one that measures, and of all
processes below it, over 10 s (2 s in quick runs) that begin one second after the last task.
"""

from __future__ import annotations

import os
import threading
import time

from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import Peer
from bench.procfs import descendants, voluntary_switches

SETTLE = 1.0
QUICK_SECONDS, FULL_SECONDS = 2.0, 10.0


def switches() -> dict[tuple[int, int], int]:
    """The count of every thread but this one."""
    counts = voluntary_switches(os.getpid(), without=threading.get_native_id())
    for pid in descendants(os.getpid()):
        counts |= voluntary_switches(pid)
    return counts


@benchmark(
    metrics=[Metric("wakeups", "per second", "lower", "wake-ups per second")],
    cases=[Case("", slow=("fork", "loky", "pebble", "mpire", "joblib"))],
    references=("forkserver", "pool"),
)
def idle(peer: type[Peer], case: str, full: bool) -> Measured:
    """Wake-ups of an idle pool."""
    with peer(WORKERS) as pool:
        pool.warm_up()
        time.sleep(SETTLE)
        before, started = switches(), time.monotonic()
        time.sleep(FULL_SECONDS if full else QUICK_SECONDS)
        after, seconds = switches(), time.monotonic() - started
    woken = sum(count - before.get(thread, 0) for thread, count in after.items())
    return Measured({"wakeups": woken / seconds})
