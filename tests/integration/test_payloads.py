"""What travels: everything that pickles, large buffers without copies, and clear words for what cannot travel."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest

from poolkeeper import Keeper, PayloadError, PoolkeeperError, TaskQuarantined
from poolkeeper.arena import KEEP_FILES
from poolkeeper.errors import RemoteError, RemoteTraceback, TaskExited
from tests import payload_cases as cases
from tests import tasks
from tests.helpers import PATIENCE, wait_until
from tests.scripts import run_script


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(1, preload=["tests.tasks", "tests.payload_cases", "pandas", "pyarrow"]) as shared:
        yield shared


@pytest.fixture(autouse=True)
def _usable_after(keeper: Keeper) -> Iterator[None]:
    """Whatever a test sends, the keeper works afterwards, and nothing is left queued."""
    yield
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    status = keeper.status()
    assert (status.queued, status.running) == (0, 0)


# -- arguments and functions that cannot travel ------------------------------------------------------------------------


def test_an_argument_that_cannot_be_pickled(keeper: Keeper) -> None:
    for future in (
        keeper.submit(tasks.echo, cases.Unpicklable()),
        keeper.submit(tasks.echo_all, value=[1, {"deep": cases.Unpicklable()}]),
    ):
        with pytest.raises(PayloadError, match="argument of echo.* cannot be pickled.*I do not want to be pickled"):
            future.result(PATIENCE)
        assert isinstance(future.exception(), pickle.PicklingError)


def test_a_function_that_cannot_be_pickled_names_what_it_holds(keeper: Keeper) -> None:
    lock = threading.Lock()
    with pytest.raises(PayloadError, match=r"the callable .*cannot be pickled.*lock"):
        keeper.submit(lambda: lock).result(PATIENCE)


def test_an_argument_that_exits_when_it_is_pickled(keeper: Keeper) -> None:
    with pytest.raises((PayloadError, SystemExit)):
        keeper.submit(tasks.echo, cases.PickledByExit()).result(PATIENCE)


def test_an_argument_that_cannot_be_unpickled(keeper: Keeper) -> None:
    with pytest.raises(PayloadError, match="an argument of .* cannot be unpickled.*I do not want to be unpickled"):
        keeper.submit(tasks.echo, cases.Unloadable()).result(PATIENCE)
    with pytest.raises(PayloadError, match="an argument of .* cannot be unpickled.*I do not want to be unpickled"):
        list(keeper.map(tasks.echo, [[1], cases.Unloadable()]))


def test_a_module_that_workers_cannot_import(keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "only_here.py"
    path.write_text("def work(n):\n    return n\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    path.unlink()
    with pytest.raises(PayloadError, match=r"the callable work cannot be unpickled.*No module named 'only_here'"):
        keeper.submit(only_here.work, 1).result(PATIENCE)
    with pytest.raises(PayloadError, match="No module named 'only_here'"):
        list(keeper.map(only_here.work, range(10)))


def test_a_module_on_a_path_that_was_added_later(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "added_later.py").write_text("def work(n):\n    return n + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import added_later  # type: ignore[import-not-found]

    assert keeper.submit(added_later.work, 1).result(PATIENCE) == 2


def test_a_module_that_raises_on_import(keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for number, line in enumerate(("raise OSError('at import')", "import sys; sys.exit(4)")):
        name = f"raises_on_import_{number}"
        path = tmp_path / f"{name}.py"
        path.write_text("def work():\n    return 1\n")
        module = __import__(name)
        path.write_text(f"{line}\n")
        os.utime(path, (1, 1))  # not the compiled one
        with pytest.raises(PoolkeeperError, match="work"):
            keeper.submit(module.work).result(PATIENCE)


def test_too_deep_a_structure_is_refused_or_passes(keeper: Keeper) -> None:
    with pytest.raises(PayloadError, match=r"argument of len.*pickled.*RecursionError"):
        keeper.submit(len, cases.nested_list(100_000)).result(PATIENCE)
    with pytest.raises(PayloadError, match=r"result of nested_list.*pickled.*RecursionError"):
        keeper.submit(cases.nested_list, 100_000).result(PATIENCE)


# -- results ----------------------------------------------------------------------------------------------------------


def test_a_result_that_cannot_be_pickled(keeper: Keeper) -> None:
    with pytest.raises(PayloadError, match="the result of make cannot be pickled.*I do not want to be pickled"):
        keeper.submit(cases.make, cases.Unpicklable).result(PATIENCE)
    with pytest.raises(PoolkeeperError):
        keeper.submit(cases.make, cases.PickledByExit).result(PATIENCE)


def test_a_result_that_cannot_be_unpickled(keeper: Keeper) -> None:
    future = keeper.submit(cases.make, cases.UnloadableAtHome, os.getpid())
    with pytest.raises(PayloadError, match="the result of make cannot be unpickled.*not at home"):
        future.result(PATIENCE)
    assert isinstance(future.exception(), PayloadError)
    with pytest.raises(PayloadError, match="make.* cannot be unpickled.*not at home"):
        list(keeper.map(cases.make, [cases.UnloadableAtHome] * 3, [os.getpid()] * 3))


def test_what_kills_the_worker_on_its_way_in_or_out_is_quarantined(keeper: Keeper) -> None:
    for future in (
        keeper.submit(tasks.echo, cases.DiesWhenLoaded()),
        keeper.submit(cases.make, cases.DiesWhenPickled),
    ):
        with pytest.raises(TaskQuarantined, match="exited with status 9"):
            future.result(PATIENCE)


def test_an_item_of_a_map_that_kills_the_worker_on_its_way(keeper: Keeper) -> None:
    items = [[number] for number in range(20)]
    for bad in (0, 11, 19):
        mixed: list[object] = [*items]
        mixed[bad] = cases.DiesWhenLoaded()
        results = keeper.map(tasks.echo, mixed, chunksize=20)
        seen = []
        with pytest.raises(TaskQuarantined):
            for result in results:
                seen.append(result)  # noqa: PERF402
        assert seen == items[:bad]


@pytest.mark.parametrize("bad", [pytest.param(0, marks=pytest.mark.soak), 11, pytest.param(19, marks=pytest.mark.soak)])
def test_an_item_of_a_map_whose_result_kills_the_worker(keeper: Keeper, bad: int) -> None:
    results = keeper.map(cases.make_if, range(20), [bad] * 20, [cases.DiesWhenPickled] * 20, chunksize=20)
    seen = []
    with pytest.raises(TaskQuarantined):
        for result in results:
            seen.append(result)  # noqa: PERF402
    assert seen == list(range(bad))


@pytest.mark.parametrize("how", ["submit", "map"])
def test_a_result_that_kills_the_worker_when_it_is_collected_is_no_endless_loop(keeper: Keeper, how: str) -> None:
    if how == "submit":
        error = keeper.submit(cases.make, cases.DiesWhenCollected).exception(PATIENCE)
        assert error is None or isinstance(error, TaskQuarantined)
    else:
        outcome = []
        try:
            outcome.extend(keeper.map(cases.make, [cases.DiesWhenCollected] * 5, timeout=PATIENCE))
        except TaskQuarantined:
            outcome.append(None)
        assert outcome


def test_garbage_that_kills_the_worker_when_it_is_found(keeper: Keeper) -> None:
    futures = [keeper.submit(cases.make_garbage) for _ in range(3)]
    collector = keeper.submit(cases.collect)
    assert [future.result(PATIENCE) for future in futures] == [1, 1, 1]
    assert collector.exception(PATIENCE) is None or isinstance(collector.exception(), TaskQuarantined)


# -- exceptions -------------------------------------------------------------------------------------------------------


def test_exceptions_of_every_make_arrive(keeper: Keeper) -> None:
    error = keeper.submit(cases.raise_error, cases.TwoArguments, 7, detail="seven").exception(PATIENCE)
    assert isinstance(error, cases.TwoArguments)
    assert (str(error), error.code) == ("7: seven", 7)
    error = keeper.submit(cases.raise_error, OSError, 2, "gone", "file").exception(PATIENCE)
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (2, "file")
    error = keeper.submit(cases.raise_error, UnicodeDecodeError, "utf-8", b"\xff", 0, 1, "bad").exception(PATIENCE)
    assert isinstance(error, UnicodeDecodeError)
    error = keeper.submit(cases.raise_group).exception(PATIENCE)
    assert isinstance(error, ExceptionGroup)
    assert [type(inner) for inner in error.exceptions] == [ValueError, KeyError]
    error = keeper.submit(cases.raise_local).exception(PATIENCE)
    assert type(error).__name__ == "Local"
    for argument in (object(), float("nan"), np.arange(3)):
        error = keeper.submit(cases.raise_error, ValueError, argument).exception(PATIENCE)
        assert type(error) is ValueError
    error = keeper.submit(cases.raise_local).exception(PATIENCE)
    assert str(error) == "of a class that only lives here"


def test_the_cause_of_an_exception_is_in_its_traceback(keeper: Keeper) -> None:
    error = keeper.submit(cases.raise_chained).exception(PATIENCE)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "KeyError: 'the first'" in str(error.__cause__)


def test_an_exception_that_cannot_be_unpickled_is_rebuilt(keeper: Keeper) -> None:
    error = keeper.submit(cases.raise_error, cases.UnloadableError, "the message").exception(PATIENCE)
    assert isinstance(error, cases.UnloadableError)
    assert error.args == ("the message",)


def test_exceptions_of_a_group_that_cannot_be_unpickled_are_rebuilt(keeper: Keeper) -> None:
    error = keeper.submit(cases.raise_group_of_unloadable).exception(PATIENCE)
    assert isinstance(error, ExceptionGroup)
    one, inner = error.exceptions
    assert isinstance(one, ValueError)
    assert isinstance(inner, ExceptionGroup)
    assert isinstance(inner.exceptions[0], cases.UnloadableError)


def test_an_exception_that_cannot_travel_is_told_about(keeper: Keeper) -> None:
    error = keeper.submit(cases.raise_error, cases.HoldsUnpicklable, "the message").exception(PATIENCE)
    assert isinstance(error, RemoteError)
    assert "raise_error raised HoldsUnpicklable, which cannot be pickled" in str(error)
    assert "the message" in str(error)
    assert "in raise_error" in str(error.__cause__)


def test_an_exception_without_words(keeper: Keeper) -> None:
    assert keeper.submit(cases.raise_error, cases.UnprintableError).exception(PATIENCE) is not None
    with pytest.raises(Exception):  # noqa: B017 - whichever: it must come
        list(keeper.map(cases.raise_error, [cases.UnprintableError] * 3))


@pytest.mark.parametrize("code", [0, 1, None, "bye"])
def test_sys_exit_in_a_task_ends_the_task_alone(keeper: Keeper, code: object) -> None:
    pid = keeper.submit(tasks.pid).result()
    with pytest.raises(TaskExited, match=r"leave ended with SystemExit"):
        keeper.submit(tasks.leave, code).result(PATIENCE)
    with pytest.raises(TaskExited):
        list(keeper.map(tasks.leave, [code] * 3))
    assert keeper.submit(tasks.pid).result(PATIENCE) == pid


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, cases.Interrupt])
def test_base_exceptions_do_not_end_the_caller(keeper: Keeper, kind: type[BaseException]) -> None:
    with pytest.raises(TaskExited, match=f"raise_error ended with {kind.__name__}"):
        keeper.submit(cases.raise_error, kind).result(PATIENCE)


def test_endless_recursion_is_an_exception(keeper: Keeper) -> None:
    with pytest.raises(RecursionError):
        keeper.submit(tasks.recurse).result(PATIENCE)


def test_stop_iteration_does_not_end_a_map_silently(keeper: Keeper) -> None:
    with pytest.raises((StopIteration, RuntimeError)):
        keeper.submit(cases.raise_error, StopIteration).result(PATIENCE)
    with pytest.raises((StopIteration, RuntimeError)):
        list(keeper.map(cases.raise_error, [StopIteration] * 5))


# -- large data -------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"number": np.arange(40_000), "share": np.linspace(0, 1, 40_000), "name": ["x"] * 40_000})

LARGE = {
    "bytes": b"\x01" * 300_000,
    "bytearray": bytearray(b"\x02" * 300_000),
    "text": "ä" * 300_000,
    "array": np.arange(100_000, dtype=np.float64),
    "fortran array": np.asfortranarray(np.arange(90_000).reshape(300, 300)),
    "strided array": np.arange(200_000)[::2],
    "objects": np.array(["a", 1, None] * 1000, dtype=object),
    "empty array": np.empty((0, 5)),
    "many arrays": [np.full(3000, number) for number in range(200)],
    "structure": {"a": np.zeros(50_000), "b": [bytearray(100_000), b"x" * 100_000]},
    "list of integers": list(range(200_000)),
    "frame": FRAME,
    "arrow table": pa.Table.from_pandas(FRAME),
    "arrow array": pa.array(range(100_000)),
}


def same(first: object, second: object) -> bool:
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, pd.DataFrame | pa.Table | pa.Array):
        return first.equals(second)  # type: ignore[arg-type]
    if isinstance(first, dict):
        return isinstance(second, dict) and all(same(first[name], second[name]) for name in first | second)
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("name", LARGE)
def test_large_values_travel_both_ways(keeper: Keeper, name: str) -> None:
    value = LARGE[name]
    for _ in range(3):  # arenas are recycled from the second on
        assert same(keeper.submit(tasks.echo, value).result(PATIENCE), value)
    args, kwargs = keeper.submit(tasks.echo_all, value, 1, named=value).result(PATIENCE)
    assert same(list(args), [value, 1])
    assert same(kwargs["named"], value)
    for result in keeper.map(tasks.echo, [value] * 4):
        assert same(result, value)


def test_arguments_and_results_are_writable_and_nobody_elses(keeper: Keeper) -> None:
    array = np.ones(100_000)
    first = keeper.submit(tasks.scale, array, 2.0)
    second = keeper.submit(tasks.scale, array, 3.0)
    assert array[0] == 1.0
    for future, factor in ((first, 2.0), (second, 3.0)):
        result = future.result(PATIENCE)
        assert (result == factor).all()
        result += 1
        assert (result == factor + 1).all()
    buffer = keeper.submit(tasks.echo, bytearray(200_000)).result(PATIENCE)
    buffer[0] = 7
    buffer.extend(b"more")
    frame = keeper.submit(tasks.echo, FRAME).result(PATIENCE)
    frame["share"] *= 2
    assert frame["share"].iloc[-1] == 2.0


def test_a_result_that_is_kept_is_not_overwritten_by_later_ones(keeper: Keeper) -> None:
    kept = [keeper.submit(tasks.filled, 200_000, number).result(PATIENCE) for number in range(50)]
    for number in range(50, 250):
        result = keeper.submit(tasks.filled, 200_000, number % 256).result(PATIENCE)
        assert (result == number % 256).all()
        del result
    assert all((array == number).all() for number, array in enumerate(kept))


def test_a_result_outlives_its_worker_and_its_keeper(keeper: Keeper) -> None:
    with Keeper(1, preload=["tests.tasks"]) as own:
        kept = [own.submit(tasks.filled, 200_000, number).result(PATIENCE) for number in range(5)]
        own.submit(tasks.die).exception(PATIENCE)
    gc.collect()
    assert all((array == number).all() for number, array in enumerate(kept))
    kept[0] += 1
    del kept
    gc.collect()


def test_an_argument_that_a_worker_keeps_is_not_overwritten(keeper: Keeper) -> None:
    keeper.submit(tasks.set_global, np.full(100_000, 7)).result(PATIENCE)
    for number in range(20):
        keeper.submit(tasks.total, np.full(100_000, number)).result(PATIENCE)
    assert (keeper.submit(tasks.get_global).result(PATIENCE) == 7).all()
    keeper.submit(tasks.set_global, None).result(PATIENCE)


def test_thousands_of_kept_arrays_hold_no_descriptors(keeper: Keeper) -> None:
    process = psutil.Process()
    before = process.num_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 150, hard))
    try:
        kept = list(keeper.map(tasks.filled, [66_000] * 3000, [n % 256 for n in range(3000)]))
        futures = [keeper.submit(tasks.filled, 66_000, 1) for _ in range(500)]
        more = [future.result(PATIENCE) for future in futures]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.num_fds() <= before + 50
    assert all((array == number % 256).all() for number, array in enumerate(kept))
    assert all((array == 1).all() for array in more)
    (worker,) = keeper.status().workers
    assert psutil.Process(worker.pid).num_fds() < 150


def test_thousands_of_queued_arrays_hold_few_descriptors(keeper: Keeper, tmp_path: Path) -> None:
    process = psutil.Process()
    before = process.num_fds()
    blocker = keeper.submit(tasks.hold, tmp_path)
    wait_until(blocker.running)
    futures = [keeper.submit(tasks.total, np.full(10_000, number, dtype=np.float64)) for number in range(1500)]
    assert process.num_fds() <= before + 300
    (tmp_path / "go").touch()
    assert [future.result(PATIENCE) for future in futures] == [10_000.0 * number for number in range(1500)]


def arenas_of(keeper: Keeper) -> int:
    """Return how many arenas this process and the only worker see."""
    (worker,) = keeper.status().workers
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (os.getpid(), worker.pid)]
    return sum(text.count("poolkeeper-arena") for text in maps)


def test_arenas_are_given_back(keeper: Keeper) -> None:
    """Shared memory in use comes back to where it was when the arrays are gone, on both sides."""
    kept = [keeper.submit(tasks.echo, np.zeros(50_000)).result(PATIENCE) for _ in range(40)]
    assert arenas_of(keeper) > 2 * KEEP_FILES
    del kept
    gc.collect()
    wait_until(lambda: arenas_of(keeper) <= 2 * KEEP_FILES)  # what follows is written there


def test_what_is_kept_for_gigabytes_is_given_back_when_nothing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody says anything any more, on both sides."""
    monkeypatch.setattr("poolkeeper.arena.KEEP_BYTES", 1 << 16)
    with Keeper(1, initializer=_keep_little) as keeper:
        keeper.submit(tasks.square, 2).result(PATIENCE)
        before = arenas_of(keeper)  # this process may hold some of another keeper's
        for _ in range(3):
            assert keeper.submit(tasks.echo, np.ones(200_000)).result(PATIENCE).sum() == 200_000
        wait_until(lambda: arenas_of(keeper) <= before)
        assert keeper.submit(tasks.echo, np.ones(200_000)).result(PATIENCE).sum() == 200_000


def _keep_little() -> None:
    from poolkeeper import arena

    arena.KEEP_BYTES = 1 << 16


def test_arguments_beyond_the_queue_bound_wait_on_disk(tmp_path: Path) -> None:
    with Keeper(1, queue_memory="1MiB", home=tmp_path, preload=["tests.tasks"]) as keeper:
        blocker = keeper.submit(tasks.hold, tmp_path)
        wait_until(blocker.running)
        resident = psutil.Process().memory_info().rss
        futures = [keeper.submit(tasks.total, np.full(100_000, number, dtype=np.float64)) for number in range(150)]
        small = [keeper.submit(len, "x" * 20_000) for _ in range(200)]
        text = keeper.map(len, ["y" * 100_000] * 50)
        assert psutil.Process().memory_info().rss - resident < 40 * 2**20  # of 140 MB
        (tmp_path / "go").touch()
        assert [future.result(PATIENCE) for future in futures] == [100_000.0 * number for number in range(150)]
        assert [future.result(PATIENCE) for future in small] == [20_000] * 200
        assert list(text) == [100_000] * 50
        stowage = keeper._runtime.stowage  # type: ignore[union-attr]
        assert stowage._ballast.bytes == 0
        assert stowage._spool._live == 0


def test_a_spilled_argument_survives_the_death_of_a_worker(tmp_path: Path) -> None:
    with Keeper(1, queue_memory=1, preload=["tests.tasks"]) as keeper:
        folder = tmp_path / "folder"
        folder.mkdir()
        future = keeper.submit(tasks.die_once, folder, np.arange(100_000))
        assert (future.result(PATIENCE) == np.arange(100_000)).all()
        assert future.deaths == 1


def test_large_arguments_survive_the_death_of_workers(keeper: Keeper, tmp_path: Path) -> None:
    futures = []
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        if number % 5:
            tasks.note(folder, "attempts")  # only some die
        futures.append(keeper.submit(tasks.die_once, folder, np.full(50_000, number)))
    for number, future in enumerate(futures):
        assert (future.result(PATIENCE) == number).all()


def test_without_memfd_everything_still_works(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import os, sys
        sys.modules["os"].__dict__.pop("memfd_create", None)
        import numpy as np
        from poolkeeper import Keeper

        def without():
            return not hasattr(os, "memfd_create")

        def make(n):
            return np.full(50_000, n)

        with Keeper(2, initializer=lambda: os.__dict__.pop("memfd_create", None)) as keeper:
            assert keeper.submit(without).result()
            for number in range(40):
                array = keeper.submit(lambda a: a + 1, make(number)).result()
                assert (array == number + 1).all()
            assert [array[0] for array in keeper.map(make, range(40))] == list(range(40))
        """,
    )


def test_without_eventfd_and_pidfd_everything_still_works(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import os, signal
        for name in ("eventfd", "pidfd_open", "sched_getaffinity"):
            os.__dict__.pop(name, None)
        from poolkeeper import Keeper, TaskQuarantined, TaskTimeout

        with Keeper(2) as keeper:
            assert sum(keeper.map(abs, range(2000))) == 1999000
            error = keeper.submit(os._exit, 3).exception(20)
            assert isinstance(error, TaskQuarantined) and "status 3" in str(error), error
            error = keeper.options(timeout=0.1).submit(signal.pause).exception(20)
            assert isinstance(error, TaskTimeout), error
            assert keeper.submit(pow, 2, 2).result(20) == 4
        """,
    )


def test_a_result_of_more_than_a_frame_may_hold(keeper: Keeper) -> None:
    """1.2 GiB, beyond the limit of a frame and of 32 bits signed; where the machine has the room."""
    size = 1_200_000_000
    if psutil.virtual_memory().available < 5 * size:
        pytest.skip("not enough memory")
    result = keeper.submit(tasks.make_zeros, size).result(PATIENCE)
    assert result.nbytes == size
    assert not result[::1_000_000].any()
