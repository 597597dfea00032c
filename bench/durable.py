"""20,000 no-op tasks whose outcomes survive a crash, beside pools that forget theirs.

poolkeeper's keeper has a name, and each task a key: before a future resolves, its result is in the journal (SQLite).
The others submit the same tasks and record nothing. In the second case a batch of as many items is recorded, which
only poolkeeper has, and in the third it is run again after an interruption: all of it is found in the journal.
"""

from __future__ import annotations

import tempfile
from time import perf_counter

from bench import tasks
from bench.model import OURS, WORKERS, Case, Measured, Metric, benchmark
from bench.peers import Peer

TASKS = 20_000
KEYED, BATCH, RESUMED = "by key", "a batch", "a batch, resumed"


@benchmark(
    metrics=[Metric("rate", "tasks/s", "higher", "tasks/s")],
    cases=[
        Case(KEYED, peers=(OURS, "fork", "forkserver")),
        Case(BATCH, peers=(OURS,)),
        Case(RESUMED, peers=(OURS,)),
    ],
)
def durable(peer: type[Peer], case: str, full: bool) -> Measured:
    """20,000 no-op tasks, recorded."""
    if peer.name != OURS:
        return Measured({"rate": _forgetful(peer)})
    with tempfile.TemporaryDirectory(prefix="bench-durable-") as home:
        if case == KEYED:
            rate = _by_key(peer, home)
        else:
            rate = _batch(peer, home, leave="the bench is not finished" if case == RESUMED else None)
            if case == RESUMED:
                rate = _batch(peer, home, leave=None)
    return Measured({"rate": rate})


def _forgetful(peer: type[Peer]) -> float:
    with peer(WORKERS) as pool:
        pool.warm_up()
        started = perf_counter()
        pool.results(pool.submit_all(tasks.noop, [(number,) for number in range(TASKS)]))
        return TASKS / (perf_counter() - started)


def _by_key(peer: type[Peer], home: str) -> float:
    with peer.load()(WORKERS, name="durable", home=home) as keeper:
        _warm_up(keeper)
        submit = keeper.options(key=str).submit
        started = perf_counter()
        futures = [submit(tasks.noop, number) for number in range(TASKS)]
        for future in futures:
            future.result()
        return TASKS / (perf_counter() - started)


def _batch(peer: type[Peer], home: str, leave: str | None) -> float:
    with peer.load()(WORKERS, name="durable", home=home) as keeper:
        _warm_up(keeper)
        started = perf_counter()
        result = keeper.batch(tasks.noop, range(TASKS)).result()
        seconds = perf_counter() - started
        assert result.ok
        if leave is not None:
            keeper.store.leave(leave)
    return TASKS / seconds


def _warm_up(keeper: object) -> None:
    submit = keeper.submit  # type: ignore[attr-defined]  # a Keeper, which no bench imports by name
    for future in [submit(tasks.noop) for _ in range(20 * WORKERS)]:
        future.result()
