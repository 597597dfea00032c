"""``python -m bench``: run the benchmarks, store the figures, write the report."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import plots
from bench.catalogue import NAMES, load
from bench.contenders import CONTENDERS
from bench.harness import adopt_orphans, run
from bench.model import DEFAULT_PEERS, OURS, Benchmark, Sample
from bench.report import render, verdicts
from bench.results import Results, Run, describe_machine, load_runs, save_run
from bench.statistics import format_figure

RESULTS = Path(__file__).resolve().parent / "results"
QUICK_BUDGET = 105.0  # seconds within which a quick run starts no round that would not end
QUICK_REPEAT, FULL_REPEAT = 3, 5


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="within two minutes: smaller sizes, no slow peers (default)")
    mode.add_argument("--full", action="store_true", help="all peers, all sizes, more rounds")
    parser.add_argument("--filter", metavar="NAME", default="", help="only benchmarks whose name contains NAME")
    parser.add_argument(
        "--peers",
        metavar="A,B",
        default="all",
        help="who runs beside poolkeeper; 'all' stands for the usual ones, dask and ray must be named: all,dask,ray",
    )
    parser.add_argument(
        "--repeat", metavar="N", type=int, help=f"at most N rounds ({QUICK_REPEAT} quick, {FULL_REPEAT} full)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="where results go (bench/results)")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing; write the report anew from stored results"
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    options = parser.parse_args(arguments)
    options.repeat = options.repeat or (FULL_REPEAT if options.full else QUICK_REPEAT)
    options.benchmarks = [name for name in NAMES if options.filter in name]
    if not options.benchmarks:
        parser.error(f"no benchmark is called {options.filter!r}; there are {', '.join(NAMES)}")
    asked = dict.fromkeys(
        peer for word in options.peers.split(",") for peer in (DEFAULT_PEERS if word == "all" else (word.strip(),))
    )
    unknown = [peer for peer in asked if peer not in CONTENDERS]
    if unknown:
        parser.error(f"unknown peer {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    options.peers = [peer for peer in CONTENDERS if peer in asked or peer == OURS]
    return options


def tell(benchmark: Benchmark, sample: Sample) -> None:
    """One line of progress per measurement."""
    figures = "; ".join(
        f"{metric.title} {format_figure(sample.figures[metric.key])}"
        for metric in benchmark.metrics
        if metric.key in sample.figures
    )
    state = "" if sample.status == "ok" else sample.status + " "
    words = [
        f"{sample.round}",
        f"{sample.took:5.1f} s",
        f"{benchmark.name:14}",
        f"{sample.case:22}",
        f"{sample.peer:11}",
        state + figures,
        sample.note,
    ]
    print("  ".join(words).rstrip(), flush=True)


def measure(options: argparse.Namespace) -> None:
    """Run what was asked for and store it; what was measured is stored even if the run is interrupted."""
    versions = {peer: CONTENDERS[peer].version() for peer in options.peers}
    installed = {peer: version for peer, version in versions.items() if version is not None}
    for peer in options.peers:
        if peer not in installed:
            print(f"{CONTENDERS[peer].label} is not installed and sits out", file=sys.stderr)
    benchmarks = [load(name) for name in options.benchmarks]
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = describe_machine()
    samples: dict[str, list[Sample]] = {}
    adopt_orphans()
    budget = None if options.full else QUICK_BUDGET
    try:
        for benchmark, sample in run(
            benchmarks, list(installed), full=options.full, repeat=options.repeat, budget=budget, report=tell
        ):
            samples.setdefault(benchmark.name, []).append(sample)
    finally:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, taken in samples.items():
            save_run(Run(name, date, "full" if options.full else "quick", machine, installed, taken), options.out)


def main(arguments: list[str] | None = None) -> int:
    """Run; 1 if a target was missed or a measurement of poolkeeper failed, else 0."""
    options = parse(arguments)
    if options.list:
        for name in options.benchmarks:
            print(f"{name:14} {load(name).title}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        if not options.report:
            measure(options)
    except KeyboardInterrupt:
        print("interrupted: what was measured is stored", file=sys.stderr)
        return 130
    results = Results(load_runs(options.out))
    pictures = plots.draw(results, options.out) if plots.available() else {}
    page = options.out / "README.md"
    page.write_text(render(results, pictures))
    found = verdicts(results)
    met, missed = sum(each.met is True for each in found), sum(each.met is False for each in found)
    print(f"{met} targets met, {missed} missed; {time.monotonic() - started:.0f} s; report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
