"""What a core leaves whose loop has failed, and another one goes on with. Pure.

Wherever the failure has struck, each task is in one of the tables at least, and in several perhaps: a command may have
been carried out in part, a task queued again that its worker still counts as held. What has been decided counts first,
then what a worker holds, for it may be running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .backlog import Backlog
from .commands import Command, Decide, Fail, Failure, Settle
from .ledger import Segment, Task
from .roster import Worker

__all__ = ["Remains", "gather"]


class Remains:
    """The work that has no outcome yet, each piece of it once.

    ``commands`` are outcomes that may not have been told, and questions that may not have been asked; ``held`` is what
    each worker was fed, from index ``base`` on, None where nobody waits for it; ``delayed`` is what runs again.
    """

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.held: dict[Worker, list[Task | None]] = {}
        self.delayed: list[tuple[float, Task]] = []
        self.waiting: list[Task | Segment] = []
        self.closing = False
        self.next_worker = 1

    def tasks(self) -> Iterator[Task | Segment]:
        """Return all of it."""
        for command in self.commands:
            if isinstance(command, Settle):
                yield from (task for task in command.tasks if task is not None)
            elif isinstance(command, Fail | Decide):
                yield command.task
        for inflight in self.held.values():
            yield from (task for task in inflight if task is not None)
        yield from (task for _, task in self.delayed)
        yield from self.waiting

    def recall(self, worker: Worker) -> None:
        """``worker`` has been ended, or is lost, for no fault of a task: what it held runs again.

        Not so what must run once at most and may have begun.
        """
        started = worker.observe().started
        again: list[Task | Segment] = []
        for index, task in enumerate(self.held.pop(worker), worker.base):
            if task is None or task.withdrawn:
                continue
            if index <= started and task.call.options.at_most_once:
                self.commands.append(Fail(task, Failure.LOST, worker))
            else:
                again.append(task)
        self.waiting[:0] = again


def gather(
    commands: Iterable[Command],
    workers: Iterable[Worker],
    deciding: Iterable[Decide],
    queue: Backlog,
    arriving: Iterable[Task | Segment],
    is_open: Callable[[Task | Segment], bool],
) -> Remains:
    """Return what is in these tables and ``is_open``: somebody waits for it, and it has no outcome yet."""
    seen: set[Task | Segment] = set()

    def is_new(task: Task | Segment, *, held: bool = False) -> bool:
        if task in seen or not is_open(task) or (task.withdrawn and not held):
            return False
        seen.add(task)
        return True

    remains = Remains()
    for command in commands:
        if isinstance(command, Settle):
            tasks = [task if task is not None and is_new(task) else None for task in command.tasks]
            if tasks != [None] * len(tasks):
                remains.commands.append(command._replace(tasks=tasks))
        elif isinstance(command, Fail) and is_new(command.task):
            remains.commands.append(command)
    remains.delayed = [(due, task) for due, task in queue.delayed if is_new(task)]
    remains.commands.extend(command for command in deciding if is_new(command.task))  # once more, if need be
    strays: list[Task] = []
    for worker in workers:
        # What an earlier keeper's workers hold, and nobody has asked for yet, is held all the same.
        fed = [task for task in worker.inflight if task is not None]
        held = {task.index: task for task in fed if task.index >= worker.base and is_new(task, held=True)}
        end = max((worker.next_index, *(index + 1 for index in held)))
        remains.held[worker] = [held.get(index) for index in range(worker.base, end)]
        strays += fed
    suspect = [] if queue.suspect_out is None else [queue.suspect_out]
    remains.waiting = [entry for entry in (*suspect, *strays, *queue.entries(), *arriving) if is_new(entry)]
    return remains
