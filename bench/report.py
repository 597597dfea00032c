"""The report: targets first, then a table and a plot per benchmark, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.catalogue import NAMES, load
from bench.contenders import CONTENDERS
from bench.model import Benchmark, Case, Metric
from bench.results import Results, Run
from bench.statistics import Spread, advantages, format_figure
from bench.targets import TARGETS, Verdict, judge

__all__ = ["render", "verdicts"]

WORDS = {True: "**met**", False: "**missed**", None: "–"}
HOW_TO_READ = """\
Each measurement ran in a fresh process, the peers by turns; figures are medians over the rounds, the lowest and highest
in brackets. Absolute figures move with the machine: the ratios, taken within each round, are what counts. The "×"
columns say how many times better a peer is than the one named, by the first figure."""
BUSY = 0.5  # load average above which the machine was not ours alone


def verdicts(results: Results) -> list[Verdict]:
    """The verdict on every target, measured or not."""
    return [judge(target, results) for target in TARGETS]


def render(results: Results, plots: dict[str, Path]) -> str:
    """The whole page; ``plots`` maps benchmarks to pictures beside it."""
    blocks = ["# Benchmark results", *_preamble(results), "## Targets", _targets(verdicts(results))]
    for name in NAMES:
        if name in results.runs:
            blocks += _section(load(name), results.runs[name], plots.get(name))
    return "\n\n".join(blocks) + "\n"


def format_spread(spread: Spread) -> str:
    """The median, with the lowest and the highest where there are several."""
    middle = format_figure(spread.median)
    if spread.count == 1:
        return middle
    return f"{middle} ({format_figure(spread.low)}–{format_figure(spread.high)})"


def _preamble(results: Results) -> list[str]:
    runs = list(results.runs.values())
    machines = sorted(
        {
            f"{m['system']} on {m['architecture']}, {m['cores']} cores, Python {m['python']}"
            for m in (r.machine for r in runs)
        }
    )
    versions = {peer: version for run in runs for peer, version in run.versions.items()}
    installed = ", ".join(f"{CONTENDERS[peer].label} {version}" for peer, version in versions.items())
    dates = sorted({run.date[:10] for run in runs})
    lines = [
        f"Measured by `make bench` on {' and '.join(dates)}. {'; '.join(machines)}. Two workers unless said otherwise.",
        HOW_TO_READ,
        f"Versions: {installed}.",
    ]
    if any(run.machine["load_before"] > BUSY for run in runs):
        lines.append("**The machine was busy with other work while some of this was measured: take it as a sketch.**")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, [":--" if word in ("note", head[0]) else "--:" for word in head], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _targets(found: Iterable[Verdict]) -> str:
    rows = []
    for verdict in found:
        target = verdict.target
        demanded = (
            "" if target.bound is None else f"{_sign(target.relation)} {format_figure(target.bound)} {target.unit}"
        )
        measured = "not measured" if verdict.spread is None else f"{format_spread(verdict.spread)} {target.unit}"
        rows.append([target.what, demanded, measured, WORDS[verdict.met]])
    return _table(["what", "target", "measured", "verdict"], rows)


def _sign(relation: str) -> str:
    return {">=": "≥", "<=": "≤"}[relation]


def _section(benchmark: Benchmark, run: Run, plot: Path | None) -> list[str]:
    rounds = "1 round" if run.rounds == 1 else f"{run.rounds} rounds"
    blocks = [f"## {benchmark.name}: {benchmark.title}", benchmark.description, f"*{run.mode}, {rounds}, {run.date}*"]
    for case in benchmark.cases:
        metrics = [
            metric
            for metric in benchmark.metrics
            if any(metric.key in s.figures for s in run.samples if s.case == case.name)
        ]
        rows = [_row(benchmark, run, case, peer, metrics) for peer in run.peers() if run.of(case.name, peer)]
        if rows:
            references = _references(benchmark, run, case) if metrics else []
            head = [case.name or "peer", *(metric.title for metric in metrics)]
            head += [f"× {CONTENDERS[reference].label}" for reference in references] + ["note"]
            blocks.append(_table(head, rows))
    if plot is not None:
        blocks.append(f"![{benchmark.title}]({plot.name})")
    return blocks


def _references(benchmark: Benchmark, run: Run, case: Case) -> list[str]:
    return [peer for peer in benchmark.references if any(sample.figures for sample in run.of(case.name, peer))]


def _row(benchmark: Benchmark, run: Run, case: Case, peer: str, metrics: Sequence[Metric]) -> list[str]:
    cells = []
    for metric in metrics:
        figures = run.series(case.name, peer, metric.key)
        cells.append(format_spread(Spread.of(figures.values())) if figures else "–")
    if metrics:
        headline = metrics[0]
        ours = run.series(case.name, peer, headline.key)
        for reference in _references(benchmark, run, case):
            ratios = advantages(ours, run.series(case.name, reference, headline.key), headline.better)
            cells.append(format_figure(Spread.of(ratios).median) if ratios else "–")
    samples = run.of(case.name, peer)
    notes = dict.fromkeys(
        sample.note if sample.status == "ok" else f"{sample.status}: {sample.note}" for sample in samples
    )
    label = CONTENDERS[peer].label
    return [f"**{label}**" if peer == "poolkeeper" else label, *cells, "; ".join(filter(None, notes)).replace("|", "/")]
