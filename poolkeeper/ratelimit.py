"""Rate limits: a token bucket that is told the time.

A bucket starts full with ``burst`` tokens and gains ``rate / per`` of them a second, up to ``burst``. Each start takes
one. In any window of T seconds at most ``burst + T * rate / per`` starts take place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .fields import Checked, optional, positive_duration, positive_number, whole_number

__all__ = ["RateLimit", "TokenBucket"]

# Waiting exactly as long as told must not end an instant too early because floats round. A token taken this much
# before it is whole leaves the bucket as much below zero, so the rate holds.
_ROUNDING = 1e-3


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a string")
    return value


@dataclass(frozen=True)
class RateLimit:
    """At most ``rate`` starts in ``per`` seconds, of which ``burst`` may come at once after a pause.

    Args:
        rate: how many starts.
        per: in how many seconds.
        burst: how many may follow each other without a pause.
        name: limits of the same name share one bucket; None: each use has its own.

    Raises:
        ValueError: for a rate or period that is not positive and finite, or a burst below 1.
    """

    rate: Checked[float] = Checked(positive_number)
    per: Checked[float] = Checked(positive_duration, 1.0)
    burst: Checked[int] = Checked(whole_number(1), 1)
    name: Checked[str | None] = Checked(optional(_text), None)

    def __post_init__(self) -> None:
        if not 0 < self.per_second < math.inf or not math.isfinite(1 / self.per_second):
            raise ValueError(f"RateLimit({self.rate!r}, per={self.per!r}): the rate per second is out of range")

    @property
    def per_second(self) -> float:
        """The starts per second in the long run."""
        return self.rate / self.per


class TokenBucket:
    """The tokens of one RateLimit. It reads no clock, starts no thread, and is not locked: one owner asks it.

    A clock that jumps backwards costs nothing but the refill of that moment.
    """

    __slots__ = ("_latest", "_limit", "_speed", "_tokens")

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._speed = limit.per_second
        self._tokens = float(limit.burst)
        self._latest: float | None = None

    def acquire(self, now: float) -> float:
        """Take a token and return 0.0; or take none, and return the seconds after which to ask again."""
        delay = self.delay(now)
        if delay == 0.0:
            self._tokens -= 1.0
        return delay

    def delay(self, now: float) -> float:
        """Return the seconds until a token is there, 0.0 if one is there at ``now``, without taking it."""
        if self._latest is not None and now > self._latest:
            self._tokens = min(float(self._limit.burst), self._tokens + (now - self._latest) * self._speed)
        self._latest = now
        missing = 1.0 - self._tokens
        return 0.0 if missing <= _ROUNDING else missing / self._speed
