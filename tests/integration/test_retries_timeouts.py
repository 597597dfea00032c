"""Retries, timeouts and deaths of single tasks, as the user of a keeper sees them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from tenacity import retry_if_exception_type, stop_after_attempt, wait_fixed, wait_none

from poolkeeper import Keeper, RetryPolicy, TaskQuarantined, TaskTimeout, WorkerLost
from tests import tasks
from tests.helpers import PATIENCE, wait_until


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(2, preload=["tests.tasks"]) as shared:
        yield shared


# -- retries ----------------------------------------------------------------------------------------------------------


def test_an_exception_is_final_without_a_policy(keeper: Keeper) -> None:
    future = keeper.submit(tasks.fail_before, 2)
    with pytest.raises(ConnectionError, match="attempt 1"):
        future.result()
    assert future.attempts == 1


def test_attempts_include_the_first(keeper: Keeper) -> None:
    patient = keeper.options(retry=RetryPolicy(attempts=3, wait=wait_none()))
    future = patient.submit(tasks.fail_before, 3)
    assert future.result() == 3
    assert future.attempts == 3
    future = patient.submit(tasks.fail_before, 4)
    with pytest.raises(ConnectionError, match="attempt 3"):
        future.result()
    assert (future.attempts, future.deaths) == (3, 0)


def test_a_tenacity_stop_governs_in_place_of_attempts(keeper: Keeper) -> None:
    policy = RetryPolicy(stop=stop_after_attempt(2), wait=wait_none())
    with pytest.raises(ConnectionError, match="attempt 2"):
        keeper.options(retry=policy).submit(tasks.fail_before, 3).result()


def test_only_what_the_retry_strategy_names_is_retried(keeper: Keeper) -> None:
    policy = RetryPolicy(attempts=5, wait=wait_none(), retry=retry_if_exception_type(ConnectionError))
    view = keeper.options(retry=policy)
    assert view.submit(tasks.fail_before, 3).result() == 3
    future = view.submit(tasks.fail, "another")
    with pytest.raises(ValueError, match="another"):
        future.result()
    assert future.attempts == 1


def test_backoff_holds_no_worker(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        waiting = keeper.options(retry=RetryPolicy(attempts=2, wait=wait_fixed(0.3))).submit(tasks.fail_before, 2)
        assert [keeper.submit(tasks.square, number).result() for number in range(10)] == [n * n for n in range(10)]
        assert not waiting.done()
        assert waiting.result(PATIENCE) == 2


def test_a_task_in_backoff_can_be_cancelled(keeper: Keeper, tmp_path: Path) -> None:
    view = keeper.options(retry=RetryPolicy(attempts=2, wait=wait_fixed(3600)))
    future = view.submit(tasks.note_and_fail, tmp_path)
    wait_until(lambda: tasks.notes(tmp_path, "attempts"))
    wait_until(lambda: not future.running())
    wait_until(future.cancel)
    assert future.cancelled()


def test_shutdown_waits_for_a_retry() -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        future = keeper.options(retry=RetryPolicy(attempts=2, wait=wait_fixed(0.1))).submit(tasks.fail_before, 2)
    assert future.result(0) == 2


def test_a_strategy_that_raises_makes_the_failure_final_and_breaks_nothing(keeper: Keeper) -> None:
    def broken(_: object) -> float:
        raise ZeroDivisionError

    view = keeper.options(retry=RetryPolicy(attempts=3, wait=broken))
    with pytest.raises(ConnectionError):
        view.submit(tasks.fail_before, 3).result(PATIENCE)
    assert keeper.submit(tasks.square, 3).result() == 9


def test_a_strategy_may_use_the_keeper(keeper: Keeper) -> None:
    def ask(_: object) -> float:
        return float(keeper.submit(tasks.square, 0).result(PATIENCE))

    assert keeper.options(retry=RetryPolicy(attempts=2, wait=ask)).submit(tasks.fail_before, 2).result(PATIENCE) == 2


def test_a_thousand_retries(keeper: Keeper) -> None:
    view = keeper.options(retry=RetryPolicy(attempts=3, wait=wait_none()))
    futures = [view.submit(tasks.fail_before, 1 + number % 3) for number in range(600)]
    assert [future.result(PATIENCE) for future in futures] == [1 + number % 3 for number in range(600)]


# -- timeouts ---------------------------------------------------------------------------------------------------------


def test_a_timeout_kills_the_attempt_and_the_keeper_goes_on(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.options(timeout=0.05).submit(tasks.sleep_forever, tmp_path)
    with pytest.raises(TaskTimeout, match=r"sleep_forever ran longer than its timeout of 0\.05 s and was killed"):
        future.result(PATIENCE)
    assert isinstance(future.exception(), TimeoutError)
    assert future.deaths == 0
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9


def test_a_timeout_kills_what_ignores_all_signals(keeper: Keeper) -> None:
    with pytest.raises(TaskTimeout):
        keeper.options(timeout=0.1).submit(tasks.deaf).result(PATIENCE)


def test_a_timeout_counts_from_the_start_of_the_attempt(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        view = keeper.options(timeout=0.5)
        futures = [view.submit(tasks.nap, 0.1, number) for number in range(12)]
        assert [future.result(PATIENCE) for future in futures] == list(range(12))


def test_a_timeout_is_an_attempt_and_may_be_retried(keeper: Keeper, tmp_path: Path) -> None:
    view = keeper.options(timeout=0.2, retry=RetryPolicy(attempts=3, wait=wait_none()))
    future = view.submit(tasks.slow_at_first, tmp_path)
    assert future.result(PATIENCE) == 2
    assert (future.attempts, future.deaths) == (2, 0)
    future = view.submit(tasks.sleep_forever)
    with pytest.raises(TaskTimeout):
        future.result(PATIENCE)
    assert (future.attempts, future.deaths) == (3, 0)


def test_tasks_behind_one_that_times_out_are_not_lost(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        assert sum(keeper.map(tasks.square, range(1000))) > 0  # now short tasks are fed ahead
        view = keeper.options(timeout=0.15)
        futures = []
        for number in range(60):
            futures.append(view.submit(tasks.square, number))
            if number % 20 == 10:
                futures.append(view.submit(tasks.sleep_forever))
        wait(futures, PATIENCE)
        assert [type(future.exception()) for future in futures].count(TaskTimeout) == 3
        assert [future.result() for future in futures if not future.exception()] == [n * n for n in range(60)]


def test_short_tasks_of_one_function_of_which_some_hang(keeper: Keeper) -> None:
    view = keeper.options(timeout=0.15)
    futures = [view.submit(tasks.hang_if, number, number % 100 == 99) for number in range(400)]
    wait(futures, PATIENCE)
    late = [number for number, future in enumerate(futures) if isinstance(future.exception(), TaskTimeout)]
    assert late == [99, 199, 299, 399]
    assert [future.result() for number, future in enumerate(futures) if number not in late] == [
        number for number in range(400) if number not in late
    ]


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kill", "how"),
    [
        (tasks.die, "killed by signal 9"),
        (tasks.segfault, "killed by signal 11"),
        (tasks.abort, "killed by signal 6"),
        (lambda: tasks.exit_hard(0), "exited with status 0"),
        (lambda: tasks.exit_hard(7), "exited with status 7"),
        (lambda: tasks.die(signal.SIGTERM), "killed by signal 15"),
    ],
)
def test_a_task_that_kills_its_worker_is_quarantined(keeper: Keeper, kill: Callable[[], None], how: str) -> None:
    future = keeper.submit(kill)
    with pytest.raises(TaskQuarantined, match=f"has ended 3 workers and is not run again.*{how}") as caught:
        future.result(PATIENCE)
    assert isinstance(caught.value, WorkerLost)
    assert isinstance(caught.value, BrokenProcessPool)
    assert caught.value.deaths == future.deaths == 3
    assert caught.value.report is not None
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9


def test_the_report_of_a_segfault_shows_where_it_happened(keeper: Keeper) -> None:
    error = keeper.submit(tasks.segfault).exception(PATIENCE)
    assert isinstance(error, TaskQuarantined)
    assert error.report is not None
    assert error.report.exitcode == -signal.SIGSEGV
    assert "in segfault" in str(error)


@pytest.mark.parametrize("deaths", [1, 2, 5])
def test_deaths_bounds_the_workers_that_a_task_may_kill(keeper: Keeper, tmp_path: Path, deaths: int) -> None:
    future = keeper.options(retry=RetryPolicy(deaths=deaths)).submit(tasks.note_and_die, tmp_path)
    with pytest.raises(TaskQuarantined):
        future.result(PATIENCE)
    assert len(tasks.notes(tmp_path, "attempts")) == deaths
    assert future.deaths == deaths


def test_deaths_zero_means_at_most_once(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.options(retry=RetryPolicy(deaths=0)).submit(tasks.note_and_die, tmp_path)
    with pytest.raises(WorkerLost, match="deaths=0 forbids to run it again") as caught:
        future.result(PATIENCE)
    assert not isinstance(caught.value, TaskQuarantined)
    assert len(tasks.notes(tmp_path, "attempts")) == 1


def test_a_task_whose_worker_dies_once_succeeds(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.submit(tasks.die_once, tmp_path, "well")
    assert future.result(PATIENCE) == "well"
    assert future.deaths == 1
    first, second = tasks.notes(tmp_path, "attempts")
    assert first != second


def test_what_was_fed_ahead_runs_once_and_without_blame(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        list(keeper.map(tasks.square, range(1000)))
        futures = [keeper.submit(tasks.note_number, tmp_path, number) for number in range(50)]
        killer = keeper.submit(tasks.die)
        futures += [keeper.submit(tasks.note_number, tmp_path, number) for number in range(50, 100)]
        assert [future.result(PATIENCE) for future in futures] == list(range(100))
        assert isinstance(killer.exception(PATIENCE), TaskQuarantined)
        assert all(future.deaths == 0 for future in futures)
    assert all(len(tasks.notes(tmp_path, str(number))) >= 1 for number in range(100))
    # Those after the killer had not started when it died; they must have run exactly once.
    assert all(len(tasks.notes(tmp_path, str(number))) == 1 for number in range(50, 100))


def test_deaths_and_attempts_are_counted_apart(keeper: Keeper, tmp_path: Path) -> None:
    view = keeper.options(retry=RetryPolicy(attempts=2, deaths=3, wait=wait_none()))
    future = view.submit(tasks.die_die_fail_succeed, tmp_path)
    assert future.result(PATIENCE) == 4
    assert (future.attempts, future.deaths) == (2, 2)


def test_innocent_tasks_pass_while_many_kill(keeper: Keeper) -> None:
    killers = [keeper.submit(tasks.die) for _ in range(6)]
    innocent = [keeper.submit(tasks.square, number) for number in range(300)]
    assert [future.result(PATIENCE) for future in innocent] == [number * number for number in range(300)]
    assert all(isinstance(killer.exception(PATIENCE), TaskQuarantined) for killer in killers)
    assert all(future.deaths == 0 for future in innocent)


def test_a_death_reports_what_the_worker_wrote_last(tmp_path: Path) -> None:
    with Keeper(1, name="report", home=tmp_path) as keeper:

        def error_with_last_words() -> TaskQuarantined | None:
            error = keeper.submit(tasks.last_words).exception(PATIENCE)
            assert isinstance(error, TaskQuarantined)
            assert error.report is not None
            return error if error.report.log_tail else None  # on a busy machine they may come too late

        error = wait_until(error_with_last_words)
    assert error is not None
    assert error.report is not None
    assert "these are my last words" in error.report.log_tail
    assert "these are my last words" in str(error)


def test_waiting_threads_all_learn_of_a_death(keeper: Keeper) -> None:
    future = keeper.submit(tasks.die)
    seen: list[BaseException | None] = []
    threads = [threading.Thread(target=lambda: seen.append(future.exception(PATIENCE)), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [type(error) for error in seen] == [TaskQuarantined] * 4
