"""The keeper's loop fails in a program that goes on: it is rebuilt in place, and nothing is lost, nor done twice."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from poolkeeper import Keeper, PoolkeeperError, RetryPolicy, WorkerLost
from poolkeeper.errors import FleetStopping, ReexecRefused
from tests import services, tasks
from tests.helpers import PATIENCE, is_running, wait_until

Make = Callable[..., Keeper]


def fail(keeper: Keeper) -> None:
    """Have the loop of ``keeper`` fail."""
    keeper._runtime.call_soon(lambda: 1 / 0)  # type: ignore[union-attr]


def rebuild(keeper: Keeper) -> None:
    """Have the loop of ``keeper`` fail, and wait until another is in its place."""
    runtime: Any = keeper._runtime
    before = runtime.incarnation
    fail(keeper)
    wait_until(lambda: runtime.incarnation is not before, "another incarnation")


def ran(folder: Path) -> Counter[str]:
    """How often each task has been executed."""
    return Counter(word for path in folder.glob("ran-*") for word in path.read_text().split())


def open_gates(folder: Path, *items: object) -> None:
    for item in items:
        (folder / f"gate-{item}").touch()


def workers(keeper: Keeper) -> set[int | None]:
    return {worker.pid for worker in keeper.status().workers}


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Keeper]:
    with Keeper(2, name="rebuilt", home=tmp_path / "home", preload=["tests.tasks"]) as keeper:
        yield keeper


@pytest.fixture
def ephemeral() -> Iterator[Keeper]:
    with Keeper(2, preload=["tests.tasks"]) as keeper:
        yield keeper


@pytest.mark.parametrize("keyed", [True, False], ids=["with keys", "without"])
def test_what_runs_and_what_waits_is_done_once(durable: Keeper, tmp_path: Path, keyed: bool) -> None:
    view = durable.options(key=lambda folder, item: str(item)) if keyed else durable
    items = range(8)
    futures = [view.submit(tasks.note_and_pass_gate, str(tmp_path), item) for item in items]
    wait_until(lambda: len(ran(tmp_path)) == 2, "two of them run")
    before = workers(durable)
    rebuild(durable)
    open_gates(tmp_path, *items)
    assert [future.result(PATIENCE) for future in futures] == list(items)
    assert ran(tmp_path) == Counter(map(str, items))
    assert workers(durable) == before
    assert durable.recovered is None, "there was no earlier keeper"
    assert durable.submit(tasks.square, 3).result(PATIENCE) == 9


def test_a_fork_server_is_kept(durable: Keeper) -> None:
    durable.submit(tasks.pid).result(PATIENCE)
    runtime: Any = durable._runtime
    before = runtime.incarnation.nursery.pid
    rebuild(durable)
    durable.submit(tasks.square, 3).result(PATIENCE)
    wait_until(lambda: runtime.incarnation.nursery.pid == before, "the fork server has called")


def test_the_pieces_of_a_map_are_run_once(durable: Keeper, tmp_path: Path) -> None:
    items = range(30)
    results = durable.map(tasks.note_and_pass_gate, [str(tmp_path)] * 30, items, buffersize=10)
    wait_until(lambda: len(ran(tmp_path)) == 2, "two of them run")
    rebuild(durable)
    open_gates(tmp_path, *items)
    assert list(results) == list(items)
    assert ran(tmp_path) == Counter(map(str, items))


def test_a_batch_goes_on(durable: Keeper, tmp_path: Path) -> None:
    batch = durable.batch(NoteAndPass(tmp_path), range(10), key=str)
    seen = iter(batch)
    open_gates(tmp_path, 0)
    first = next(seen)
    rebuild(durable)
    open_gates(tmp_path, *range(10))
    assert sorted([first.value, *(result.value for result in seen)]) == list(range(10))
    assert ran(tmp_path) == Counter(map(str, range(10)))


class NoteAndPass:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, item: int) -> object:
        return tasks.note_and_pass_gate(self.folder, item)


def test_all_who_wait_go_on(durable: Keeper, tmp_path: Path) -> None:
    """Whoever drives the loop, sleeps until a result is there, has a callback called, or runs asyncio."""
    results: list[object] = []
    futures = [durable.submit(tasks.note_and_pass_gate, str(tmp_path), item) for item in range(4)]
    called = threading.Event()
    futures[0].add_done_callback(lambda _: called.set())

    async def in_a_loop() -> object:
        return await asyncio.wrap_future(futures[3])

    threads = [threading.Thread(target=lambda future=future: results.append(future.result())) for future in futures[:3]]
    threads.append(threading.Thread(target=lambda: results.append(asyncio.run(in_a_loop()))))
    for thread in threads:
        thread.start()
    wait_until(lambda: len(ran(tmp_path)) == 2, "two of them run")
    rebuild(durable)
    open_gates(tmp_path, *range(4))
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results, key=str) == [0, 1, 2, 3]
    assert called.wait(PATIENCE)


def test_a_retry_keeps_its_attempts_and_its_delay(durable: Keeper, tmp_path: Path) -> None:
    from tenacity import wait_fixed

    policy = RetryPolicy(attempts=3, wait=wait_fixed(0.5))
    future = durable.options(retry=policy).submit(tasks.fail_first_times, tmp_path, 2)
    core: Any = durable._runtime.incarnation.core  # type: ignore[union-attr]
    wait_until(lambda: core.queue.delayed, "it is to be tried again")
    rebuild(durable)
    future.result(PATIENCE)
    assert future.attempts == 3


def test_a_worker_that_dies_meanwhile_is_missed(durable: Keeper, tmp_path: Path) -> None:
    future = durable.options(retry=RetryPolicy(deaths=0)).submit(tasks.sleep_forever, tmp_path)
    wait_until(lambda: list(tmp_path.glob("*")) and durable.status().running == 1, "it runs")
    (pid,) = workers(durable)
    runtime: Any = durable._runtime
    with runtime._lock:  # so that the end cannot be seen before
        fail(durable)
        runtime.incarnation.workforce.kill_all()
        wait_until(lambda: not is_running(pid or 0), "the end of the worker")
    with pytest.raises(WorkerLost):
        future.result(PATIENCE)


@pytest.mark.parametrize("size", [1 << 10, 1 << 20], ids=["small", "in an arena"])
def test_arguments_are_there_to_be_sent_again(durable: Keeper, tmp_path: Path, size: int) -> None:
    hold = [durable.submit(tasks.note_and_pass_gate, str(tmp_path), item) for item in range(2)]
    futures = [durable.submit(tasks.echo, bytes([number]) * size) for number in range(6)]
    wait_until(lambda: len(ran(tmp_path)) == 2, "the workers are busy")
    rebuild(durable)
    open_gates(tmp_path, 0, 1)
    assert [future.result(PATIENCE) for future in futures] == [bytes([number]) * size for number in range(6)]
    assert [future.result(PATIENCE) for future in hold] == [0, 1]


def test_results_that_are_held_are_not_written_over(durable: Keeper) -> None:
    import numpy as np

    size = 1 << 20
    held = [durable.submit(tasks.filled, size, number).result(PATIENCE) for number in range(6)]
    rebuild(durable)
    for number in range(100, 120):
        durable.submit(tasks.filled, size, number).result(PATIENCE)
    assert all(np.all(array == number) for number, array in enumerate(held))


def test_services_keep_their_processes_and_their_counts(durable: Keeper, tmp_path: Path) -> None:
    stopped = durable.service(services.serve, (tmp_path, "first"), name="stopped")
    steady = durable.service(services.serve, (tmp_path, "second"), name="steady")
    flaky = durable.service(services.fail_unless, (tmp_path,), name="flaky")
    events: list[str] = []
    durable.on("*", lambda event: events.append(f"{event.kind} {event.name}"))
    assert steady.wait(timeout=PATIENCE)
    stopped.stop()
    assert stopped.wait("stopped", PATIENCE)
    wait_until(lambda: flaky.restarts > 0, "it has failed and been started again")
    pid, restarts = steady.pid, flaky.restarts
    rebuild(durable)
    assert (steady.pid, steady.state.value, stopped.state.value) == (pid, "running", "stopped")
    assert flaky.restarts >= restarts
    (tmp_path / "mended").touch()
    wait_until(lambda: flaky.state.value in ("completed", "running"), "it fails no more")
    wait_until(lambda: "keeper.rebuilt rebuilt" in events, "the event")
    assert "service.starting steady" not in events
    stopped.start()
    assert stopped.wait("running", PATIENCE)
    steady.restart()
    wait_until(lambda: steady.pid not in (None, pid), "another process")


def test_what_ends_with_its_fleet_is_not_started_afterwards_either(durable: Keeper, tmp_path: Path) -> None:
    quick = durable.service(services.serve, (tmp_path, "quick"), name="quick")
    deaf = durable.service(services.ignore_stop, (tmp_path,), name="deaf", stop_timeout=8)
    by_hand = durable.service(services.serve, (tmp_path, "third"), name="by_hand")
    wait_until(lambda: tasks.notes(tmp_path, "started") and tasks.notes(tmp_path, "quick"))
    by_hand.stop()
    assert by_hand.wait("stopped", PATIENCE)
    for handle in (quick, deaf, by_hand):
        handle.end_with_fleet()
    assert quick.wait("stopped", PATIENCE)
    rebuild(durable)
    for handle in (quick, deaf, by_hand):
        with pytest.raises(FleetStopping):
            handle.start()
        with pytest.raises(FleetStopping):
            handle.scale(2)
    assert [handle.state.value for handle in (quick, by_hand)] == ["stopped", "stopped"]
    pid = deaf.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert deaf.wait("stopped", PATIENCE)
    quick.readmit()
    rebuild(durable)
    quick.start()
    assert quick.wait("running", PATIENCE)


def test_services_can_be_declared_afterwards(durable: Keeper, tmp_path: Path) -> None:
    rebuild(durable)
    service = durable.service(services.serve, (tmp_path,))
    assert service.wait(timeout=PATIENCE)


def test_an_ephemeral_keeper_begins_anew(ephemeral: Keeper, tmp_path: Path) -> None:
    items = range(6)
    once = ephemeral.options(retry=RetryPolicy(deaths=0))
    first = once.submit(tasks.note_and_pass_gate, str(tmp_path), "once")
    futures = [ephemeral.submit(tasks.note_and_pass_gate, str(tmp_path), item) for item in items]
    waits = once.submit(tasks.square, 4)
    wait_until(lambda: len(ran(tmp_path)) == 2, "two of them run")
    before = workers(ephemeral)
    rebuild(ephemeral)
    assert not any(is_running(pid or 0) for pid in before)
    open_gates(tmp_path, *items)
    assert [future.result(PATIENCE) for future in futures] == list(items)
    assert waits.result(PATIENCE) == 16
    with pytest.raises(WorkerLost):
        first.result(PATIENCE)
    assert ran(tmp_path)["once"] == 1
    assert futures[0].deaths == 0


def test_services_of_an_ephemeral_keeper_are_started_again(ephemeral: Keeper, tmp_path: Path) -> None:
    service = ephemeral.service(services.serve, (tmp_path,), restart="never")
    assert service.wait(timeout=PATIENCE)
    pid = service.pid
    rebuild(ephemeral)
    assert service.wait("running", PATIENCE)
    assert service.pid != pid
    assert service.restarts == 0


def test_a_keeper_that_keeps_failing_ends(durable: Keeper, tmp_path: Path) -> None:
    future = durable.submit(tasks.note_and_pass_gate, str(tmp_path), 1)
    wait_until(lambda: ran(tmp_path), "it runs")
    runtime: Any = durable._runtime
    seen = set()
    while not runtime.join(0):
        seen.add(id(runtime.incarnation))
        fail(durable)
        wait([future], 0.01)
    with pytest.raises(PoolkeeperError, match="the keeper has failed: ZeroDivisionError"):
        future.result(0)
    with pytest.raises(RuntimeError, match="the keeper has failed"):
        durable.submit(tasks.square, 2)
    assert not (durable.home / "keeper.pid").exists()


@pytest.mark.parametrize("name", ["rebuilt", None], ids=["durable", "ephemeral"])
def test_a_loop_that_fails_while_it_shuts_down(tmp_path: Path, name: str | None) -> None:
    with Keeper(2, name=name, home=tmp_path / "home", preload=["tests.tasks"]) as keeper:
        futures = [keeper.submit(tasks.note_and_pass_gate, str(tmp_path), item) for item in range(4)]
        service = keeper.service(services.serve, (tmp_path,))
        assert service.wait(timeout=PATIENCE)
        wait_until(lambda: len(ran(tmp_path)) == 2, "two of them run")
        keeper.shutdown(wait=False)
        rebuild(keeper)
        open_gates(tmp_path, *range(4))
    assert [future.result(0) for future in futures] == [0, 1, 2, 3]
    if name is not None:
        assert ran(tmp_path) == Counter("0123")


@pytest.mark.parametrize("what", ["poolkeeper.loop.Loop.renew", "poolkeeper.mainloop.Incarnation"])
def test_what_cannot_be_rebuilt_ends(
    durable: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """No descriptor is left, say: all that is pending fails, and a later keeper finds what lives."""
    runtime: Any = durable._runtime
    future = durable.options(key="one").submit(tasks.note_and_pass_gate, str(tmp_path), 1)
    wait_until(lambda: ran(tmp_path), "it runs")

    def refuse(*_: object) -> None:
        raise OSError("no descriptor is left")

    with monkeypatch.context() as patch:
        patch.setattr(what, refuse)
        fail(durable)
        with pytest.raises(PoolkeeperError, match="no descriptor is left"):
            future.result(PATIENCE)
        assert runtime.join(PATIENCE)
    with Keeper(2, name="rebuilt", home=tmp_path / "home") as later:
        again = later.options(key="one").submit(tasks.note_and_pass_gate, str(tmp_path), 1)
        open_gates(tmp_path, 1)
        assert again.result(PATIENCE) == 1
    assert ran(tmp_path) == Counter("1")


@pytest.mark.parametrize(
    "what",
    [
        "incarnation.Switchboard.close", "nursery.Nursery.close", "workforce.Workforce.close", "spool.Stowage.close",
        "register.Register.close", "recording.Recorder.close", "settlement.Settlement.announce", "loop.Loop.close",
    ],
)  # fmt: skip
def test_whatever_fails_at_its_end_nobody_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    module, _, name = what.rpartition(".")[0].rpartition(".")
    method = what.rpartition(".")[2]
    owner = getattr(importlib.import_module(f"poolkeeper.{module}"), name)
    original = getattr(owner, method)

    def fail_afterwards(*args: Any, **options: Any) -> None:
        original(*args, **options)
        if ending:
            raise MemoryError

    ending: list[bool] = []
    with Keeper(1, name="ending", home=tmp_path / "home", preload=["tests.tasks"]) as keeper:
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        monkeypatch.setattr(owner, method, fail_afterwards)
        runtime: Any = keeper._runtime
        ended = threading.Event()
        runtime.when_ended(ended.set)
        ending.append(True)
    assert ended.is_set()
    monkeypatch.undo()
    with Keeper(1, name="ending", home=tmp_path / "home") as later:
        assert later.submit(tasks.square, 4).result(PATIENCE) == 16


def test_an_earlier_keeper_s_work_is_still_known(tmp_path: Path) -> None:
    """What a survivor of an earlier keeper holds can be asked for after the loop of this one has failed."""
    home = tmp_path / "home"
    with Keeper(1, name="rebuilt", home=home, preload=["tests.tasks"]) as first:
        first.options(key="one").submit(tasks.note_and_pass_gate, str(tmp_path), 1)
        wait_until(lambda: ran(tmp_path), "it runs")
        first.detach()
    with Keeper(1, name="rebuilt", home=home, preload=["tests.tasks"]) as second:
        wait_until(lambda: second.recovered and second.recovered.tasks == 1, "the worker has called")
        found = second.recovered
        rebuild(second)
        future = second.options(key="one").submit(tasks.note_and_pass_gate, str(tmp_path), 1)
        open_gates(tmp_path, 1)
        assert future.result(PATIENCE) == 1
        assert second.recovered == found
    assert ran(tmp_path) == Counter("1")


def test_a_cancelled_task_stays_so_and_a_running_one_can_be_killed(durable: Keeper, tmp_path: Path) -> None:
    running = durable.options(cancel="kill").submit(tasks.sleep_forever, tmp_path)
    hold = durable.submit(tasks.note_and_pass_gate, str(tmp_path), 0)
    waiting = durable.submit(tasks.note_and_pass_gate, str(tmp_path), 1)
    wait_until(lambda: durable.status().running == 2, "two of them run")
    assert waiting.cancel()
    rebuild(durable)
    assert running.cancel()
    open_gates(tmp_path, 0, 1)
    assert hold.result(PATIENCE) == 0
    assert durable.submit(tasks.square, 3).result(PATIENCE) == 9
    assert ran(tmp_path) == Counter("0")


def test_a_timeout_still_ends_what_runs(durable: Keeper, tmp_path: Path) -> None:
    future = durable.options(timeout=0.5).submit(tasks.sleep_forever, tmp_path)
    wait_until(lambda: durable.status().running == 1, "it runs")
    rebuild(durable)
    with pytest.raises(TimeoutError):
        future.result(PATIENCE)


def test_other_programs_reach_it_again(durable: Keeper, tmp_path: Path) -> None:
    from poolkeeper.control_client import ControlClient

    durable.service(services.serve, (tmp_path,), name="web").wait(timeout=PATIENCE)
    rebuild(durable)
    with ControlClient(durable.home) as client:
        status = client.ask("status")
    assert [service["state"] for service in status["services"]] == ["running"]


def test_reexec_is_refused_as_ever(durable: Keeper) -> None:
    rebuild(durable)
    with pytest.raises((PoolkeeperError, ReexecRefused)):
        durable.reexec(timeout=0.01)
