"""Room for the descriptors that a keeper needs: some for each process, besides the application's own."""

from __future__ import annotations

__all__ = ["PER_PROCESS", "RESERVE", "make_room"]

PER_PROCESS = 3
RESERVE = 64


def make_room(processes: int) -> int | None:
    """Raise this process' limit of open files for ``processes``; return how many fit where the hard limit forbids."""
    import resource

    needed = PER_PROCESS * processes + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        return max(1, (hard - RESERVE) // PER_PROCESS)
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return None
