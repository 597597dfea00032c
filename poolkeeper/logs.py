"""Logs: what poolkeeper says of itself through loguru.

As a library poolkeeper is silent until the application says ``logger.enable("poolkeeper")``. Loguru is slow to import
and nobody can have enabled what nobody has imported, so ``emit`` does nothing before somebody else imports it, and
disables poolkeeper at its first message unless the application has decided by then.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loguru import Logger

__all__ = ["configure", "emit", "is_wanted", "speak"]

_FORMAT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}"


def emit(level: str, message: str, /, **facts: Any) -> None:
    """Log ``message``, with ``facts`` bound to it, as the module that calls; a sink that raises ends nobody's thread.

    Args:
        level: the name of a loguru level.
        message: a whole sentence; braces in it are just that.
        facts: what a structured sink should have in fields of their own.
    """
    logger = _logger()
    if logger is not None:
        with contextlib.suppress(Exception):
            logger.opt(depth=1).bind(**facts).log(level, "{}", message)


def is_wanted() -> bool:
    """Whether anybody can hear what is logged."""
    return "loguru" in sys.modules


def speak(level: str, message: str, facts: dict[str, Any], caller: tuple[str, str, int], seconds: float) -> None:
    """Log as ``emit`` does for another thread; ``caller`` is a module, a function and a line, ``seconds`` the time."""
    logger = _logger()
    if logger is None:
        return

    def as_if_there(record: Any) -> None:
        record["name"], record["function"], record["line"] = caller
        moment = record["time"]  # of a class of loguru's own, which knows its formats
        record["time"] = type(moment).fromtimestamp(seconds, moment.tzinfo)

    with contextlib.suppress(Exception):
        logger.patch(as_if_there).bind(**facts).log(level, "{}", message)


def _logger() -> Logger | None:
    loguru = sys.modules.get("loguru")
    if loguru is None:
        return None
    logger: Logger = loguru.logger
    if not _application_has_decided(logger):
        logger.disable("poolkeeper")
    return logger


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
