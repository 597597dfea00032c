"""The socket of services: real senders, real credentials."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkeeper.notification import Notification
from poolkeeper.notify_socket import BURST, NotifySocket, belongs_to
from tests.helpers import PATIENCE, wait_until

SAY = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto({data!r}, {path!r})"


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[NotifySocket]:
    heard = NotifySocket.open(tmp_path)
    yield heard
    heard.close()


def say(path: str, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, path)


def test_what_is_said_comes_with_the_pid_of_who_has_said_it(heard: NotifySocket) -> None:
    assert list(heard.receive()) == []
    say(heard.path, b"READY=1")
    child = subprocess.Popen([sys.executable, "-c", SAY.format(data=b"STATUS=hello", path=heard.path)])
    assert child.wait(PATIENCE) == 0
    assert list(heard.receive()) == [Notification(os.getpid(), ready=True), Notification(child.pid, status="hello")]
    assert list(heard.receive()) == []
    assert heard.ignored == 0


def test_only_this_user_may_open_it(heard: NotifySocket) -> None:
    assert stat.S_IMODE(os.stat(heard.path).st_mode) == 0o600
    assert not os.get_inheritable(heard.fileno())


def test_garbage_is_counted_and_the_rest_is_heard(heard: NotifySocket) -> None:
    for data in (b"", b"\0\1\2", b"\xff" * 10, b"nonsense", b"STATUS=" + b"x" * 5000, os.urandom(20_000)):
        say(heard.path, data)
        say(heard.path, b"WATCHDOG=1")
        assert list(heard.receive()) == [Notification(os.getpid(), watchdog=True)]
    assert heard.ignored == 6


def test_descriptors_that_come_along_are_closed(heard: NotifySocket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(heard.path)
        socket.send_fds(sender, [b"FDSTORE=1\nFDNAME=mine"], [writer] * 20)
        socket.send_fds(sender, [b"garbage"], [writer])
    os.close(writer)
    assert list(heard.receive()) == [Notification(os.getpid())]
    assert os.read(reader, 1) == b""  # nobody has the other end any more
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) == before
    assert heard.ignored == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_not_believed(heard: NotifySocket) -> None:
    program = (
        "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
        f"s.connect({heard.path!r}); os.setuid(65534); s.send(b'READY=1')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert list(heard.receive()) == []
    assert heard.ignored == 1


def test_a_flood_is_taken_in_portions(heard: NotifySocket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BURST > 100
    monkeypatch.setattr("poolkeeper.notify_socket.BURST", 2)
    for _ in range(5):
        say(heard.path, b"WATCHDOG=1")
    assert [len(list(heard.receive())) for _ in range(4)] == [2, 2, 1, 0]


def test_the_socket_of_a_dead_keeper_is_replaced(tmp_path: Path) -> None:
    first = NotifySocket.open(tmp_path)
    second = NotifySocket.open(tmp_path)
    assert second.path == first.path == str(tmp_path / "notify.sock")
    say(second.path, b"READY=1")
    assert list(first.receive()) == []
    assert len(list(second.receive())) == 1
    second.close()
    first.close()
    assert not os.path.exists(second.path)


def test_a_long_home_gets_a_short_address_that_a_later_keeper_has_too(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    home.mkdir()
    first = NotifySocket.open(home)
    second = NotifySocket.open(home)
    assert len(first.path) <= 107
    assert second.path == first.path
    folder = os.path.dirname(first.path)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    say(second.path, b"READY=1")
    assert len(list(second.receive())) == 1
    os.chmod(folder, 0o777)
    third = NotifySocket.open(home)
    assert os.path.dirname(third.path) != folder
    third.close()
    second.close()
    first.close()
    assert not os.path.exists(folder)
    assert not os.path.exists(os.path.dirname(third.path))


def test_it_passes_through_a_reexec_with_what_has_not_been_read(heard: NotifySocket) -> None:
    say(heard.path, b"READY=1")
    adopted = NotifySocket.adopt(os.dup(heard.fileno()))
    assert adopted.path == heard.path
    assert list(adopted.receive()) == [Notification(os.getpid(), ready=True)]
    adopted.close()


def test_only_a_notification_socket_is_adopted(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(OSError, match="no notification socket"):
        NotifySocket.adopt(left.fileno())
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError):
        NotifySocket.adopt(file.fileno())


def test_who_waits_for_a_barrier_is_there_until_what_it_has_said_is_dealt_with(heard: NotifySocket) -> None:
    said, said_it = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            say(heard.path, b"READY=1")
            until_closed, barrier = os.pipe()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(heard.path)
                socket.send_fds(sender, [b"BARRIER=1"], [barrier])
            os.close(barrier)
            os.write(said_it, b"!")
            os.read(until_closed, 1)
        finally:
            os._exit(0)
    assert os.read(said, 1)
    received = heard.receive()
    assert next(received) == Notification(child, ready=True)
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "it waits"
    assert belongs_to(child, {os.getpid(): "ours"}) == "ours"
    assert list(received) == [Notification(child)]
    os.waitpid(child, 0)
    os.close(said)
    os.close(said_it)


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="systemd-notify is not installed")
def test_systemd_notify_itself_is_understood(heard: NotifySocket) -> None:
    command = ["systemd-notify", "--ready", "--status=as systemd says it"]
    child = subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": heard.path})
    # it waits until its message has been taken in: sd_notify_barrier(3)
    first = wait_until(lambda: next(heard.receive(), None))
    assert first is not None
    wait_until(lambda: (list(heard.receive()), child.poll() is not None)[1])
    assert child.returncode == 0
    assert (first.ready, first.status) == (True, "as systemd says it")


# -- whose message it is ----------------------------------------------------------------------------------------------

FAMILY = """
import os, subprocess, sys, time
depth = int(sys.argv[1])
if depth:
    child = subprocess.Popen([sys.executable, __file__, str(depth - 1)])
    child.wait()
else:
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_a_message_of_a_grandchild_belongs_to_the_service(tmp_path: Path) -> None:
    (tmp_path / "family (odd) name.py").write_text(FAMILY)
    command = [sys.executable, str(tmp_path / "family (odd) name.py"), "2"]
    root = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert root.stdout is not None
    grandchild = int(root.stdout.readline())
    assert grandchild != root.pid
    assert belongs_to(grandchild, {root.pid: "web", 1: "init"}) == "web"
    assert belongs_to(root.pid, {root.pid: "web"}) == "web"
    assert belongs_to(grandchild, {999_999_999: "other"}) is None
    root.communicate(timeout=PATIENCE)
    assert belongs_to(grandchild, {root.pid: "web"}) is None
    assert belongs_to(0, {0: "nobody"}) is None
    assert belongs_to(-1, {}) is None


def test_a_message_of_a_daemonized_child_belongs_to_the_leader_of_its_session() -> None:
    program = (
        "import os, sys; r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.read(r, 1)\n"  # until the leader says that the parent has ended
        "    print(os.getpid(), flush=True); sys.stdin.read(); os._exit(0)\n"
        "os.wait(); os.write(w, b'x'); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    leader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    daemon = int(leader.stdout.readline())
    assert os.getsid(daemon) == leader.pid
    assert belongs_to(daemon, {leader.pid: "web"}) == "web"
    leader.communicate(timeout=PATIENCE)
