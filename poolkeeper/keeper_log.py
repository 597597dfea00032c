"""The keeper's own log file."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .loglines import prefix, stamped
from .reporting import flush
from .rotation import RotatingFile

__all__ = ["KeeperLog"]


class KeeperLog:
    """Writes what poolkeeper says into ``keeper.log`` in ``folder``, rotated, from ``with`` on to its end."""

    def __init__(self, folder: Path) -> None:
        self._file = RotatingFile(str(folder / "keeper.log"))
        self._sink = -1

    def __enter__(self) -> Self:
        from loguru import logger

        self._sink = logger.add(self._write, level="DEBUG", format="{level: <7} {message}", colorize=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from loguru import logger

        flush()
        logger.remove(self._sink)
        self._file.close()

    def _write(self, message: Any) -> None:
        block = str(message).encode(errors="replace")
        self._file.write(stamped(block, prefix(message.record["time"], "keeper", os.getpid(), 1)))
