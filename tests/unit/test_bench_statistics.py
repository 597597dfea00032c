"""The arithmetic of the benchmark suite, its targets, and that they name figures which exist."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.catalogue import NAMES, load
from bench.contenders import CONTENDERS
from bench.model import DEFAULT_PEERS, OURS, Case
from bench.statistics import Spread, advantages, best_per_round, fits, format_figure, percentile, quotients
from bench.targets import TARGETS, Figure, Target, judge

finite = st.floats(min_value=-1e9, max_value=1e9)


@given(st.lists(finite, min_size=1))
def test_a_spread_encloses_its_median(figures: list[float]) -> None:
    spread = Spread.of(figures)
    assert spread.low <= spread.median <= spread.high
    assert spread.count == len(figures)


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


@pytest.mark.parametrize(("percent", "expected"), [(1, 10), (20, 10), (21, 20), (50, 30), (99, 50), (100, 50)])
def test_percentiles_are_nearest_ranks(percent: float, expected: float) -> None:
    assert percentile([50, 10, 40, 20, 30], percent) == expected


@given(st.lists(finite, min_size=1), st.floats(min_value=0.1, max_value=100))
def test_a_percentile_is_one_of_the_figures_and_covers_its_share(figures: list[float], percent: float) -> None:
    found = percentile(figures, percent)
    assert found in figures
    assert sum(figure <= found for figure in figures) >= len(figures) * percent / 100 - 1e-9


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_percentiles_outside_the_range_are_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)


def test_ratios_pair_the_figures_of_one_round() -> None:
    ours, theirs = {1: 10.0, 2: 40.0, 3: 7.0}, {1: 5.0, 2: 10.0, 4: 9.0}
    assert quotients(ours, theirs) == [2.0, 4.0]
    assert advantages(ours, theirs, "higher") == [2.0, 4.0]
    assert advantages(ours, theirs, "lower") == [0.5, 0.25]


def test_a_zero_has_no_ratio() -> None:
    assert quotients({1: 3.0, 2: 4.0}, {1: 0.0, 2: 2.0}) == [2.0]


def test_the_best_of_several_peers_is_chosen_in_each_round() -> None:
    series = [{1: 3.0, 2: 8.0}, {1: 4.0, 3: 1.0}]
    assert best_per_round(series, "higher") == {1: 4.0, 2: 8.0, 3: 1.0}
    assert best_per_round(series, "lower") == {1: 3.0, 2: 8.0, 3: 1.0}


def test_a_round_starts_only_if_it_ends_within_the_budget() -> None:
    assert fits(cost=10, spent=90, budget=100)
    assert not fits(cost=11, spent=90, budget=100)
    assert fits(cost=1e9, spent=1e9, budget=None)


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (0.9999, "1"),
        (4.5678, "4.57"),
        (78.94, "78.9"),
        (123.4, "123"),
        (12_345, "12,300"),
        (25, "25"),
        (-3.14159, "-3.14"),
    ],
)
def test_figures_have_three_significant_digits(figure: float, text: str) -> None:
    assert format_figure(figure) == text


class Recorded:
    """Figures by (benchmark, case, peer, metric)."""

    def __init__(self, figures: Mapping[tuple[str, str, str, str], dict[int, float]]) -> None:
        self.figures = figures

    def series(self, benchmark: str, case: str, peer: str, metric: str) -> dict[int, float]:
        return self.figures.get((benchmark, case, peer, metric), {})


RATE = Figure("b", "rate", better="higher")
SECONDS = Figure("b", "seconds")
RESULTS = Recorded(
    {
        ("b", "", OURS, "rate"): {1: 300.0, 2: 200.0, 3: 310.0},
        ("b", "", "fork", "rate"): {1: 10.0, 2: 10.0, 3: 9.0},
        ("b", "", "forkserver", "rate"): {1: 8.0, 2: 9.0, 3: 10.0},
        ("b", "", OURS, "seconds"): {1: 1.0, 2: 1.5, 3: 9.0},
        ("b", "", "fork", "seconds"): {1: 2.0, 2: 3.0, 3: 4.0},
    }
)


@pytest.mark.parametrize(
    ("target", "median", "met"),
    [
        (Target("the better of both counts", RATE, ">=", 25, than=RATE.by("fork", "forkserver")), 30.0, True),
        (Target("the worst round is judged", RATE, ">=", 25, than=RATE.by("fork"), worst=True), 30.0, False),
        (Target("times better where lower is better", SECONDS, ">=", 2, than=SECONDS.by("fork")), 2.0, True),
        (Target("a quotient", SECONDS, "<=", 0.4, than=SECONDS.by("fork")), 0.5, False),
        (Target("the figure itself", SECONDS, "<=", 1.5), 1.5, True),
        (Target("the figure itself at its worst", SECONDS, "<=", 1.5, worst=True), 1.5, False),
        (Target("no verdict is asked for", SECONDS, "<=", None), 1.5, None),
    ],
    ids=lambda value: value.what if isinstance(value, Target) else "",
)
def test_verdicts(target: Target, median: float, met: bool | None) -> None:
    verdict = judge(target, RESULTS)
    assert verdict.spread is not None
    assert (verdict.spread.median, verdict.met) == (median, met)


def test_what_was_not_measured_has_no_verdict() -> None:
    verdict = judge(Target("", SECONDS, "<=", 1, than=SECONDS.by("loky")), RESULTS)
    assert (verdict.spread, verdict.met) == (None, None)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.what)
def test_every_target_names_figures_that_are_measured(target: Target) -> None:
    for figure in filter(None, (target.figure, target.than)):
        benchmark = load(figure.benchmark)
        metric = {metric.key: metric for metric in benchmark.metrics}[figure.metric]
        case = {case.name: case for case in benchmark.cases}[figure.case]
        assert metric.better == figure.better
        assert all(benchmark.admits(peer, case, full=True) for peer in figure.peers)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_names_peers_that_exist(name: str) -> None:
    benchmark = load(name)
    for case in benchmark.cases:
        assert {*(case.peers or ()), *case.slow, *benchmark.references} <= benchmark.contenders.keys()
        assert benchmark.admits(OURS, case, full=False)


def test_who_is_no_contender_takes_no_part() -> None:
    pools, services = load("round_trip"), load("service_restart")
    assert not pools.admits("supervisord", pools.cases[0], full=True)
    assert not services.admits("loky", services.cases[0], full=True)
    assert services.admits("supervisord", services.cases[0], full=False)


def test_slow_peers_sit_out_quick_runs_only() -> None:
    case = Case("", slow=("loky",))
    assert case.admits("loky", full=True)
    assert not case.admits("loky", full=False)
    assert set(DEFAULT_PEERS) <= CONTENDERS.keys()
