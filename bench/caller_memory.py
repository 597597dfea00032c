"""What the caller's memory grows by, at its peak, after the workers are up.

20,000 no-op tasks queue behind busy workers, then run. `map` reads 10,000,000 ints (200,000 in quick runs)
through a buffer while results are consumed one by one; only who can read lazily takes part. And `map` takes in 200,000
ints without a buffer, each a task of its own where the pool's default says so.
"""

from __future__ import annotations

from time import perf_counter

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import PEERS, Peer
from bench.procfs import peak_rss, reset_peak_rss
from bench.rendezvous import Meeting

QUEUED = 20_000
LAZY_ITEMS, LAZY_ITEMS_QUICK = 10_000_000, 200_000
BUFFER = 10_000
EAGER_ITEMS = 200_000
PATIENCE = 30.0

EAGER_PEERS = tuple(name for name in PEERS if name != "dask")  # 200,000 tasks take it five minutes

QUEUE, LAZY, EAGER = "20,000 queued no-ops", "map with a buffersize", "map of 200,000 ints"


def queue(pool: Peer, full: bool) -> int:
    """Fill the queue while every worker is held, then let all run."""
    with Meeting() as meeting:
        holding = (meeting.bell.path, meeting.gate.path)
        handles = pool.submit_all(hold_or_pass, [holding] * WORKERS + [("", "")] * QUEUED)
        meeting.bell.wait(PATIENCE)  # for the first one only: mpire queues both behind one worker
        meeting.gate.open()
        pool.results(handles)
    return QUEUED


def hold_or_pass(bell: str, gate: str) -> None:
    """Hold where there is a bell to ring, else do nothing."""
    if bell:
        tasks.hold(bell, gate)


def consume(pool: Peer, full: bool) -> int:
    """Read results one at a time, keeping none."""
    count = LAZY_ITEMS if full else LAZY_ITEMS_QUICK
    total = sum(pool.map_lazily(tasks.increment, iter(range(count)), BUFFER))
    assert total == count * (count + 1) // 2
    return count


def take_in(pool: Peer, full: bool) -> int:
    """Map without a buffer; the results are not kept either."""
    total = sum(pool.map(tasks.increment, range(EAGER_ITEMS), None))
    assert total == EAGER_ITEMS * (EAGER_ITEMS + 1) // 2
    return EAGER_ITEMS


@benchmark(
    metrics=[
        Metric("growth", "MiB", "lower", "growth, MiB"),
        Metric("peak_rss", "MiB", "lower", "peak, MiB"),
        Metric("rate", "items/s", "higher", "items/s"),
    ],
    cases=[
        Case(QUEUE, slow=("fork", "loky", "pebble", "mpire", "joblib", "dask", "ray")),
        Case(LAZY, peers=("poolkeeper", "mpire"), slow=("mpire",)),
        Case(EAGER, peers=EAGER_PEERS, slow=("fork", "forkserver", "loky", "pebble", "mpire", "ray")),
    ],
    deadline=400,
)
def caller_memory(peer: type[Peer], case: str, full: bool) -> Measured:
    """Memory of the caller."""
    with peer(WORKERS) as pool:
        pool.warm_up()
        before, started = reset_peak_rss(), perf_counter()
        count = {QUEUE: queue, LAZY: consume, EAGER: take_in}[case](pool, full)
        peak, seconds = peak_rss(), perf_counter() - started
    return Measured({"growth": peak - before, "peak_rss": peak, "rate": count / seconds})
