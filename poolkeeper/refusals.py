"""How often to speak of callers that are refused: of each the first time, then ever more rarely. Pure."""

from __future__ import annotations

__all__ = ["Refusals"]

CALLERS = 256
"""How many are told apart; of those that called longest ago the count begins again."""


class Refusals:
    """Counts them by process."""

    def __init__(self) -> None:
        self._counts: dict[int | None, int] = {}

    def note(self, pid: int | None) -> int | None:
        """Return how often this process has been refused where that is worth a line, at 1, 10, 100 and so on."""
        count = self._counts.pop(pid, 0) + 1
        if len(self._counts) >= CALLERS:
            del self._counts[next(iter(self._counts))]
        self._counts[pid] = count
        return count if str(count).strip("0") == "1" else None
