"""What every process of a keeper is started with."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import NamedTuple

from .limits import Limits

__all__ = ["WorkerConfig", "cloudpickle_version"]


class WorkerConfig(NamedTuple):
    """What every worker of a keeper is started with.

    ``socket`` is the keeper's address and ``key`` the secret to prove; ``logs`` is the directory for the interpreter's
    last words, and for all output unless ``inherit_output``. ``max_memory`` is in bytes, ``max_age`` in seconds.
    ``checkpoints`` is the directory for checkpoints; ``incarnation`` tells this keeper from earlier ones of its name.
    ``orphan_grace`` is how many seconds an idle process waits for another keeper when this one is lost; None: not at
    all. ``cloudpickle`` is the version that there was when the keeper began.
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
    cloudpickle: str = ""


def cloudpickle_version() -> str:
    """Return the version of cloudpickle that this process has, or would load; "" where that cannot be told."""
    loaded = sys.modules.get("cloudpickle")
    if loaded is not None:
        return str(getattr(loaded, "__version__", ""))
    spec = importlib.util.find_spec("cloudpickle")
    try:
        with open(str(spec and spec.origin), encoding="utf-8") as file:  # to import it takes 30 ms
            found = re.search(r"""^__version__ = ["'](.+)["']""", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""
