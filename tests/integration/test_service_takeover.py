"""Services survive their keeper: the next one of its name goes on with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolkeeper.pidfile import read_pidfile
from tests.helpers import is_running, remove_in_use, wait_for_exit, wait_until
from tests.keeper_program import KeeperProgram, keepers
from tests.services import LAST_NOTE
from tests.survivors import survivors_in
from tests.tasks import notes

Start = Callable[..., KeeperProgram]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with keepers(tmp_path / "home") as start:
        yield start


def written(keeper: KeeperProgram) -> list[str]:
    """Return the states that the next keeper would find."""
    services = read_pidfile(keeper.folder / "keeper.pid").services.services
    return [replica.state.value for service in services for replica in service.replicas]


def test_a_service_goes_on_under_the_next_keeper(start: Start, tmp_path: Path) -> None:
    one = start()
    one.service("serve", tmp_path)
    before = one.reach("running")
    one.kill()
    assert is_running(before["pid"])
    other = start()
    other.service("serve", tmp_path)
    after = other.reach("running")
    assert after["pid"] == before["pid"]
    assert (after["attempt"], after["restarts"], after["wanted"]) == (1, 0, True)
    os.kill(after["pid"], signal.SIGKILL)
    again = other.reach("running", but=after["pid"])
    assert (again["attempt"], again["restarts"]) == (2, 1)
    assert again["exits"][-1][:2] == ["signal", -9]
    wait_until(lambda: len(notes(tmp_path, "started")) == 2)
    other.end()
    assert not is_running(again["pid"])


def test_what_it_says_is_heard_by_the_next_keeper(start: Start, tmp_path: Path) -> None:
    one = start()
    one.service("serve_when_ready", tmp_path, ready='"notify"')
    wait_until(lambda: notes(tmp_path, "started"))
    before = one.reach("starting", but=None)
    one.kill()
    (tmp_path / "ready").touch()
    other = start()
    other.service("serve_when_ready", tmp_path, ready='"notify"')
    after = other.reach("running")
    assert after["pid"] == before["pid"]
    assert after["detail"] == "all systems go"
    other("keeper.services['web'].stop()")
    other.reach("stopped")
    wait_for_exit(before["pid"])


def test_who_has_died_meanwhile_goes_to_its_policy(start: Start, tmp_path: Path) -> None:
    one = start()
    one.service("serve", tmp_path)
    before = one.reach("running")
    wait_until(lambda: written(one) == ["running"])
    one.kill()
    os.kill(before["pid"], signal.SIGTERM)
    wait_for_exit(before["pid"])
    other = start()
    other.service("serve", tmp_path)
    after = other.reach("running", but=before["pid"])
    assert (after["attempt"], after["restarts"]) == (2, 1)
    assert len(after["exits"]) == 1


def test_states_and_counts_are_kept(start: Start, tmp_path: Path) -> None:
    policy = "RestartPolicy.on_failure(max_retries=1, delay=0.0)"
    one = start()
    one.service("serve", tmp_path, name="stopped")
    one.service("fail", name="failed", restart=policy)
    one.service("exit_with", 0, name="completed", restart='"on-failure"')
    one.service("fail", name="backoff", restart="RestartPolicy.on_failure(max_retries=9, delay=600.0)")
    one.reach("running", "stopped")
    one("keeper.services['stopped'].stop()")
    before = [one.reach(name, name) for name in ("stopped", "failed", "completed", "backoff")]
    wait_until(lambda: written(one) == ["stopped", "failed", "completed", "backoff"])
    one.kill()
    other = start()
    other.service("serve", tmp_path, name="stopped")
    other.service("fail", name="failed", restart=policy)
    other.service("exit_with", 0, name="completed", restart='"on-failure"')
    other.service("fail", name="backoff", restart="RestartPolicy.on_failure(max_retries=9, delay=600.0)")
    after = [other.row(name) for name in ("stopped", "failed", "completed", "backoff")]
    assert after == before
    other("keeper.services['failed'].start()")
    wait_until(lambda: other.row("failed")["attempt"] == before[1]["attempt"] + 2)


def test_a_program_goes_on(start: Start, tmp_path: Path) -> None:
    one = start()
    one("(keeper.service(command('sleep', '600'), name='web'), None)[1]")
    before = one.reach("running")
    one.kill()
    other = start()
    other("(keeper.service(command('sleep', '600'), name='web'), None)[1]")
    assert other.reach("running")["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGKILL)
    after = other.reach("running", but=before["pid"])
    assert after["exits"][-1][:2] == ["signal", -9]


SAY = """
import os, socket, subprocess, sys, time
folder = sys.argv[1]
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.settimeout(5)
        out.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
if sys.argv[2:] == ["child"]:
    say("READY=1")
    until_closed, barrier = os.pipe()  # as systemd-notify does, for nobody could tell whose child it was
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(out, [b"BARRIER=1"], [barrier])
    os.close(barrier)
    os.read(until_closed, 1)
    sys.exit()
open(os.path.join(folder, "runs"), "w").close()
while not os.path.exists(os.path.join(folder, "speak")):
    time.sleep(0.01)
for _ in range(2000):
    say("WATCHDOG=1")
say("STATUS=warming up")
say("STATUS=all is well")
if sys.argv[2:] == ["by a child"]:
    subprocess.run([sys.executable, "-S", "-c", SAY, folder, "child"], check=True)
else:
    say("READY=1")
open(os.path.join(folder, "spoken"), "w").close()
time.sleep(600)
"""
SAY = SAY.replace("SAY", repr(SAY))


@pytest.mark.parametrize("who", ["itself", "by a child"])
def test_a_program_that_gets_ready_between_two_keepers(start: Start, tmp_path: Path, who: str) -> None:
    declare = f"(keeper.service(command({sys.executable!r}, '-S', '-c', {SAY!r}, {str(tmp_path)!r}, {who!r}),"
    declare += " name='web', ready='notify', start_timeout=20), None)[1]"
    one = start()
    one(declare)
    before = one.reach("starting")
    wait_until((tmp_path / "runs").exists)
    one.kill()
    (tmp_path / "speak").touch()
    wait_until((tmp_path / "spoken").exists)
    other = start()
    other(declare)
    after = other.reach("running")
    assert (after["pid"], after["exits"]) == (before["pid"], [])
    assert after["detail"] == "all is well"


SAY_IN_VAIN = """
import contextlib, os, socket, sys, time
open(os.path.join(sys.argv[1], "runs"), "w").close()
while not os.path.exists(os.path.join(sys.argv[1], "speak")):
    time.sleep(0.01)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, contextlib.suppress(OSError):
    out.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
open(os.path.join(sys.argv[1], "spoken"), "w").close()
time.sleep(600)
"""


def test_a_program_that_nobody_heard_getting_ready_is_not_ended_for_that(start: Start, tmp_path: Path) -> None:
    """It says so once, and neither a keeper nor its fork server is there."""
    declare = f"(keeper.service(command({sys.executable!r}, '-S', '-c', {SAY_IN_VAIN!r}, {str(tmp_path)!r}),"
    declare += " name='web', ready='notify', start_timeout=1), None)[1]"
    one = start()
    one(declare.replace("start_timeout=1", "start_timeout=60"))
    before = one.reach("starting")
    wait_until((tmp_path / "runs").exists)
    wait_until(lambda: "program" in {child.role for child in survivors_in(one.folder)}, "the pidfile says so")
    servers = [child.identity for child in survivors_in(one.folder) if child.role == "forkserver"]
    one.kill()
    for server in servers:
        server.signal(signal.SIGKILL)
        wait_for_exit(server.pid)
    (tmp_path / "speak").touch()
    wait_until((tmp_path / "spoken").exists)
    other = start()
    other(declare)
    after = other.reach("running")
    assert (after["pid"], after["exits"]) == (before["pid"], [])
    assert "taken for ready" in after["detail"]
    other.end()


@pytest.mark.parametrize("how", ["strangers", "each other"])
def test_a_pidfile_that_names_the_wrong_processes(start: Start, tmp_path: Path, how: str) -> None:
    """Who lives is found, for it calls or its fork server tells; and no stranger comes to harm."""
    one = start(options="preload=['tests.tasks']")
    for name in ("web", "other"):
        one.service("serve", tmp_path, name, name=name)
    pids = {name: one.reach("running", name)["pid"] for name in ("web", "other")}
    one(f"futures.append(keeper.options(key='0').submit(tasks.note_and_pass_gate, {str(tmp_path)!r}, 0))")
    wait_until(lambda: list(tmp_path.glob("ran-*")), "a task runs")
    wait_until(lambda: len(survivors_in(one.folder)) >= 4, "the pidfile names all")
    one.kill()
    pidfile = one.folder / "keeper.pid"
    document = json.loads(pidfile.read_text())
    roles = ("service", "worker") if how == "strangers" else ("service",)
    children = [child for child in document["children"] if child["role"] in roles]
    strangers = [subprocess.Popen(["sleep", "600"]) for _ in children]
    try:
        others = children[1:] + children[:1]
        wrong = [(one["pid"], one["start_time"]) for one in others]
        if how == "strangers":
            wrong = [(stranger.pid, child["start_time"]) for stranger, child in zip(strangers, children, strict=True)]
        for child, (pid, start_time) in zip(children, wrong, strict=True):
            child["pid"], child["start_time"] = pid, start_time
        pidfile.write_text(json.dumps(document))
        other = start(options="preload=['tests.tasks']")
        for name in ("web", "other"):
            other.service("serve", tmp_path, name, name=name)
        other(f"futures.append(keeper.options(key='0').submit(tasks.note_and_pass_gate, {str(tmp_path)!r}, 0))")
        for name, pid in pids.items():
            assert other.reach("running", name)["pid"] == pid
        (tmp_path / "gate-0").touch()
        assert other("futures[-1].result(20)") == 0
        assert len(list(tmp_path.glob("ran-*"))) == 1
        other.end()
        assert not any(is_running(pid) for pid in pids.values())
        assert all(stranger.poll() is None for stranger in strangers)
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def test_what_is_declared_no_more_is_stopped_in_order(start: Start, tmp_path: Path) -> None:
    one = start()
    one.service("serve", tmp_path, name="web", replicas=2)
    one.service("serve", tmp_path, "other", name="other")
    pids = [one.reach("running", name)["pid"] for name in ("web:0", "web:1", "other")]
    one.kill()
    other = start()
    other.service("serve", tmp_path, name="web", replicas=1)
    wait_for_exit(pids[1])
    other("keeper.disown_services()")
    wait_for_exit(pids[2])
    wait_until(lambda: notes(tmp_path, "other-ended"))
    assert other.reach("running", "web")["pid"] == pids[0]
    assert len(other("rows()")) == 1


@pytest.mark.parametrize(
    "content",
    [
        None,
        pytest.param(b"", marks=pytest.mark.soak),
        pytest.param(b'{"format": "poolkeeper-pidfile", "vers', marks=pytest.mark.soak),
    ],
    ids=["none", "empty", "torn"],
)
def test_without_a_pidfile_they_are_found_because_they_call(
    start: Start, tmp_path: Path, content: bytes | None
) -> None:
    one = start()
    one.service("serve", tmp_path)
    one("(keeper.service(command('sleep', '600'), name='program'), None)[1]")
    pids = [one.reach("running", name)["pid"] for name in ("web", "program")]
    one.kill()
    pidfile = one.folder / "keeper.pid"
    pidfile.unlink()
    if content is not None:
        pidfile.write_bytes(content)
    other = start()
    other.service("serve", tmp_path)
    other("(keeper.service(command('sleep', '600'), name='program'), None)[1]")
    assert [other.reach("running", name)["pid"] for name in ("web", "program")] == pids
    assert len(notes(tmp_path, "started")) == 1


def test_the_watchdog_goes_on(start: Start, tmp_path: Path) -> None:
    one = start()
    one.service("beat", tmp_path, watchdog=1.0)
    before = one.reach("running")
    one.kill()
    other = start()
    other.service("beat", tmp_path, watchdog=1.0)
    number = len(notes(tmp_path, "beats"))
    wait_until(lambda: len(notes(tmp_path, "beats")) > number + 150)
    assert other.reach("running")["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGSTOP)
    after = other.reach("running", but=before["pid"])
    assert after["exits"][-1][0] == "watchdog"


def test_keeper_after_keeper_is_killed_while_it_recovers(start: Start, tmp_path: Path) -> None:
    """Whenever that is, there is never a second process, and in the end all is as it was."""
    one = start()
    one.service("serve", tmp_path)
    one("(keeper.service(command('sleep', '600'), name='program'), None)[1]")
    pids = [one.reach("running", name)["pid"] for name in ("web", "program")]
    one.kill()
    for number in range(6):
        other = KeeperProgram(tmp_path / "home")
        with_services = number % 2
        wait_until(lambda other=other: other.folder.joinpath("keeper.pid").exists())
        if with_services:
            other.service("serve", tmp_path)
        other.kill()
    last = start()
    last.service("serve", tmp_path)
    last("(keeper.service(command('sleep', '600'), name='program'), None)[1]")
    assert [last.reach("running", name)["pid"] for name in ("web", "program")] == pids
    assert last.row()["restarts"] == 0
    assert len(notes(tmp_path, "started")) == 1


def test_keeper_and_fork_server_are_killed(start: Start, tmp_path: Path) -> None:
    """Then nobody tells how a service ends, but its end is seen."""
    one = start()
    one.service("serve", tmp_path)
    before = one.reach("running")
    servers = [
        child.identity for child in read_pidfile(one.folder / "keeper.pid").children if child.role == "forkserver"
    ]
    one.kill()
    for server in servers:
        server.signal(signal.SIGKILL)
        wait_for_exit(server.pid)
    other = start()
    other.service("serve", tmp_path)
    assert other.reach("running")["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGTERM)
    after = other.reach("running", but=before["pid"])
    assert (after["attempt"], after["restarts"]) == (2, 1)


def test_who_has_lost_keeper_and_home_ends_in_order(start: Start, tmp_path: Path) -> None:
    """No keeper could ever find it."""
    keeper = start(options="orphan_grace=0.2")
    keeper.service("serve", tmp_path)
    keeper.reach("running")
    keeper("(keeper.service(command('sleep', '600'), name='program'), None)[1]")
    keeper.reach("running", "program")
    keeper(f"futures.append(keeper.submit(tasks.note_and_pass_gate, {str(tmp_path)!r}, 0))")
    wait_until(lambda: list(tmp_path.glob("ran-*")), "a task runs")
    roles = {"forkserver", "worker", "service", "program"}
    wait_until(lambda: {child.role for child in survivors_in(keeper.folder)} >= roles, "the pidfile says so")
    pids = {child.identity.pid: child.role for child in survivors_in(keeper.folder)}
    remove_in_use(keeper.home)
    keeper.kill()
    for pid, role in pids.items():
        if role in ("service", "program"):
            wait_for_exit(pid)
    assert notes(tmp_path, f"started-{LAST_NOTE}"), "it was asked to stop"
    assert not (tmp_path / "passed-0").exists(), "the task goes on"
    (tmp_path / "gate-0").touch()
    for pid in pids:
        wait_for_exit(pid)
    assert (tmp_path / "passed-0").exists()
