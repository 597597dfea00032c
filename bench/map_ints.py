"""`map` of a function that adds one, over 200,000 ints (10,000 with chunksize 1 in quick runs).

With the pool's own chunksize, with chunksize 1, and with the chunksize that suits each peer best, by trial. The ints
are a range, which poolkeeper sends as a range; the pools with a good chunksize of their own get them in a list, too.
`multiprocessing.Pool` is asked by `map` for its own chunksize (it drains the input first), else by `imap`.
poolkeeper takes a chunksize for a minimum and lets short items travel together anyway, so that its chunksize 1 is its
default: each item has an outcome of its own either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from bench import tasks
from bench.model import WORKERS, Case, Measured, Metric, benchmark
from bench.peers import PEERS, Peer

ITEMS = 200_000
ITEMS_QUICK_ONE_BY_ONE = 10_000
CHUNKSIZES = (None, 1_000, 5_000, 25_000)

CHUNKING = tuple(name for name in PEERS if name != "dask")

OWN, LISTED, ONE, BEST = "its own chunksize", "a list, its own chunksize", "chunksize 1", "best chunksize"


def timed_map(pool: Peer, items: Sequence[int], chunksize: int | None) -> float:
    """Items per second."""
    started = perf_counter()
    results = list(pool.map(tasks.increment, items, chunksize))
    seconds = perf_counter() - started
    assert results == list(range(1, len(items) + 1))
    return len(items) / seconds


@benchmark(
    metrics=[Metric("rate", "items/s", "higher", "items/s")],
    cases=[
        Case(OWN, peers=("poolkeeper", "pool", "mpire", "joblib", "ray")),  # for the others it is 1
        Case(LISTED, peers=("poolkeeper", "pool")),
        Case(ONE, slow=("loky", "joblib")),
        Case(BEST, peers=CHUNKING, slow=("pebble", "mpire", "joblib")),
    ],
    deadline=400,
)
def map_ints(peer: type[Peer], case: str, full: bool) -> Measured:
    """A map over 200,000 ints."""
    with peer(WORKERS) as pool:
        pool.warm_up()
        timed_map(pool, range(1_000), 100)
        if case == OWN:
            return Measured({"rate": timed_map(pool, range(ITEMS), None)})
        if case == LISTED:
            return Measured({"rate": timed_map(pool, list(range(ITEMS)), None)})
        if case == ONE:
            count = int((ITEMS if full else ITEMS_QUICK_ONE_BY_ONE) * peer.share)
            return Measured({"rate": timed_map(pool, range(count), 1)})
        chunksizes = [size for size in CHUNKSIZES if size or not peer.map_is_default_chunksize_1]
        rates = {size: timed_map(pool, range(ITEMS), size) for size in chunksizes}
        best = max(rates, key=rates.__getitem__)
        return Measured({"rate": rates[best]}, note=f"chunksize {best or 'its own'}")
