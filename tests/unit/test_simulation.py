"""Whole pools in virtual time, under faults; see ``tests.simulation``, which also reruns a seed that failed."""

from __future__ import annotations

import pytest

from tests.simulation import simulate

BLOCK = 50


@pytest.mark.parametrize("first", range(0, 500, BLOCK))
def test_every_task_ends_once_whatever_happens(first: int) -> None:
    for seed in range(first, first + BLOCK):
        simulate(seed)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(500, 10_500, 1000))
def test_every_task_ends_once_whatever_happens_many_times(first: int) -> None:
    for seed in range(first, first + 1000):
        simulate(seed)


def test_the_faults_happen() -> None:
    """A simulation in which nothing goes wrong would prove nothing."""
    endings = set[str]()
    runs = deaths = 0
    for seed in range(100):
        simulation = simulate(seed)
        works = [task.payload for task in simulation.tasks] + [work for job in simulation.jobs for work in job.works]
        for work in works:
            endings.update(work.ends)
            runs = max(runs, work.runs)
            deaths = max(deaths, work.deaths)
    assert endings == {"settled", "cancelled", "quarantined", "lost", "timeout", "no workers"}
    assert runs > 3
    assert deaths > 2


def test_a_seed_tells_the_same_story_again() -> None:
    first, second = simulate(7), simulate(7)
    assert first.now == second.now
    assert [task.payload.ends for task in first.tasks] == [task.payload.ends for task in second.tasks]
