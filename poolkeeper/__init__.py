"""poolkeeper: a worker pool that nothing kills.

Names are loaded when they are first asked for, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Batch
    from .cancellation import CancellationToken
    from .errors import (
        AlreadyRunning,
        CheckpointUnreadable,
        CommandFailed,
        HomeUnusable,
        NotReexecable,
        PayloadError,
        PoolkeeperError,
        ProtocolError,
        ReexecRefused,
        RemoteError,
        RemoteTraceback,
        RestartRefused,
        ServiceFailed,
        TaskExited,
        TaskTimeout,
        UnsupportedPlatform,
    )
    from .fleet import Fleet
    from .futures import TaskFuture
    from .instance import InstanceLock, LockHolder
    from .losses import DeathReport, TaskQuarantined, WorkerLost, WorkerStartFailed
    from .model import BatchResult, RunResult, RunStatistics, TaskResult, TaskStatus
    from .policy import ExecutionPolicy, RestartPolicy, RetryPolicy, WorkerPolicy, stop_after_burst
    from .pool import Keeper
    from .program import command
    from .ratelimit import RateLimit
    from .recovered import Recovered
    from .service_model import ExitReason, ServiceEvent, ServiceExit, ServiceState
    from .service_spec import ServiceGroup
    from .services import ServiceHandle
    from .task_context import Context, context

_MODULES = {
    "batch": ("Batch",),
    "cancellation": ("CancellationToken",),
    "task_context": ("Context", "context"),
    "errors": (
        "AlreadyRunning",
        "CheckpointUnreadable",
        "CommandFailed",
        "HomeUnusable",
        "NotReexecable",
        "PayloadError",
        "PoolkeeperError",
        "ProtocolError",
        "ReexecRefused",
        "RestartRefused",
        "RemoteError",
        "RemoteTraceback",
        "ServiceFailed",
        "TaskExited",
        "TaskTimeout",
        "UnsupportedPlatform",
    ),
    "fleet": ("Fleet",),
    "futures": ("TaskFuture",),
    "instance": ("InstanceLock", "LockHolder"),
    "losses": ("DeathReport", "TaskQuarantined", "WorkerLost", "WorkerStartFailed"),
    "model": ("BatchResult", "RunResult", "RunStatistics", "TaskResult", "TaskStatus"),
    "policy": ("ExecutionPolicy", "RestartPolicy", "RetryPolicy", "WorkerPolicy", "stop_after_burst"),
    "pool": ("Keeper",),
    "program": ("command",),
    "service_model": ("ExitReason", "ServiceEvent", "ServiceExit", "ServiceState"),
    "service_spec": ("ServiceGroup",),
    "services": ("ServiceHandle",),
    "ratelimit": ("RateLimit",),
    "recovered": ("Recovered",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "AlreadyRunning",
    "Batch",
    "BatchResult",
    "CancellationToken",
    "CheckpointUnreadable",
    "CommandFailed",
    "Context",
    "DeathReport",
    "ExecutionPolicy",
    "ExitReason",
    "Fleet",
    "HomeUnusable",
    "InstanceLock",
    "Keeper",
    "LockHolder",
    "NotReexecable",
    "PayloadError",
    "PoolkeeperError",
    "ProtocolError",
    "RateLimit",
    "Recovered",
    "ReexecRefused",
    "RemoteError",
    "RemoteTraceback",
    "RestartPolicy",
    "RestartRefused",
    "RetryPolicy",
    "RunResult",
    "RunStatistics",
    "ServiceEvent",
    "ServiceExit",
    "ServiceFailed",
    "ServiceGroup",
    "ServiceHandle",
    "ServiceState",
    "TaskExited",
    "TaskFuture",
    "TaskQuarantined",
    "TaskResult",
    "TaskStatus",
    "TaskTimeout",
    "UnsupportedPlatform",
    "WorkerLost",
    "WorkerPolicy",
    "WorkerStartFailed",
    "command",
    "context",
    "stop_after_burst",
]


def __getattr__(name: str) -> Any:
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
