"""What a benchmark is: a question, the figures that answer it, and the function that measures them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.peers import PEERS, Contender

__all__ = [
    "DEFAULT_PEERS",
    "OURS",
    "REFERENCES",
    "WORKERS",
    "Benchmark",
    "Case",
    "Measured",
    "Metric",
    "Sample",
    "benchmark",
]

WORKERS = 2
OURS = "poolkeeper"
REFERENCES = ("forkserver", "pool")
DEFAULT_PEERS = (
    *(OURS, "fork", "forkserver", "pool", "loky", "pebble", "mpire", "joblib"),
    *("supervisord", "circus", "circus-fastest", "shell", "bare"),
)

Status = Literal["ok", "hung", "failed"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure that a benchmark yields; ``title`` heads its column."""

    key: str
    unit: str
    better: Literal["higher", "lower"]
    title: str


@dataclass(frozen=True, slots=True)
class Case:
    """One variant of a benchmark.

    ``peers`` limits it to those that can do it (None: everybody). ``slow`` peers sit out quick runs.
    """

    name: str
    peers: tuple[str, ...] | None = None
    slow: tuple[str, ...] = ()

    def admits(self, peer: str, full: bool) -> bool:
        """Whether ``peer`` takes part in this case of a full or quick run."""
        return (self.peers is None or peer in self.peers) and (full or peer not in self.slow)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement found.

    ``abandon`` says that the pool is broken or hung: the process ends without closing it.
    """

    figures: dict[str, float]
    note: str = ""
    abandon: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one peer, as it is stored; ``figures`` is empty unless ``status`` is "ok".

    ``took`` is what it cost in all, in seconds.
    """

    round: int
    case: str
    peer: str
    status: Status
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""
    took: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The sample as JSON types."""
        return asdict(self)


Measure = Callable[[Any, str, bool], Measured]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark: ``measure(contender, case, full)`` runs in a fresh process; ``deadline`` in seconds cuts it off.

    ``contenders`` are those who may take part, by name.
    """

    name: str
    title: str
    description: str
    metrics: tuple[Metric, ...]
    cases: tuple[Case, ...]
    references: tuple[str, ...]
    deadline: float
    contenders: Mapping[str, type[Contender]]
    measure: Measure

    def admits(self, peer: str, case: Case, full: bool) -> bool:
        """Whether ``peer`` takes part in this case of a full or quick run."""
        return peer in self.contenders and case.admits(peer, full)


def benchmark(
    *,
    metrics: Sequence[Metric],
    cases: Sequence[Case] = (Case(""),),
    references: Sequence[str] = REFERENCES,
    deadline: float = 120.0,
    contenders: Mapping[str, type[Contender]] = PEERS,
) -> Callable[[Measure], Benchmark]:
    """Turn a measuring function into the benchmark of that name; its docstring is the title, its module's the rest."""

    def wrap(measure: Measure) -> Benchmark:
        title = (measure.__doc__ or measure.__name__).rstrip(".")
        description = (measure.__globals__["__doc__"] or "").strip()
        return Benchmark(
            name=measure.__name__,
            title=title,
            description=description,
            metrics=tuple(metrics),
            cases=tuple(cases),
            references=tuple(references),
            deadline=deadline,
            contenders=contenders,
            measure=measure,
        )

    return wrap
