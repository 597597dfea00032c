"""The keeper in the place of ``ProcessPoolExecutor``: what the standard library promises, and where it is stretched."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Executor, Future, as_completed, wait
from functools import partial
from pathlib import Path

import psutil
import pytest

from poolkeeper import Keeper, PoolkeeperError
from tests import tasks
from tests.helpers import PATIENCE, is_running, wait_until
from tests.scripts import left_in, run_script


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(2) as shared:
        yield shared


# -- submit -----------------------------------------------------------------------------------------------------------


def test_a_keeper_is_an_executor_and_its_futures_are_futures(keeper: Keeper) -> None:
    future = keeper.submit(pow, 2, 10)
    assert isinstance(keeper, Executor)
    assert isinstance(future, Future)
    assert future.result() == 1024
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.exception() is None


def test_arguments_arrive_by_position_and_by_name(keeper: Keeper) -> None:
    future = keeper.submit(tasks.echo_all, 1, "two", None, three=[3], self="self", fn="fn")
    assert future.result() == ((1, "two", None), {"three": [3], "self": "self", "fn": "fn"})


def test_tasks_run_in_processes_of_their_own(keeper: Keeper) -> None:
    assert keeper.submit(tasks.pid).result() not in (os.getpid(), os.getppid())


def test_results_of_thousands_of_tasks_belong_to_their_futures(keeper: Keeper) -> None:
    futures = [keeper.submit(tasks.square, number) for number in range(5000)]
    assert [future.result() for future in futures] == [number * number for number in range(5000)]


def test_an_exception_keeps_its_type_arguments_and_traceback(keeper: Keeper) -> None:
    future = keeper.submit(tasks.fail, "the reason")
    with pytest.raises(ValueError, match="^the reason$") as caught:
        future.result()
    assert "in fail" in str(caught.value.__cause__)
    assert "raise ValueError(message)" in str(caught.value.__cause__)
    assert future.exception() is caught.value


def test_result_with_a_timeout_gives_up_and_the_task_goes_on(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.submit(tasks.hold, tmp_path, "late")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert not future.done()
    (tmp_path / "go").touch()
    assert future.result(timeout=PATIENCE) == "late"


def test_running_is_true_while_the_task_runs(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.submit(tasks.hold, tmp_path)
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert future.running()
    assert not future.done()
    (tmp_path / "go").touch()
    future.result(timeout=PATIENCE)
    assert not future.running()


def test_what_is_not_callable_fails_clearly(keeper: Keeper) -> None:
    with pytest.raises(TypeError, match="not callable"):
        keeper.submit("no function").result()  # type: ignore[arg-type]


class Adder:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, other: int) -> int:
        return self.number + other

    def add(self, other: int) -> int:
        return self.number + other

    @classmethod
    def named(cls) -> str:
        return cls.__name__


def test_every_kind_of_callable_can_be_submitted(keeper: Keeper) -> None:
    captured = 10

    def closure(number: int) -> int:
        return captured + number

    calls = [
        keeper.submit(lambda number: captured + number, 1),
        keeper.submit(closure, 1),
        keeper.submit(partial(tasks.add, 10), 1),
        keeper.submit(partial(closure), 1),
        keeper.submit(Adder(10), 1),
        keeper.submit(Adder(10).add, 1),
        keeper.submit((10).__add__, 1),
        keeper.submit(sum, [10, 1]),
    ]
    assert [call.result() for call in calls] == [11] * len(calls)
    assert keeper.submit(Adder.named).result() == "Adder"


def test_a_closure_is_sent_as_it_is_at_the_moment_of_submit(keeper: Keeper) -> None:
    count = 0

    def read() -> int:
        return count

    futures = []
    for count in range(20):  # noqa: B007 - read closes over it
        futures.append(keeper.submit(read))
    assert [future.result() for future in futures] == list(range(20))


def test_mutable_arguments_are_sent_as_they_are_at_the_moment_of_submit(keeper: Keeper) -> None:
    values: list[int] = []
    futures = []
    for number in range(20):
        values.append(number)
        futures.append(keeper.submit(len, values))
    assert [future.result() for future in futures] == list(range(1, 21))


def test_a_callable_object_is_sent_as_it_is_at_the_moment_of_submit(keeper: Keeper) -> None:
    adder = Adder(0)
    futures = []
    for number in range(10):
        adder.number = number
        futures.append(keeper.submit(adder, 100))
    assert [future.result() for future in futures] == list(range(100, 110))


def test_finished_work_keeps_neither_arguments_nor_results_alive(keeper: Keeper) -> None:
    argument = Adder(1)
    alive = weakref.ref(argument)
    future = keeper.submit(tasks.echo, argument)
    result = weakref.ref(future.result())
    del argument, future
    wait_until(lambda: gc.collect() or (alive() is None and result() is None))


# -- waiting for many -------------------------------------------------------------------------------------------------


def test_waiting_for_futures_that_end_at_the_same_moment(keeper: Keeper) -> None:
    for _ in range(3):
        futures = [keeper.submit(pow, number, 2) for number in range(4000)]
        assert {future.result() for future in as_completed(futures)} == {number**2 for number in range(4000)}
        futures = [keeper.submit(pow, number, 2) for number in range(4000)]
        assert wait(futures, return_when=ALL_COMPLETED).not_done == set()
        futures = [keeper.submit(pow, number, 2) for number in range(4000)]
        told: list[Future[int]] = []
        for future in futures:
            future.add_done_callback(told.append)
        wait_until(lambda told=told: len(told) == 4000)  # type: ignore[misc]
        assert set(told) == set(futures)


def test_as_completed_yields_in_the_order_of_completion(keeper: Keeper, tmp_path: Path) -> None:
    slow = keeper.submit(tasks.hold, tmp_path)
    fast = keeper.submit(tasks.square, 3)
    finished = as_completed([slow, fast], timeout=PATIENCE)
    assert next(finished) is fast
    (tmp_path / "go").touch()
    assert next(finished) is slow


def test_as_completed_times_out(keeper: Keeper, tmp_path: Path) -> None:
    slow = keeper.submit(tasks.hold, tmp_path)
    with pytest.raises(TimeoutError):
        list(as_completed([slow], timeout=0.01))
    (tmp_path / "go").touch()
    slow.result(timeout=PATIENCE)


def test_wait_knows_its_three_conditions(keeper: Keeper, tmp_path: Path) -> None:
    slow = keeper.submit(tasks.hold, tmp_path)
    good = keeper.submit(tasks.square, 3)
    done, not_done = wait([slow, good], PATIENCE, FIRST_COMPLETED)
    assert (done, not_done) == ({good}, {slow})
    bad = keeper.submit(tasks.fail, "x")
    done, not_done = wait([slow, bad], PATIENCE, FIRST_EXCEPTION)
    assert (done, not_done) == ({bad}, {slow})
    assert wait([slow, good], 0.01, ALL_COMPLETED) == ({good}, {slow})
    (tmp_path / "go").touch()
    assert wait([slow, good, bad], PATIENCE, ALL_COMPLETED) == ({slow, good, bad}, set())


def test_futures_of_several_executors_can_be_awaited_together(keeper: Keeper) -> None:
    with Keeper(1) as other:
        futures = [pool.submit(tasks.square, number) for number in range(50) for pool in (keeper, other)]
        assert len(list(as_completed(futures, timeout=PATIENCE))) == 100


# -- callbacks --------------------------------------------------------------------------------------------------------


def test_a_callback_may_submit_and_wait_for_more(keeper: Keeper) -> None:
    followed: Future[int] = Future()

    def go_on(future: Future[int]) -> None:
        followed.set_result(keeper.submit(tasks.square, future.result()).result(PATIENCE))

    keeper.submit(tasks.square, 3).add_done_callback(go_on)
    assert followed.result(PATIENCE) == 81


def test_callbacks_run_in_order_and_one_that_raises_stops_nobody(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    last = threading.Event()

    def raising(_: Future[int]) -> None:
        calls.append(1)
        raise RuntimeError("a callback's own affair")

    future = keeper.submit(tasks.square, 3)
    future.add_done_callback(lambda _: calls.append(0))
    future.add_done_callback(raising)
    future.add_done_callback(lambda _: calls.append(2))
    future.add_done_callback(lambda _: last.set())
    assert last.wait(PATIENCE)
    assert calls == [0, 1, 2]
    future.add_done_callback(lambda _: calls.append(3))  # of a finished future: at once, in this thread
    assert calls == [0, 1, 2, 3]
    assert keeper.submit(tasks.square, 4).result() == 16


def test_a_slow_callback_delays_no_task(keeper: Keeper, tmp_path: Path) -> None:
    go = threading.Event()
    future = keeper.submit(tasks.hold, tmp_path)  # not done yet: else the callback would run here and now
    future.add_done_callback(lambda _: go.wait(PATIENCE))
    (tmp_path / "go").touch()
    assert keeper.submit(tasks.square, 5).result(PATIENCE) == 25
    assert list(keeper.map(tasks.square, range(100), timeout=PATIENCE)) == [number**2 for number in range(100)]
    go.set()


def test_a_callback_may_shut_the_keeper_down() -> None:
    keeper = Keeper(1)
    ended = threading.Event()

    def close(_: Future[int]) -> None:
        keeper.shutdown(wait=False)
        ended.set()

    keeper.submit(tasks.square, 1).add_done_callback(close)
    assert ended.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="after shutdown"):
        keeper.submit(tasks.square, 1)
    keeper.shutdown()


# -- options ----------------------------------------------------------------------------------------------------------


def test_views_are_executors_and_nest(keeper: Keeper) -> None:
    view = keeper.options(priority=3).options(key=str).options(timeout=PATIENCE)
    assert isinstance(view, Executor)
    future = view.submit(tasks.square, 7)
    assert (future.result(), future.key) == (49, "7")
    assert list(view.map(tasks.square, range(10))) == [number**2 for number in range(10)]


def test_higher_priority_goes_first(tmp_path: Path) -> None:
    with Keeper(1) as keeper:
        order: list[int] = []
        blocker = keeper.submit(tasks.hold, tmp_path)
        wait_until(lambda: tasks.notes(tmp_path, "started"))
        futures = []
        for priority in (0, 5, -5, 10):
            future = keeper.options(priority=priority).submit(tasks.square, priority)
            future.add_done_callback(lambda _, priority=priority: order.append(priority))  # type: ignore[misc]
            futures.append(future)
        (tmp_path / "go").touch()
        wait([blocker, *futures], PATIENCE)
    assert order == [10, 5, 0, -5]


def test_a_key_may_be_a_string_or_computed(keeper: Keeper) -> None:
    assert keeper.options(key="one").submit(tasks.describe_context).result()[2] == "one"
    assert keeper.options(key=lambda number: f"n{number}").submit(tasks.square, 4).key == "n4"
    with pytest.raises(TypeError, match="names one task"):
        keeper.options(key="one").map(tasks.square, [1])
    with pytest.raises(TypeError, match="must be a string"):
        keeper.options(key=lambda number: number).submit(tasks.square, 4).result()
    with pytest.raises(ZeroDivisionError):
        keeper.options(key=lambda _: 1 / 0).submit(tasks.square, 4).result()  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cancel": "now"}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": "1"}, (TypeError, ValueError)),
        ({"priority": "high"}, TypeError),
        ({"key": 5}, TypeError),
        ({"retry": -1}, ValueError),
        ({"retry": 0}, ValueError),
        ({"retry": "3"}, (TypeError, ValueError)),
        ({"resources": {"gpu": 1}}, PoolkeeperError),
    ],
)
def test_options_without_sense_are_refused_and_named(
    keeper: Keeper, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options)) if "retry" not in options else "attempts|retry|RetryPolicy"):
        keeper.options(**options)  # type: ignore[arg-type]


# -- from elsewhere: asyncio, threads, forks --------------------------------------------------------------------------


def test_asyncio_runs_in_a_keeper(keeper: Keeper) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(keeper, tasks.square, number) for number in range(200)))

    assert asyncio.run(main()) == [number**2 for number in range(200)]


def test_asyncio_cancellation_reaches_queued_tasks(keeper: Keeper, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        blockers = [loop.run_in_executor(keeper, tasks.hold, tmp_path) for _ in range(2)]
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        queued = loop.run_in_executor(keeper, tasks.note, tmp_path, "ran")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queued, 0.01)
        (tmp_path / "go").touch()
        await asyncio.gather(*blockers)

    asyncio.run(main())
    keeper.submit(tasks.square, 1).result()
    assert tasks.notes(tmp_path, "ran") == []


def test_many_threads_use_one_keeper(keeper: Keeper) -> None:
    failures: list[object] = []

    def use(seed: int) -> None:
        try:
            futures = [keeper.submit(tasks.add, seed, number) for number in range(100)]
            assert list(keeper.map(tasks.add, [seed] * 50, range(50))) == [seed + number for number in range(50)]
            assert keeper.submit(tasks.add, seed, 1).result() == seed + 1
            assert [future.result() for future in futures] == [seed + number for number in range(100)]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(1000 * seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert failures == []


def test_one_future_may_be_awaited_by_many_threads(keeper: Keeper, tmp_path: Path) -> None:
    future = keeper.submit(tasks.hold, tmp_path, [1, 2, 3])
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(future.result(PATIENCE)), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [[1, 2, 3]] * 8
    assert all(result is results[0] for result in results)


def test_a_keeper_can_be_used_inside_a_worker(keeper: Keeper) -> None:
    assert list(keeper.map(tasks.nested, [[1, 2], [3, 4], [5]])) == [[1, 4], [9, 16], [25]]


def test_a_fork_of_the_application_leaves_the_keeper_alone(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import gc, os, sys
        from poolkeeper import Keeper

        keeper = Keeper(2)
        pending = [keeper.submit(pow, n, 2) for n in range(500)]
        for how in ("hard", "exit", "collect", "use"):
            pid = os.fork()
            if pid == 0:
                if how == "hard":
                    os._exit(0)
                if how == "collect":
                    # Whatever the child opens now must be its own, not closed behind its back.
                    files = [open(os.devnull) for _ in range(64)]
                    del keeper, pending
                    gc.collect()
                    for file in files:
                        os.fstat(file.fileno())
                    os._exit(0)
                if how == "use":
                    try:
                        keeper.submit(pow, 2, 2)
                    except RuntimeError as error:
                        assert "belongs to process" in str(error), error
                    else:
                        os._exit(1)
                    with Keeper(1) as own:
                        assert own.submit(pow, 3, 2).result() == 9
                    keeper.shutdown()
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0, how
            assert keeper.submit(pow, 7, 2).result() == 49
        assert [future.result() for future in pending] == [n ** 2 for n in range(500)]
        keeper.shutdown()
        print("well")
        """,
    )


def test_a_fork_while_a_keeper_is_busy_in_other_threads(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import os, threading
        from poolkeeper import Keeper

        with Keeper(2) as keeper:
            stop = threading.Event()
            def use():
                while not stop.is_set():
                    assert sum(keeper.map(abs, range(200))) == 19900
                    assert keeper.submit(pow, 2, 2).result() == 4
            threads = [threading.Thread(target=use) for _ in range(2)]
            for thread in threads:
                thread.start()
            for _ in range(15):
                pid = os.fork()
                if pid == 0:
                    with Keeper(1) as own:  # a new keeper in the child, whatever locks the parent held
                        assert own.submit(pow, 3, 2).result() == 9
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
            stop.set()
            for thread in threads:
                thread.join()
        """,
    )


def test_a_multiprocessing_child_may_inherit_a_keeper(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import multiprocessing
        from poolkeeper import Keeper

        keeper = Keeper(1)
        assert keeper.submit(pow, 2, 2).result() == 4
        child = multiprocessing.get_context("fork").Process(target=lambda: None)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert keeper.submit(pow, 2, 3).result() == 8
        """,
    )


# -- programs ---------------------------------------------------------------------------------------------------------


def test_a_script_needs_no_main_guard_and_may_use_its_own_functions(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        from dataclasses import dataclass
        from poolkeeper import Keeper

        print("once")

        @dataclass(frozen=True)
        class Point:
            x: int
            y: int = 0

        class Unlucky(Exception):
            def __init__(self, number, *, reason):
                super().__init__(f"{number}: {reason}")
                self.number = number

        OFFSET = 100

        def shift(point):
            if point.x == 13:
                raise Unlucky(point.x, reason="thirteen")
            return Point(point.x + OFFSET, helper(point.x))

        def helper(x):
            return -x

        with Keeper(2) as keeper:
            assert keeper.submit(shift, Point(1)).result() == Point(101, -1)
            assert list(keeper.map(shift, map(Point, range(10)))) == [Point(n + 100, -n) for n in range(10)]
            assert keeper.submit(lambda: [Point(1)]).result() == [Point(1)]
            try:
                keeper.submit(shift, Point(13)).result()
            except Unlucky as error:
                assert error.number == 13 and str(error) == "13: thirteen"
            else:
                raise AssertionError
        """,
    )
    assert output == "once\n"


def test_output_of_workers_is_seen_by_whoever_runs_the_script(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        from poolkeeper import Keeper

        with Keeper(1) as keeper:
            keeper.submit(print, "from a worker").result()
        """,
    )
    assert output == "from a worker\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="there is no /proc")
@pytest.mark.parametrize("closing", ['exec "$@" <&- >&- 2>&-', 'exec "$@" os'])
def test_workers_of_a_program_without_standard_streams_write_into_no_other_file(tmp_path: Path, closing: str) -> None:
    (tmp_path / "program.py").write_text(
        "import os, sys\nfrom poolkeeper import Keeper\n"
        "for number in range(3 if len(sys.argv) > 1 else 0):\n    os.close(number)\n"
        "with Keeper(1) as keeper:\n"
        "    files = [keeper.submit(os.readlink, f'/proc/self/fd/{number}').result() for number in range(3)]\n"
        "open('files', 'w').write(' '.join(files))\n"
    )
    subprocess.run(
        ["sh", "-c", closing, "sh", sys.executable, "program.py"], check=True, cwd=tmp_path, timeout=PATIENCE
    )
    assert (tmp_path / "files").read_text() == "/dev/null /dev/null /dev/null"


def test_interpreter_exit_without_shutdown_finishes_the_work(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        import time
        from poolkeeper import Keeper

        def work(n):
            time.sleep(0.01)
            with open("done", "a") as file:
                file.write(".")

        keeper = Keeper(2)
        futures = [keeper.submit(work, n) for n in range(20)]
        futures[-1].add_done_callback(lambda _: print("callback", flush=True))
        """,
    )
    assert (tmp_path / "done").read_text() == "." * 20
    assert output == "callback\n"


def test_interpreter_exit_by_an_exception_is_no_reason_to_hang(tmp_path: Path) -> None:
    from tests.scripts import start_script

    source = """
        import sys
        from poolkeeper import Keeper

        keeper = Keeper(2)
        futures = [keeper.submit(pow, n, 2) for n in range(20)]
        sys.exit(3)
    """
    with start_script(tmp_path, source) as process:
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (3, "", "")
    assert left_in(tmp_path) == []


def test_submit_during_interpreter_exit_either_runs_or_is_refused(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        import atexit, threading, time
        from poolkeeper import Keeper

        keeper = Keeper(1)

        def late(when):
            try:
                value = keeper.submit(pow, 2, 3).result(10)
            except RuntimeError as error:
                assert "cannot schedule new futures" in str(error), error
                print(f"{when} refused\\n", end="", flush=True)  # at once, for others print meanwhile
            else:
                print(f"{when} {value}\\n", end="", flush=True)

        keeper.submit(time.sleep, 0.05).add_done_callback(lambda _: late("callback"))
        atexit.register(late, "atexit")
        threading._register_atexit(late, "threading")  # runs before the keeper's own
        def thread():
            threading.main_thread().join()
            late("thread")
        threading.Thread(target=thread).start()
        """,
    )
    assert sorted(line.split()[0] for line in output.splitlines()) == ["atexit", "callback", "thread", "threading"]
    assert "atexit refused" in output
    assert "threading 8" in output


def test_a_keeper_that_is_made_during_interpreter_exit_does_not_hang(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        import atexit

        def late():
            from poolkeeper import Keeper
            try:
                with Keeper(1) as keeper:
                    print(keeper.submit(pow, 2, 3).result(10))
            except RuntimeError as error:
                print("refused")

        atexit.register(late)
        """,
    )
    assert output.strip() in ("8", "refused")


def test_a_keeper_that_is_dropped_without_shutdown_finishes_and_goes(tmp_path: Path) -> None:
    keeper = Keeper(2)
    pids = {keeper.submit(tasks.pid).result() for _ in range(4)}
    home = keeper.home
    future = keeper.submit(tasks.hold, tmp_path, "done")
    del keeper
    gc.collect()
    (tmp_path / "go").touch()
    assert future.result(PATIENCE) == "done"
    wait_until(lambda: not home.exists(), "the home to be removed")
    wait_until(lambda: not any(map(is_running, pids)), "the workers to leave")


def test_a_view_keeps_its_keeper_alive() -> None:
    view = Keeper(1).options(priority=1)
    gc.collect()
    assert view.submit(tasks.square, 3).result() == 9
    assert view.submit(tasks.square, 4).result() == 16
    view.shutdown()


def test_a_map_iterator_keeps_its_keeper_alive() -> None:
    keeper = Keeper(1)
    reference = weakref.ref(keeper)
    results = keeper.map(tasks.square, range(50), buffersize=2)
    del keeper
    gc.collect()
    assert reference() is not None
    assert list(results) == [number**2 for number in range(50)]
    del results
    wait_until(lambda: gc.collect() >= 0 and reference() is None, "the keeper to be dropped")


def test_a_program_that_is_killed_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    from tests.scripts import start_script

    source = """
        import os, sys, time
        from poolkeeper import Keeper

        keeper = Keeper(2)
        pids = {keeper.submit(os.getpid).result() for _ in range(10)}
        futures = [keeper.submit(time.sleep, 600) for _ in range(2)]
        print(*pids, flush=True)
        os.kill(os.getpid(), 9)
    """
    with start_script(tmp_path, source) as process:
        output, _ = process.communicate(timeout=30)
    for word in output.split():
        wait_until(lambda word=word: not is_running(int(word)), "a worker to end with its keeper")  # type: ignore[misc]
    wait_until(lambda: left_in(tmp_path) == [], "its temporary files to be removed")


def test_threads_of_the_application_may_submit_until_they_are_told_not_to(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import threading
        from poolkeeper import Keeper

        keeper = Keeper(2)
        outcomes = []
        def use():
            while True:
                try:
                    future = keeper.submit(pow, 2, 2)
                except RuntimeError:
                    return
                try:
                    outcomes.append(future.result(20))
                except RuntimeError as error:
                    assert "after shutdown" in str(error)
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 200:
            pass
        keeper.shutdown()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert set(outcomes) == {4}
        """,
    )


# -- shutdown ---------------------------------------------------------------------------------------------------------


def test_submit_and_map_after_shutdown_are_refused() -> None:
    keeper = Keeper(1)
    view = keeper.options(priority=1)
    keeper.shutdown()
    keeper.shutdown()
    for executor in (keeper, view):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(tasks.square, 1)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.map(tasks.square, [1])


def test_leaving_the_context_waits_for_everything(tmp_path: Path) -> None:
    with Keeper(2) as keeper:
        futures = [keeper.submit(tasks.nap, 0.002, number) for number in range(50)]
        results = keeper.map(tasks.square, range(1000))
    assert [future.result(0) for future in futures] == list(range(50))
    assert list(results) == [number**2 for number in range(1000)]


def test_leaving_the_context_leaves_no_process_thread_descriptor_or_file() -> None:
    threads = set(threading.enumerate())
    descriptors = psutil.Process().num_fds()
    with Keeper(2) as keeper:
        list(keeper.map(tasks.square, range(100)))
        pids = [worker.pid for worker in keeper.status().workers]
        assert keeper.home.exists()
    assert not keeper.home.exists()
    assert not any(pid is not None and is_running(pid) for pid in pids)
    wait_until(lambda: set(threading.enumerate()) <= threads, "the keeper's threads to end")
    assert psutil.Process().num_fds() == descriptors


def test_shutdown_without_wait_finishes_in_the_background(tmp_path: Path) -> None:
    keeper = Keeper(1)
    future = keeper.submit(tasks.hold, tmp_path, "done")
    keeper.shutdown(wait=False)
    assert not future.done()
    (tmp_path / "go").touch()
    assert future.result(PATIENCE) == "done"
    keeper.shutdown()


def test_shutdown_with_cancel_futures_cancels_what_has_not_started(tmp_path: Path) -> None:
    keeper = Keeper(1)
    running = keeper.submit(tasks.hold, tmp_path, "done")
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    queued = [keeper.submit(tasks.note, tmp_path, "ran") for _ in range(100)]
    keeper.shutdown(wait=False, cancel_futures=True)
    assert wait(queued, PATIENCE).not_done == set()
    assert all(future.cancelled() for future in queued)
    (tmp_path / "go").touch()
    assert running.result(PATIENCE) == "done"
    keeper.shutdown()
    assert tasks.notes(tmp_path, "ran") == []


def test_an_exception_in_the_with_block_passes_through() -> None:
    with pytest.raises(KeyError), Keeper(1) as keeper:
        future = keeper.submit(tasks.square, 2)
        raise KeyError
    assert future.result() == 4


# -- what a keeper says of itself -------------------------------------------------------------------------------------


def test_status_counts_what_waits_and_what_runs(tmp_path: Path) -> None:
    with Keeper(2) as keeper:
        assert keeper.status().workers == ()
        futures = [keeper.submit(tasks.hold, tmp_path) for _ in range(5)]
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 2)
        status = keeper.status()
        assert (status.running, status.queued, status.name, status.pid) == (2, 3, None, os.getpid())
        assert {worker.pid for worker in status.workers} == set(tasks.notes(tmp_path, "started"))
        assert {worker.task for worker in status.workers} == {"hold"}
        assert all(worker.rss for worker in status.workers)
        (tmp_path / "go").touch()
        wait(futures, PATIENCE)
        wait_until(lambda: keeper.status().running == 0)
        assert keeper.status().queued == 0
        assert "at most 2 workers, open" in repr(keeper)
    assert "closed" in repr(keeper)


def test_workers_start_on_demand() -> None:
    with Keeper(8) as keeper:
        for number in range(5):
            assert keeper.submit(tasks.square, number).result() == number**2
        assert len(keeper.status().workers) == 1


def test_an_initializer_runs_once_in_each_worker() -> None:
    with Keeper(2, initializer=tasks.set_global, initargs=("ready",)) as keeper:
        assert set(keeper.map(tasks.get_global_of, range(20))) == {"ready"}
