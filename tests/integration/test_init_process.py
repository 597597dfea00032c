"""Pid 1: as a real one in a pid namespace of its own where that is permitted, and as a child subreaper."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from poolkeeper.init_process import leave_pid_one
from tests.helpers import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="subreapers and pid namespaces are Linux's")

SUBREAPER = "import ctypes; assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0\n"
HEAD = """
import os, signal, subprocess, sys, time
from poolkeeper.init_process import leave_pid_one
"""
ORPHANS = """
def zombies():
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and fields[1] == str(os.getppid()):
                found.append(name)
    return found

mine = subprocess.Popen(["sh", "-c", "exit 7"])
for _ in range(20):  # each leaves a child behind, which ends when its parent has ended
    subprocess.run(["sh", "-c", "(read line; exit 3) < /dev/null & exit 0"], check=True)
deadline = time.monotonic() + 20
while zombies() and time.monotonic() < deadline:
    time.sleep(0.01)
print("zombies", zombies(), flush=True)
print("mine", mine.wait(), flush=True)
"""

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


real = pytest.mark.skipif(not may_unshare(), reason="a pid namespace needs privileges that are not given here")


def start(program: str, *, real: bool) -> subprocess.Popen[str]:
    text = (
        HEAD
        + ("" if real else SUBREAPER)
        + textwrap.dedent(program).replace("LEAVE", f"leave_pid_one(force={not real})")
    )
    command = [sys.executable, "-c", text]
    return subprocess.Popen(
        UNSHARE + command if real else command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    return output


KINDS = [pytest.param(False, id="subreaper"), pytest.param(True, id="pid 1", marks=real)]


@pytest.mark.parametrize("real", KINDS)
def test_orphans_are_reaped_and_our_own_children_are_ours(real: bool) -> None:
    process = start("assert LEAVE\n" + ORPHANS, real=real)
    assert finish(process) == "zombies []\nmine 7\n"
    assert process.returncode == 0


@pytest.mark.parametrize("real", KINDS)
@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("os.abort()", 134)]
)
def test_the_exit_status_is_that_of_the_program(real: bool, end: str, code: int) -> None:
    process = start(f"LEAVE\n{end}", real=real)
    finish(process)
    assert process.returncode == code


@pytest.mark.parametrize("real", KINDS)
def test_what_was_held_back_is_written_once_and_signals_are_as_before(real: bool) -> None:
    program = """
    print("once")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    LEAVE
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "mask"
    assert os.getpgrp() == os.getpid() != 1
    """
    process = start(program, real=real)
    assert finish(process) == "once\n"
    assert process.returncode == 0


def test_signals_are_passed_on() -> None:
    program = """
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN]
    LEAVE
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    print("there", flush=True)
    for _ in numbers:
        print(int(signal.sigwait(numbers)), flush=True)
    """
    process = start(program, real=False)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN):
        process.send_signal(number)
        assert int(process.stdout.readline()) == number
    finish(process)
    assert process.returncode == 0


def test_a_signal_that_nobody_handles_ends_the_program_and_init_with_it() -> None:
    process = start("LEAVE; print('there', flush=True); time.sleep(1000)", real=False)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    finish(process)
    assert process.returncode == 128 + signal.SIGTERM


@real
def test_pid_one_ends_by_sigterm_which_the_kernel_would_not_let_it() -> None:
    """The signal comes from within the namespace, where the kernel drops what pid 1 does not handle."""
    program = "LEAVE; subprocess.Popen(['sh', '-c', 'kill -TERM 1']); time.sleep(1000)"
    process = start(program, real=True)
    finish(process)
    assert process.returncode == 128 + signal.SIGTERM


def test_an_inherited_contempt_for_children_does_no_harm() -> None:
    program = "signal.signal(signal.SIGCHLD, signal.SIG_IGN); LEAVE; sys.exit(5)"
    process = start(program, real=False)
    finish(process)
    assert process.returncode == 5


def test_a_reexec_of_the_program_stays_below_init() -> None:
    again = "import os; print(os.getpid()); raise SystemExit(4)"
    program = f"""
    LEAVE
    print(os.getpid(), flush=True)
    os.execv(sys.executable, [sys.executable, "-c", {again!r}])
    """
    process = start(program, real=False)
    first, second = finish(process).split()
    assert first == second
    assert process.returncode == 4


def test_ctrl_c_reaches_the_program_once(tmp_path: Path) -> None:
    program = HEAD + textwrap.dedent(f"""
    heard = 0
    def hear(*_):
        global heard
        heard += 1
    leave_pid_one(force=True)
    assert os.tcgetpgrp(0) == os.getpgrp() == os.getpid()
    signal.signal(signal.SIGINT, hear)
    open({str(tmp_path / "there")!r}, "w").close()
    while not heard:
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGUSR1)  # init passes on, in order, what it has got
    signal.sigwait([signal.SIGUSR1])
    open({str(tmp_path / "heard")!r}, "w").write(str(heard))
    """).replace("heard = 0", "heard = 0\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", 1)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    try:
        wait_until((tmp_path / "there").exists)
        os.write(terminal, b"\x03")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "heard").read_text() == "1"


def test_who_is_not_pid_one_is_left_alone() -> None:
    before = os.getpid()
    assert leave_pid_one() is False
    assert os.getpid() == before


def test_threads_are_not_left_behind() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="of the application")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="of the application"):
            leave_pid_one(force=True)
    finally:
        gate.set()
        thread.join()
