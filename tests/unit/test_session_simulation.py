"""Seeded schedules of faults; one that fails reproduces by ``SessionSimulation(seed).run()``."""

from __future__ import annotations

import pytest

from tests.session_simulation import SessionSimulation


def run(seeds: range) -> int:
    faults = 0
    for seed in seeds:
        simulation = SessionSimulation(seed)
        try:
            simulation.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        faults += simulation.faults
    return faults


def test_whatever_happens_to_the_link_each_message_arrives_once_and_in_order() -> None:
    assert run(range(500)) > 1000, "the schedules have become harmless"


@pytest.mark.soak
def test_as_above_for_many_more_schedules() -> None:
    run(range(500, 10_500))
