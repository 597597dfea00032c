"""What poolkeeper is meant to reach, as data, and the verdict on each."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from bench.caller_memory import EAGER, LAZY, QUEUE
from bench.chaos_kills import CALM, EVERY_50_MS, EVERY_200_MS
from bench.checkpoint import ARRAY, BYTES, SMALL
from bench.durable import KEYED
from bench.import_time import IMPORT, READY
from bench.keeper_chaos import CALM as UNDISTURBED
from bench.keeper_chaos import KILLS
from bench.keeper_lost import KILLED as LOST
from bench.keeper_lost import REEXEC
from bench.large_arrays import ARGUMENT, RESULT
from bench.map_ints import BEST, ONE, OWN
from bench.model import OURS
from bench.services_start import HUNDRED, THOUSAND
from bench.statistics import Better, Spread, advantages, best_per_round, quotients

__all__ = ["TARGETS", "Figure", "Lookup", "Target", "Verdict", "judge"]

TIMES = "×"
STANDARD = ("fork", "forkserver")  # both start methods of ProcessPoolExecutor: the better one counts


class Lookup(Protocol):
    """Where figures come from."""

    def series(self, benchmark: str, case: str, peer: str, metric: str) -> Mapping[int, float]:
        """One figure by round."""
        ...


@dataclass(frozen=True, slots=True)
class Figure:
    """Names a figure; of several ``peers`` the best in each round counts."""

    benchmark: str
    metric: str
    case: str = ""
    peers: tuple[str, ...] = (OURS,)
    better: Better = "lower"

    def by(self, *peers: str) -> Figure:
        """The same figure of others."""
        return replace(self, peers=peers)

    def series(self, results: Lookup) -> dict[int, float]:
        """Its value by round."""
        found = (results.series(self.benchmark, self.case, peer, self.metric) for peer in self.peers)
        return best_per_round(found, self.better)


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table.

    ``figure`` itself is bounded, or its relation to ``than``: with ">=" how many times better it is, with "<=" its
    quotient. ``bound=None`` reports without a verdict. ``worst`` judges the worst round, not the median.
    """

    what: str
    figure: Figure
    relation: Literal[">=", "<="]
    bound: float | None
    unit: str = ""
    than: Figure | None = None
    worst: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target with what was measured; ``met`` is None where nothing was, or where nothing is demanded."""

    target: Target
    spread: Spread | None
    met: bool | None


HOLDS = {">=": operator.ge, "<=": operator.le}


def judge(target: Target, results: Lookup) -> Verdict:
    """Compare one target with what was measured."""
    ours = target.figure.series(results)
    if target.than is None:
        figures = list(ours.values())
    elif target.relation == ">=":
        figures = advantages(ours, target.than.series(results), target.figure.better)
    else:
        figures = quotients(ours, target.than.series(results))
    if not figures:
        return Verdict(target, None, None)
    spread = Spread.of(figures)
    if target.bound is None:
        return Verdict(target, spread, None)
    worst = spread.low if target.relation == ">=" else spread.high
    return Verdict(target, spread, HOLDS[target.relation](worst if target.worst else spread.median, target.bound))


SUBMIT = Figure("submit_noop", "rate", better="higher")
RECORDED = Figure("durable", "rate", KEYED, better="higher")
MAP_OWN = Figure("map_ints", "rate", OWN, better="higher")
MAP_ONE = Figure("map_ints", "rate", ONE, better="higher")
MAP_BEST = Figure("map_ints", "rate", BEST, better="higher")
TRIP_P50, TRIP_P99 = Figure("round_trip", "p50"), Figure("round_trip", "p99")
QUEUE_PEAK = Figure("caller_memory", "peak_rss", QUEUE)
RESTART_P50 = Figure("service_restart", "p50")
RESTART_P99 = Figure("service_restart", "p99")
MASS_SECONDS, MASS_STATUS = Figure("services_mass_kill", "seconds"), Figure("services_mass_kill", "status")
START_100 = Figure("services_start", "seconds", HUNDRED)
REEXEC_TIME = Figure("keeper_lost", "milliseconds", REEXEC)
LOST_TIME, LOST_WRONG = Figure("keeper_lost", "milliseconds", LOST), Figure("keeper_lost", "wrong", LOST)
CHAOS_WRONG = Figure("keeper_chaos", "wrong", KILLS)
CHAOS_RATE = Figure("keeper_chaos", "rate", KILLS, better="higher")
CALM_RATE = Figure("keeper_chaos", "rate", UNDISTURBED, better="higher")
CALM_SECONDS = Figure("chaos_kills", "seconds", CALM)


def _large_array(case: str) -> Iterator[Target]:
    """64 MiB one way: far faster than the standard pool, no slower and no hungrier than anybody."""
    time, memory = Figure("large_arrays", "milliseconds", case), Figure("large_arrays", "growth", case)
    yield Target(f"64 MiB {case}, over ProcessPoolExecutor", time, ">=", 15, TIMES, time.by(*STANDARD))
    for peer, label in (("loky", "loky"), ("dask", "dask"), ("ray", "Ray without put")):
        yield Target(f"64 MiB {case}: time, of {label}'s", time, "<=", 1, TIMES, time.by(peer))
    for peer, label in (("forkserver", "ProcessPoolExecutor"), ("loky", "loky"), ("dask", "dask"), ("ray", "Ray")):
        yield Target(f"64 MiB {case}: growth of the caller, of {label}'s", memory, "<=", 1, TIMES, memory.by(peer))


def _chaos(case: str, bound: float) -> Iterator[Target]:
    """Kills cost a little time and not one result."""
    lost, seconds = Figure("chaos_kills", "lost", case), Figure("chaos_kills", "seconds", case)
    yield Target(f"{case}: results that are missing", lost, "<=", 0, "tasks", worst=True)
    yield Target(f"{case}: time, of that without kills", seconds, "<=", bound, TIMES, CALM_SECONDS)


TARGETS = (
    Target(
        "20,000 no-op submits, over ProcessPoolExecutor (forkserver)", SUBMIT, ">=", 25, TIMES, SUBMIT.by("forkserver")
    ),
    Target("20,000 no-op submits, over multiprocessing.Pool", SUBMIT, ">=", 6, TIMES, SUBMIT.by("pool")),
    Target("no-op tasks, recorded by key, over ProcessPoolExecutor", RECORDED, ">=", 8, TIMES, RECORDED.by(*STANDARD)),
    Target("map, over ProcessPoolExecutor with its best chunksize", MAP_OWN, ">=", 1.5, TIMES, MAP_BEST.by(*STANDARD)),
    Target("map, over multiprocessing.Pool.map (towards it)", MAP_OWN, ">=", None, TIMES, MAP_OWN.by("pool")),
    Target("map, chunksize 1, over ProcessPoolExecutor", MAP_ONE, ">=", 25, TIMES, MAP_ONE.by(*STANDARD)),
    Target("map, chunksize 1, over multiprocessing.Pool.imap", MAP_ONE, ">=", 5, TIMES, MAP_ONE.by("pool")),
    Target("round trip p50, of ProcessPoolExecutor's", TRIP_P50, "<=", 0.5, TIMES, TRIP_P50.by(*STANDARD)),
    Target("round trip p99, of its own p50", TRIP_P99, "<=", 3, TIMES, TRIP_P50),
    *_large_array(ARGUMENT),
    *_large_array(RESULT),
    *_chaos(EVERY_200_MS, 1.15),
    *_chaos(EVERY_50_MS, 1.4),
    Target("SIGKILL to first line of the replacement, p50", Figure("replacement", "p50"), "<=", 3, "ms"),
    Target("SIGKILL to first line of the replacement, p99", Figure("replacement", "p99"), "<=", 10, "ms"),
    Target("checkpoint of 1 KB", Figure("checkpoint", "milliseconds", SMALL), "<=", 0.3, "ms"),
    *(
        Target(f"checkpoint of {case}", Figure("checkpoint", "rate", case, better="higher"), ">=", 500, "MB/s")
        for case in (ARRAY, BYTES)
    ),
    Target(
        "re-exec with 100 busy workers: first new task", Figure("keeper_lost", "milliseconds", REEXEC), "<=", 150, "ms"
    ),
    Target("keeper SIGKILLed, 100 busy workers back", LOST_TIME, "<=", 300, "ms"),
    Target(
        "100 busy workers, keeper replaced: wrong", Figure("keeper_lost", "wrong", LOST), "<=", 0, "tasks", worst=True
    ),
    Target("all are killed: rate, of that without kills", CHAOS_RATE, ">=", 0.7, TIMES, CALM_RATE),
    Target(
        "all are killed: lost, wrong or twice", Figure("keeper_chaos", "wrong", KILLS), "<=", 0, "tasks", worst=True
    ),
    Target("100 workers have each begun a task", Figure("many_workers", "seconds"), "<=", 0.3, "s"),
    Target("PSS of each of 100 workers", Figure("many_workers", "pss"), "<=", 3, "MiB"),
    Target(
        "20,000 queued: caller's peak, of ProcessPoolExecutor's", QUEUE_PEAK, "<=", 1, TIMES, QUEUE_PEAK.by(*STANDARD)
    ),
    Target("map, buffered: growth of the caller", Figure("caller_memory", "growth", LAZY), "<=", 20, "MiB"),
    Target("map of 200,000: growth of the caller", Figure("caller_memory", "growth", EAGER), "<=", 100, "MiB"),
    Target("import, above a bare interpreter", Figure("import_time", "above_bare", IMPORT), "<=", 50, "ms"),
    Target("ready for the first submit, after the import", Figure("import_time", "ready", READY), "<=", 30, "ms"),
    # One heartbeat in 5 s or longer, with its answer, from each of two workers and the fork server: under 2 per second.
    Target("idle: wake-ups (heartbeats alone allowed)", Figure("idle", "wakeups"), "<=", 2, "per second"),
    Target("SIGKILL to first line of a replaced service, p50", RESTART_P50, "<=", 3, "ms"),
    Target("SIGKILL to first line of a replaced service, p99", RESTART_P99, "<=", 10, "ms"),
    Target("replaced service, p50, over supervisord", RESTART_P50, ">=", 300, TIMES, RESTART_P50.by("supervisord")),
    Target("replaced service, p50, over a shell loop", RESTART_P50, ">=", 4, TIMES, RESTART_P50.by("shell")),
    Target("100 services are ready", START_100, "<=", 0.3, "s"),
    Target("100 services are ready, over supervisord", START_100, ">=", 3, TIMES, START_100.by("supervisord")),
    Target("100 services are ready, over circus", START_100, ">=", 3, TIMES, START_100.by("circus", "circus-fastest")),
    Target("PSS of each of 100 services", Figure("services_start", "pss", HUNDRED), "<=", 3, "MiB"),
    Target("1,000 services are ready", Figure("services_start", "seconds", THOUSAND), "<=", 5, "s"),
    Target("1,000 services are stopped", Figure("services_start", "stop", THOUSAND), "<=", 5, "s"),
    Target("1,000 services: left behind", Figure("services_start", "left", THOUSAND), "<=", 0, "processes", worst=True),
    Target("100 services killed at once: all ready again", MASS_SECONDS, "<=", 0.5, "s"),
    Target("100 services killed at once: slowest status", MASS_STATUS, "<=", 50, "ms", worst=True),
    Target("100 idle services: CPU time", Figure("services_idle", "cpu"), "<=", 0.2, "% of a core"),
    Target("100 idle services: wake-ups", Figure("services_idle", "wakeups"), "<=", 1, "per second"),
)
