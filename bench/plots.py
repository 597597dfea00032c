"""Bar charts of each benchmark's first figure, as SVG; without matplotlib there are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from bench.catalogue import load
from bench.contenders import CONTENDERS
from bench.model import OURS, Case
from bench.results import Results, Run
from bench.statistics import Spread, format_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.model import Benchmark

__all__ = ["available", "draw"]

OUR_COLOUR, THEIR_COLOUR = "#d9480f", "#adb5bd"
LOGARITHMIC_FROM = 100.0  # ratio of the longest bar to the shortest


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Draw one picture per benchmark into ``folder``; returns them by benchmark."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.hashsalt": "poolkeeper", "svg.fonttype": "none", "font.size": 9}
    )  # the same ids in every run
    import matplotlib.pyplot as plt

    pictures = {}
    for name, run in results.runs.items():
        benchmark = load(name)
        bars = {case: _bars(benchmark, case, run) for case in benchmark.cases}
        bars = {case: each for case, each in bars.items() if each}
        if not bars:
            continue
        figure, axes = plt.subplots(
            1, len(bars), figsize=(4.2 * len(bars) + 1.4, 2.9), squeeze=False, layout="constrained"
        )
        for axis, (case, spreads) in zip(axes[0], bars.items(), strict=True):
            _chart(axis, benchmark, case, spreads, run)
        figure.suptitle(benchmark.title)
        pictures[name] = folder / f"{name}.svg"
        figure.savefig(pictures[name], metadata={"Date": None})
        plt.close(figure)
    return pictures


def _headline(benchmark: Benchmark, case: Case, run: Run) -> str | None:
    """The first figure that this case has."""
    keys = {key for sample in run.samples if sample.case == case.name for key in sample.figures}
    return next((metric.key for metric in benchmark.metrics if metric.key in keys), None)


def _bars(benchmark: Benchmark, case: Case, run: Run) -> dict[str, Spread]:
    headline = _headline(benchmark, case, run)
    series = {peer: run.series(case.name, peer, headline) for peer in run.peers()} if headline else {}
    return {peer: Spread.of(figures.values()) for peer, figures in series.items() if figures}


def _chart(axis: Axes, benchmark: Benchmark, case: Case, spreads: dict[str, Spread], run: Run) -> None:
    headline = _headline(benchmark, case, run)
    metric = next(metric for metric in benchmark.metrics if metric.key == headline)
    medians = [spread.median for spread in spreads.values()]
    errors = [[s.median - s.low for s in spreads.values()], [s.high - s.median for s in spreads.values()]]
    colours = [OUR_COLOUR if peer == OURS else THEIR_COLOUR for peer in spreads]
    bars = axis.barh(
        [CONTENDERS[peer].label for peer in spreads], medians, xerr=errors, color=colours, ecolor="#495057"
    )
    axis.bar_label(bars, [format_figure(figure) for figure in medians], padding=4)
    axis.invert_yaxis()
    axis.margins(x=0.25)
    if min(medians) > 0 and max(medians) / min(medians) > LOGARITHMIC_FROM:
        axis.set_xscale("log")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(case.name, fontsize=9)
    axis.set_xlabel(f"{metric.title} ({metric.better} is better)")
