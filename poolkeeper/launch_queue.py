"""The services that are to start: by priority, then by how long they wait, and not before what they are after. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from .replica import Replica

__all__ = ["LaunchQueue"]

FIRST_PAUSE = 0.05
"""Seconds without further starts after the system has refused a process; doubled each time, up to seven times."""

ITS_TURN = "waits for its turn"

_Entry = tuple[int, float, int, Replica]


class LaunchQueue:
    """Hands out the next replica to start; each that is WAITING is in it, once.

    ``obstacle`` says what keeps a replica from starting now, None if nothing does; those that it holds back are looked
    at again after ``recheck``. The ``detail`` of a replica in here says what it waits for.
    """

    def __init__(self, obstacle: Callable[[Replica], str | None]) -> None:
        self._obstacle = obstacle
        self._entries: dict[Replica, _Entry] = {}
        self._heap: list[_Entry] = []  # entries that ``_entries`` does not confirm are stale
        self._blocked: dict[Replica, None] = {}
        self._changed = False
        self._refusals = 0
        self._opens = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, replica: Replica) -> None:
        """Take in a replica that is WAITING now."""
        entry = self._entries[replica] = (-replica.spec.priority, replica.waiting_since, replica.id, replica)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [entry for entry in self._entries.values() if entry[-1] not in self._blocked]
            heapq.heapify(self._heap)

    def discard(self, replica: Replica) -> None:
        """Forget a replica that is not WAITING any more."""
        self._entries.pop(replica, None)
        self._blocked.pop(replica, None)

    def recheck(self) -> None:
        """Look at the blocked ones again: something that they may be waiting for has changed."""
        self._changed = bool(self._blocked)

    def refused(self, now: float) -> None:
        """The system has refused a process: pause, longer each time; refusals during a pause are one with it."""
        if now >= self._opens:
            self._opens = now + FIRST_PAUSE * 2 ** min(self._refusals, 7)
            self._refusals += 1

    def close(self, until: float) -> None:
        """Hand out nothing before ``until``, unless ``open`` comes first."""
        self._opens = max(self._opens, until)

    def open(self) -> None:
        """Hand out again."""
        self._opens = 0.0

    def is_open(self, now: float) -> bool:
        """Whether anything may be handed out now."""
        return now >= self._opens

    @property
    def opens_at(self) -> float:
        """When anything may be handed out, be there anything or not."""
        return self._opens

    def granted(self) -> None:
        """The system has given a process: the next pause is short again."""
        self._refusals = 0

    def take(self, now: float) -> Replica | None:
        """Return and forget the next one that may start, None if there is none."""
        if now < self._opens:
            return None
        self.review()
        while self._heap:
            entry = heapq.heappop(self._heap)
            replica = entry[-1]
            if self._entries.get(replica) is not entry:
                continue
            obstacle = self._obstacle(replica)
            if obstacle is None:
                del self._entries[replica]
                return replica
            replica.detail = obstacle
            self._blocked[replica] = None
        return None

    def review(self) -> None:
        """Let those that nothing blocks any more wait for their turn."""
        if not self._changed:
            return
        self._changed = False
        for replica in list(self._blocked):
            obstacle = self._obstacle(replica)
            replica.detail = obstacle or ITS_TURN
            if obstacle is None:
                del self._blocked[replica]
                heapq.heappush(self._heap, self._entries[replica])

    @property
    def opens(self) -> float | None:
        """When ``take`` may have something to hand out, None as long as there is nothing to look at."""
        return self._opens if self._changed or len(self._entries) > len(self._blocked) else None
