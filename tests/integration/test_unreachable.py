"""A worker loses its link, and cannot come back to its living keeper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from poolkeeper import Keeper, RetryPolicy
from tests import tasks
from tests.helpers import PATIENCE


def ran(folder: Path) -> Counter[str]:
    return Counter(word for path in folder.glob("ran-*") for word in path.read_text().split())


def test_a_socket_that_was_removed_is_made_again_and_the_worker_comes_back(tmp_path: Path) -> None:
    with Keeper(1, name="cut", home=tmp_path / "home") as keeper:
        future = keeper.submit(tasks.cut_off, str(tmp_path), "a", for_good=False)
        assert future.result(PATIENCE) == "a"
    assert ran(tmp_path) == Counter({"a": 1})


def test_one_that_does_not_come_back_is_given_up_and_what_it_had_finished_runs_again(tmp_path: Path) -> None:
    with Keeper(1, name="cut", home=tmp_path / "home", reconnect_grace=0.3) as keeper:
        future = keeper.options(retry=RetryPolicy(deaths=1)).submit(tasks.cut_off, str(tmp_path), "a", for_good=True)
        assert future.result(PATIENCE) == "a", "the death of the worker is not the task's"
        (tmp_path / "home" / "cut" / "default" / "keeper.sock").rmdir()
    assert ran(tmp_path) == Counter({"a": 2})


@pytest.mark.soak
def test_an_end_does_not_wait_for_long_for_one_that_does_not_come_back(tmp_path: Path) -> None:
    keeper = Keeper(1, name="cut", home=tmp_path / "home", reconnect_grace=1000.0)
    future = keeper.submit(tasks.cut_off, str(tmp_path), "a", for_good=True)
    keeper.shutdown(wait=True)
    assert future.result(0) == "a"
    assert ran(tmp_path) == Counter({"a": 2})


@pytest.mark.parametrize("given", [-1, float("inf"), True, "60"])
def test_the_grace_is_a_number_of_seconds(tmp_path: Path, given: object) -> None:
    with pytest.raises((TypeError, ValueError), match="reconnect_grace"):
        Keeper(1, home=tmp_path, reconnect_grace=given)  # type: ignore[arg-type]
