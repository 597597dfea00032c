"""What the supervisor asks the runtime to do; ``ServiceCommand`` is all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .replica import Replica
from .service_model import ServiceEvent

__all__ = ["Announce", "Ask", "Collapse", "Consult", "Destroy", "Dump", "Launch", "Sample", "ServiceCommand"]


@dataclass(slots=True)
class Launch:
    """Make a process for this replica; what is heard of it must name the ``attempt``."""

    replica: Replica
    attempt: int


@dataclass(slots=True)
class Ask:
    """Send the replica's process its stop signal; as soon as it exists, if it does not exist yet."""

    replica: Replica


@dataclass(slots=True)
class Dump:
    """Have the replica's process write down the stacks of its threads; wake it first if it is stopped."""

    replica: Replica


@dataclass(slots=True)
class Destroy:
    """Kill the replica's process; all its descendants go with it."""

    replica: Replica


@dataclass(slots=True)
class Consult:
    """Ask the replica's restart policy, away from the keeper's thread, and come back with ``decided``.

    ``started`` and ``ended`` are in seconds of the monotonic clock, ``healthy`` is for how many seconds it was ready;
    ``error`` is None after a clean end.
    """

    replica: Replica
    attempt: int
    started: float
    ended: float
    error: str | None
    healthy: float


@dataclass(slots=True)
class Sample:
    """Measure the memory of these replicas, and come back with ``sampled``."""

    replicas: Sequence[Replica]


@dataclass(slots=True)
class Announce:
    """Tell whoever listens."""

    event: ServiceEvent


@dataclass(slots=True)
class Collapse:
    """End the whole fleet: what must not give up has given up."""

    reason: str


ServiceCommand = Launch | Ask | Dump | Destroy | Consult | Sample | Announce | Collapse
