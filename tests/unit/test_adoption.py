"""What a keeper does with the workers of an earlier one; the whole of it is in the integration tests."""

from __future__ import annotations

from typing import Any

from poolkeeper.adoption import SUMMON_SECONDS, SUMMONED_AT_ONCE, Adoption
from poolkeeper.core import Core
from poolkeeper.roster import Worker


def test_workers_are_called_a_few_at_a_time() -> None:
    core = Core(100, None, "birth")
    called: list[Worker] = []
    nobody: Any = None  # neither the journal nor the application is asked
    adoption = Adoption(core, nobody, nobody, nobody, 100.0, called.append, lambda: False, lambda _: None)
    workers = [core.take_over(number, number, "") for number in range(1, 2 * SUMMONED_AT_ONCE + 3)]
    for worker in workers:
        adoption.expect(worker)
        adoption.summon(worker)
    assert not called, "whoever is idle calls by itself, and comes first"
    adoption.tend(1.0)
    assert called == workers[:SUMMONED_AT_ONCE]
    assert adoption.next_deadline() == 1.0 + SUMMON_SECONDS
    adoption.gone(workers[SUMMONED_AT_ONCE])
    adoption.tend(1.001)
    adoption.tend(1.002)
    assert called == workers[:SUMMONED_AT_ONCE] + workers[SUMMONED_AT_ONCE + 1 :], "each once, but for the dead"
    assert adoption.next_deadline() == 100.0, "then those that have not called are silent"
