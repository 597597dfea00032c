"""How often a process may replace itself: a loop of re-execs must not go on for ever, nor use up the machine. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .handover import PastReexec

__all__ = ["delay_before", "remembered"]

AUTOMATIC = 5
"""Re-execs within ``WINDOW`` seconds that nobody has asked for; the next one is refused."""
WINDOW = 300.0
FLOOR = 0.5
"""Seconds between two re-execs, at least, whoever asks."""
REMEMBERED = 50


def delay_before(history: Sequence[PastReexec], now: float, *, automatic: bool) -> float | None:
    """Return the seconds to wait before the next re-exec; None: there are too many, and it is refused.

    Args:
        history: the re-execs that there have been, in seconds of the clock that ``now`` is read from.
        now: of a monotonic clock that does not begin anew with a process.
        automatic: whether nobody has asked for it.
    """
    past = [each for each in history if each.at <= now]  # what lies ahead comes from another clock
    if automatic and sum(each.automatic and now - each.at < WINDOW for each in past) >= AUTOMATIC:
        return None
    latest = max((each.at for each in past), default=None)
    return 0.0 if latest is None else max(0.0, latest + FLOOR - now)


def remembered(history: Sequence[PastReexec], now: float, *, automatic: bool) -> tuple[PastReexec, ...]:
    """Return the history with the re-exec that takes place ``now``, without what does not matter any more."""
    past = [each for each in history if now - WINDOW < each.at <= now]
    return (*past, PastReexec(now, automatic))[-REMEMBERED:]
