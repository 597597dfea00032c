"""When to call again where nobody has answered: exponential backoff with full jitter. Pure.

Full jitter draws each delay between nothing and the bound, so that many who have lost the same peer do not come back in
one crowd (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

__all__ = ["Backoff"]


class Backoff:
    """The delays between attempts of one caller.

    Args:
        first: seconds that the first delay has at most.
        longest: seconds that any delay has at most.
    """

    __slots__ = ("_bound", "_first", "_longest")

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._bound = first

    def next(self, draw: float) -> float:
        """Return the seconds until the next attempt; ``draw`` is a random number from 0 to 1."""
        bound = self._bound
        self._bound = min(2 * bound, self._longest)
        return draw * bound

    def reset(self) -> None:
        """An attempt has succeeded."""
        self._bound = self._first
