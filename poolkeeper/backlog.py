"""The work that no worker has, in the order in which it is handed out. Pure.

The order: suspects (tasks of which workers have died: alone, one at a time, never fed ahead), tasks that are due again
after a failure, then fresh work by priority, first in first out. What is withdrawn stays where it is until it gets to
the front.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

from .ledger import Call, Segment, Task

__all__ = ["Backlog"]


class Backlog:
    """The queue of a keeper; ``suspect_out`` is the suspect that a worker runs now."""

    def __init__(self) -> None:
        self.suspect_out: Task | None = None
        self.taken: list[Task] = []
        """What ``take`` has returned last, until whoever has taken it clears this."""
        self._suspects: deque[Task] = deque()
        self._again: deque[Task] = deque()
        self._fresh: dict[int, deque[Task | Segment]] = {}  # no line of it is ever empty
        self._order: list[int] = []  # negated priorities, so that the highest comes first
        self._delayed: list[tuple[float, int, Task]] = []
        self._tick = count()
        self._within = 0  # what segments count for beyond one each

    # -- in -----------------------------------------------------------------------------------------------------------

    def submit(self, entries: Iterable[Task | Segment]) -> None:
        """Append fresh work."""
        fresh = self._fresh
        for entry in entries:
            priority = entry.call.options.priority
            try:
                fresh[priority].append(entry)
            except KeyError:
                self._line(priority).append(entry)
            if not entry.together and isinstance(entry, Segment):
                entry.counted = entry.remaining
                self._within += entry.counted - 1

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Return tasks that were fed and never ran to the front, in their order and without blame."""
        for task in reversed(tasks):
            task.worker = None
            if task.deaths:
                self._suspects.appendleft(task)
            elif task.attempts > 1:
                self._again.appendleft(task)
            else:
                self._line(task.call.options.priority).appendleft(task)

    def suspect(self, task: Task) -> None:
        """Queue a task whose worker died of it; it will run alone."""
        task.worker = None
        self._suspects.append(task)

    def delay(self, task: Task, due: float) -> None:
        """Queue a task for another attempt at ``due``."""
        task.worker = None
        heapq.heappush(self._delayed, (due, next(self._tick), task))

    def release(self, now: float) -> None:
        """Move what is due to where it can be taken, and drop what is withdrawn from the front."""
        delayed = self._delayed
        while delayed and (delayed[0][0] <= now or delayed[0][2].withdrawn):
            task = heapq.heappop(delayed)[2]
            if not task.withdrawn:
                (self._suspects if task.deaths else self._again).append(task)
        if self._suspects:
            _trim(self._suspects)
        if self._again:
            _trim(self._again)
        if self._order:
            self._front()

    def cleared(self, task: Task) -> None:
        """Take note that ``task`` has ended or left its worker, so that the next suspect may run."""
        if self.suspect_out is task:
            self.suspect_out = None

    # -- out ----------------------------------------------------------------------------------------------------------

    def take_suspect(self) -> Task | None:
        """Return the next suspect for an empty worker, None where there is none or one runs already."""
        _trim(self._suspects)
        if not self.suspect_waits:
            return None
        self.suspect_out = self._suspects.popleft()
        return self.suspect_out

    def take(self, limit: int, workers: int) -> list[Task]:
        """Return up to ``limit`` tasks of one call to be fed together; chunks and repeated attempts come singly.

        ``workers`` is how many share the work, for the size of a chunk.
        """
        self.taken = []
        if self._again:
            _trim(self._again)
        if self._again:
            self.taken.append(self._again.popleft())
            return self.taken
        line = self._front()
        if line is None:
            return []
        self._take_from(line, limit, workers)
        if not line or line[0].withdrawn:
            self._front()
        return self.taken

    def _take_from(self, line: deque[Task | Segment], limit: int, workers: int) -> None:
        head = line[0]
        if isinstance(head, Segment):
            chunk = head.cut(workers)
            self.taken.append(chunk)
            head.counted -= chunk.items
            self._within -= chunk.items
            if not head.remaining:
                line.popleft()
                self._within += 1
        elif not head.together:
            self.taken.append(head)
            line.popleft()
        else:
            self._take_together(line, limit, self.taken)

    @staticmethod
    def _take_together(line: deque[Task | Segment], limit: int, tasks: list[Task]) -> None:
        call = line[0].call
        while line and len(tasks) < limit:
            task = line[0]
            if task.call is not call or not task.together:
                break
            if not task.withdrawn:
                tasks.append(task)  # type: ignore[arg-type]  # segments are never together
            line.popleft()

    def take_out(self, task: Task) -> bool:
        """Withdraw a task that waits to be fed for the first time, whoever it is for; return whether it was there."""
        line = self._fresh.get(task.call.options.priority)
        if line is None or task not in line:
            return False
        line.remove(task)
        return True

    @property
    def delayed(self) -> list[tuple[float, Task]]:
        """What is to run again later, and when it is due."""
        return [(due, task) for due, _, task in self._delayed]

    def entries(self) -> Iterator[Task | Segment]:
        """Return all that waits and is not delayed, in no better order than fresh work has by its priority."""
        yield from self.taken
        yield from self._suspects
        yield from self._again
        for line in self._fresh.values():
            yield from line

    def tasks(self) -> Iterator[Task]:
        """Return the tasks that wait; what is left of maps is not among them."""
        for line in self._fresh.values():
            yield from (entry for entry in line if isinstance(entry, Task))
        yield from self._again
        yield from self._suspects
        yield from (task for _, _, task in self._delayed)

    def clear(self) -> list[Task | Segment]:
        """Empty the backlog and return what it held, fresh work first."""
        held: list[Task | Segment] = []
        for priority in self._order:
            held.extend(self._fresh[-priority])
        held += [*self._again, *self._suspects, *(task for _, _, task in self._delayed)]
        self._suspects.clear()
        self._again.clear()
        self._fresh.clear()
        self._order.clear()
        self._delayed.clear()
        self._within = 0
        return held

    # -- what there is ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many tasks wait, delayed ones included; a segment counts its items."""
        return self._entries + len(self._delayed) + self._within

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._fresh or self._again or self._suspects or self._delayed)

    @property
    def suspect_waits(self) -> bool:
        """Whether a suspect could be fed to an empty worker."""
        return bool(self._suspects) and self.suspect_out is None

    @property
    def runnable(self) -> bool:
        """Whether there is work that a worker could start now."""
        return bool(self._fresh or self._again) or self.suspect_waits

    @property
    def depth(self) -> int:
        """How many tasks could start now: what is to be shared out, and how many workers it could occupy."""
        return self._entries + self._within - len(self._suspects) + self.suspect_waits

    @property
    def next_due(self) -> float | None:
        """When the earliest delayed task is due."""
        return self._delayed[0][0] if self._delayed else None

    def head_call(self) -> Call | None:
        """The call of the work that ``take`` would hand out next."""
        if self._again:
            _trim(self._again)
        if self._again:
            return self._again[0].call
        line = self._front()
        return line[0].call if line is not None else None

    @property
    def _entries(self) -> int:
        return len(self._suspects) + len(self._again) + sum(map(len, self._fresh.values()))

    # -- the lines of fresh work --------------------------------------------------------------------------------------

    def _line(self, priority: int) -> deque[Task | Segment]:
        line = self._fresh.get(priority)
        if line is None:
            line = self._fresh[priority] = deque()
            insort(self._order, -priority)
        return line

    def _front(self) -> deque[Task | Segment] | None:
        """Return the line whose turn it is, with work that is wanted at its head."""
        while self._order:
            line = self._fresh[-self._order[0]]
            while line and line[0].withdrawn:
                entry = line.popleft()
                if isinstance(entry, Segment):
                    self._within -= entry.counted - 1
            if line:
                return line
            del self._fresh[-self._order.pop(0)]
        return None


def _trim(line: deque[Task]) -> None:
    while line and line[0].withdrawn:
        line.popleft()
