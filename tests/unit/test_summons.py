"""In which order, and how many at a time, the survivors of an earlier keeper are called."""

from __future__ import annotations

from poolkeeper.roster import Worker
from poolkeeper.summons import AT_ONCE, FIRST_SECONDS, NEXT_SECONDS, Summons


def test_workers_are_called_a_few_at_a_time() -> None:
    called: list[Worker] = []
    summons = Summons(called.append)
    assert not summons
    many = AT_ONCE
    workers = [Worker(number, number) for number in range(1, 2 * many + 7)]
    awaited = set(workers)

    def comes(worker: Worker) -> None:
        awaited.discard(worker)
        summons.came(worker)

    for worker in workers:
        summons.add(worker)
    summons.go_on(1.0, awaited)
    assert not called, "whoever is idle calls by itself, and comes first"
    first = summons.deadline
    assert first == 1.0 + FIRST_SECONDS
    comes(workers[many])  # by itself
    summons.go_on(first, awaited)
    summons.go_on(first, awaited)
    assert called == workers[:many]
    for worker in workers[2:4]:
        comes(worker)
    summons.go_on(first + 0.001, awaited)
    assert called == workers[:many] + workers[many + 1 : many + 3], "as many as have come; none that was there already"
    assert summons.deadline == first + NEXT_SECONDS
    summons.go_on(first + NEXT_SECONDS, awaited)
    assert called == workers[:many] + workers[many + 1 : 2 * many + 3], "those that do not come hold nobody up"
    assert summons
    summons.go_on(first + 2 * NEXT_SECONDS, awaited)
    assert called == workers[:many] + workers[many + 1 :]
    assert not summons, "then those that have not called are silent"
