"""Logs: what poolkeeper says of itself through loguru, and the mirror of what workers write.

As a library poolkeeper is silent until the application says ``logger.enable("poolkeeper")``. Loguru is slow to import
and nobody can have enabled what nobody has imported, so ``emit`` does nothing before somebody else imports it, and
disables poolkeeper at its first message unless the application has decided by then.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

if TYPE_CHECKING:
    from loguru import Logger

__all__ = ["LogMirror", "configure", "emit"]

_FORMAT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}"


def emit(level: str, message: str, /, **facts: Any) -> None:
    """Log ``message``, with ``facts`` bound to it, as the module that calls.

    Args:
        level: the name of a loguru level.
        message: a whole sentence; braces in it are just that.
        facts: what a structured sink should have in fields of their own.
    """
    loguru = sys.modules.get("loguru")
    if loguru is None:
        return
    logger: Logger = loguru.logger
    if not _application_has_decided(logger):
        logger.disable("poolkeeper")
    logger.opt(depth=1).bind(**facts).log(level, "{}", message)


def _application_has_decided(logger: Logger) -> bool:
    """Whether somebody has enabled or disabled poolkeeper; loguru has no public way to ask."""
    decisions: list[tuple[str, bool]] = getattr(getattr(logger, "_core", None), "activation_list", [])
    return any(name == "poolkeeper." for name, _ in decisions)


def configure(write: Callable[[str], None], *, level: str = "INFO", colour: bool = False) -> None:
    """Set loguru up for a program that is poolkeeper itself: one sink, poolkeeper enabled.

    Args:
        write: is given each formatted message, newline included, under loguru's lock.
        level: the lowest level that is written.
        colour: whether to use ANSI colours.
    """
    from loguru import logger

    logger.remove()
    logger.add(write, level=level, format=_FORMAT, colorize=colour, backtrace=False, diagnose=False)
    logger.enable("poolkeeper")


class LogMirror:
    """Copies what is appended to the log files in a folder, whole lines, marked with the file's stem.

    Files are followed by descriptor, so that the last lines are had even from a folder that has been removed.

    Args:
        folder: where the files ``*.log`` are, or will be.
        write: is given one line, without its newline.
        interval: seconds between two looks.
    """

    def __init__(self, folder: Path, write: Callable[[str], object], *, interval: float = 0.2) -> None:
        self._folder = folder
        self._write = write
        self._interval = interval
        self._files: dict[str, BinaryIO] = {}
        self._partial: dict[str, bytes] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="poolkeeper-log-mirror", daemon=True)

    def __enter__(self) -> Self:
        self._skip_what_is_there()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.copy()
        for name, rest in self._partial.items():
            if rest:
                self._say(name, rest)
        for file in self._files.values():
            file.close()

    def copy(self) -> None:
        """Write the lines that have been appended since the last look."""
        self._open_new_files()
        for name, file in self._files.items():
            *lines, self._partial[name] = (self._partial[name] + file.read()).split(b"\n")
            for line in lines:
                self._say(name, line)

    def _follow(self) -> None:
        with suppress(BrokenPipeError):  # nobody reads any more
            while not self._stopping.wait(self._interval):
                self.copy()

    def _skip_what_is_there(self) -> None:
        self._open_new_files()
        for file in self._files.values():
            file.seek(0, 2)

    def _open_new_files(self) -> None:
        for path in sorted(self._folder.glob("*.log")):
            if path.stem not in self._files:
                self._files[path.stem] = path.open("rb")
                self._partial[path.stem] = b""

    def _say(self, name: str, line: bytes) -> None:
        self._write(f"{name} | {line.decode(errors='replace')}")
