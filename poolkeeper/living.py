"""The keepers of this process: all of them end with it, and all are handed over when it is replaced."""

from __future__ import annotations

import weakref
from typing import Any

__all__ = ["KEEPERS"]

KEEPERS: weakref.WeakSet[Any] = weakref.WeakSet()
"""They join when they are made, and leave when nobody holds them any more."""
