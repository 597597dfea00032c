"""The arithmetic of the suite: spreads, percentiles, ratios. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

__all__ = ["Better", "Spread", "advantages", "best_per_round", "fits", "format_figure", "percentile", "quotients"]

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, with the lowest and the highest."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread:
        """The spread of at least one figure."""
        values = list(figures)
        if not values:
            raise ValueError("a spread needs at least one figure")
        return cls(median(values), min(values), max(values), len(values))


def percentile(figures: Sequence[float], percent: float) -> float:
    """The smallest figure that at least ``percent`` per cent of all do not exceed (nearest rank)."""
    if not figures:
        raise ValueError("a percentile needs at least one figure")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must lie in (0, 100], not {percent}")
    return sorted(figures)[math.ceil(len(figures) * percent / 100) - 1]


def quotients(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours divided by theirs, round by round: figures of one round have shared the machine's mood."""
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number]]


def advantages(ours: Mapping[int, float], theirs: Mapping[int, float], better: Better) -> list[float]:
    """How many times better ours is than theirs, round by round."""
    return quotients(ours, theirs) if better == "higher" else quotients(theirs, ours)


def best_per_round(series: Iterable[Mapping[int, float]], better: Better) -> dict[int, float]:
    """The best figure that any of several peers reached in each round."""
    pick = max if better == "higher" else min
    best: dict[int, float] = {}
    for figures in series:
        for number, figure in figures.items():
            best[number] = pick(best[number], figure) if number in best else figure
    return best


def fits(cost: float, spent: float, budget: float | None) -> bool:
    """Whether one more round that takes ``cost`` seconds ends within the budget (None: always)."""
    return budget is None or spent + cost <= budget


def format_figure(figure: float) -> str:
    """A figure with three significant digits, thousands separated: 0.0123, 4.56, 78.9, 12,300."""
    if figure == 0:
        return "0"
    figure = float(f"{figure:.3g}")
    if figure == int(figure):
        return f"{int(figure):,}"
    return f"{figure:.{2 - math.floor(math.log10(abs(figure)))}f}"
