"""The processes that a keeper leaves behind when it is killed."""

from __future__ import annotations

import signal
from pathlib import Path

from poolkeeper.pidfile import ChildRecord, PidfileError, read_pidfile, survivors

from .helpers import wait_until

__all__ = ["end_survivors", "survivors_in"]


def survivors_in(home: Path) -> tuple[ChildRecord, ...]:
    """Return what lives on of the keeper whose home this is."""
    try:
        return survivors(read_pidfile(home / "keeper.pid"))
    except (FileNotFoundError, PidfileError):
        return ()


def end_survivors(home: Path) -> None:
    """Kill what lives on, as a power failure would.

    Fork servers end by themselves, with all that they have made: the pidfile may not tell of all of it yet.
    """
    for child in survivors_in(home):
        child.identity.signal(signal.SIGTERM if child.role == "forkserver" else signal.SIGKILL)
    wait_until(lambda: not survivors_in(home))
