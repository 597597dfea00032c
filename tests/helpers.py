"""What tests share: waiting for a condition with a deadline, and seeing which processes a test leaves behind."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

MARK = "POOLKEEPER_TEST_SESSION"
"""The environment variable that everything started by this test session inherits, however it detaches itself."""

PATIENCE = 20.0
"""Seconds after which a test gives up waiting: far beyond what a slow machine needs."""


def wait_until(condition: Callable[[], T], what: str = "", timeout: float = PATIENCE) -> T:
    """Return the first true answer of ``condition()``, asked again and again; fail after ``timeout`` seconds.

    For what has no event to wait for, such as the state of another process.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return answer


def remove_in_use(folder: Path) -> None:
    """Remove a folder in which others may make files meanwhile."""

    def removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(removed, f"{folder} is gone")


def wait_for_exit(pid: int, timeout: float = PATIENCE) -> None:
    """Wait until process ``pid`` has ended, without reaping it; fail after ``timeout`` seconds."""
    if not hasattr(os, "pidfd_open"):
        wait_until(lambda: not is_running(pid), f"the end of process {pid}", timeout)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise AssertionError(f"process {pid} has not ended within {timeout:g} s")
    finally:
        os.close(descriptor)


@contextmanager
def a_program(**options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that does nothing and knows nothing of Python, and kill it at the end."""
    with subprocess.Popen(["sleep", "1000"], **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def standing_still(keeper: Any) -> Iterator[None]:
    """Have the loop of ``keeper`` wait, and then see in one moment all that has been submitted meanwhile.

    What comes bit by bit may not all be fed ahead: nothing more is, once the first task has run for a while.
    """
    with keeper._runtime._lock:
        yield


def is_running(pid: int) -> bool:
    """Whether process ``pid`` exists and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def children() -> set[int]:
    """The pids of this process's own children. Linux has them in files; elsewhere all processes are looked at."""
    found: set[int] = set()
    for thread in threading.enumerate():
        try:
            text = Path(f"/proc/self/task/{thread.native_id}/children").read_text("ascii")
        except OSError:
            return {process.pid for process in psutil.Process().children()}
        found.update(map(int, text.split()))
    return found


def processes_of_session() -> set[psutil.Process]:
    """Every running process that this test session has started: its descendants, and who carries its mark."""
    found = set(psutil.Process().children(recursive=True))
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for pid in psutil.pids():
        with suppress(OSError, psutil.NoSuchProcess):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(psutil.Process(pid))
    found.discard(psutil.Process())
    return {process for process in found if is_running(process.pid) and not _is_tracker(process)}


def leftovers(before: Iterable[int], timeout: float = 5.0) -> list[str]:
    """Describe the processes that outlive a test, after ``timeout`` seconds to end by themselves, and kill them.

    The children ``before`` do not count, nor what they have started: they belong to a fixture that lives longer.
    """
    known = set(before)

    def remaining() -> list[psutil.Process]:
        return [process for process in processes_of_session() if known.isdisjoint(_lineage(process))]

    with suppress(AssertionError):
        wait_until(lambda: not remaining(), timeout=timeout)
        return []
    found = sorted(remaining(), key=lambda process: process.pid)
    described = [_describe(process) for process in found]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return described


def _lineage(process: psutil.Process) -> set[int]:
    """The pids of a process and its ancestors."""
    try:
        return {process.pid} | {ancestor.pid for ancestor in process.parents()}
    except psutil.NoSuchProcess:
        return {process.pid}


def _describe(process: psutil.Process) -> str:
    try:
        return f"pid {process.pid} (parent {process.ppid()}): {' '.join(process.cmdline())}"
    except psutil.NoSuchProcess:
        return f"pid {process.pid}"


def _is_tracker(process: psutil.Process) -> bool:
    """Whether this is a resource tracker: the standard library and loky keep one for the life of the process."""
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return True
