"""Batches over the standard library's thread pool: they need no more than an executor."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import pytest

from poolkeeper.batch import Batch
from poolkeeper.cancellation import CancellationToken
from poolkeeper.model import TaskStatus
from poolkeeper.policy import ExecutionPolicy, RateLimit, RetryPolicy
from poolkeeper.store import Entry, Recalled
from tests.helpers import wait_until

DEADLINE = 30.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def double(number: int) -> int:
    return 2 * number


def reciprocal(number: int) -> float:
    return 1 / number


class Valve:
    """Tasks that run only while it is open, and say how many run."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._gate = threading.Event()
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def __call__(self, item: Any) -> Any:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self.entered.release()
        assert self._gate.wait(DEADLINE)
        with self._lock:
            self._inside -= 1
        return item

    def open(self) -> None:
        self._gate.set()


class TestResults:
    def test_iteration_yields_each_task_once(self, pool: ThreadPoolExecutor) -> None:
        batch = Batch(pool, double, range(100))
        assert sorted(result.value for result in batch) == [2 * number for number in range(100)]
        assert list(batch) == []

    def test_result_is_in_the_order_of_the_items(self, pool: ThreadPoolExecutor) -> None:
        result = Batch(pool, double, range(1000)).result()
        assert result.name == "double"
        assert result.values == [2 * number for number in range(1000)]
        assert result.ok

    def test_result_has_what_iteration_has_handed_out(self, pool: ThreadPoolExecutor) -> None:
        batch = Batch(pool, double, range(10))
        first = next(iter(batch))
        whole = batch.result()
        assert len(whole) == 10
        assert first in whole.results

    def test_exceptions_are_results(self, pool: ThreadPoolExecutor) -> None:
        result = Batch(pool, reciprocal, [1, 0, 2]).result()
        assert result.values == [1.0, 0.5]
        assert isinstance(result[1].error, ZeroDivisionError)
        assert result[1].item == 0
        assert "reciprocal" in result[1].traceback

    def test_a_task_that_raises_cancelled_error_was_not_cancelled(self, pool: ThreadPoolExecutor) -> None:
        def give_up(item: object) -> None:
            raise CancelledError

        assert Batch(pool, give_up, [1]).result()[0].status is TaskStatus.FAILED

    def test_an_empty_batch(self, pool: ThreadPoolExecutor) -> None:
        result = Batch(pool, double, []).result()
        assert len(result) == 0
        assert result.ok

    def test_keys_name_the_results(self, pool: ThreadPoolExecutor) -> None:
        result = Batch(pool, double, [1, 2], key=lambda number: f"n{number}").result()
        assert [each.key for each in result] == ["n1", "n2"]

    def test_a_key_that_cannot_be_had_fails_its_task_alone(self, pool: ThreadPoolExecutor) -> None:
        result = Batch(pool, double, [1, 0, 2], key=lambda number: str(1 // number)).result()
        assert result.values == [2, 4]
        assert isinstance(result[1].error, ZeroDivisionError)
        assert result[1].attempts == 0

    def test_a_key_must_be_a_string(self, pool: ThreadPoolExecutor) -> None:
        result = Batch(pool, double, [1], key=lambda number: number).result()  # type: ignore[arg-type,return-value]
        assert "must be a string" in result[0].message

    def test_facts_are_read_from_the_future(self) -> None:
        class Facts(Future[int]):
            attempts = 3
            deaths = 2
            run_seconds = 0.5
            worker_pid = 42

        class Executor:
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[int]:
                future = Facts()
                future.set_result(fn(*args))
                return future

        result = Batch(Executor(), double, [1]).result()[0]
        assert (result.attempts, result.deaths, result.seconds, result.worker_pid) == (3, 2, 0.5, 42)

    def test_it_knows_how_many_if_the_items_do(self, pool: ThreadPoolExecutor) -> None:
        assert Batch(pool, double, [1, 2]).total == 2
        assert Batch(pool, double, iter([1, 2])).total is None

    def test_it_can_be_awaited(self, pool: ThreadPoolExecutor) -> None:
        async def main() -> list[list[int]]:
            both = await asyncio.gather(Batch(pool, double, range(5)), Batch(pool, double, range(3)))
            return [result.values for result in both]

        assert asyncio.run(main()) == [[0, 2, 4, 6, 8], [0, 2, 4]]

    def test_several_threads_share_it(self, pool: ThreadPoolExecutor) -> None:
        batch = Batch(pool, double, range(200))
        seen: list[list[int]] = [[], [], []]
        readers = [
            threading.Thread(target=lambda mine=mine: mine.extend(result.value for result in batch))  # type: ignore[misc]
            for mine in seen
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(DEADLINE)
        assert sorted(value for mine in seen for value in mine) == [2 * number for number in range(200)]

    def test_it_has_no_thread_of_its_own(self, pool: ThreadPoolExecutor) -> None:
        list(pool.map(double, range(10)))
        before = set(threading.enumerate())
        Batch(pool, double, range(10)).result()
        assert {thread for thread in threading.enumerate() if "ThreadPool" not in thread.name} <= before


class TestPulling:
    def test_items_are_pulled_as_far_as_the_window_and_no_further(self, pool: ThreadPoolExecutor) -> None:
        pulled = 0

        def endless() -> Iterator[int]:
            nonlocal pulled
            while True:
                pulled += 1
                yield pulled

        batch = Batch(pool, double, endless())
        assert pulled == 4  # twice the workers
        next(iter(batch))
        assert pulled < 20
        batch.cancel()

    def test_items_are_pulled_by_the_thread_that_reads(self, pool: ThreadPoolExecutor) -> None:
        pullers = set()

        def items() -> Iterator[int]:
            for number in range(100):
                pullers.add(threading.current_thread())
                yield number

        Batch(pool, double, items()).result()
        assert pullers == {threading.current_thread()}

    def test_concurrency_is_honoured(self) -> None:
        valve = Valve()
        with ThreadPoolExecutor(8) as pool:
            batch = Batch(pool, valve, range(20), policy=ExecutionPolicy(concurrency=3))
            for _ in range(3):
                assert valve.entered.acquire(timeout=DEADLINE)
            valve.open()
            assert len(batch.result()) == 20
        assert valve.most <= 3

    def test_a_rate_limit_delays_and_loses_nothing(self, pool: ThreadPoolExecutor) -> None:
        policy = ExecutionPolicy(rate_limit=RateLimit(1000, burst=1))
        assert Batch(pool, double, range(20), policy=policy).result().values == [2 * number for number in range(20)]

    def test_items_that_raise_end_the_batch_and_keep_what_was_done(self, pool: ThreadPoolExecutor) -> None:
        def items() -> Iterator[int]:
            yield from range(50)
            raise OSError("the disk is gone")

        batch = Batch(pool, double, items(), name="load")
        with pytest.raises(OSError, match="the disk is gone") as raised:
            batch.result()
        assert raised.value.__notes__ == ["raised by the items of batch 'load', after 50 of them"]
        kept = batch.collected
        assert kept.values == [2 * number for number in range(50)]
        assert kept.error is raised.value
        assert not kept.ok

    def test_iteration_reports_all_that_was_submitted_before_it_raises(self, pool: ThreadPoolExecutor) -> None:
        def items() -> Iterator[int]:
            yield from range(3)
            raise OSError("after three")

        seen = []
        stream = (seen.append(result.value) for result in Batch(pool, double, items()))
        with pytest.raises(OSError, match="after three"):
            deque(stream, maxlen=0)
        assert sorted(seen) == [0, 2, 4]

    def test_an_interrupt_in_the_items_is_raised_at_once_and_nothing_is_lost(self, pool: ThreadPoolExecutor) -> None:
        class Items:
            def __init__(self) -> None:
                self.number = 0

            def __iter__(self) -> Items:
                return self

            def __next__(self) -> int:
                self.number += 1
                if self.number == 10:
                    raise KeyboardInterrupt
                if self.number > 20:
                    raise StopIteration
                return self.number

        batch = Batch(pool, double, Items())
        with pytest.raises(KeyboardInterrupt):
            batch.result()
        assert len(batch.result()) == 19

    def test_an_executor_that_takes_no_more_work_ends_the_batch(self) -> None:
        pool = ThreadPoolExecutor(1)

        def items() -> Iterator[int]:
            yield 1
            pool.shutdown()
            yield from range(1_000_000)

        batch = Batch(pool, double, items())
        with pytest.raises(RuntimeError, match="shutdown"):
            batch.result()
        assert batch.collected[0].value == 2
        assert len(batch.collected) == 2


class TestCancel:
    def test_what_runs_is_finished_and_the_rest_is_not_started(self, pool: ThreadPoolExecutor) -> None:
        valve = Valve()
        batch = Batch(pool, valve, range(1000))
        for _ in range(2):
            assert valve.entered.acquire(timeout=DEADLINE)
        batch.cancel("enough")
        valve.open()
        result = batch.result()
        assert len(result.succeeded) == 2
        assert len(result.cancelled) == 2
        assert result.stopped == "enough"
        assert not result.ok

    def test_a_token_cancels_it(self, pool: ThreadPoolExecutor) -> None:
        token = CancellationToken()
        valve = Valve()
        batch = Batch(pool, valve, range(1000), cancel=token)
        assert valve.entered.acquire(timeout=DEADLINE)
        token.cancel("the user left")
        valve.open()
        assert batch.result().stopped == "the user left"

    def test_it_leaves_the_token_to_others(self, pool: ThreadPoolExecutor) -> None:
        token = CancellationToken()
        Batch(pool, double, [1], cancel=token).cancel()
        assert not token.cancelled

    def test_a_token_that_is_cancelled_already_lets_nothing_start(self, pool: ThreadPoolExecutor) -> None:
        token = CancellationToken()
        token.cancel("too late")
        result = Batch(pool, double, range(10), cancel=token).result()
        assert len(result) == 0
        assert result.stopped == "too late"

    def test_it_wakes_a_reader_that_waits_for_the_rate_limit(self, pool: ThreadPoolExecutor) -> None:
        batch = Batch(pool, double, range(10), policy=ExecutionPolicy(rate_limit=RateLimit(1, per=3600)))
        stream = iter(batch)
        assert next(stream).value == 0
        threading.Timer(0.01, batch.cancel).start()
        assert list(stream) == []

    def test_a_finished_batch_was_not_stopped(self, pool: ThreadPoolExecutor) -> None:
        batch = Batch(pool, double, [1])
        batch.result()
        batch.cancel()
        assert batch.result().ok

    def test_cancelling_who_awaits_it_cancels_it(self, pool: ThreadPoolExecutor) -> None:
        valve = Valve()

        async def main() -> None:
            batch = Batch(pool, valve, range(1000))
            waiting = asyncio.ensure_future(batch)
            await asyncio.to_thread(valve.entered.acquire, timeout=DEADLINE)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            valve.open()

        asyncio.run(main())


class TestLifetime:
    def test_nothing_is_kept_for_a_batch_that_nobody_holds(self, pool: ThreadPoolExecutor) -> None:
        class Value:
            pass

        def make(item: object) -> Value:
            return Value()

        seen = []
        for result in Batch(pool, make, range(100)):
            seen.append(weakref.ref(result.value))
        del result
        gc.collect()
        assert [reference for reference in seen if reference() is not None] == []

    def test_leaving_the_loop_takes_back_what_has_not_started(self) -> None:
        valve = Valve()
        closed = threading.Event()
        futures: list[Future[Any]] = []

        def items() -> Iterator[int]:
            try:
                yield from range(1_000_000)
            finally:
                closed.set()

        class Recording(ThreadPoolExecutor):
            def submit(self, *arguments: Any, **keywords: Any) -> Future[Any]:
                futures.append(super().submit(*arguments, **keywords))
                return futures[-1]

        with Recording(1) as pool:
            stream = iter(Batch(pool, valve, items()))
            assert valve.entered.acquire(timeout=DEADLINE)
            del stream
            gc.collect()
            assert closed.wait(DEADLINE)
            wait_until(futures[-1].cancelled)
            valve.open()
        assert [future.cancelled() for future in futures] == [False, True]

    def test_a_batch_that_is_held_goes_on_after_the_loop_was_left(self, pool: ThreadPoolExecutor) -> None:
        batch = Batch(pool, double, range(10))
        for _ in batch:
            break
        gc.collect()
        assert len(list(batch)) == 9


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"fn": 1}, "must be callable"),
            ({"items": 5}, "not iterable"),
            ({"key": "id"}, "callable"),
            ({"policy": 3}, "ExecutionPolicy"),
        ],
    )
    def test_wrong_types_are_refused_at_once(
        self, pool: ThreadPoolExecutor, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(TypeError, match=message):
            Batch(pool, **{"fn": double, "items": [], **arguments})

    @pytest.mark.parametrize(
        ("policy", "named"),
        [
            (ExecutionPolicy(timeout=1), "timeout"),
            (ExecutionPolicy(retry=RetryPolicy(attempts=3)), "retry"),
            (ExecutionPolicy(priority=1, resources={"gpu": 1}), "priority, resources"),
        ],
    )
    def test_what_only_a_keeper_can_do_is_refused_elsewhere(
        self, pool: ThreadPoolExecutor, policy: ExecutionPolicy, named: str
    ) -> None:
        with pytest.raises(TypeError, match=f"cannot carry out {named}"):
            Batch(pool, double, [], policy=policy)

    def test_a_keeper_is_given_what_it_carries_out(self, pool: ThreadPoolExecutor) -> None:
        asked: list[dict[str, Any]] = []

        class View:
            def options(self, **options: Any) -> View:
                asked.append(options)
                return self

            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
                return pool.submit(fn, *args, **kwargs)

        policy = ExecutionPolicy(timeout=5, retry=2, priority=1, concurrency=1, rate_limit=RateLimit(1000))
        Batch(View(), double, [7], key=str, policy=policy).result()
        assert asked == [{"priority": 1, "timeout": 5, "retry": RetryPolicy(attempts=2)}, {"key": "7"}]


class Shelf:
    """A shelf in memory, of outcomes that are recorded already."""

    def __init__(self, recorded: dict[str | int, Recalled]) -> None:
        self.recorded = recorded
        self.asked: list[Entry] = []
        self.is_complete = False

    def entry(self, identity: str | int, args: tuple[Any, ...]) -> Entry:
        return Entry(self, identity, repr(args))

    def recall(self, entry: Entry) -> Recalled | None:
        self.asked.append(entry)
        return self.recorded.get(entry.identity)

    def completed(self) -> None:
        self.is_complete = True


class Library:
    """A store with one shelf."""

    def __init__(self, **recorded: Any) -> None:
        self.the_shelf = Shelf({key: Recalled(value, None, 2, 1, 0.5) for key, value in recorded.items()})
        self.names: list[str] = []

    def shelf(self, name: str, function: Callable[..., Any]) -> Shelf:
        self.names.append(name)
        return self.the_shelf

    def leave(self, reason: str) -> None:
        raise AssertionError(reason)


class RecordingPool(ThreadPoolExecutor):
    """An executor that takes tasks under entries."""

    def __init__(self) -> None:
        super().__init__(2)
        self.entries: list[Entry] = []

    def submit_as(self, entry: Entry, key: str | None, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self.entries.append(entry)
        return self.submit(fn, *args)

    def options(self, **_: Any) -> RecordingPool:
        return self


class TestStores:
    def test_what_is_recorded_is_not_run(self) -> None:
        store = Library(a="from the store", c="likewise")
        with RecordingPool() as pool:
            result = Batch(pool, str.upper, ["a", "b", "c", "d"], key=str, store=store).result()
            assert sorted(str(entry.identity) for entry in pool.entries) == ["b", "d"]
        assert [each.value for each in result] == ["from the store", "B", "likewise", "D"]
        assert [each.reused for each in result] == [True, False, True, False]
        assert (result[0].attempts, result[0].deaths, result[0].seconds) == (2, 1, 0.5)
        assert store.names == ["upper"]
        assert store.the_shelf.is_complete

    def test_positions_take_the_place_of_keys(self) -> None:
        store = Library()
        with RecordingPool() as pool:
            Batch(pool, double, [5, 5], store=store).result()
        assert [(entry.identity, entry.arguments) for entry in store.the_shelf.asked] == [(0, "(5,)"), (1, "(5,)")]

    def test_each_item_is_looked_up_once(self) -> None:
        store = Library()
        policy = ExecutionPolicy(concurrency=1, rate_limit=RateLimit(1000, burst=1))
        with RecordingPool() as pool:
            Batch(pool, double, range(20), key=str, policy=policy, store=store).result()
        assert [entry.identity for entry in store.the_shelf.asked] == [str(number) for number in range(20)]

    def test_a_batch_that_is_cut_short_is_not_complete(self) -> None:
        store = Library()
        with RecordingPool() as pool:
            batch = Batch(pool, double, range(1000), store=store)
            next(iter(batch))
            batch.cancel()
            batch.result()
        assert not store.the_shelf.is_complete

    def test_neither_is_one_whose_items_raise(self) -> None:
        def items() -> Iterator[int]:
            yield 1
            raise ValueError("no more")

        store = Library()
        with RecordingPool() as pool, pytest.raises(ValueError, match="no more"):
            Batch(pool, double, items(), store=store).result()
        assert not store.the_shelf.is_complete

    def test_keys_that_make_no_sense_fail_their_items_alone(self) -> None:
        store = Library()
        with RecordingPool() as pool:
            result = Batch(pool, str, [1, "a"], key=lambda item: item, store=store).result()
        assert [each.ok for each in result] == [False, True]
        assert store.the_shelf.is_complete

    def test_an_executor_that_records_nothing_is_refused(self, pool: ThreadPoolExecutor) -> None:
        with pytest.raises(TypeError, match="does not record outcomes"):
            Batch(pool, double, [1], store=Library())
