"""What poolkeeper reports of services, as immutable values: states, exits, snapshots and events."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from .errors import signal_name

__all__ = ["ExitReason", "ServiceEvent", "ServiceExit", "ServiceState", "ServiceStatus"]


class ServiceState(Enum):
    """Where a service is in its life."""

    STOPPED = "stopped"
    WAITING = "waiting"
    """It is to start, and waits for what it is after, or for its turn."""
    STARTING = "starting"
    """Its process exists and is not ready yet."""
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    """It ended and waits for its restart policy to start it again."""
    COMPLETED = "completed"
    """It ended well and its restart policy leaves it at that."""
    FAILED = "failed"
    """Its restart policy is exhausted."""

    @property
    def at_rest(self) -> bool:
        """Whether nothing happens any more unless somebody starts it."""
        return self in _AT_REST

    @property
    def has_process(self) -> bool:
        """Whether a process belongs to it in this state."""
        return self in _HAS_PROCESS


_AT_REST = frozenset({ServiceState.STOPPED, ServiceState.COMPLETED, ServiceState.FAILED})
_HAS_PROCESS = frozenset({ServiceState.STARTING, ServiceState.RUNNING, ServiceState.STOPPING})


class ExitReason(Enum):
    """Why a service's process ended."""

    RETURNED = "returned"
    """The callable returned, or the program exited with status 0."""
    RAISED = "raised"
    EXIT_STATUS = "exit status"
    SIGNAL = "signal"
    UNKNOWN = "unknown"
    """It disappeared, and nobody could say how."""
    NOT_STARTED = "not started"
    """Its process could not be made."""
    BEFORE_READY = "ended before it was ready"
    START_TIMEOUT = "start timeout"
    WATCHDOG = "watchdog"
    MEMORY = "memory limit"
    STOPPED = "stopped"
    RESTARTED = "restarted"
    GROUP = "group restart"
    RECYCLED = "recycled"
    """Replaced for its age, or because its memory exceeded ``max_memory``."""
    UPGRADED = "upgraded"
    """Replaced because its code had changed."""

    @property
    def is_failure(self) -> bool:
        """Whether a restart policy counts this as a failure."""
        return self not in _NO_FAILURES


_NO_FAILURES = frozenset(
    {
        ExitReason.RETURNED,
        ExitReason.STOPPED,
        ExitReason.RESTARTED,
        ExitReason.GROUP,
        ExitReason.RECYCLED,
        ExitReason.UPGRADED,
    }
)


@dataclass(frozen=True, slots=True)
class ServiceExit:
    """One end of a service's process.

    ``started`` and ``ended`` are in seconds since the epoch, ``exitcode`` as ``Process.exitcode`` (None: unknown).
    ``message`` says in a sentence what happened; ``detail`` holds the traceback of what it raised, or the stacks of all
    its threads if it had to be killed because it hung. ``out_of_memory`` is "yes", "likely" or "no".
    """

    reason: ExitReason
    pid: int | None
    attempt: int
    started: float
    ended: float
    exitcode: int | None = None
    message: str = ""
    detail: str = ""
    out_of_memory: str = "no"

    @property
    def failure(self) -> bool:
        """Whether it counts as a failure."""
        return self.reason.is_failure

    @property
    def seconds(self) -> float:
        """How long the process lived."""
        return max(0.0, self.ended - self.started)

    def to_data(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return {**asdict(self), "reason": self.reason.value}

    def describe(self) -> str:
        """Return a short text: why it ended, and how."""
        code = self.exitcode
        how = "" if code is None else f"signal {-code} ({signal_name(-code)})" if code < 0 else f"status {code}"
        text = self.message or self.reason.value
        if how and self.reason not in (ExitReason.RETURNED, ExitReason.SIGNAL, ExitReason.EXIT_STATUS):
            text = f"{text} ({how})"
        if self.out_of_memory != "no":
            text += f", out of memory: {self.out_of_memory}"
        return text


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service at the moment of a snapshot, or one of its replicas where there are several.

    ``uptime`` is in seconds since its process has been ready, ``last_exit`` as ``Process.exitcode``. ``detail`` says
    in words what it waits for, or why it ended. ``restarts`` counts what nobody asked for. ``wanted`` is whether it is
    to run, which one that has failed, completed or been stopped is not.
    """

    name: str
    state: ServiceState
    pid: int | None = None
    restarts: int = 0
    last_exit: int | None = None
    uptime: float | None = None
    service: str = ""
    replica: int = 0
    attempt: int = 0
    detail: str = ""
    exits: tuple[ServiceExit, ...] = ()
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class ServiceEvent:
    """A change of state, with its reason.

    ``kind`` is ``"service."`` and the new state, such as ``"service.failed"``; or ``"group.failed"``,
    ``"fleet.failed"``, ``"upgrade.completed"``, ``"upgrade.failed"``. ``time`` is in seconds since the epoch.
    """

    time: float
    kind: str
    name: str
    state: str = ""
    previous: str = ""
    reason: str = ""
    pid: int | None = None
    attempt: int = 0
    exitcode: int | None = None
