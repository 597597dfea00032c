"""Whether a process that has lost its keeper can ever be found by another one: not if its home is gone."""

from __future__ import annotations

import os

from .worker_config import WorkerConfig

__all__ = ["grace_of", "has_home"]

HOMELESS_SECONDS = 10.0
"""How long a home may be gone, as while somebody mounts it again."""


def has_home(config: WorkerConfig) -> bool:
    """Return False where the home is gone, or another one is in its place: it has another key, or none."""
    try:
        with open(os.path.join(config.arena_directory or "", "authkey"), "rb") as file:
            return file.read() == config.key
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # as without a free descriptor: nobody knows
        return True


def grace_of(config: WorkerConfig) -> float:
    """Return for how many seconds an idle process waits for another keeper."""
    grace = config.orphan_grace or 0.0
    return grace if has_home(config) else min(grace, HOMELESS_SECONDS)
