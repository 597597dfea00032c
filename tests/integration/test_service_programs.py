"""Other people's programs as services."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tenacity import wait_none

from poolkeeper import Keeper, RestartPolicy, WorkerPolicy, command
from poolkeeper.program import Program
from poolkeeper.service_model import ExitReason
from poolkeeper.services import ServiceHandle
from tests import tasks
from tests.helpers import PATIENCE, is_running, wait_until

AT_ONCE = RestartPolicy(wait=wait_none())

_NOTIFY = """
import os, signal, socket, sys, time
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(os.environ["NOTIFY_SOCKET"])
        out.send(text.encode())
folder = sys.argv[1]
open(os.path.join(folder, "started"), "a").write(f"{os.getpid()}\\n")
"""


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    with Keeper(1, name="programs", home=tmp_path / "home") as keeper:
        yield keeper


def reach(handle: ServiceHandle, state: str | list[str] = "running") -> ServiceHandle:
    assert handle.wait(state, PATIENCE), (handle, handle.exits, [replica.detail for replica in handle.replicas])
    return handle


def python(source: str, *args: object) -> Program:
    return command(sys.executable, "-c", source, *map(str, args))


def test_pid_signals_and_output_are_its_own(keeper: Keeper) -> None:
    handle = reach(keeper.service(command("sh", "-c", "echo I am $$; exec sleep 600"), name="shell"))
    log = keeper.home / "logs" / "shell.log"
    wait_until(lambda: log.exists() and f"I am {handle.pid}" in log.read_text())
    wait_until(lambda: psutil.Process(handle.pid).name() == "sleep")
    wait_until(
        lambda: psutil.Process(handle.pid).num_fds() == 3
    )  # the loader of a new program opens files for a moment
    handle.stop()
    reach(handle, "stopped")
    (exit,) = handle.exits
    assert exit.exitcode == -signal.SIGTERM
    assert exit.reason is ExitReason.STOPPED


@pytest.mark.parametrize(("words", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_how_it_ends(keeper: Keeper, words: str, code: int) -> None:
    handle = reach(
        keeper.service(command("sh", "-c", words), name="brief", restart="on-failure"), ["completed", "backoff"]
    )
    assert handle.exits[0].exitcode == code
    assert handle.exits[0].failure == (code != 0)


def test_one_that_is_not_there_is_a_failure_that_says_so(keeper: Keeper) -> None:
    handle = reach(keeper.service(command("no-such-program"), name="missing", restart="never"), "failed")
    (exit,) = handle.exits
    assert exit.reason is ExitReason.RAISED
    assert "no-such-program is not in any directory of PATH" in exit.message


def test_surroundings(keeper: Keeper, tmp_path: Path) -> None:
    program = command("sh", "-c", "echo $ONE $TWO $(pwd) > out; exec sleep 600", cwd=tmp_path, env={"ONE": "1"})
    keeper.service(program, name="around", worker=WorkerPolicy(env={"TWO": "2"}))
    out = tmp_path / "out"
    wait_until(lambda: out.exists() and out.read_text().strip())
    assert out.read_text().split() == ["1", "2", os.path.realpath(tmp_path)]


def test_deaf_programs_are_killed_with_all_that_they_have_started(keeper: Keeper, tmp_path: Path) -> None:
    source = "trap '' TERM; setsid sleep 600 & echo $! > child; while :; do sleep 1; done"
    handle = keeper.service(command("sh", "-c", source, cwd=tmp_path), name="deaf", stop_timeout=0.2)
    child = tmp_path / "child"
    wait_until(lambda: child.exists() and child.read_text().strip())
    handle.stop()
    reach(handle, "stopped")
    assert handle.exits[0].exitcode == -signal.SIGKILL
    wait_until(lambda: not is_running(int(child.read_text())))


def test_ready_by_sd_notify(keeper: Keeper, tmp_path: Path) -> None:
    source = _NOTIFY + (
        "while not os.path.exists(os.path.join(folder, 'go')): time.sleep(0.002)\n"
        "say('READY=1\\nSTATUS=serving')\nsignal.pause()"
    )
    handle = keeper.service(python(source, tmp_path), name="notifying", ready="notify")
    wait_until(lambda: tasks.notes(tmp_path, "started"))
    assert handle.state.value == "starting"
    (tmp_path / "go").touch()
    reach(handle)
    assert handle.replicas[0].detail == "serving"
    assert handle.pid == tasks.notes(tmp_path, "started")[0]


def test_ready_by_a_child(keeper: Keeper, tmp_path: Path) -> None:
    source = _NOTIFY + "if os.fork() == 0:\n    say('READY=1')\nsignal.pause()"
    reach(keeper.service(python(source, tmp_path), name="notifying", ready="notify"))


def test_watchdog_by_sd_notify(keeper: Keeper, tmp_path: Path) -> None:
    source = _NOTIFY + (
        "say('READY=1')\n"
        "assert os.environ['WATCHDOG_PID'] == str(os.getpid())\n"
        "assert int(os.environ['WATCHDOG_USEC']) == 1000000\n"
        "for _ in range(5):\n    say('WATCHDOG=1')\n"
        "signal.pause()"
    )
    handle = keeper.service(python(source, tmp_path), name="watched", ready="notify", watchdog=1.0, restart=AT_ONCE)
    wait_until(lambda: handle.exits)
    assert handle.exits[0].reason is ExitReason.WATCHDOG
    wait_until(lambda: len(tasks.notes(tmp_path, "started")) >= 2)


def test_the_socket_of_a_stranger_says_nothing(keeper: Keeper, tmp_path: Path) -> None:
    import socket

    source = _NOTIFY + (
        "open(os.path.join(folder, 'socket'), 'w').write(os.environ['NOTIFY_SOCKET'] + ' ')\nsignal.pause()"
    )
    handle = keeper.service(python(source, tmp_path), name="quiet", ready="notify")
    path = tmp_path / "socket"
    wait_until(lambda: path.exists() and path.read_text().endswith(" "))
    address = path.read_text().strip()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send(b"READY=1")
    assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    assert handle.state.value == "starting"


def test_a_program_in_fork_and_exec(tmp_path: Path) -> None:
    with Keeper(1, start_method="loky") as keeper:
        handle = reach(keeper.service(command("sleep", "600"), name="sleeper"))
        wait_until(lambda: psutil.Process(handle.pid).name() == "sleep")
