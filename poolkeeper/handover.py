"""What a process that is replaced by ``execv`` tells the one that takes its place, in an environment variable. Pure.

The format has a version. Keys that are not known are ignored and missing ones have defaults, so that an older and a
newer poolkeeper understand each other. What does not name a process, a keeper and its descriptors is refused whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["VARIABLE", "VERSION", "HandedKeeper", "Handover", "PastReexec", "encode", "parse"]

VARIABLE = "POOLKEEPER_HANDOVER"
VERSION = 1
LONGEST = 65536
"""Characters; the kernel takes 128 KiB for one variable."""


class HandedKeeper(NamedTuple):
    """One named keeper: where its home is, and the descriptors of its lock and, if there is one, its socket."""

    name: str
    run_id: str
    folder: str
    lock: int
    socket: int | None = None
    socket_path: str = ""


class PastReexec(NamedTuple):
    """A re-exec of this process: when, in seconds of the monotonic clock, and whether nobody had asked for it."""

    at: float
    automatic: bool


class Handover(NamedTuple):
    """All that is handed over.

    Args:
        pid: of the process, which stays; whoever has another one is not meant.
        keepers: the named keepers that it had.
        history: its recent re-execs, oldest first.
        held: the numbers of the signals that were blocked so that none is lost before there are handlers.
        version: of the format.
    """

    pid: int
    keepers: tuple[HandedKeeper, ...] = ()
    history: tuple[PastReexec, ...] = ()
    held: tuple[int, ...] = ()
    version: int = VERSION


def encode(handover: Handover) -> str:
    """Return the value of the variable."""
    import json  # most programs are never replaced

    fields = handover._asdict()
    for name in ("keepers", "history"):
        fields[name] = [each._asdict() for each in fields[name]]
    return json.dumps(fields, separators=(",", ":"))


def parse(text: str) -> Handover:
    """Return what ``encode`` has been given, by this version or another.

    Raises:
        ValueError: for anything else; the message says what is wrong.
    """
    import json

    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - it is the text that is wrong
    return Handover(
        pid=_number(data, "pid", 1),
        keepers=tuple(_keeper(each) for each in _objects(data, "keepers")),
        history=tuple(
            PastReexec(float(each["at"]), each.get("automatic") is True)
            for each in _objects(data, "history")
            if _is_number(each.get("at"))
        ),
        held=tuple(each for each in _list(data, "held") if type(each) is int and each > 0),
        version=_number(data, "version", 1),
    )


def _keeper(data: Mapping[str, Any]) -> HandedKeeper:
    has_socket = data.get("socket") is not None
    return HandedKeeper(
        name=_text(data, "name"),
        run_id=_text(data, "run_id"),
        folder=_text(data, "folder"),
        lock=_number(data, "lock", 0),
        socket=_number(data, "socket", 0) if has_socket else None,
        socket_path=_text(data, "socket_path") if has_socket else "",
    )


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")  # noqa: TRY004 - as above
    return value


def _objects(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = _list(data, key)
    if not all(isinstance(each, dict) for each in value):
        raise ValueError(f"{key} is no list of objects")
    return value


def _number(data: Mapping[str, Any], key: str, least: int) -> int:
    value = data.get(key)
    if type(value) is not int or not least <= value < 2**31:
        raise ValueError(f"{key} is {value!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{key} is {value!r}")
    return value
