"""The keeper's loop fails at a random line of its code: every task has its outcome, once."""

from __future__ import annotations

import linecache
import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import poolkeeper
from poolkeeper import Keeper, RetryPolicy
from tests import tasks
from tests.helpers import PATIENCE

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""A socket that a function holds when it fails is closed with it, and Python says so."""

PACKAGE = str(Path(poolkeeper.__file__).parent)
SPARED = ("loop.py", "driving.py")
"""What decides that the loop goes on at all."""

INFALLIBLE = ("with ", "try:", "self._untold.pop()")
"""The end of a block is reported as its first line: no defect could cut in there, and leave a lock taken."""

SEEDS = [
    *(pytest.param(seed, id=str(seed)) for seed in range(3)),
    *(pytest.param(seed, id=str(seed), marks=pytest.mark.soak) for seed in range(3, 60)),
]


class Injected(Exception):
    """A defect of poolkeeper's."""


def fail_after(keeper: Keeper, lines: int, *, journal: bool = False) -> list[str]:
    """Have the keeper's thread, or the journal's, raise when it has executed so many lines more; return where."""
    left = lines
    place: list[str] = []

    def enter(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        return step if name.startswith(PACKAGE) and not name.endswith(SPARED) else None

    def step(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal left
        if event == "line":
            left -= 1
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if left <= 0 and not line.strip().startswith(INFALLIBLE):
                sys.settrace(None)
                place.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                raise Injected(place[0])
        return step

    runtime: Any = keeper._runtime
    have = runtime.recorder.when_recorded if journal else runtime.call_soon
    have(lambda: sys.settrace(enter))
    return place


def ran(folder: Path) -> Counter[str]:
    return Counter(word for path in folder.glob("ran-*") for word in path.read_text().split())


@pytest.mark.parametrize("name", ["failing", None], ids=["durable", "ephemeral"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_task_has_its_outcome_once(tmp_path: Path, seed: int, name: str | None) -> None:
    """300 tasks: with keys and without, retried ones and pieces of a map."""
    chance = random.Random(seed)
    where = str(tmp_path)
    with Keeper(2, name=name, home=tmp_path / "home", preload=["tests.tasks"]) as keeper:
        runtime: Any = keeper._runtime
        keeper.submit(tasks.square, 1).result(PATIENCE)
        before = runtime.incarnation
        views = [keeper, keeper.options(key=lambda _, item: str(item)), keeper.options(retry=RetryPolicy(attempts=2))]
        futures = [chance.choice(views).submit(tasks.note_and_return, where, item) for item in range(100)]
        place = fail_after(keeper, chance.randrange(1, 4000))
        results = keeper.map(tasks.note_and_return, [where] * 100, range(100, 200), buffersize=30)
        futures += [chance.choice(views).submit(tasks.note_and_return, where, item) for item in range(200, 300)]
        pending = wait(futures, PATIENCE).not_done  # the keeper's own thread does all of it
        assert not pending, place
        assert [future.result() for future in futures] == [*range(100), *range(200, 300)], place
        assert list(results) == list(range(100, 200)), place
        assert runtime.incarnation is not before, place
    assert set(ran(tmp_path)) == set(map(str, range(300))), place
    if name is not None:
        assert [item for item, times in ran(tmp_path).items() if times > 1] == [], place


@pytest.mark.parametrize("seed", SEEDS)
def test_every_task_has_its_outcome_though_the_journal_fails(tmp_path: Path, seed: int) -> None:
    """What it cannot record would run again in another run; in this one it has its outcome."""
    chance = random.Random(seed)
    where = str(tmp_path)
    with Keeper(2, name="failing", home=tmp_path / "home", preload=["tests.tasks"]) as keeper:
        keyed = keeper.options(key=lambda _, item: str(item))
        keyed.submit(tasks.note_and_return, where, 1000).result(PATIENCE)
        place = fail_after(keeper, chance.randrange(1, 2000), journal=True)
        futures = [keyed.submit(tasks.note_and_return, where, item) for item in range(300)]
        pending = wait(futures, PATIENCE).not_done
        assert not pending, place
        assert [future.result() for future in futures] == list(range(300)), place
    assert set(ran(tmp_path)) == set(map(str, (*range(300), 1000))), place
    with Keeper(2, name="failing", home=tmp_path / "home") as keeper:
        keyed = keeper.options(key=lambda _, item: str(item))
        assert keyed.submit(tasks.note_and_return, where, 300).result(PATIENCE) == 300, place
