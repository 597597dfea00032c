"""A keeper that is stopped reads nothing: what it has made goes on, and tells it everything when it reads again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poolkeeper.control_client import ControlClient, KeeperUnreachable
from tests.helpers import wait_until
from tests.keeper_program import KeeperProgram, keepers


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., KeeperProgram]]:
    with keepers(tmp_path / "home") as start:
        yield start


@contextmanager
def stopped(keeper: KeeperProgram) -> Iterator[None]:
    """Have it stand still for a while."""
    keeper.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{keeper.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    try:
        yield
    finally:
        keeper.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", ["'etl'", "None"], ids=["durable", "ephemeral"])
def test_a_worker_goes_on_with_what_it_has_and_keeps_what_is_not_read(
    start: Callable[..., KeeperProgram], tmp_path: Path, name: str
) -> None:
    """The results fill the socket several times over; the last task is long, and holds up none of those before it."""
    number, size = 12, 60_000
    home = "" if name != "None" else ", home=None"
    keeper = start(options=f"max_workers=1, name={name}{home}")
    make = f"keeper.submit(tasks.make_bytes_behind, PosixPath({str(tmp_path)!r})"
    warm = f"[{make}, 'warm', 1) for _ in range(20)]"
    window = f"min(future.result() and future.call.window() for future in {warm})"
    wait_until(lambda: keeper(window) >= number, "they are found to be short")
    gate = f"{{0: 'gate', {number - 1}: 'end'}}.get(number)"
    keeper(f"at_once(lambda: futures.extend({make}, number, {size}, {gate}) for number in range({number})))")
    wait_until((tmp_path / "begun-0").exists, "the first task runs")
    wait_until(lambda: keeper("len(keeper._runtime.incarnation.core.queue)") == 0, "all are fed")
    with stopped(keeper):
        (tmp_path / "gate").touch()
        wait_until((tmp_path / f"begun-{number - 1}").exists, "the last task is reached while nobody reads")
    assert keeper("[len(future.result(20)) for future in futures[:-1]]") == [size] * (number - 1)
    (tmp_path / "end").touch()
    assert keeper("len(futures[-1].result(20))") == size
    assert all(len((tmp_path / f"begun-{task}").read_text().split()) == 1 for task in range(number)), "each ran once"
    keeper.end()


def test_who_asks_it_is_told_that_it_is_stopped(start: Callable[..., KeeperProgram], tmp_path: Path) -> None:
    keeper = start(options="max_workers=1, name='etl'")
    (home,) = (tmp_path / "home").glob("etl/*")
    with ControlClient(home) as client, stopped(keeper):
        told = rf"process {keeper.pid}, is stopped; kill -CONT {keeper.pid} wakes it"
        with pytest.raises(KeeperUnreachable, match=told):
            ControlClient(home, timeout=0.1)
        client._link.socket.settimeout(0.1)
        with pytest.raises(KeeperUnreachable, match=told):
            client.ask("status")
    keeper.end()


def test_one_that_is_gone_is_said_to_be_gone(start: Callable[..., KeeperProgram], tmp_path: Path) -> None:
    keeper = start(options="max_workers=1, name='etl'")
    (home,) = (tmp_path / "home").glob("etl/*")
    keeper.end()
    with pytest.raises(KeeperUnreachable, match=r"^no keeper runs at .*default$"):
        ControlClient(home)
