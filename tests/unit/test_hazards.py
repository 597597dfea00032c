"""From facts about the surroundings to warnings."""

from __future__ import annotations

import pytest

from poolkeeper.hazards import Facts, hazards

SOUND = Facts(unit="etl.service", kill_mode="process", oom_policy="continue")


@pytest.mark.parametrize("facts", [Facts(), SOUND])
def test_where_all_is_well_nothing_is_said(facts: Facts) -> None:
    assert hazards(facts) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            Facts(unit="etl.service", kill_mode="control-group", oom_policy="continue"),
            ["etl.service has KillMode=control-group", "Set KillMode=process"],
        ),
        (Facts(unit="etl.service", kill_mode="mixed", oom_policy="continue"), ["KillMode=mixed"]),
        (
            Facts(unit="etl.service", kill_mode="process", oom_policy="stop"),
            ["OOMPolicy=stop", "Set OOMPolicy=continue"],
        ),
        (Facts(ends_container=True), ["the container ends when this process does", "volume"]),
        (Facts(oom_group="/pod"), ["/pod", "Write 0", "singleProcessOOMKill"]),
        (Facts(unit="etl.service", kill_mode="process", oom_policy="kill", oom_group="/x"), ["OOMPolicy=kill"]),
    ],
)
def test_each_hazard_is_named_with_what_to_do(facts: Facts, words: list[str]) -> None:
    (warning,) = hazards(facts)
    for word in words:
        assert word in warning


def test_what_cannot_be_known_is_advised_to_be_looked_up() -> None:
    kill, memory = hazards(Facts(unit="etl.service"))
    assert "systemctl show -p KillMode etl.service" in kill
    assert "systemctl show -p OOMPolicy etl.service" in memory
    kill, memory = hazards(Facts(unit=""))
    assert "this unit of systemd" in kill
    assert "UNIT" in memory
