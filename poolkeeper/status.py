"""A keeper's state at one moment, as the immutable words of ``model``."""

from __future__ import annotations

import os
import time
from typing import Any

from .model import KeeperStatus, WorkerStatus
from .process_identity import resident_bytes

__all__ = ["keeper_status"]


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
    return KeeperStatus(name, run_id, os.getpid(), time.time() - runtime.started, queued, running, workers, services)
