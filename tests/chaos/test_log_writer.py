"""The log writer is killed or stopped, or outlives its fork server; the disk is full or slow. Workers go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from poolkeeper import Keeper, TaskQuarantined
from poolkeeper.logreader import read_logs
from tests import speakers, tasks
from tests.helpers import PATIENCE, is_running, wait_for_exit, wait_until


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    with Keeper(2, name="logs", home=tmp_path / "homes", preload=["tests.speakers"]) as keeper:
        yield keeper


def fork_server(keeper: Keeper) -> psutil.Process:
    return psutil.Process(keeper.submit(os.getppid).result(PATIENCE))


def log_writer(server: psutil.Process, *, besides: int = 0) -> psutil.Process:
    """The child of the fork server that is no worker, once there is one other than process ``besides``."""

    def find() -> psutil.Process | None:
        for child in server.children():
            try:
                if child.pid != besides and Path(f"/proc/{child.pid}/comm").read_text() == "poolkeeper-logs\n":
                    return child
            except OSError:
                continue
        return None

    found = wait_until(find, "a log writer")
    assert found is not None
    return found


def words(keeper: Keeper) -> list[str]:
    return [line.words for line in read_logs(keeper.home / "logs")]


def test_a_log_writer_that_is_killed_while_workers_print_is_replaced(keeper: Keeper, tmp_path: Path) -> None:
    def highest() -> int:  # the log is rotated, and may have lost any other number by the time it is read
        return max((int(word.split()[1]) for word in words(keeper) if word.startswith("number ")), default=0)

    server = fork_server(keeper)
    future = keeper.submit(speakers.count_aloud, tmp_path)
    try:
        wait_until(lambda: tasks.notes(tmp_path, "started"))
        writer = log_writer(server)
        for _ in range(3):
            writer.kill()
            writer = log_writer(server, besides=writer.pid)
            before = highest()
            wait_until(lambda before=before: highest() >= before + 100)  # type: ignore[misc]
    finally:
        (tmp_path / "go").touch()
    assert future.result(PATIENCE) > 300
    assert wait_until(lambda: "enough" in words(keeper))
    assert len(tasks.notes(tmp_path, "started")) == 1  # its worker has lived on


def test_last_words_are_reported_although_the_log_writer_died_first(keeper: Keeper) -> None:
    server = fork_server(keeper)
    writer = log_writer(server)
    writer.kill()
    log_writer(server, besides=writer.pid)

    def last_words() -> str:
        error = keeper.submit(speakers.say_and_die, "heard by the second").exception(PATIENCE)
        assert isinstance(error, TaskQuarantined)
        assert error.report is not None
        return error.report.log_tail

    assert wait_until(last_words) == "heard by the second"


def test_a_stopped_log_writer_holds_up_neither_reports_nor_what_fits_the_pipe(keeper: Keeper) -> None:
    writer = log_writer(fork_server(keeper))
    writer.suspend()
    try:
        assert keeper.submit(speakers.flood, "a", 4000).result(PATIENCE) == 4000  # 36 KB; more would wait
        error = keeper.submit(speakers.say_and_die, "nobody listens").exception(PATIENCE)
        assert isinstance(error, TaskQuarantined)  # after 50 ms, without the words
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    finally:
        writer.resume()
    wait_until(lambda: {"a 003999", "nobody listens"} <= set(words(keeper)), "what was said meanwhile")


def test_what_workers_say_after_the_death_of_their_fork_server_is_written(keeper: Keeper, tmp_path: Path) -> None:
    server = fork_server(keeper)
    writer = log_writer(server)
    future = keeper.submit(speakers.say_and_hold, tmp_path, "here")
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    server.kill()
    wait_for_exit(server.pid)
    assert is_running(writer.pid)
    (tmp_path / "go").touch()
    future.result(PATIENCE)
    wait_until(lambda: words(keeper)[-2:] == ["here", "then here"], "the last words")
    keeper.shutdown()
    wait_for_exit(writer.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_log_writer_are_for_others(keeper: Keeper, number: signal.Signals) -> None:
    writer = log_writer(fork_server(keeper))
    assert os.getsid(writer.pid) == writer.pid
    writer.send_signal(number)
    keeper.submit(speakers.say, "heard").result(PATIENCE)
    wait_until(lambda: "heard" in words(keeper))
    assert is_running(writer.pid)


def test_the_log_writer_holds_nothing_that_is_not_its_own(keeper: Keeper) -> None:
    keeper.submit(speakers.say, "x").result(PATIENCE)
    wait_until(lambda: "x" in words(keeper))
    pid = log_writer(fork_server(keeper)).pid
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert sum(name.startswith("socket:") for name in held) == 1
    assert all(name.startswith(("socket:", "pipe:", "/dev/null", str(keeper.home / "logs"))) for name in held), held


def test_a_full_disk_costs_lines_and_nothing_else(keeper: Keeper) -> None:
    path = keeper.home / "logs" / "worker-1.log"
    path.symlink_to("/dev/full")
    keeper.submit(speakers.say, "lost").result(PATIENCE)
    assert keeper.submit(speakers.flood, "lost", 100_000).result(PATIENCE) == 100_000
    path.unlink()

    def notices() -> list[str]:
        keeper.submit(speakers.say, "room again").result(PATIENCE)
        return [word for word in words(keeper) if "dropped: No space left on device" in word]

    (notice,) = wait_until(notices)
    assert notice.startswith("... ")
    assert words(keeper).index(notice) == 0


def test_a_disk_that_takes_nothing_stops_no_worker(keeper: Keeper) -> None:
    path = keeper.home / "logs" / "worker-1.log"
    os.mkfifo(path)  # nobody reads it: opening it blocks whoever writes the file
    try:
        assert keeper.submit(speakers.flood, "a", 2_000_000).result(PATIENCE) == 2_000_000  # 18 MB
    finally:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        path.unlink()
        os.close(reader)

    def notices() -> list[str]:
        keeper.submit(speakers.say, "room again").result(PATIENCE)
        return [word for word in words(keeper) if " lines dropped: " in word]

    missing = sum(int(notice.split()[1]) for notice in wait_until(notices))
    assert missing > 500_000  # the buffer takes 8 MiB
    assert wait_until(lambda: "room again" in words(keeper))
