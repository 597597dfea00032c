"""What a program says by sd_notify(3): reading one datagram of it.

Names that we do not know, and values that make no sense, are passed over, as systemd does; where a name is given twice,
the first counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["DATAGRAM_BYTES", "Notification", "parse"]

DATAGRAM_BYTES = 4096
"""Longer ones are ignored, as systemd does (NOTIFY_BUFFER_MAX)."""

STATUS_CHARACTERS = 1000
_ASSIGNMENT = re.compile(r"([A-Z_][A-Z0-9_]*)=(.*)", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True)
class Notification:
    """One message of a program; ``pid`` is its sender by the kernel's word, 0 if that is in no namespace of ours."""

    pid: int
    ready: bool = False
    stopping: bool = False
    reloading: bool = False
    status: str | None = None
    """A sentence on how it fares; printable, and cut after a thousand characters."""
    watchdog: bool = False
    """It gives a sign of life."""
    trigger: bool = False
    """It asks to be treated as if its watchdog had run out (``WATCHDOG=trigger``)."""
    main_pid: int | None = None
    errno: int | None = None
    extend_timeout: float | None = None
    """Seconds that it asks for, from now on, to complete its start, reload or stop."""


def parse(data: bytes, pid: int) -> Notification | None:
    """Read a datagram.

    Args:
        data: its bytes.
        pid: who has sent it.

    Returns:
        None for what is no text of ``NAME=value`` lines.
    """
    if len(data) > DATAGRAM_BYTES or b"\0" in data:
        return None
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        return None
    said: dict[str, str] = {}
    for line in lines:
        assignment = _ASSIGNMENT.fullmatch(line)
        if assignment is not None:
            said.setdefault(assignment[1], assignment[2])
    if not said:
        return None
    extension = _number(said.get("EXTEND_TIMEOUT_USEC"))
    main_pid = _number(said.get("MAINPID"))
    return Notification(
        pid=pid,
        ready=said.get("READY") == "1",
        stopping=said.get("STOPPING") == "1",
        reloading=said.get("RELOADING") == "1",
        status=_sentence(said.get("STATUS")),
        watchdog=said.get("WATCHDOG") == "1",
        trigger=said.get("WATCHDOG") == "trigger",
        main_pid=main_pid if main_pid is not None and 1 < main_pid < 2**31 else None,
        errno=_number(said.get("ERRNO")),
        extend_timeout=extension / 1e6 if extension else None,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def _sentence(text: str | None) -> str | None:
    """Make it fit to be shown: terminals obey control characters."""
    if text is None:
        return None
    return "".join(letter if letter.isprintable() else " " for letter in text[:STATUS_CHARACTERS]).strip()
