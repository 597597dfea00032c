"""``Future.cancel``: what is queued, fed ahead, or running."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Container, Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil
import pytest

import poolkeeper
from poolkeeper import Keeper
from poolkeeper.view import KeeperView
from tests import tasks
from tests.helpers import PATIENCE, is_running, standing_still, wait_until
from tests.interruption import interrupted


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(1) as shared:
        yield shared


def started(folder: Path) -> list[int]:
    return wait_until(lambda: tasks.notes(folder, "started"), "a task to start")


def test_a_queued_task_is_cancelled_and_never_runs(keeper: Keeper, tmp_path: Path) -> None:
    running = keeper.submit(tasks.hold, tmp_path)
    started(tmp_path)
    queued = [keeper.submit(tasks.note, tmp_path, "ran") for _ in range(10)]
    assert all(future.cancel() for future in queued)
    assert all(future.cancel() for future in queued)
    assert all(future.cancelled() and future.done() and not future.running() for future in queued)
    with pytest.raises(CancelledError):
        queued[0].result()
    with pytest.raises(CancelledError):
        queued[0].exception()
    (tmp_path / "go").touch()
    running.result(PATIENCE)
    assert keeper.submit(tasks.square, 2).result() == 4
    assert tasks.notes(tmp_path, "ran") == []


def test_tasks_fed_ahead_to_a_worker_stay_cancellable(keeper: Keeper, tmp_path: Path) -> None:
    for _ in range(5):
        wait([keeper.submit(tasks.hold_if, None) for _ in range(200)], PATIENCE)  # so short that they are fed ahead
    blocker = keeper.submit(tasks.hold_if, tmp_path)
    behind = [keeper.submit(tasks.hold_if, None) for _ in range(50)]
    started(tmp_path)
    assert all(future.cancel() for future in behind[::2])
    (tmp_path / "go").touch()
    blocker.result(PATIENCE)
    assert [future.result(PATIENCE) for future in behind[1::2]] == ["ran"] * 25
    assert all(future.cancelled() for future in behind[::2])


def test_a_running_task_is_not_cancelled_by_default(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.submit(tasks.hold, tmp_path, "done")
    started(tmp_path)
    assert not future.cancel()
    assert not future.cancelled()
    (tmp_path / "go").touch()
    assert future.result(PATIENCE) == "done"
    assert not future.cancel()


@pytest.mark.parametrize("function", [tasks.hold_until_cancelled, tasks.poll_until_cancelled])
def test_a_running_task_sees_that_it_is_asked_to_stop(
    keeper: Keeper, tmp_path: Path, function: Callable[[Path], str]
) -> None:
    future = keeper.submit(function, tmp_path)
    started(tmp_path)
    assert not future.cancel()
    assert future.result(PATIENCE) == "cancelled"
    assert keeper.submit(tasks.describe_context).result()[4] is False  # the next task is not asked


def feed_more_than_there_is_room_for(
    keeper: Keeper, view: KeeperView, folder: Path
) -> tuple[Future[str], list[Future[str]]]:
    """Return a task that runs, and many behind it with which the link is blocked.

    On a slow machine the keeper may see that the first one takes long before it has fed so many: then once more.
    """
    runtime: Any = keeper._runtime
    payload = os.urandom(60_000)
    for attempt in range(100):
        for _ in range(5):
            wait([view.submit(tasks.hold_until_cancelled_if, None, b"") for _ in range(200)], PATIENCE)
        (folder / str(attempt)).mkdir()
        future = view.submit(tasks.hold_until_cancelled_if, folder / str(attempt), b"")
        behind = [view.submit(tasks.hold_until_cancelled_if, None, payload) for _ in range(300)]
        started(folder / str(attempt))
        (peer,) = runtime.incarnation.workforce._peers.values()
        (worker,) = runtime.incarnation.core.workers.values()
        wait_until(lambda peer=peer, worker=worker: peer.link.blocked or worker.stuck)  # type: ignore[misc]
        if peer.link.blocked:
            return future, behind
        future.cancel()
        wait([future, *behind], PATIENCE)
    raise AssertionError("the keeper never feeds enough")


@pytest.mark.parametrize("how", ["queued", "kill"])
def test_a_cancellation_overtakes_what_the_link_has_no_room_for(tmp_path: Path, how: Literal["queued", "kill"]) -> None:
    with Keeper(1) as keeper:
        view = keeper.options(cancel=how)
        future, behind = feed_more_than_there_is_room_for(keeper, view, tmp_path)
        if how == "kill":
            assert future.cancel()
            with pytest.raises(CancelledError):
                future.result()
        else:
            assert not future.cancel()
            assert future.result(PATIENCE) == "cancelled"
        assert {each.result(PATIENCE) for each in behind} == {"ran"}


def test_a_running_task_can_be_killed(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.options(cancel="kill").submit(tasks.sleep_forever, tmp_path)
    (pid,) = started(tmp_path)
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    wait_until(lambda: not is_running(pid))
    assert keeper.submit(tasks.pid).result(PATIENCE) != pid


def test_killing_a_task_takes_its_children_along(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.options(cancel="kill").submit(tasks.start_child, tmp_path)
    wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 1)
    (child,) = tasks.notes(tmp_path, "child")
    assert psutil.pid_exists(child)
    assert future.cancel()
    wait_until(lambda: not is_running(child), "the child of the killed task to end")


def test_killing_one_task_costs_its_neighbours_nothing(keeper: Keeper, tmp_path: Path) -> None:
    killable = keeper.options(cancel="kill")
    for _ in range(5):
        wait([killable.submit(tasks.hold_if, None) for _ in range(200)], PATIENCE)
    before = [killable.submit(tasks.hold_if, None) for _ in range(20)]
    victim = killable.submit(tasks.hold_if, tmp_path)
    behind = [killable.submit(tasks.hold_if, None) for _ in range(20)]
    started(tmp_path)
    assert victim.cancel()
    futures = before + behind
    assert [future.result(PATIENCE) for future in futures] == ["ran"] * 40
    assert all(future.deaths == 0 for future in futures)


def test_cancelling_at_every_moment_never_loses_or_doubles_a_task(tmp_path: Path) -> None:
    with Keeper(2) as keeper:
        killable = keeper.options(cancel="kill")
        for view, number in ((keeper, 2000), (killable, 300)):
            futures = [view.submit(tasks.square, n) for n in range(number)]
            withdrawn = [future.cancel() for future in futures[::3]]
            assert wait(futures, PATIENCE).not_done == set()
            for position, future in enumerate(futures):
                if position % 3 == 0 and withdrawn[position // 3]:
                    assert future.cancelled()
                else:
                    assert future.result() == position**2


SPARED = ("with ", "try:", "except ", "self._untold.pop()", "callback(self)")
"""Where no handler runs; and what is left of a callback that has been cut short is not made up for."""


def cut_in() -> None:
    """What a signal handler of the application's may do."""
    raise KeyboardInterrupt


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def of(modules: Container[str]) -> Callable[[FrameType], bool]:
    """Return whether a frame is one of these modules of the package."""

    def counts(frame: FrameType) -> bool:
        file = Path(frame.f_code.co_filename)
        return file.parent.name == "poolkeeper" and file.stem in modules

    return counts


def fed_ahead(keeper: Keeper, folder: Path, number: int) -> tuple[Future[str], list[Future[str]]]:
    """Return a task that runs until there is ``go`` in ``folder``, and so many that its worker holds already."""
    wait([keeper.submit(tasks.hold_if, None) for _ in range(1000)], PATIENCE)  # short: they will be fed ahead
    with standing_still(keeper):
        running = keeper.submit(tasks.hold_if, folder)
        futures = [keeper.submit(tasks.hold_if, None) for _ in range(number)]
    started(folder)
    return running, futures


def test_what_ctrl_c_cuts_short_is_cancelled_or_runs(keeper: Keeper, tmp_path: Path) -> None:
    running = keeper.submit(tasks.hold, tmp_path)
    started(tmp_path)
    futures, called = [], []
    line, cut = 0, True
    while cut:
        line += 1
        future = keeper.submit(tasks.square, 3)
        future.add_done_callback(called.append)
        cut = interrupted(future.cancel, line, of({"keeper", "futures", "settlement"}), cut_in, spared=SPARED)
        futures.append(future)
    (tmp_path / "go").touch()
    running.result(PATIENCE)
    assert not wait(futures, PATIENCE).not_done
    assert all(future.cancelled() or future.result() == 9 for future in futures)
    wait_until(lambda: len(called) >= len(futures), "the callbacks")
    assert set(called) == set(futures)
    assert len(called) == len(futures)


def test_what_was_fed_ahead_and_is_cancelled_waits_no_more(tmp_path: Path) -> None:
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        running, futures = fed_ahead(keeper, tmp_path, 20)
        before = keeper.status()
        cancelled = [future.cancel() for future in futures]
        after = keeper.status()
        (tmp_path / "go").touch()
        assert running.result(PATIENCE) == "ran"
    assert (before.running, before.queued) == (1, 20)
    assert all(cancelled)
    assert (after.running, after.queued) == (1, 0)


def test_ctrl_c_at_any_line_of_a_cancellation_loses_no_task(tmp_path: Path) -> None:
    """Python's own handler waits until the keeper's tables agree with each other again."""
    modules = {file.stem for file in Path(poolkeeper.__file__).parent.glob("*.py")} - {"driving", "loop"}
    with Keeper(1, preload=["tests.tasks"]) as keeper:
        running, futures = fed_ahead(keeper, tmp_path, 300)
        lines = 0
        while interrupted(futures[lines].cancel, lines + 1, of(modules), press_ctrl_c, spared=SPARED):
            lines += 1
        assert lines > 20
        (tmp_path / "go").touch()
        assert running.result(PATIENCE) == "ran"
        assert not wait(futures, PATIENCE).not_done
        assert all(future.cancelled() or future.result() == "ran" for future in futures)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_many_threads_cancel_the_same_future(keeper: Keeper, tmp_path: Path) -> None:
    running = keeper.submit(tasks.hold, tmp_path)
    started(tmp_path)
    calls: list[object] = []
    future = keeper.submit(tasks.square, 2)
    future.add_done_callback(calls.append)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(future.cancel())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    (tmp_path / "go").touch()
    running.result(PATIENCE)
    assert answers == [True] * 8
    assert calls == [future]


def test_a_waiting_thread_learns_of_a_cancellation(keeper: Keeper, tmp_path: Path) -> None:
    running = keeper.submit(tasks.hold, tmp_path)
    started(tmp_path)
    future = keeper.submit(tasks.square, 2)
    outcome: list[BaseException] = []

    def await_it() -> None:
        try:
            future.result(PATIENCE)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=await_it)
    thread.start()
    future.cancel()
    thread.join(PATIENCE)
    (tmp_path / "go").touch()
    running.result(PATIENCE)
    assert [type(error) for error in outcome] == [CancelledError]


def test_cancelled_tasks_give_their_large_arguments_back() -> None:
    import numpy as np

    process = psutil.Process()
    with Keeper(1) as keeper:
        keeper.submit(tasks.total, np.zeros(100_000)).result()
        gate = keeper.options(cancel="kill")
        for _ in range(4):
            blocker = gate.submit(tasks.sleep_forever)
            wait_until(blocker.running)
            before = process.num_fds()
            futures = [keeper.submit(tasks.total, np.zeros(100_000)) for _ in range(100)]
            assert all(future.cancel() for future in futures)
            del futures
            assert blocker.cancel()
            assert keeper.submit(tasks.square, 2).result(PATIENCE) == 4
            assert process.num_fds() <= before + 40  # a few arenas are kept for recycling
        # Nothing of it counts as queued any more: the next arguments wait in memory, not on disk.
        blocker = gate.submit(tasks.sleep_forever)
        wait_until(blocker.running)
        assert keeper._runtime.stowage._ballast.bytes == 0  # type: ignore[union-attr]
        blocker.cancel()
