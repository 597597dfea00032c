"""``Keeper.map``: order, laziness, chunks, and what happens when input, function or consumer end early."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tenacity import wait_none

from poolkeeper import Keeper, PayloadError, RetryPolicy, TaskQuarantined, TaskTimeout
from tests import tasks
from tests.helpers import PATIENCE, wait_until


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with Keeper(2) as shared:
        yield shared


class Source:
    """Numbers, and how many of them have been read."""

    def __init__(self, number: int | None = None) -> None:
        self.read = 0
        self.number = number

    def __iter__(self) -> Iterator[int]:
        for item in itertools.count() if self.number is None else range(self.number):
            self.read += 1
            yield item


@pytest.mark.parametrize("number", [0, 1, 2, 3, 100, 10_000])
@pytest.mark.parametrize("buffersize", [None, 1, 7, 1000])
def test_results_come_in_the_order_of_the_items(keeper: Keeper, number: int, buffersize: int | None) -> None:
    if number == 10_000 and buffersize == 1:
        number = 500
    results = keeper.map(tasks.square, range(number), buffersize=buffersize)
    assert list(results) == [item * item for item in range(number)]


@pytest.mark.parametrize("items", [range(3000), range(7, -9000, -3), range(2**70, 2**70 + 500), range(5, 5)])
@pytest.mark.parametrize("chunksize", [1, 700])
def test_a_range_and_its_list_are_the_same(keeper: Keeper, items: range, chunksize: int) -> None:
    expected = [item * item for item in items]
    assert list(keeper.map(tasks.square, items, chunksize=chunksize)) == expected
    assert list(keeper.map(tasks.square, list(items), chunksize=chunksize)) == expected
    assert sorted(keeper.map(tasks.square, items, ordered=False)) == sorted(expected)


def test_a_range_is_never_written_out(keeper: Keeper) -> None:
    results = keeper.map(tasks.square, range(10**12))  # 8 TB as a list
    assert list(itertools.islice(results, 5000)) == [item * item for item in range(5000)]
    results.close()  # type: ignore[attr-defined]
    wait_until(lambda: keeper.status().queued == 0)


@pytest.mark.parametrize("chunksize", [1, 3, 64, 100_000])
def test_a_chunksize_changes_nothing_but_the_pace(keeper: Keeper, chunksize: int) -> None:
    assert list(keeper.map(tasks.square, range(3000), chunksize=chunksize)) == [item * item for item in range(3000)]
    lazily = keeper.map(tasks.square, range(3000), chunksize=chunksize, buffersize=10)
    assert list(lazily) == [item * item for item in range(3000)]


@pytest.mark.parametrize("buffersize", [None, 10])
def test_unordered_results_are_complete(keeper: Keeper, buffersize: int | None) -> None:
    results = keeper.map(tasks.square, range(2000), ordered=False, buffersize=buffersize)
    assert sorted(results) == [item * item for item in range(2000)]


def test_unordered_results_come_as_they_end(keeper: Keeper, tmp_path: Path) -> None:
    folders = [tmp_path / "held", tmp_path / "free"]
    for folder in folders:
        folder.mkdir()
    (folders[1] / "go").touch()
    results = keeper.map(tasks.hold, folders, ["held", "free"], ordered=False)
    assert next(results) == "free"
    (folders[0] / "go").touch()
    assert list(results) == ["held"]


def test_several_iterables_end_with_the_shortest(keeper: Keeper) -> None:
    assert list(keeper.map(pow, [2, 3, 4], [5, 2])) == [32, 9]
    assert list(keeper.map(tasks.add, range(1000), itertools.repeat(1))) == list(range(1, 1001))
    assert list(keeper.map(tasks.square)) == []


def test_items_of_every_kind_travel(keeper: Keeper) -> None:
    items = [1, "two", None, [3], {"four": 4}, (5,), b"six", {7}, 8.0, "x" * 10_000, ["y"] * 100_000, (), ((),)]
    assert list(keeper.map(tasks.echo, items)) == items
    assert list(keeper.map(tasks.echo_all, items, items)) == [((item, item), {}) for item in items]


def test_large_items_and_large_results(keeper: Keeper) -> None:
    arrays = [np.full(50_000, number, dtype=np.int32) for number in range(30)]
    assert list(keeper.map(tasks.total, arrays)) == [50_000.0 * number for number in range(30)]
    for number, result in enumerate(keeper.map(tasks.echo, arrays, buffersize=4)):
        assert (result == number).all()
        result += 1  # noqa: PLW2901 - it is writable
    for number, result in enumerate(keeper.map(tasks.filled, itertools.repeat(200_000), range(50), chunksize=10)):
        assert result.shape == (200_000,)
        assert (result == number).all()


# -- laziness ---------------------------------------------------------------------------------------------------------


def test_without_buffersize_the_input_is_read_at_once(keeper: Keeper) -> None:
    source = Source(100)
    results = keeper.map(tasks.square, source)
    assert source.read == 100
    assert len(list(results)) == 100


def test_with_buffersize_at_most_so_many_are_read_and_not_yielded(keeper: Keeper) -> None:
    source = Source()
    results = keeper.map(tasks.square, source, buffersize=5)
    assert source.read == 5
    for yielded in range(1, 300):
        next(results)
        assert source.read - yielded <= 5
    results.close()  # type: ignore[attr-defined]
    assert source.read <= 305


def test_with_buffersize_the_reading_thread_pulls(keeper: Keeper) -> None:
    readers = set()

    def source() -> Iterator[int]:
        for number in range(100):
            readers.add(threading.get_ident())
            yield number

    assert len(list(keeper.map(tasks.square, source(), buffersize=3))) == 100
    assert readers == {threading.get_ident()}


def test_an_endless_map_can_be_closed_and_dropped(keeper: Keeper) -> None:
    for drop in (True, False):
        results = keeper.map(tasks.square, itertools.count(), buffersize=20)
        assert list(itertools.islice(results, 10)) == [item * item for item in range(10)]
        if drop:
            del results
            gc.collect()
        else:
            results.close()  # type: ignore[attr-defined]
            assert list(results) == []
    wait_until(lambda: keeper.status().queued == 0)
    assert keeper.submit(tasks.square, 3).result() == 9


@pytest.mark.parametrize("items", [range(1000), [[item] for item in range(1000)]], ids=["plain", "pickled"])
def test_a_map_closed_in_the_middle_of_a_piece_yields_no_more(keeper: Keeper, items: Sequence[object]) -> None:
    results = keeper.map(tasks.echo, items, chunksize=1000)
    assert list(itertools.islice(results, 10)) == list(items[:10])
    results.close()  # type: ignore[attr-defined]
    assert list(results) == []


def test_a_result_that_was_taken_is_not_kept(keeper: Keeper) -> None:
    results = keeper.map(tasks.filled, [10] * 50, range(50), chunksize=50)
    first = weakref.ref(next(results))
    assert next(results)[0] == 1
    assert first() is None


def test_closing_a_map_early_starts_no_more_of_its_items(tmp_path: Path) -> None:
    with Keeper(1) as keeper:
        (tmp_path / "go").touch()
        results = keeper.map(tasks.hold, [tmp_path] * 2)
        assert list(results) == [None, None]
        (tmp_path / "go").unlink()
        results = keeper.map(tasks.hold, [tmp_path] * 50, timeout=0.05)
        wait_until(lambda: len(tasks.notes(tmp_path, "started")) == 3)
        with pytest.raises(TimeoutError):
            next(results)
        (tmp_path / "go").touch()
    assert len(tasks.notes(tmp_path, "started")) <= 5


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffersize", [None, 2, 1000])
@pytest.mark.parametrize("bad", [0, 7, 99])
def test_an_exception_comes_where_its_item_is(keeper: Keeper, bad: int, buffersize: int | None) -> None:
    results = keeper.map(tasks.fail_at, range(100), [bad] * 100, buffersize=buffersize)
    seen = []
    with pytest.raises(ValueError, match=f"item {bad}"):
        for result in results:
            seen.append(result)  # noqa: PERF402 - what came before the exception counts
    assert seen == list(range(bad))
    assert list(results) == []


def test_an_exception_in_an_unordered_map_comes_too(keeper: Keeper) -> None:
    with pytest.raises(ValueError, match="item 50"):
        list(keeper.map(tasks.fail_at, range(100), [50] * 100, ordered=False))


def test_every_item_may_fail(keeper: Keeper) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="item 1"):
            list(keeper.map(tasks.fail_at, [1] * 5000, [1] * 5000))
    assert keeper.submit(tasks.square, 2).result() == 4


def broken(number: int) -> Iterator[int]:
    yield from range(number)
    raise KeyError("the source is broken")


def test_an_iterator_that_raises_raises_in_map(keeper: Keeper) -> None:
    with pytest.raises(KeyError, match="the source is broken"):
        keeper.map(tasks.square, broken(10))
    with pytest.raises(KeyError, match="the source is broken"):
        keeper.map(tasks.square, broken(2), buffersize=5)


def test_an_iterator_that_raises_later_raises_in_its_reader(keeper: Keeper) -> None:
    results = keeper.map(tasks.square, broken(10), buffersize=3)
    seen = []
    with pytest.raises(KeyError, match="the source is broken"):
        for result in results:
            seen.append(result)  # noqa: PERF402
    assert seen == [item * item for item in range(len(seen))]
    assert len(seen) >= 7
    assert keeper.submit(tasks.square, 3).result() == 9


def test_what_is_not_iterable_raises_in_map(keeper: Keeper) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        keeper.map(tasks.square, 5)  # type: ignore[arg-type]


def test_an_item_that_cannot_be_pickled_is_named(keeper: Keeper) -> None:
    items = [1, 2, threading.Lock(), 4]
    results = keeper.map(tasks.echo, items)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(PayloadError, match=r"argument of echo.*cannot be pickled.*lock"):
        next(results)
    assert keeper.submit(tasks.square, 3).result() == 9


def test_a_function_that_cannot_be_pickled_is_named(keeper: Keeper) -> None:
    lock = threading.Lock()
    with pytest.raises(PayloadError, match=r"the callable .*cannot be pickled.*lock"):
        list(keeper.map(lambda _: lock, [1, 2]))


def test_a_result_that_cannot_be_pickled_is_named(keeper: Keeper) -> None:
    results = keeper.map(lambda item: threading.Lock() if item == 3 else item, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(PayloadError, match=r"the result of .*cannot be pickled.*lock"):
        next(results)


@pytest.mark.parametrize("buffersize", [None, 1])
def test_a_map_times_out_and_the_keeper_goes_on(keeper: Keeper, tmp_path: Path, buffersize: int | None) -> None:
    results = keeper.map(tasks.hold, [tmp_path], timeout=0.02, buffersize=buffersize)
    with pytest.raises(TimeoutError):
        next(results)
    (tmp_path / "go").touch()
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9


@pytest.mark.parametrize("arguments", [{"chunksize": 0}, {"chunksize": -1}, {"buffersize": 0}, {"buffersize": -5}])
def test_counts_below_one_are_refused(keeper: Keeper, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        keeper.map(tasks.square, [1], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"chunksize": 1.5}, {"chunksize": "1"}, {"buffersize": "1"}])
def test_counts_that_are_no_integers_are_refused(keeper: Keeper, arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(arguments))} must be"):
        keeper.map(tasks.square, [1], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, 13, 49])
def test_an_item_that_kills_workers_is_quarantined_and_no_other(keeper: Keeper, bad: int) -> None:
    seen = []
    results = keeper.map(tasks.die_at, range(50), [bad] * 50, chunksize=25)
    with pytest.raises(TaskQuarantined, match="die_at has ended 3 workers.*signal 9"):
        for result in results:
            seen.append(result)  # noqa: PERF402
    assert seen == list(range(bad))
    assert list(keeper.map(tasks.die_at, range(50), [-1] * 50, chunksize=25)) == list(range(50))


@pytest.mark.parametrize("items", [range(300, 400), list(range(300, 400))], ids=["range", "list"])
def test_an_item_of_a_range_that_kills_is_found_as_in_a_list(keeper: Keeper, items: Sequence[int]) -> None:
    def fatal(item: int) -> int:
        if item == 333:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    results = keeper.map(fatal, items, chunksize=50)
    assert list(itertools.islice(results, 33)) == list(range(300, 333))
    with pytest.raises(TaskQuarantined, match="fatal has ended 3 workers"):
        next(results)


def test_a_worker_that_dies_once_in_a_map_costs_nothing(keeper: Keeper, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(40)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        if number not in (5, 6, 30):
            tasks.note(folder, "attempts")
    assert list(keeper.map(tasks.die_once, folders, range(40), chunksize=10)) == list(range(40))


def test_maps_interleave(keeper: Keeper) -> None:
    maps = [keeper.map(tasks.add, range(500), itertools.repeat(number)) for number in range(10)]
    for row, column in enumerate(zip(*maps, strict=True)):
        assert column == tuple(row + number for number in range(10))


def test_a_map_inside_the_consumption_of_a_map(keeper: Keeper) -> None:
    total = 0
    for number in keeper.map(tasks.square, range(20), buffersize=2):
        total += sum(keeper.map(tasks.add, range(20), itertools.repeat(number)))
    assert total == sum(number**2 * 20 + 190 for number in range(20))


def test_a_map_that_is_cancelled_by_shutdown_does_not_hang(tmp_path: Path) -> None:
    from concurrent.futures import CancelledError

    keeper = Keeper(1)
    results = keeper.map(tasks.hold, [tmp_path] * 20)
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    outcome: list[object] = []

    def consume() -> None:
        try:
            outcome.extend(results)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    keeper.shutdown(wait=False, cancel_futures=True)
    (tmp_path / "go").touch()
    thread.join(5)
    keeper.shutdown()
    assert not thread.is_alive(), "the map's reader waits for ever"
    assert isinstance(outcome[-1], CancelledError)


def test_options_apply_to_every_item_of_a_map(keeper: Keeper, tmp_path: Path) -> None:
    patient = keeper.options(retry=RetryPolicy(attempts=3, wait=wait_none()))
    assert list(patient.map(tasks.fail_before, [1, 2, 3, 2, 1])) == [1, 2, 3, 2, 1]
    with pytest.raises(ConnectionError, match="attempt 3"):
        list(patient.map(tasks.fail_before, [1, 4]))
    with pytest.raises(TaskTimeout, match=r"hold ran longer than its timeout of 0\.05 s"):
        list(keeper.options(timeout=0.05).map(tasks.hold, [tmp_path] * 3))
    assert [key for _, _, key, *_ in keeper.options(key=str).map(_describe, "abc")] == ["a", "b", "c"]


def _describe(_: str) -> tuple[str, int, str | None, int, bool]:
    return tasks.describe_context()
