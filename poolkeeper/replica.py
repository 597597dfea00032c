"""One process slot of a service: its state, its history, and why the keeper ends its process. Pure."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Protocol

from .policy import RestartRecord
from .service_model import ExitReason, ServiceExit, ServiceState
from .service_spec import ServiceSpec

__all__ = ["Ending", "Force", "Pulse", "Replica", "Service"]

EXITS_KEPT = 50
"""How many exits of one replica are remembered."""


class Ending(Enum):
    """Why the keeper ends a process; the value is the reason that its exit gets."""

    STOP = ExitReason.STOPPED
    RESTART = ExitReason.RESTARTED
    GROUP = ExitReason.GROUP
    RECYCLE = ExitReason.RECYCLED
    UPGRADE = ExitReason.UPGRADED
    WATCHDOG = ExitReason.WATCHDOG
    START_TIMEOUT = ExitReason.START_TIMEOUT
    MEMORY = ExitReason.MEMORY

    @property
    def again(self) -> bool:
        """Whether the next process starts without a word of the restart policy."""
        return self in _AGAIN


_AGAIN = frozenset({Ending.RESTART, Ending.RECYCLE, Ending.UPGRADE})


class Pulse(Protocol):
    """The memory that a service's process shares with the keeper."""

    def beat(self) -> float:
        """Return when it last gave a heartbeat, in seconds of the monotonic clock; 0.0: never."""


class Force(Enum):
    """How far the keeper has gone to end a process."""

    ASKED = 1
    DUMPED = 2
    """Its stacks are being written down, for it does not answer."""
    KILLED = 3


class Replica:
    """What the supervisor knows of one replica.

    ``up`` is whether it shall run, ``resumes`` whether it shall under the next keeper, though not under this one, which
    is about to leave. ``attempt`` counts its processes; what is heard of an earlier one is ignored. ``detail`` says why
    it is in its state, or what it waits for, or what the service itself has to say. ``why`` is why its process is to
    end, "" as long as it is not; ``code`` is the fingerprint of what its process was made from; ``healthy`` is for how
    many seconds its last process was ready. All moments are in seconds of the monotonic clock: ``watched_from`` is when
    it was launched or got ready, or when the keeper last woke from a sleep; ``hold`` is when its group allows it to
    start again, None unless it is restarted along with others. ``presumed`` is whether its process may have said that
    it is ready when nobody was there to hear it, ``mute`` whether nothing that it says will be heard, ``listened``
    whether one that has not called has had a moment more before it is taken for silent.

    Where processes may overlap, a ``successor`` of the same number, whose ``incumbent`` this one is, may be about to
    take its place; ``used`` is the last attempt that it had.
    """

    __slots__ = (
        "attempt", "code", "detail", "due", "ending", "exits", "force", "force_at", "healthy", "hold", "id",
        "incumbent", "launched", "listened", "mute", "number", "pid", "presumed", "pulse", "ready_at", "record",
        "removed", "restarts", "resumes", "service", "state", "successor", "told_ready", "up", "used", "waiting_since",
        "watched_from", "why",
    )  # fmt: skip

    def __init__(self, id: int, service: Service, number: int) -> None:
        self.id = id
        self.service = service
        self.number = number
        self.state = ServiceState.STOPPED
        self.up = False
        self.resumes = False
        self.removed = False
        self.attempt = 0
        self.used = 0
        self.code = ""
        self.successor: Replica | None = None
        self.incumbent: Replica | None = None
        self.restarts = 0
        self.pid: int | None = None
        self.pulse: Pulse | None = None
        self.record = RestartRecord()
        self.exits: deque[ServiceExit] = deque(maxlen=EXITS_KEPT)
        self.detail = ""
        self.waiting_since = 0.0
        self.launched = 0.0
        self.watched_from = 0.0
        self.ready_at: float | None = None
        self.healthy = 0.0
        self.told_ready = False
        self.presumed = self.mute = self.listened = False
        self.due: float | None = None
        self.hold: float | None = None
        self.why = ""
        self.ending: Ending | None = None
        self.force = Force.ASKED
        self.force_at: float | None = None

    @property
    def name(self) -> str:
        """The service's name, and the number where there are several replicas."""
        service = self.service
        return service.name if len(service.replicas) == 1 and not self.number else f"{service.name}:{self.number}"

    @property
    def spec(self) -> ServiceSpec:
        """What the service is declared to be."""
        return self.service.spec

    @property
    def satisfied(self) -> bool:
        """Whether what is after this one may start."""
        return self.state is ServiceState.RUNNING or self.state is ServiceState.COMPLETED

    def __repr__(self) -> str:
        return f"<{self.name} {self.state.value}>"


class Service:
    """A declared service and its replicas, by number.

    ``wanted`` is whether somebody has started it and nobody has stopped it since, ``resumes`` as for ``Replica``.
    ``ending`` is whether its fleet ends, so that it is not to be started. ``dependents`` are the services that are
    after it. ``code`` is the fingerprint of what its processes are made from, "" where there is none. ``extras`` are
    successors that are not ready yet, and those that have been succeeded, to their end.
    """

    def __init__(self, spec: ServiceSpec, code: str = "") -> None:
        self.spec = spec
        self.code = code
        self.name = spec.name
        self.wanted = False
        self.resumes = False
        self.ending = False
        self.replicas: list[Replica] = []
        self.extras: list[Replica] = []
        self.after: list[Service] = []
        self.dependents: list[Service] = []

    @property
    def satisfied(self) -> bool:
        """Whether what is after this service may start; replicas that are scaled away do not count."""
        staying = [replica for replica in self.replicas if not replica.removed]
        return bool(staying) and all(replica.satisfied for replica in staying)

    @property
    def state(self) -> ServiceState:
        """The state that says most of all its replicas' states."""
        states = {replica.state for replica in self.replicas}
        return next((state for state in _TELLING if state in states), ServiceState.STOPPED)


# What is in trouble or in change is told before what is well.
_TELLING = (
    ServiceState.FAILED,
    ServiceState.BACKOFF,
    ServiceState.STARTING,
    ServiceState.WAITING,
    ServiceState.STOPPING,
    ServiceState.RUNNING,
    ServiceState.COMPLETED,
)
