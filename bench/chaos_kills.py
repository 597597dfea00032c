"""2,000 tasks of 2 ms (1,000 in quick runs) while the worker that began a task last is SIGKILLed again and again.

A task signs a ledger when it begins, then sleeps for 2 ms: it needs no CPU, so that the time which is lost to the kills
shows, not the load of the machine. Signed twice means run twice. Who has not delivered every outcome after 12 s (3 s in
quick runs) is cut off, and what is open then counts as hung.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import UNFINISHED, Peer
from bench.rendezvous import Ledger, Meeting

QUICK_TASKS, FULL_TASKS = 1_000, 2_000
QUICK_PATIENCE, FULL_PATIENCE = 3.0, 12.0

CALM, EVERY_200_MS, EVERY_50_MS = "no kills", "a kill every 200 ms", "a kill every 50 ms"
INTERVALS = {CALM: None, EVERY_200_MS: 0.2, EVERY_50_MS: 0.05}
REPEATABLE = ("poolkeeper", "pebble", "ray")  # the others are beyond help after the first kills, quick or slow


class Killer:
    """A thread that SIGKILLs the worker which has begun a task last, if one has since the last kill."""

    def __init__(self, ledger: Ledger, interval: float | None) -> None:
        self.kills = 0
        self._ledger, self._interval = ledger, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        due = time.monotonic()
        while self._interval:
            due += self._interval
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            pid = self._ledger.latest()
            if pid is not None and pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def summary(errors: Counter[str], hung: int) -> str:
    """What became of the tasks that did not end well, in words."""
    words = [f"{count:,} {name}" for name, count in errors.most_common()]
    return ", ".join(words + [f"hangs on {hung:,}"] * bool(hung))


@benchmark(
    metrics=[
        Metric("done", "tasks", "higher", "done"),
        Metric("lost", "tasks", "lower", "not done"),
        Metric("errors", "tasks", "lower", "errors"),
        Metric("hung", "tasks", "lower", "hung"),
        Metric("again", "tasks", "lower", "run again"),
        Metric("seconds", "s", "lower", "seconds"),
        Metric("kills", "", "higher", "kills"),
    ],
    cases=[
        Case(CALM, slow=("fork", "forkserver", "pool", "loky", "mpire", "joblib", "dask", "ray")),
        Case(EVERY_200_MS, slow=("dask", "ray")),
        Case(EVERY_50_MS, peers=REPEATABLE, slow=("pebble", "ray")),
    ],
    references=(),
)
def chaos_kills(peer: type[Peer], case: str, full: bool) -> Measured:
    """2,000 tasks of 2 ms while workers are SIGKILLed."""
    count = FULL_TASKS if full else QUICK_TASKS
    with Meeting() as meeting:
        pool = peer(WORKERS)
        pool.warm_up()
        ledger = meeting.ledger
        with Killer(ledger, INTERVALS[case]) as killer:
            started = time.monotonic()
            deadline = started + (FULL_PATIENCE if full else QUICK_PATIENCE)
            try:
                handles = pool.submit_all(tasks.brief, [(ledger.path, index) for index in range(count)])
                outcomes = [outcome for outcome, _ in zip(pool.outcomes(handles, deadline), range(count), strict=False)]
            except Exception as error:  # the pool broke while tasks were submitted
                outcomes = [error] * count
            seconds = time.monotonic() - started
        done = sum(outcome == index for index, outcome in enumerate(outcomes))
        errors = Counter(type(outcome).__name__ for outcome in outcomes if isinstance(outcome, BaseException))
        hung = outcomes.count(UNFINISHED)
        begun = [index for index, _ in ledger.entries()]
        figures = {
            "seconds": seconds,
            "kills": killer.kills,
            "done": done,
            "errors": errors.total(),
            "hung": hung,
            "again": len(begun) - len(set(begun)),
            "lost": count - done,
        }
        if done == count:
            pool.close()
        return Measured(figures, note=summary(errors, hung), abandon=done < count)
