"""What one keeper leaves to the next of its services, as a document that can be JSON. Pure.

Moments are in seconds since the epoch. A record's ``epoch`` is what made them of its writer's monotonic clock, so that
a keeper of the same boot gets its deadlines back whatever has happened to the system's clock meanwhile; another one
has the clock alone, and believes no more of a delay than was left of it (``due_in``, ``hold_in``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self, TypeVar

from .policy import RestartRecord
from .replica import Ending
from .service_model import ExitReason, ServiceExit, ServiceState

__all__ = ["EXITS_LEFT", "GroupRecord", "Handover", "ReplicaRecord", "ServiceRecord", "cut_off"]

VERSION = 1
"""Written for a later reader; what an earlier one does not know it ignores."""

EXITS_LEFT = 10
"""How many exits of one replica are handed over."""

DETAIL_LEFT = 2000
"""How many characters of a traceback are handed over; all of it is in the log."""

WHOLE_LIMIT = 2**53
REPLICAS_LIMIT = 100_000

_NOTHING = RestartRecord()

_E = TypeVar("_E", bound=Enum)


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """One replica, as its keeper knew it last; see ``Replica`` for what it has in common with that.

    ``launched`` and ``ready_at`` are about the process of ``attempt``; ``ready_at`` is None where it is not ready.
    ``due`` and ``hold`` are moments, ``due_in`` and ``hold_in`` how many seconds off they were. ``ending`` is why its
    process is to end, ``forced`` that it was not asked any more; ``leaving`` is the group that waits for it to be gone.
    """

    number: int
    state: ServiceState = ServiceState.STOPPED
    up: bool = False
    removed: bool = False
    attempt: int = 0
    used: int = 0
    restarts: int = 0
    detail: str = ""
    launched: float | None = None
    ready_at: float | None = None
    healthy: float = 0.0
    due: float | None = None
    due_in: float = 0.0
    hold: float | None = None
    hold_in: float = 0.0
    ending: Ending | None = None
    forced: bool = False
    why: str = ""
    leaving: str = ""
    code: str = ""
    record: RestartRecord = _NOTHING
    exits: tuple[ServiceExit, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        record = self.record
        return {
            "number": self.number,
            "state": self.state.value,
            "up": self.up,
            "removed": self.removed,
            "attempt": self.attempt,
            "used": self.used,
            "restarts": self.restarts,
            "detail": self.detail,
            "launched": self.launched,
            "ready_at": self.ready_at,
            "healthy": self.healthy,
            "due": self.due,
            "due_in": self.due_in,
            "hold": self.hold,
            "hold_in": self.hold_in,
            "ending": None if self.ending is None else self.ending.name,
            "forced": self.forced,
            "why": self.why,
            "leaving": self.leaving,
            "code": self.code,
            "record": {
                "exits": record.exits,
                "since": record.since,
                "waited": record.waited,
                "times": list(record.times),
            },
            "exits": [_exit_to_data(exit) for exit in self.exits],
        }

    @classmethod
    def from_data(cls, data: object) -> Self | None:
        """Read what ``to_data`` returned: what is missing or no such value is defaulted; None for no replica at all."""
        if not isinstance(data, Mapping):
            return None
        number = _whole(data, "number", -1)
        if not 0 <= number < REPLICAS_LIMIT:
            return None
        record = data.get("record")
        up = data.get("up") is True
        return cls(
            number=number,
            state=_member(ServiceState, data.get("state"), ServiceState.WAITING if up else ServiceState.STOPPED),
            up=up,
            removed=data.get("removed") is True,
            attempt=_whole(data, "attempt"),
            used=_whole(data, "used"),
            restarts=_whole(data, "restarts"),
            detail=_text(data, "detail"),
            launched=_moment(data, "launched"),
            ready_at=_moment(data, "ready_at"),
            healthy=_seconds(data, "healthy"),
            due=_moment(data, "due"),
            due_in=_seconds(data, "due_in"),
            hold=_moment(data, "hold"),
            hold_in=_seconds(data, "hold_in"),
            ending=Ending.__members__.get(_text(data, "ending")),
            forced=data.get("forced") is True,
            why=_text(data, "why"),
            leaving=_text(data, "leaving"),
            code=_text(data, "code"),
            record=_record_from_data(record if isinstance(record, Mapping) else {}),
            exits=_several(data.get("exits"), _exit_from_data)[-EXITS_LEFT:],
        )


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One service, as its keeper knew it last.

    ``wanted`` is whether it is to run; ``declared`` how many replicas its declaration had, ``count`` how many it was
    to have in the end. ``stop_signal`` and ``stop_timeout`` are for a process whose service nobody declares any more.
    """

    name: str
    wanted: bool = False
    declared: int = 1
    count: int = 1
    stop_signal: int = 15
    stop_timeout: float = 10.0
    epoch: float | None = None
    replicas: tuple[ReplicaRecord, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return {
            "name": self.name,
            "wanted": self.wanted,
            "declared": self.declared,
            "count": self.count,
            "stop_signal": self.stop_signal,
            "stop_timeout": self.stop_timeout,
            "epoch": self.epoch,
            "replicas": [replica.to_data() for replica in self.replicas],
        }

    @classmethod
    def from_data(cls, data: object) -> Self | None:
        """Read what ``to_data`` returned, as tolerant as ``ReplicaRecord.from_data``."""
        if not isinstance(data, Mapping) or not _text(data, "name"):
            return None
        replicas = {replica.number: replica for replica in _several(data.get("replicas"), ReplicaRecord.from_data)}
        declared = min(_whole(data, "declared", 1), REPLICAS_LIMIT)
        stop_signal = _whole(data, "stop_signal", 15)
        return cls(
            name=_text(data, "name"),
            wanted=data.get("wanted") is True,
            declared=declared,
            count=min(_whole(data, "count", declared), REPLICAS_LIMIT),
            stop_signal=stop_signal if 1 <= stop_signal <= 64 else 15,
            stop_timeout=min(_seconds(data, "stop_timeout", 10.0), 86400.0),
            epoch=_moment(data, "epoch"),
            replicas=tuple(replicas[number] for number in sorted(replicas)),
        )


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A group, and the moments of the restarts that count towards its failure."""

    name: str
    epoch: float | None = None
    restarts: tuple[float, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return {"name": self.name, "epoch": self.epoch, "restarts": list(self.restarts)}

    @classmethod
    def from_data(cls, data: object) -> Self | None:
        """Read what ``to_data`` returned, as tolerant as ``ReplicaRecord.from_data``."""
        if not isinstance(data, Mapping) or not _text(data, "name"):
            return None
        return cls(_text(data, "name"), _moment(data, "epoch"), _several(data.get("restarts"), _number))


@dataclass(frozen=True, slots=True)
class Handover:
    """All services of a keeper, in the order of their declaration, and their groups."""

    services: tuple[ServiceRecord, ...] = ()
    groups: tuple[GroupRecord, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return the document, for JSON."""
        return {
            "version": VERSION,
            "services": [service.to_data() for service in self.services],
            "groups": [group.to_data() for group in self.groups],
        }

    @classmethod
    def from_data(cls, data: object) -> Self:
        """Read what ``to_data`` returned; unknown keys are ignored, what is missing or makes no sense is left out."""
        if not isinstance(data, Mapping):
            return cls()
        services = {service.name: service for service in _several(data.get("services"), ServiceRecord.from_data)}
        return cls(
            services=tuple(services.values()),
            groups=_several(data.get("groups"), GroupRecord.from_data),
        )


def _exit_to_data(exit: ServiceExit) -> dict[str, Any]:
    return {**exit.to_data(), "detail": exit.detail[-DETAIL_LEFT:]}


def _exit_from_data(data: object) -> ServiceExit | None:
    if not isinstance(data, Mapping):
        return None
    exitcode = data.get("exitcode")
    out_of_memory = _text(data, "out_of_memory")
    return ServiceExit(
        reason=_member(ExitReason, data.get("reason"), ExitReason.UNKNOWN),
        pid=_whole(data, "pid") or None,
        attempt=_whole(data, "attempt"),
        started=_moment(data, "started") or 0.0,
        ended=_moment(data, "ended") or 0.0,
        exitcode=exitcode if type(exitcode) is int and abs(exitcode) < WHOLE_LIMIT else None,
        message=_text(data, "message"),
        detail=_text(data, "detail"),
        out_of_memory=out_of_memory if out_of_memory in ("yes", "likely") else "no",
    )


def _record_from_data(data: Mapping[str, Any]) -> RestartRecord:
    exits = _whole(data, "exits")
    since = _moment(data, "since") if exits else None
    if since is None:  # a record that counts has a beginning
        exits = 0
    return RestartRecord(exits, since, _seconds(data, "waited"), _several(data.get("times"), _number))


_T = TypeVar("_T")


def _several(data: object, read: Callable[[object], _T | None]) -> tuple[_T, ...]:
    """Return what ``read`` can make of the items of a list."""
    found = map(read, data) if isinstance(data, list) else ()
    return tuple(item for item in found if item is not None)


def _member(kind: type[_E], value: object, default: _E) -> _E:
    try:
        return kind(value)
    except ValueError:
        return default


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _whole(data: Mapping[str, Any], key: str, default: int = 0) -> int:
    value = data.get(key)
    return value if type(value) is int and 0 <= value < WHOLE_LIMIT else default


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < WHOLE_LIMIT:
        return None
    return float(value) if math.isfinite(value) else None


def _moment(data: Mapping[str, Any], key: str) -> float | None:
    return _number(data.get(key))


def _seconds(data: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    value = _number(data.get(key))
    return default if value is None or value < 0.0 else value


def cut_off(record: ServiceRecord) -> ServiceRecord:
    """Return ``record`` for a keeper that has ended all processes: those that nobody wanted to end start anew."""
    return replace(
        record,
        replicas=tuple(
            replace(replica, state=ServiceState.WAITING)
            if replica.state.has_process and not replica.ending
            else replica
            for replica in record.replicas
        ),
    )
