"""Who a pid is: recycled pids, zombies, other boots and namespaces, on a simulated /proc and on the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.process_identity import (
    ProcessIdentity,
    _look,
    _look_by_psutil,
    cpu_seconds,
    identify,
    process_state,
    resident_bytes,
)
from tests.helpers import PATIENCE, a_program, wait_for_exit, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and pidfds are Linux's")

PID = 4711


class SimulatedProc:
    """A /proc in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = str(root)
        (root / "sys/kernel/random").mkdir(parents=True)
        own = root / str(os.getpid())
        (own / "ns").mkdir(parents=True)
        (root / "self").symlink_to(own.name)
        self.where("boot-1", "pid:[1]")

    def where(self, boot: str, namespace: str) -> None:
        (self.root / "sys/kernel/random/boot_id").write_text(boot + "\n")
        link = self.root / "self/ns/pid"
        link.unlink(missing_ok=True)
        link.symlink_to(namespace)

    def shows(self, pid: int, start: int, state: str = "S", *, threads: int = 1, name: bytes = b"python") -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        numbers = [1] * 10 + [250, 150, 0, 0, 20, 0, threads, 0, start, 0, 0]
        words = b" ".join(str(number).encode() for number in numbers)
        (folder / "stat").write_bytes(b"%d (%s) %s %s\n" % (pid, name, state.encode(), words))
        (folder / "statm").write_text("500 300 20 1 0 100 0\n")


@pytest.fixture
def proc(tmp_path: Path) -> SimulatedProc:
    return SimulatedProc(tmp_path)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with a_program() as process:
        yield process


def test_an_identity_is_start_time_boot_and_namespace(proc: SimulatedProc) -> None:
    proc.shows(PID, 90)
    found = identify(PID, proc=proc.path)
    assert found == ProcessIdentity(PID, 90, "boot-1", "pid:[1]")
    assert found.is_alive(proc=proc.path)
    assert found.may_be_alive(proc=proc.path)
    assert identify(PID + 1, proc=proc.path) is None


def test_a_recycled_pid_is_a_stranger(proc: SimulatedProc) -> None:
    proc.shows(PID, 90)
    found = identify(PID, proc=proc.path)
    assert found is not None
    proc.shows(PID, 91)
    assert not found.is_alive(proc=proc.path)
    assert not found.may_be_alive(proc=proc.path)


@pytest.mark.parametrize(
    ("state", "threads", "alive"), [("Z", 1, False), ("X", 1, False), ("Z", 2, True), ("D", 1, True)]
)
def test_a_zombie_is_dead_unless_other_threads_of_it_run(
    proc: SimulatedProc, state: str, threads: int, alive: bool
) -> None:
    proc.shows(PID, 90, state, threads=threads)
    assert ProcessIdentity(PID, 90, "boot-1", "pid:[1]").is_alive(proc=proc.path) is alive
    assert identify(PID, proc=proc.path) is not None
    assert process_state(PID, proc=proc.path) == state


def test_after_a_reboot_all_are_dead_even_with_the_same_numbers(proc: SimulatedProc) -> None:
    proc.shows(PID, 90)
    earlier = ProcessIdentity(PID, 90, "boot-0", "pid:[1]")
    assert not earlier.is_alive(proc=proc.path)
    assert not earlier.may_be_alive(proc=proc.path)


def test_in_another_namespace_nothing_is_known(proc: SimulatedProc) -> None:
    proc.shows(PID, 90)
    elsewhere = ProcessIdentity(PID, 90, "boot-1", "pid:[2]")
    assert not elsewhere.is_alive(proc=proc.path)
    assert elsewhere.may_be_alive(proc=proc.path)


def test_a_proc_of_another_namespace_is_not_believed(proc: SimulatedProc) -> None:
    """As after ``unshare --pid`` without a /proc of its own."""
    proc.shows(PID, 90)
    found = ProcessIdentity(PID, 90, "boot-1", "pid:[1]")
    (proc.root / "self").unlink()
    (proc.root / "self").symlink_to(str(PID))
    (proc.root / str(PID) / "ns").mkdir()
    (proc.root / str(PID) / "ns/pid").symlink_to("pid:[1]")
    assert identify(PID, proc=proc.path) is None
    assert not found.is_alive(proc=proc.path)
    assert found.may_be_alive(proc=proc.path)
    me = identify(proc=proc.path)
    assert me is not None
    assert (me.pid, me.start_time) == (os.getpid(), 90)


@pytest.mark.parametrize("name", [b"a b", b") R 1 1 1", b"((\n))", b"\xff\xfe"])
def test_names_that_look_like_fields(proc: SimulatedProc, name: bytes) -> None:
    proc.shows(PID, 90, "T", name=name)
    assert identify(PID, proc=proc.path) == ProcessIdentity(PID, 90, "boot-1", "pid:[1]")
    assert process_state(PID, proc=proc.path) == "T"
    assert cpu_seconds(PID, proc=proc.path) == 400 / os.sysconf("SC_CLK_TCK")
    assert resident_bytes(PID, proc=proc.path) == 300 * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("content", [b"", b"4711", b"4711 (python) S", b"4711 (python) S" + b" x" * 30])
def test_a_stat_that_makes_no_sense(proc: SimulatedProc, content: bytes) -> None:
    proc.shows(PID, 90)
    (proc.root / str(PID) / "stat").write_bytes(content)
    (proc.root / str(PID) / "statm").write_bytes(content)
    assert identify(PID, proc=proc.path) is None
    assert process_state(PID, proc=proc.path) is None
    assert cpu_seconds(PID, proc=proc.path) is None
    if content[:1] != b"4":
        assert resident_bytes(PID, proc=proc.path) is None


def test_nothing_is_seen_of_nobody(proc: SimulatedProc) -> None:
    assert (process_state(None), cpu_seconds(None), resident_bytes(None)) == (None, None, None)
    assert (process_state(PID, proc=proc.path), resident_bytes(PID, proc=proc.path)) == (None, None)


@given(
    st.builds(
        ProcessIdentity, st.integers(1, 2**31 - 1), st.integers(0, 2**63), st.text(max_size=40), st.text(max_size=40)
    )
)
def test_round_trip(identity: ProcessIdentity) -> None:
    assert ProcessIdentity.from_dict({**identity.to_dict(), "shoe_size": 43}) == identity


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from(["pid", "start_time", "boot_id", "pid_namespace", "x"]), anything))
def test_what_is_missing_or_nonsense_is_never_alive(data: dict[str, Any]) -> None:
    identity = ProcessIdentity.from_dict(data)
    assert identity.is_alive() is False
    assert identity.signal(0) is False


def test_a_child_is_alive_until_it_is_dead(child: subprocess.Popen[bytes]) -> None:
    found = identify(child.pid)
    assert found is not None
    assert found.is_alive()
    assert resident_bytes(child.pid)
    assert found.signal(signal.SIGSTOP)
    wait_until(lambda: process_state(child.pid) == "T")
    assert found.is_alive()
    assert found.signal(signal.SIGKILL)
    wait_for_exit(child.pid)
    assert process_state(child.pid) == "Z"
    assert not found.is_alive()
    assert not found.signal(signal.SIGKILL)
    assert child.wait(PATIENCE) == -signal.SIGKILL
    assert (found.is_alive(), found.signal(signal.SIGKILL), identify(child.pid)) == (False, False, None)


@pytest.mark.parametrize(
    "difference", [{"start_time": 1}, {"start_time": -1}, {"boot_id": "another"}, {"pid_namespace": "pid:[1]"}]
)
def test_a_stranger_is_never_signalled(child: subprocess.Popen[bytes], difference: dict[str, Any]) -> None:
    found = identify(child.pid)
    assert found is not None
    stranger = found._replace(**difference)
    assert not stranger.is_alive()
    assert not stranger.signal(signal.SIGKILL)
    assert found.is_alive()


def test_a_process_that_takes_the_pid_while_it_is_looked_at_is_not_hit(
    proc: SimulatedProc, child: subprocess.Popen[bytes]
) -> None:
    """The pidfd is opened first: what /proc shows after that is whom the signal would reach, or somebody later."""
    proc.shows(child.pid, 90)
    victim = identify(child.pid, proc=proc.path)
    proc.shows(child.pid, 91)
    assert victim is not None
    assert not victim.signal(signal.SIGKILL, proc=proc.path)
    assert child.poll() is None


def test_no_process_group_is_signalled() -> None:
    for pid in (0, -1, -os.getpid()):
        assert not ProcessIdentity(pid, 1).signal(signal.SIGKILL)


def test_without_descriptors_it_is_not_known_and_not_taken_for_dead() -> None:
    program = """
import os, resource
from poolkeeper.process_identity import identify, process_state
me = identify()
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
try:
    while True:
        os.open(os.devnull, os.O_RDONLY)
except OSError:
    pass
for question in (identify, me.is_alive, me.may_be_alive, lambda: me.signal(0)):
    try:
        print(question())
    except OSError as error:
        print(error.strerror)
print(process_state(me.pid))
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ["Too many open files"] * 4 + ["None"]


def test_light_to_import() -> None:
    program = "import sys, poolkeeper.process_identity; print('psutil' in sys.modules, 'ctypes' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]


def test_other_systems_ask_psutil(child: subprocess.Popen[bytes]) -> None:
    seen, expected = _look_by_psutil(child.pid), _look(child.pid, "/proc")
    assert seen is not None
    assert expected is not None
    assert abs(seen.start_time / 1e6 - psutil.Process(child.pid).create_time()) < 0.001
    assert seen.runs
    child.kill()
    wait_for_exit(child.pid)
    dead = _look_by_psutil(child.pid)
    assert dead is not None
    assert not dead.runs
    child.wait()
    assert _look_by_psutil(child.pid) is None
