"""A keeper's state at one moment, as the immutable words of ``model``."""

from __future__ import annotations

import os
import time
from typing import Any

from .model import KeeperStatus, WorkerStatus
from .process_identity import resident_bytes
from .replica import Replica
from .service_model import ServiceExit, ServiceState, ServiceStatus

__all__ = ["keeper_as_data", "keeper_in_short", "keeper_status", "replica_status"]


def keeper_status(name: str | None, run_id: str, runtime: Any) -> KeeperStatus:
    """Return what ``runtime`` is doing now."""
    queued, running, rows = runtime.snapshot()
    workers = tuple(
        WorkerStatus(
            id=str(row.id),
            pid=row.pid,
            state=row.state,
            task=None if row.task is None else row.task.call.name,
            started=row.started,
            rss=resident_bytes(row.pid),
        )
        for row in rows
    )
    services = tuple(runtime.service_rows())
    uptime = time.monotonic() - runtime.born
    return KeeperStatus(name, run_id, os.getpid(), uptime, queued, running, workers, services)


def replica_status(replica: Replica, now: float) -> ServiceStatus:
    """Return what one replica is doing at ``now``, in seconds of the monotonic clock."""
    ready_at = replica.ready_at
    return ServiceStatus(
        name=replica.name,
        state=replica.state,
        pid=replica.pid,
        restarts=replica.restarts,
        last_exit=replica.exits[-1].exitcode if replica.exits else None,
        uptime=now - ready_at if ready_at is not None and replica.state is ServiceState.RUNNING else None,
        service=replica.service.name,
        replica=replica.number,
        attempt=replica.attempt,
        detail=replica.detail,
        exits=tuple(replica.exits),
        wanted=replica.up,
    )


EXITS_SHOWN = 5


def _heading(runtime: Any, queued: int, running: int) -> dict[str, Any]:
    return {
        "name": runtime.name,
        "run_id": runtime.run_id,
        "pid": os.getpid(),
        "started": runtime.started,
        "queued": queued,
        "running": running,
    }


def keeper_as_data(runtime: Any) -> dict[str, Any]:
    """Return what ``runtime`` is doing, as plain data; looks at no process, so that the keeper's thread may call it."""
    queued, running, rows = runtime.snapshot()
    return {
        **_heading(runtime, queued, running),
        "uptime": time.monotonic() - runtime.born,
        "workers": [
            {
                "id": str(row.id),
                "pid": row.pid,
                "state": row.state,
                "task": None if row.task is None else row.task.call.name,
                "uptime": time.monotonic() - row.born,
            }
            for row in rows
        ],
        "services": [_service_as_data(row) for row in runtime.service_rows()],
    }


def keeper_in_short(runtime: Any) -> dict[str, Any]:
    """Return what a display shows of ``runtime`` a few times a second, as plain data; looks at no process either."""
    queued, running, rows = runtime.snapshot()
    return {
        **_heading(runtime, queued, running),
        "workers": [row.pid for row in rows],
        "busy": sum(row.task is not None for row in rows),
        "services": [
            {
                "name": row.name,
                "state": row.state.value,
                "pid": row.pid,
                "uptime": row.uptime,
                "restarts": row.restarts,
                "detail": row.detail,
            }
            for row in runtime.service_rows()
        ],
    }


def _service_as_data(row: ServiceStatus) -> dict[str, Any]:
    return {
        "name": row.name,
        "service": row.service,
        "replica": row.replica,
        "state": row.state.value,
        "wanted": row.wanted,
        "pid": row.pid,
        "attempt": row.attempt,
        "restarts": row.restarts,
        "last_exit": row.last_exit,
        "uptime": row.uptime,
        "detail": row.detail,
        "exits": [_exit_as_data(exit) for exit in row.exits[-EXITS_SHOWN:]],
    }


def _exit_as_data(exit: ServiceExit) -> dict[str, Any]:
    return {**exit.to_data(), "failure": exit.failure, "message": exit.describe()}
