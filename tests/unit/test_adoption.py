"""What a keeper does with the workers of an earlier one; the whole of it is in the integration tests."""

from __future__ import annotations

from typing import Any

from poolkeeper.adoption import FIRST_SUMMONS_SECONDS, SUMMONED_AT_ONCE, SUMMONS_SECONDS, Adoption
from poolkeeper.core import Core
from poolkeeper.roster import Worker


def test_workers_are_called_a_few_at_a_time() -> None:
    core = Core(100, None, "birth")
    called: list[Worker] = []
    nobody: Any = None  # neither the journal nor the application is asked
    adoption = Adoption(core, nobody, nobody, nobody, 100.0, called.append, lambda: False, lambda _: None)
    many = SUMMONED_AT_ONCE
    workers = [core.succession.take_over(number, number, "") for number in range(1, 2 * many + 7)]
    for worker in workers:
        adoption.expect(worker)
        adoption.summon(worker)
    adoption.tend(1.0)
    assert not called, "whoever is idle calls by itself, and comes first"
    first = adoption.next_deadline()
    assert first == 1.0 + FIRST_SUMMONS_SECONDS
    adoption.gone(workers[many])
    adoption.tend(first)
    adoption.tend(first)
    assert called == workers[:many]
    for worker in workers[2:4]:
        adoption.gone(worker)  # as when it has called
    adoption.tend(first + 0.001)
    assert called == workers[:many] + workers[many + 1 : many + 3], "as many as have come; each once, but for the dead"
    assert adoption.next_deadline() == first + SUMMONS_SECONDS
    adoption.tend(first + SUMMONS_SECONDS)
    assert called == workers[:many] + workers[many + 1 : 2 * many + 3], "those that do not come hold nobody up"
    adoption.tend(first + 2 * SUMMONS_SECONDS)
    assert called == workers[:many] + workers[many + 1 :]
    assert adoption.next_deadline() == 100.0, "then those that have not called are silent"
