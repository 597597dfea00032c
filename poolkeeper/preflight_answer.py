"""The new code's side of a pre-flight: whether this process is one, and how it says that the program can run.

``PREFLIGHT`` in the environment names the descriptor for the answer. A program that does not know of it, as an older
poolkeeper, gives no answer, and is not trusted to take over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from .handover import VERSION

__all__ = ["PREFLIGHT", "answer", "is_preflight", "read_answer"]

PREFLIGHT = "POOLKEEPER_PREFLIGHT"


def is_preflight() -> bool:
    """Whether this process is only to find out if the program can be loaded."""
    return PREFLIGHT in os.environ


def answer(**facts: str) -> None:
    """Say that all is well, and what was found."""
    with open(int(os.environ[PREFLIGHT]), "w", encoding="utf-8", closefd=False) as file:
        json.dump({"handover": VERSION, **facts}, file)


def read_answer(content: bytes) -> Mapping[str, Any] | None:
    """Return what was found, None if nobody has said that all is well."""
    try:
        data = json.loads(content)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
