"""What a keeper is made with."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .limits import Limits

__all__ = ["Keeping", "Settings"]


class Keeping(NamedTuple):
    """How durable a keeper is, as ``Keeper`` explains; ``orphan_grace`` and ``reconnect_grace`` are in seconds."""

    durability: Literal["process", "power"] = "process"
    keep_runs: int = 10
    orphan_grace: float = 300.0
    reconnect_grace: float = 60.0


class Settings(NamedTuple):
    """Validated arguments of ``Keeper``.

    ``environment`` is for the fork server and its workers. ``queue_bytes`` is how much queued payloads may weigh in
    memory; the rest waits on disk. ``max_memory`` is in bytes, ``max_age`` in seconds. ``max_starting`` is how many
    services may be starting at any time. ``resume``, ``durability`` and ``keep_runs`` are for the journal,
    ``orphan_grace`` and ``reconnect_grace`` are in seconds; ``Keeper`` explains them.
    """

    max_workers: int
    max_tasks: int | None
    start_method: str
    preload: tuple[str, ...]
    environment: dict[str, str]
    initializer: bytes | None
    max_memory: int | None
    max_age: float | None
    inherit_output: bool
    queue_bytes: int
    limits: Limits
    max_starting: int
    resume: Literal["interrupted", "failed", "never"] = "interrupted"
    durability: Literal["process", "power"] = "process"
    keep_runs: int = 10
    orphan_grace: float = 300.0
    reconnect_grace: float = 60.0
