"""Who is to blame for a worker's death (guarantee 1). Pure.

The page tells which index was started last and which had finished. Only a task that was started and had not finished
is blamed. What was fed ahead, and what had finished without its result having arrived, runs again without blame;
where ``deaths=0`` forbids that, the finished task is lost. Mercy has a bound: what has just finished each time that a
worker dies may well be the reason (a result that crashes when it is collected, a thread left behind), and is blamed.

A worker that the keeper has given up, for it could not be reached, has died of nothing that it ran.

A chunk of a map is a task to its worker, and many to the application: the one item that kills must be found, and the
others must not suffer. A *careful* worker marks each item. A chunk whose worker dies runs again, carefully, and is
split at the mark when that run ends in a death as well. The first death is then charged to the item though it was
not seen; where two deaths are final, chunks are careful from the start, so that none of the two is a guess.
"""

from __future__ import annotations

from .ledger import Chunk, Task
from .messages import Progress
from .roster import KillReason, Worker

__all__ = ["Judgement", "judge"]


_GIVEN_UP = (KillReason.UNREACHABLE, 0)

MERCY = 2
"""Times that a task may have just finished when its worker dies, before that counts as a death of its own."""


class Judgement:
    """What becomes of the tasks that a dead worker held.

    ``innocent`` run again at once, in this order; ``suspects`` run again alone; ``ended`` have ended with this death,
    ``timed_out`` with their attempt's time.
    """

    __slots__ = ("ended", "innocent", "suspects", "timed_out")

    def __init__(self) -> None:
        self.innocent: list[Task] = []
        self.suspects: list[Task] = []
        self.ended: list[Task] = []
        self.timed_out: list[Task] = []


def judge(worker: Worker) -> Judgement:
    """Judge what ``worker`` held when it died, and count the death where it belongs."""
    progress = worker.observe()
    judgement = Judgement()
    for index, task in enumerate(worker.inflight, worker.base):
        if task is None or task.withdrawn:
            continue
        if worker.kill == (KillReason.TIMEOUT, index):
            judgement.timed_out.append(task)
        elif index == progress.executing:
            task.attempted(worker.place)
            _blame(task, progress, judgement)
        elif index <= progress.finished and task.call.options.at_most_once:
            judgement.ended.append(task)
        elif index == progress.started and worker.kill != _GIVEN_UP and task.returned() > MERCY:
            task.attempted(worker.place)
            _blame_afterwards(task, judgement)
        else:
            judgement.innocent.append(task)
    return judgement


def _blame(task: Task, progress: Progress, judgement: Judgement) -> None:
    """Blame ``task`` for a death while it was executed."""
    task.deaths += 1
    if isinstance(task, Chunk) and task.items > 1 and not task.call.options.at_most_once:
        if not task.careful:
            task.careful = True
            judgement.suspects.append(task)
            return
        before, killer, behind = task.split(min(progress.item, task.items - 1))
        judgement.innocent.extend(part for part in (before, behind) if part.items)
        killer.deaths = task.deaths
        task = killer
    _pass_sentence(task, judgement)


def _blame_afterwards(task: Task, judgement: Judgement) -> None:
    """Blame ``task`` for a death when it had just finished; no mark tells which item of a chunk, so it is halved."""
    if isinstance(task, Chunk) and task.items > 1:
        for half in task.halves():
            half.deaths = 1
            half.returns = task.returns
            judgement.suspects.append(half)
    else:
        task.deaths += 1
        _pass_sentence(task, judgement)


def _pass_sentence(task: Task, judgement: Judgement) -> None:
    if task.call.options.allows_death(task.deaths):
        judgement.suspects.append(task)
    else:
        judgement.ended.append(task)
