"""Who gets what, and who has too much. Pure.

A worker is fed ahead so far that it never waits for the keeper, and no further: how far follows from what its call has
learnt. What turns out to lie behind a long task is taken back as soon as another worker could start it.
"""

from __future__ import annotations

from itertools import islice

from .backlog import Backlog
from .commands import Command, Feed, Kill, Retire, Spawn
from .ledger import CHUNK_SECONDS, Call, Task
from .lifecycle import WorkerEvent, WorkerState
from .messages import Progress
from .roster import KillReason, Roster, Worker
from .timers import Timers

__all__ = ["Dispatcher"]

LATE = 0.05
"""Seconds after which a worker that holds more than it runs is looked at."""

STEAL_SECONDS = 0.001
"""Seconds of waiting work below which moving it to an idle worker does not pay."""

CHUNKS_HELD = 2
"""Chunks that a worker holds at most: the one that runs and, to outlast the way to the keeper and back, the next."""


class Dispatcher:
    """Moves work between the backlog and the workers; what is to be done about it goes to ``commands``.

    A worker that is to be looked at gets a deadline in ``timers``, under its id.
    """

    def __init__(self, backlog: Backlog, roster: Roster, timers: Timers, commands: list[Command]) -> None:
        self._backlog = backlog
        self._roster = roster
        self._timers = timers
        self._commands = commands
        self.waits_to_spawn = False
        """Whether there is work for another worker that ``Roster.spawn_after`` holds back."""

    def distribute(self, now: float) -> None:
        """Give what is queued to the workers that can take it; have workers started for what is left."""
        backlog, roster = self._backlog, self._roster
        self.waits_to_spawn = False
        if not backlog.runnable and roster.ahead and roster.vacancies:
            self._steal(now)
        if backlog.runnable:
            self._dispatch(now)
            if backlog.runnable:
                self._spawn(now)

    def _dispatch(self, now: float) -> None:
        backlog, roster = self._backlog, self._roster
        if backlog.suspect_waits:
            self._dispatch_suspect(now)
        live = max(1, roster.alive)
        share = -(-backlog.depth // live)
        for worker in list(islice(roster.idle.values(), roster.vacancies)):
            self._fill(worker, share, live, now)
            if not backlog.runnable:
                return
        for worker in list(roster.open.values()):
            self._fill(worker, share, live, now)
            if not backlog.runnable:
                return

    def _fill(self, worker: Worker, share: int, live: int, now: float) -> None:
        """Feed ``worker`` what it has room for; an empty one no second task that an idle worker could start now."""
        backlog, roster = self._backlog, self._roster
        was_idle = worker.id in roster.idle
        while worker.id in roster.idle or worker.id in roster.open:
            call = backlog.head_call()
            if call is None:
                return
            worker.target = self._target(call)
            room = min(worker.target, share) - len(worker.inflight)
            if worker.budget is not None:
                room = min(room, worker.budget)
            one_only = was_idle and _is_worth_moving(call)
            tasks = backlog.take(1 if one_only else room, live) if room > 0 else []
            if not tasks:
                return
            self._feed(worker, tasks, now)
            if one_only:
                return

    def _dispatch_suspect(self, now: float) -> None:
        """Feed a suspect to an empty worker; where none would become empty by itself, see to it that one does."""
        roster = self._roster
        if roster.vacancies:
            worker = next(iter(roster.idle.values()))
            suspect = self._backlog.take_suspect()
            if suspect is not None:
                worker.alone = True
                self._feed(worker, [suspect], now)
        elif roster.full and roster.open and not any(map(_will_be_idle, roster.workers.values())):
            worker = min(roster.open.values(), key=lambda other: len(other.inflight))
            worker.alone = True
            del roster.open[worker.id]

    def _target(self, call: Call) -> int:
        return call.window() if self._roster.full or not _is_worth_moving(call) else 1

    def _feed(self, worker: Worker, tasks: list[Task], now: float) -> None:
        roster = self._roster
        id = worker.id
        first = index = worker.next_index
        for task in tasks:
            task.worker = id
            task.index = index
            index += 1
        worker.inflight.extend(tasks)
        self._backlog.taken = []
        self._commands.append(Feed(worker, first, tasks))
        if tasks[0].items > 1:
            worker.target = min(worker.target, CHUNKS_HELD)
        held = len(worker.inflight)
        roster.idle.pop(id, None)
        if worker.alone or held >= worker.target:
            roster.open.pop(id, None)
        else:
            roster.open[id] = worker
        call = tasks[0].call
        if call.options.timeout is not None:
            self._timers.set(id, now + call.options.timeout)
        if held > 1:
            roster.ahead[id] = worker
            self._timers.set(id, now + LATE + 4 * held * (call.cost or 0.0))
        if worker.budget is not None:
            worker.budget -= len(tasks)
            if worker.budget <= 0:
                self.retire(worker)

    def _spawn(self, now: float) -> None:
        roster = self._roster
        needed = self._backlog.depth - len(roster.idle) - roster.starting
        if needed <= 0 or roster.full:
            return
        if now < roster.spawn_after:
            self.waits_to_spawn = True
            return
        self._commands.extend(Spawn(worker) for worker in roster.recruit(needed))

    def retire(self, worker: Worker) -> None:
        """Have ``worker`` leave when it has done what it holds."""
        self._roster.move(worker, WorkerEvent.RETIRE)
        self._commands.append(Retire(worker))

    def replace(self, worker: Worker) -> None:
        """Have a worker leave; what it has not started goes elsewhere."""
        self.take_back(worker)
        self.retire(worker)

    def kill(self, worker: Worker, reason: KillReason, index: int) -> bool:
        """Kill ``worker`` in the midst of ``index``; return False, and kill nothing, if that has finished.

        What waits behind it is taken back first, so that the signal cannot hit another task.
        """
        self.take_back(worker)
        if worker.observe().executing != index:
            return False
        self.put_down(worker, reason, index)
        return True

    def put_down(self, worker: Worker, reason: KillReason, index: int) -> None:
        """Kill ``worker``, whatever it is doing."""
        worker.kill = (reason, index)
        self._roster.move(worker, WorkerEvent.KILL)
        self._commands.append(Kill(worker))

    # -- fed-ahead work that is better off elsewhere ------------------------------------------------------------------

    def take_back(self, worker: Worker, number: int | None = None) -> None:
        """Take back what ``worker`` has not started, the last first and ``number`` of them at most."""
        taken: list[Task] = []
        index = worker.next_index - 1
        while index >= worker.base and len(taken) != number:
            if worker.task_at(index) is not None:
                task = worker.revoke(index)
                if task is None:
                    break
                self._backlog.cleared(task)
                taken.append(task)
            index -= 1
        taken.reverse()
        self._backlog.put_back(taken)

    def relieve(self, worker: Worker, now: float) -> None:
        """Look at a worker that is late: where it makes no headway, nothing shall wait behind what it runs."""
        progress = worker.observe()
        if self._is_stuck(worker, progress, now) or progress.started == worker.checked:
            roster = self._roster
            worker.stuck = True
            roster.open.pop(worker.id, None)
            if roster.vacancies or not roster.full:
                self.take_back(worker)
        worker.checked = progress.started

    def _steal(self, now: float) -> None:
        for victim in list(self._roster.ahead.values()):
            progress = victim.observe()
            last = next((task for task in reversed(victim.inflight) if task is not None), None)
            if last is None:
                continue
            if self._is_stuck(victim, progress, now):
                self.take_back(victim)
                continue
            begun = max(0, progress.started + 1 - victim.base)
            waiting = sum(task is not None for task in islice(victim.inflight, begun, None))
            if waiting * last.items * (last.call.cost or 0.0) > STEAL_SECONDS:
                self.take_back(victim, -(-waiting // 2))

    @staticmethod
    def _is_stuck(worker: Worker, progress: Progress, now: float) -> bool:
        executing = progress.executing
        if worker.stuck or executing is None:
            return worker.stuck
        task = worker.task_at(executing)
        expected = (task.call.cost or 0.0) * task.items if task is not None else 0.0
        return now - progress.started_at > max(CHUNK_SECONDS, 4 * expected)


def _is_worth_moving(call: Call) -> bool:
    return call.cost is None or call.cost > STEAL_SECONDS


def _will_be_idle(worker: Worker) -> bool:
    return worker.alone and worker.state is WorkerState.READY
