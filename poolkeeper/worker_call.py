"""A callable in a worker, as the keeper has defined it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import task_context
from .errors import PayloadError
from .payload import loads
from .task_context import wants_context

__all__ = ["Call"]


class Call:
    """One callable; it is unpickled when its first task runs, so that blame falls right.

    ``expected`` is how many seconds its next task will take, going by the last ones.
    """

    def __init__(self, name: str, blob: bytes) -> None:
        self.name = name
        self.blob = blob
        self.module = ""
        self.function: Callable[..., Any] | None = None
        self.expected = 1.0

    def load(self) -> Callable[..., Any]:
        """Return the callable itself; raises PayloadError where it cannot be had here."""
        if self.function is None:
            try:
                function = loads(self.blob)
            except PayloadError as error:
                raise PayloadError(
                    f"the callable {self.name} {error}; a worker must be able to import the module that defines it"
                ) from error.__cause__
            self.module = getattr(function, "__module__", None) or ""
            if wants_context(function):
                function = functools.partial(function, task_context.context())
            self.function = function
        return self.function
