"""What every worker is started with; apart from what a worker does, which keepers need not load."""

from __future__ import annotations

from typing import NamedTuple

from .limits import Limits

__all__ = ["WorkerConfig"]


class WorkerConfig(NamedTuple):
    """What every worker of a keeper is started with.

    ``socket`` is the keeper's address and ``key`` the secret to prove; ``logs`` is the directory for the interpreter's
    last words, and for all output unless ``inherit_output``. ``max_memory`` is in bytes, ``max_age`` in seconds.
    ``checkpoints`` is the directory for checkpoints; ``incarnation`` tells this keeper from earlier ones of its name.
    ``orphan_grace`` is how many seconds an idle process waits for another keeper when this one is lost; None: not at
    all.
    """

    socket: str
    key: bytes
    logs: str
    inherit_output: bool = True
    initializer: bytes | None = None
    max_memory: int | None = None
    max_age: float | None = None
    arena_directory: str | None = None
    limits: Limits = Limits()
    checkpoints: str = ""
    incarnation: str = ""
    orphan_grace: float | None = None
