"""``context()``: what a task sees of itself, in a worker and elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tenacity import wait_none

from poolkeeper import Context, Keeper, RetryPolicy, context
from tests import tasks
from tests.helpers import PATIENCE, wait_until


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(2, preload=["tests.tasks"]) as shared:
        yield shared


def test_a_task_knows_its_name_attempt_key_and_slot(keeper: Keeper) -> None:
    name, attempt, key, slot, cancelled = keeper.submit(tasks.describe_context).result()
    assert (name, attempt, key, cancelled) == ("describe_context", 1, None, False)
    assert slot in (0, 1)
    assert keeper.options(key="mine").submit(tasks.describe_context).result()[2] == "mine"
    assert keeper.submit(tasks.describe_context).result()[2] is None


def test_keys_belong_to_their_tasks_when_many_travel_together(keeper: Keeper) -> None:
    view = keeper.options(key=lambda number: f"key {number}" if number % 3 else "")
    futures = [view.submit(tasks.key_of, number) for number in range(1000)]
    assert [future.result() for future in futures] == [f"key {n}" if n % 3 else "" for n in range(1000)]


def test_slots_are_small_and_unique(tmp_path: Path) -> None:
    with Keeper(3, preload=["tests.tasks"]) as keeper:
        for _ in range(2):
            folder = Path(tmp_path / str(_))
            folder.mkdir()
            futures = [keeper.submit(tasks.hold_slot, folder) for _ in range(3)]
            wait_until(lambda folder=folder: len(tasks.notes(folder, "started")) == 3)  # type: ignore[misc]
            (folder / "go").touch()
            assert sorted(future.result(PATIENCE) for future in futures) == [0, 1, 2]
            for future in [keeper.submit(tasks.die) for _ in range(2)]:
                future.exception(PATIENCE)


def test_attempts_count_retries_and_deaths(keeper: Keeper, tmp_path: Path) -> None:
    view = keeper.options(retry=RetryPolicy(attempts=3, wait=wait_none()))
    assert view.submit(tasks.fail_before, 3).result() == 3
    assert keeper.submit(tasks.die_once_and_tell_attempt, tmp_path).result(PATIENCE) == 2


def test_a_first_parameter_annotated_context_is_given(keeper: Keeper) -> None:
    assert keeper.submit(tasks.with_context, 5).result() == ("with_context", 5)
    assert list(keeper.map(tasks.with_context, [1, 2])) == [("with_context", 1), ("with_context", 2)]
    assert keeper.submit(lambda: 1).result() == 1

    def local(mine: Context, number: int) -> int:
        return mine.attempt + number

    assert keeper.submit(local, 1).result() == 2


def test_progress_may_be_reported_as_often_as_one_likes(keeper: Keeper) -> None:
    assert keeper.submit(tasks.report_progress, 20_000).result(PATIENCE) == 20_000


def test_a_log_from_a_worker_does_not_hang_or_fail(keeper: Keeper) -> None:
    assert keeper.submit(tasks.log_something).result(PATIENCE) == "logged"


def test_wait_lasts_as_long_as_it_says(keeper: Keeper) -> None:
    answer, seconds = keeper.submit(tasks.wait_in_context, 0.05).result()
    assert answer is False
    assert seconds >= 0.05
    assert keeper.submit(tasks.wait_in_context, 0).result()[0] is False
    assert keeper.submit(tasks.wait_in_context, -1).result()[0] is False


def test_outside_a_worker_the_context_is_harmless() -> None:
    mine = context()
    assert (mine.name, mine.attempt, mine.key, mine.slot, mine.cancelled) == ("", 1, None, 0, False)
    mine.progress(1, 2)
    began = time.monotonic()
    assert mine.wait(0.01) is False
    assert time.monotonic() - began >= 0.01
    assert tasks.with_context(mine, 3) == ("", 3)
    mine.log.debug("harmless")


def test_inline_the_context_speaks_of_the_task() -> None:
    with Keeper(1, start_method="inline") as keeper:
        assert keeper.options(key="k").submit(tasks.describe_context).result()[:3] == ("describe_context", 1, "k")
        assert keeper.submit(tasks.with_context, 5).result() == ("with_context", 5)
    assert context().name == ""


def test_a_nested_inline_task_gives_the_context_back() -> None:
    with Keeper(1, start_method="inline") as keeper:
        assert keeper.submit(tasks.inline_within, keeper.max_workers).result() == ("inline_within", "inline_within")
