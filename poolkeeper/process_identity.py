"""Who a pid is: a number that the kernel gives out again, believed only with start time, boot and pid namespace.

Linux answers from /proc; other systems through psutil, imported when first asked. ``proc`` is where /proc is, so that a
test can show a pid that somebody else has by now.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Self

__all__ = ["ProcessIdentity", "cpu_seconds", "identify", "process_state", "resident_bytes"]

PROC = "/proc"
UNKNOWN = -1


class ProcessIdentity(NamedTuple):
    """One process, and no other that had or will have its pid.

    Args:
        pid: as the process that wrote this down sees it.
        start_time: clock ticks since the boot on Linux, microseconds since the epoch elsewhere; -1: not known.
        boot_id: of the kernel; empty where there is none.
        pid_namespace: in which ``pid`` means this process; empty where there is none.
    """

    pid: int
    start_time: int
    boot_id: str = ""
    pid_namespace: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return self._asdict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote: unknown keys are ignored; what is missing or no such value is not known.

        An identity of which pid or start time is not known is never alive.
        """
        return cls(
            pid=pid if (pid := _whole(data.get("pid"), 0)) < 2**31 else 0,
            start_time=_whole(data.get("start_time"), UNKNOWN),
            boot_id=_text(data.get("boot_id")),
            pid_namespace=_text(data.get("pid_namespace")),
        )

    def is_alive(self, *, proc: str = PROC) -> bool:
        """Whether this very process runs, and can be seen from here; a zombie does not run.

        Raises:
            OSError: when that cannot be found out, as without a free descriptor: then it is not known to be dead.
        """
        if self.pid <= 0 or self.start_time == UNKNOWN or self._is_elsewhere(proc):
            return False
        seen = _look(self.pid, proc)
        return seen is not None and seen.runs and seen.start_time == self.start_time

    def may_be_alive(self, *, proc: str = PROC) -> bool:
        """Whether this process is not surely gone: it runs, or lives where it cannot be seen from here.

        Raises:
            OSError: as ``is_alive``.
        """
        if self.pid <= 0 or self.start_time == UNKNOWN:
            return True
        boot, namespace = _whereabouts(proc)
        if self.boot_id and boot and self.boot_id != boot:
            return False
        if self.pid_namespace != namespace or _is_of_another_namespace(proc):
            return True
        return self.is_alive(proc=proc)

    def signal(self, number: int, *, proc: str = PROC) -> bool:
        """Send signal ``number`` to this very process; return whether it was there to get it.

        The process is held by a pidfd before it is looked at, so that nobody else can get its pid in between.

        Raises:
            PermissionError: when it belongs to somebody else.
            OSError: when it cannot be found out who the pid is.
        """
        if self.pid <= 0:
            return False
        with suppress(ProcessLookupError):
            if sys.platform != "linux":
                if alive := self.is_alive(proc=proc):
                    os.kill(self.pid, number)
                return alive
            with _held(self.pid) as descriptor:
                if alive := self.is_alive(proc=proc):
                    signal.pidfd_send_signal(descriptor, number)
                return alive
        return False

    def _is_elsewhere(self, proc: str) -> bool:
        """Whether the pid was seen in another boot or namespace, so that here it is somebody else's, if anybody's."""
        return (self.boot_id, self.pid_namespace) != _whereabouts(proc) or _is_of_another_namespace(proc)


def identify(pid: int | None = None, *, proc: str = PROC) -> ProcessIdentity | None:
    """Return who ``pid`` is (None: this process), or None if no such process can be seen; zombies can.

    Raises:
        OSError: when that cannot be found out, as without a free descriptor.
    """
    own = pid is None or pid == os.getpid()
    if not own and _is_of_another_namespace(proc):
        return None
    seen = _look("self" if own and pid is None else pid or 0, proc)
    if seen is None:
        return None
    boot, namespace = _whereabouts(proc)
    return ProcessIdentity(os.getpid() if pid is None else pid, seen.start_time, boot, namespace)


def process_state(pid: int | None, *, proc: str = PROC) -> str | None:
    """Return the kernel's letter for what ``pid`` does ("R", "S", "D", "T", "Z", ...), or None if it is gone."""
    seen = _look_or_none(pid, proc)
    return None if seen is None else seen.state


def cpu_seconds(pid: int | None, *, proc: str = PROC) -> float | None:
    """Return the seconds of CPU that ``pid`` has used, in user and kernel mode, or None if it is gone."""
    seen = _look_or_none(pid, proc)
    return None if seen is None else seen.cpu_seconds


def resident_bytes(pid: int | None, *, proc: str = PROC) -> int | None:
    """Return the resident memory of ``pid`` in bytes, or None if it is gone."""
    if pid is None:
        return None
    if sys.platform != "linux":
        import psutil

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
    try:
        # ourselves we find even where /proc numbers the processes of another namespace
        with open(f"{proc}/{'self' if pid == os.getpid() else pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return None


class _Seen(NamedTuple):
    """What the kernel says of a process at one moment."""

    state: str
    threads: int
    start_time: int
    cpu_seconds: float

    @property
    def runs(self) -> bool:
        # a zombie with threads is a process whose first thread has ended before the others
        return self.state not in "ZXx" or self.threads > 1


def _look_or_none(pid: int | None, proc: str) -> _Seen | None:
    try:
        return None if pid is None else _look(pid, proc)
    except OSError:
        return None


def _look(pid: int | str, proc: str) -> _Seen | None:
    """Return what is seen of ``pid``, or None if there is no such process; raises OSError if that stays open."""
    if sys.platform != "linux":
        return _look_by_psutil(os.getpid() if pid == "self" else int(pid))
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            content = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _parse(content)


def _parse(stat: bytes) -> _Seen | None:
    """Read /proc/PID/stat, in which the second field is a name that may hold blanks, parentheses and newlines."""
    fields = stat.rpartition(b")")[2].split()
    try:
        ticks = int(fields[11]) + int(fields[12])
        return _Seen(
            state=fields[0].decode("ascii", "replace"),
            threads=int(fields[17]),
            start_time=int(fields[19]),
            cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
        )
    except (IndexError, ValueError):
        return None


def _look_by_psutil(pid: int) -> _Seen | None:
    import psutil

    states = {"running": "R", "sleeping": "S", "disk-sleep": "D", "stopped": "T", "zombie": "Z", "dead": "X"}
    try:
        process = psutil.Process(pid)
        started = round(process.create_time() * 1_000_000)
        state = states.get(process.status(), "S")
        with suppress(psutil.AccessDenied):
            times = process.cpu_times()
            return _Seen(state, 1, started, times.user + times.system)
        return _Seen(state, 1, started, 0.0)
    except psutil.NoSuchProcess:
        return None
    except psutil.Error as error:
        raise PermissionError(errno.EPERM, f"nothing can be seen of process {pid}: {error}") from error


@contextmanager
def _held(pid: int) -> Iterator[int]:
    """Open ``pid`` so that it can be signalled as long as it is the same process; raises ProcessLookupError."""
    assert sys.platform == "linux"
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # the id of a thread, which no process is
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _whereabouts(proc: str) -> tuple[str, str]:
    """Return boot id and pid namespace of this process, in which all pids that it sees are numbered."""
    return _look_around(proc, os.getpid()) if sys.platform == "linux" else ("", "")


@functools.lru_cache(maxsize=8)  # for a keeper that takes over asks about every child
def _look_around(proc: str, _: int) -> tuple[str, str]:
    """As ``_whereabouts``, looked at once: it does not change for a process, only for a fork with another pid."""
    boot = namespace = ""
    with suppress(FileNotFoundError, PermissionError), open(f"{proc}/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    with suppress(OSError):  # needs no descriptor
        namespace = os.readlink(f"{proc}/self/ns/pid")
    return boot, namespace


def _is_of_another_namespace(proc: str) -> bool:
    """Whether /proc shows other pids than this process sees, as after ``unshare --pid`` without a mount of its own."""
    try:
        return os.readlink(f"{proc}/self") != str(os.getpid())
    except OSError:
        return False


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
