"""What we tell systemd, heard at a socket of our own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper import sdnotify
from poolkeeper.sdnotify import Notifier


class Manager:
    """Hears what a service says."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(20)

    def hear(self) -> list[str]:
        return self.socket.recv(10_000).decode().split("\n")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.socket.getsockname()})
    assert notifier is not None
    yield notifier
    notifier.close()


def test_every_message_arrives_as_sd_notify_spells_it(manager: Manager, notifier: Notifier) -> None:
    assert notifier.ready()
    assert manager.hear() == ["READY=1"]
    assert notifier.ready("8 workers")
    assert manager.hear() == ["READY=1", "STATUS=8 workers"]
    assert notifier.status("3 of 10")
    assert manager.hear() == ["STATUS=3 of 10"]
    assert notifier.stopping("asked to")
    assert manager.hear() == ["STOPPING=1", "STATUS=asked to"]
    assert notifier.watchdog()
    assert manager.hear() == ["WATCHDOG=1"]
    assert notifier.main_pid()
    assert manager.hear() == [f"MAINPID={os.getpid()}"]
    assert notifier.main_pid(12)
    assert manager.hear() == ["MAINPID=12"]
    assert notifier.extend_timeout(1.5)
    assert manager.hear() == ["EXTEND_TIMEOUT_USEC=1500000"]


def test_a_reload_carries_the_monotonic_time(manager: Manager, notifier: Notifier) -> None:
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert notifier.reloading()
    first, second = manager.hear()
    name, _, value = second.partition("=")
    assert (first, name) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before - 1e-3 <= int(value) / 1e6 <= time.clock_gettime(time.CLOCK_MONOTONIC)


def test_an_abstract_address_is_understood() -> None:
    manager = Manager(f"\0poolkeeper-test-{os.getpid()}")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": f"@poolkeeper-test-{os.getpid()}"})
    assert notifier is not None
    assert notifier.ready()
    assert manager.hear() == ["READY=1"]
    manager.socket.close()
    notifier.close()


@pytest.mark.parametrize("address", ["", "/", "@", "relative/path", "vsock:2:1234"])
def test_other_addresses_mean_that_nobody_listens(address: str) -> None:
    assert Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}) is None
    assert Notifier.from_environment({}) is None


@given(st.text())
def test_a_status_is_one_line_of_bounded_length(text: str) -> None:
    (line,) = sdnotify._status(text * 50)
    assert line.startswith("STATUS=")
    assert "\n" not in line
    assert len(line.encode()) <= 2010


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "nonsense"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_on_only_where_it_means_this_process(variables: dict[str, str], interval: float | None) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/nowhere", **variables})
    assert notifier is not None
    assert notifier.watchdog_interval == interval
    notifier.close()


def test_children_do_not_get_the_variables_and_a_reexec_gets_them_back() -> None:
    about = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    environment = {"PATH": "/bin", **about}
    notifier = Notifier.take_from(environment)
    assert notifier is not None
    assert environment == {"PATH": "/bin"}
    assert notifier.variables == about
    notifier.close()
    half = {"WATCHDOG_USEC": "1000000"}
    assert Notifier.take_from(half) is None
    assert half == {}


def test_a_manager_that_is_gone_or_deaf_is_no_error(manager: Manager, notifier: Notifier) -> None:
    while notifier.watchdog():  # until its queue is full; returns at once then
        pass
    assert not notifier.ready()
    path = manager.socket.getsockname()
    manager.socket.close()
    assert not notifier.ready()
    os.unlink(path)
    assert not notifier.ready()


def test_a_manager_that_comes_back_is_found(tmp_path: Path, notifier: Notifier, manager: Manager) -> None:
    path = manager.socket.getsockname()
    os.unlink(path)
    assert not notifier.ready()
    again = Manager(path)
    assert notifier.ready()
    assert again.hear() == ["READY=1"]
    again.socket.close()


def test_a_closed_descriptor_is_replaced_and_its_number_left_alone(
    manager: Manager, notifier: Notifier, tmp_path: Path
) -> None:
    assert notifier._socket is not None
    number = notifier._socket.fileno()
    os.close(number)
    with open(tmp_path / "of somebody else", "wb") as file:
        assert file.fileno() == number
        assert notifier.ready()
        assert manager.hear() == ["READY=1"]
        file.write(b"still open")


def test_signs_of_life_need_no_further_descriptor(manager: Manager) -> None:
    program = (
        "import os, resource; from poolkeeper.sdnotify import Notifier; "
        "notifier = Notifier.take_from(os.environ); resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); "
        "raise SystemExit(0 if notifier.watchdog() else 1)"
    )
    environment = {**os.environ, "NOTIFY_SOCKET": manager.socket.getsockname()}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert manager.hear() == ["WATCHDOG=1"]
