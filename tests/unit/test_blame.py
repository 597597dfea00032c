"""Who is to blame: tables of what the page says and what follows."""

from __future__ import annotations

import pytest

from poolkeeper.blame import Judgement, judge
from poolkeeper.ledger import Chunk, Task
from poolkeeper.messages import Progress
from poolkeeper.roster import KillReason, Worker
from tests.scripted import Page, call, keys, segment, tasks


def dead(held: list[Task], progress: Progress, *, base: int = 1) -> Worker:
    """A worker that held these tasks, and whose page says this."""
    worker = Worker(1, 0)
    page = worker.page = Page()
    page.started, page.finished, page.item, page.started_at = progress
    worker.base = base
    worker.inflight.extend(held)
    return worker


def fates(judgement: Judgement) -> dict[str, list[object]]:
    """The verdicts that were passed on anyone."""
    lists = {
        "innocent": judgement.innocent,
        "suspect": judgement.suspects,
        "ended": judgement.ended,
        "timed out": judgement.timed_out,
    }
    return {name: keys(held) for name, held in lists.items() if held}


@pytest.mark.parametrize(
    ("started", "finished", "verdicts"),
    [
        (0, 0, {"innocent": ["0", "1", "2"]}),  # it had started nothing
        (1, 0, {"suspect": ["0"], "innocent": ["1", "2"]}),
        (1, 1, {"innocent": ["0", "1", "2"]}),  # finished, and the result is lost: again, without blame
        (2, 1, {"suspect": ["1"], "innocent": ["0", "2"]}),
        (3, 2, {"suspect": ["2"], "innocent": ["0", "1"]}),
        (3, 3, {"innocent": ["0", "1", "2"]}),
    ],
)
def test_only_what_was_started_and_not_finished_is_blamed(
    started: int, finished: int, verdicts: dict[str, list[str]]
) -> None:
    held = tasks(call(), 3)
    assert fates(judge(dead(held, Progress(started, finished, 0, 0.0)))) == verdicts
    assert [task.deaths for task in held] == [task.key in verdicts.get("suspect", []) for task in held]


@pytest.mark.parametrize(
    ("started", "finished", "verdicts"),
    [
        (1, 0, {"ended": ["0"], "innocent": ["1"]}),
        (1, 1, {"ended": ["0"], "innocent": ["1"]}),  # it has run, and nobody knows its result
        (0, 0, {"innocent": ["0", "1"]}),
    ],
)
def test_at_most_once_means_that_nothing_runs_again_that_may_have_run(
    started: int, finished: int, verdicts: dict[str, list[str]]
) -> None:
    held = tasks(call(deaths=0), 2)
    assert fates(judge(dead(held, Progress(started, finished, 0, 0.0)))) == verdicts


@pytest.mark.parametrize(
    ("allowed", "before", "fate"), [(1, 0, "ended"), (3, 0, "suspect"), (3, 1, "suspect"), (3, 2, "ended")]
)
def test_the_last_death_allowed_is_final(allowed: int, before: int, fate: str) -> None:
    (task,) = tasks(call(deaths=allowed), 1)
    task.deaths = before
    assert fates(judge(dead([task], Progress(1, 0, 0, 0.0)))) == {fate: ["0"]}
    assert task.deaths == before + 1


def test_indices_count_from_the_first_that_is_not_answered() -> None:
    held = tasks(call(), 2)
    assert fates(judge(dead(held, Progress(42, 41, 0, 0.0), base=41))) == {"innocent": ["0"], "suspect": ["1"]}


def test_revoked_and_withdrawn_tasks_are_nobodys_business() -> None:
    revoked, withdrawn, other = tasks(call(), 3)
    withdrawn.withdrawn = True
    worker = dead([revoked, withdrawn, other], Progress(2, 1, 0, 0.0))
    worker.inflight[0] = None
    assert fates(judge(worker)) == {"innocent": ["2"]}
    assert withdrawn.deaths == 0


@pytest.mark.parametrize("finished", [1, 2])
def test_a_timeout_is_no_death(finished: int) -> None:
    """Not even where the task finished between the decision and the blow: its time was up."""
    held = tasks(call(timeout=1.0), 3)
    worker = dead(held, Progress(2, finished, 0, 0.0))
    worker.kill = (KillReason.TIMEOUT, 2)
    assert fates(judge(worker)) == {"innocent": ["0", "2"], "timed out": ["1"]}
    assert [task.deaths for task in held] == [0, 0, 0]


def test_what_has_just_finished_whenever_a_worker_dies_is_blamed_in_the_end() -> None:
    (task,) = tasks(call(deaths=2), 1)
    verdicts = [fates(judge(dead([task], Progress(1, 1, 0, 0.0)))) for _ in range(4)]
    assert verdicts == [{"innocent": ["0"]}, {"innocent": ["0"]}, {"suspect": ["0"]}, {"ended": ["0"]}]
    assert task.deaths == 2


def test_what_finished_before_others_is_innocent_however_often() -> None:
    first, _second = held = tasks(call(), 2)
    for progress in (Progress(2, 1, 0, 0.0), Progress(2, 2, 0, 0.0)):
        for _ in range(5):
            assert first in judge(dead(held, progress)).innocent


def test_a_worker_that_never_came_up_blames_nobody() -> None:
    assert fates(judge(Worker(1, 0))) == {}


# -- chunks -----------------------------------------------------------------------------------------------------------


def chunk_of(number: int, deaths: int = 3) -> Chunk:
    return segment(call(deaths=deaths), number, chunksize=number).cut(1)


def test_after_a_first_death_a_chunk_runs_again_carefully() -> None:
    chunk = chunk_of(4)
    assert fates(judge(dead([chunk], Progress(1, 0, 0, 0.0)))) == {"suspect": [[0, 1, 2, 3]]}
    assert chunk.careful


@pytest.mark.parametrize(
    ("item", "innocent"),
    [(0, [[1, 2, 3]]), (2, [[0, 1], [3]]), (3, [[0, 1, 2]])],
)
def test_a_careful_chunk_is_split_at_the_mark(item: int, innocent: list[list[int]]) -> None:
    chunk = chunk_of(4)
    chunk.careful, chunk.deaths = True, 1
    judgement = judge(dead([chunk], Progress(1, 0, item, 0.0)))
    assert fates(judgement) == {"innocent": innocent, "suspect": [[item]]}
    assert judgement.suspects[0].deaths == 2
    assert {part.deaths for part in judgement.innocent} == {0}


def test_the_item_that_kills_is_found_and_ends_with_the_third_death() -> None:
    chunk: Task = chunk_of(4)
    for _ in range(2):
        (chunk,) = judge(dead([chunk], Progress(1, 0, 2, 0.0))).suspects
    assert fates(judge(dead([chunk], Progress(1, 0, 0, 0.0)))) == {"ended": [[2]]}
    assert chunk.deaths == 3


def test_an_item_that_kills_when_its_result_is_collected_is_found_by_halving() -> None:
    guilty = 5
    waiting: list[Task] = [chunk_of(8)]
    settled: list[object] = []
    ended: list[object] = []
    deaths = 0
    while waiting:
        chunk = waiting.pop()
        if guilty not in chunk.payload:
            settled += chunk.payload
            continue
        deaths += 1
        judgement = judge(dead([chunk], Progress(1, 1, 7, 0.0)))
        waiting += judgement.innocent + judgement.suspects
        ended += keys(judgement.ended)
    assert ended == [[guilty]]
    assert sorted(settled) == [0, 1, 2, 3, 4, 6, 7]  # type: ignore[type-var]
    assert deaths == 2 + 3 + 2, "two are forgiven, three find the item, two more are its own"


@pytest.mark.parametrize(("deaths", "fate"), [(1, "ended"), (2, "suspect")])
def test_where_a_guess_could_be_final_nothing_is_guessed(deaths: int, fate: str) -> None:
    judgement = judge(dead([chunk_of(3, deaths)], Progress(1, 0, 1, 0.0)))
    assert fates(judgement) == {"innocent": [[0], [2]], fate: [[1]]}
    assert (judgement.suspects + judgement.ended)[0].deaths == 1


def test_a_mark_beyond_the_chunk_is_not_believed() -> None:
    chunk = chunk_of(3, deaths=2)
    assert fates(judge(dead([chunk], Progress(1, 0, 99, 0.0))))["suspect"] == [[2]]


def test_a_chunk_that_may_run_only_once_is_lost_as_a_whole() -> None:
    assert fates(judge(dead([chunk_of(3, deaths=0)], Progress(1, 0, 1, 0.0)))) == {"ended": [[0, 1, 2]]}
