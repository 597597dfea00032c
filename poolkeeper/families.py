"""The descendants of a process whose fork server has died: nobody else is there to end what it leaves behind.

While a fork server lives it adopts and ends all of that (see ``orphans``), so this is rarely needed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

__all__ = ["descendants", "end_families"]


def descendants(pid: int) -> list[psutil.Process]:
    """Return all that process ``pid`` has started, near and far; none is taken for a later owner of its pid."""
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def end_families(families: Mapping[int, Iterable[psutil.Process]]) -> None:
    """Kill what is left of each family, and of the session that its key, the pid of a process just ended, led."""
    import psutil

    members = {member for family in families.values() for member in family}
    for member in list(members):
        members.update(descendants(member.pid) if member.is_running() else ())
    for other in psutil.pids():
        # A session's number is not given out again while it has members; its leader itself is gone.
        with contextlib.suppress(OSError, psutil.Error):
            if other not in families and os.getsid(other) in families:
                members.add(psutil.Process(other))
    for member in members:
        with contextlib.suppress(psutil.Error):
            member.kill()
