"""All services of a keeper in virtual time, under faults; ``tests.service_simulation`` also reruns a seed."""

from __future__ import annotations

import pytest

from poolkeeper.service_model import ExitReason, ServiceState
from tests.service_simulation import simulate

BLOCK = 50


@pytest.mark.parametrize("first", range(0, 200, BLOCK))
def test_services_keep_their_promises_whatever_happens(first: int) -> None:
    for seed in range(first, first + BLOCK):
        simulate(seed)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(200, 5200, 500))
def test_services_keep_their_promises_whatever_happens_many_times(first: int) -> None:
    for seed in range(first, first + 500):
        simulate(seed)


def test_the_faults_happen() -> None:
    """A simulation in which nothing goes wrong would prove nothing."""
    seen = set[str]()
    for seed in range(100):
        seen |= simulate(seed).seen
    reasons = {reason.value for reason in ExitReason} - {"not started"}
    assert reasons <= {what.removeprefix("exit: ") for what in seen}
    for state in ServiceState:
        assert any(what.endswith(f"-> {state.value}") for what in seen)
    assert {"collapse", "group.failed", "starting -> waiting", "stopping -> waiting", "stopping -> backoff"} <= seen
    assert {"upgrade", "upgrade.completed", "upgrade.failed"} <= seen
    assert {"the keeper dies", "found", "other version"} | {f" -> {state.value}" for state in ServiceState} <= seen


def test_a_seed_tells_the_same_story_again() -> None:
    stories: list[list[str]] = [[], []]
    for story in stories:
        simulate(7, story.append)
    assert stories[0] == stories[1]
