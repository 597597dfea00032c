"""What the kernel knows of processes: memory, wake-ups, children. Linux only (see proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_seconds", "descendants", "peak_rss", "pss", "reset_peak_rss", "rss", "voluntary_switches"]

KIB_PER_MIB = 1024


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise LookupError(f"{path} has no {name}")


def rss(pid: int | str = "self") -> float:
    """Resident memory in MiB."""
    return _field(Path(f"/proc/{pid}/status"), "VmRSS") / KIB_PER_MIB


def peak_rss(pid: int | str = "self") -> float:
    """The highest resident memory so far, in MiB."""
    return _field(Path(f"/proc/{pid}/status"), "VmHWM") / KIB_PER_MIB


def reset_peak_rss() -> float:
    """Start the peak of this process anew; returns the resident memory in MiB from which it starts."""
    Path("/proc/self/clear_refs").write_text("5")
    return rss()


def pss(pid: int) -> float:
    """Proportional set size in MiB: a page that n processes share counts 1/n."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") / KIB_PER_MIB


def descendants(pid: int) -> list[int]:
    """The children of ``pid`` and theirs, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))

    def below(parent: int) -> Iterator[int]:
        for child in children.get(parent, ()):
            yield child
            yield from below(child)

    return list(below(pid))


def voluntary_switches(pid: int, without: int | None = None) -> dict[tuple[int, int], int]:
    """How often each thread of ``pid`` has gone to sleep, by (pid, thread id); ``without`` leaves one thread out."""
    switches: dict[tuple[int, int], int] = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        if int(name) != without:
            with contextlib.suppress(OSError):
                switches[pid, int(name)] = _field(Path(f"/proc/{pid}/task/{name}/status"), "voluntary_ctxt_switches")
    return switches


def cpu_seconds(pid: int, without: int | None = None) -> float:
    """How long the living threads of ``pid`` have run, to the nanosecond; ``without`` leaves one thread out."""
    nanoseconds = 0
    for name in os.listdir(f"/proc/{pid}/task"):
        if int(name) != without:
            with contextlib.suppress(OSError):
                nanoseconds += int(Path(f"/proc/{pid}/task/{name}/schedstat").read_text().split()[0])
    return nanoseconds / 1e9
