"""Workers that are there already: those of an earlier keeper, or of a core before this one in the same keeper. Pure.

They hold work that this core has not given them. What each of them holds is told by itself when it calls, by its page
where it cannot call, or by the core that fed it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .backlog import Backlog
from .commands import Command, Kill
from .dispatch import Dispatcher
from .ledger import Task
from .lifecycle import WorkerEvent, WorkerState
from .roster import KillReason, Page, Roster, Told, Worker
from .timers import Timers

__all__ = ["Succession"]


class Succession:
    """Takes in workers with what they hold. All state is the core's, and shared with it: see there."""

    def __init__(
        self, backlog: Backlog, roster: Roster, timers: Timers, dispatcher: Dispatcher, commands: list[Command]
    ) -> None:
        self._backlog = backlog
        self._roster = roster
        self._timers = timers
        self._dispatcher = dispatcher
        self._commands = commands

    # -- workers ------------------------------------------------------------------------------------------------------

    def hand_over(self, left: Worker, held: Iterable[Task | None], now: float) -> Worker:
        """Return a worker of another core with all that it was fed; it is fed nothing more before it has called."""
        worker = self._roster.take_over(left.id, left.slot, left.birth)
        worker.pid, worker.page, worker.kill, worker.base = left.pid, left.page, left.kill, left.base
        worker.inflight.extend(held)
        worker.fed_before = worker.next_index
        for index, task in enumerate(worker.inflight, worker.base):
            if task is not None:
                task.worker, task.index = worker.id, index
                if task.deaths:
                    self._backlog.suspect_out, worker.alone = task, True
        if left.state is WorkerState.RETIRING:
            self._roster.move(worker, WorkerEvent.RETIRE)
        elif left.state is WorkerState.KILLED:
            self._roster.move(worker, WorkerEvent.KILL)
            self._commands.append(Kill(worker))
        if left.silent:
            self._roster.silence(worker)
        self._timers.set(worker.id, now)
        return worker

    def take_over(self, id: int, slot: int, birth: str) -> Worker:
        """Return a worker of an earlier keeper: it lives, and nothing is fed to it before it has called."""
        return self._roster.take_over(id, slot, birth)

    def attached(self, worker: Worker, page: Page | None, base: int, held: Iterable[Task | None]) -> None:
        """A worker of an earlier keeper has called and told what it holds, from index ``base`` on.

        None is for what nobody waits for: it is not run if it has not been started. Where we know better what it was
        fed (``hand_over``) that counts, and what has never reached it goes elsewhere. ``page`` is None where the worker
        has lost it; it is fed nothing more then.
        """
        self._roster.heard(worker)
        tasks = [worker.task_at(at) if at < worker.fed_before else task for at, task in enumerate(held, base)]
        self._hold(worker, page, base, tasks)
        if page is not None:
            for index, task in enumerate(worker.inflight, base):
                if task is None:
                    page.revoke(index)
        if worker.budget is not None:
            worker.budget -= worker.next_index - 1
        spent = worker.budget is not None and worker.budget <= 0
        if worker.state is WorkerState.KILLED:
            return
        if page is None or spent or worker.state is WorkerState.RETIRING:
            self._dispatcher.replace(worker)
        elif self._roster.alive > self._roster.max_workers:
            self._dispatcher.replace(self._superfluous(worker))

    def unheard(self, worker: Worker) -> None:
        """A worker of an earlier keeper has not called in time: another one may be in its place until it does."""
        self._roster.silence(worker)

    def leaving(self, worker: Worker, told: Told, begun: Iterable[Task | None]) -> None:
        """A worker that cannot be heard has told what it has begun, from index 1 on; it leaves when that is done."""
        self._roster.heard(worker)
        self._hold(worker, told, 1, begun)
        if worker.state is not WorkerState.KILLED:
            self._roster.move(worker, WorkerEvent.RETIRE)

    def executes(self, worker: Worker, index: int, task: Task, now: float) -> None:
        """A worker of an earlier keeper has not called, and executes ``task`` as ``index``: its page says so."""
        self._hold(worker, worker.page, index, [task])
        self._timers.set(worker.id, now)  # it may be late already

    # -- what they hold -----------------------------------------------------------------------------------------------

    def claim(self, found: Task, task: Task, now: float) -> None:
        """Somebody waits for what a worker of an earlier keeper holds as ``found``: from now on it is ``task``."""
        assert found.worker is not None
        worker = self._roster.workers[found.worker]
        assert worker.task_at(found.index) is found
        worker.inflight[found.index - worker.base] = task
        task.worker, task.index = found.worker, found.index
        task.attempts = found.attempts
        if task.call.options.timeout is not None:
            self._timers.set(worker.id, now + task.call.options.timeout)

    def overtake(self, found: Task, task: Task, now: float) -> bool:
        """Somebody waits for what a worker of an earlier keeper holds as ``found``, but with the code of today.

        If the worker is in the midst of it, it is ``task`` from now on; if not it does not start it, and this is False.
        """
        worker = self._roster.workers.get(found.worker) if found.worker is not None else None
        if worker is None or worker.task_at(found.index) is not found:
            return False
        if worker.revoke(found.index) is not None:
            found.worker = None
            return False
        if worker.observe().finished >= found.index:
            return False
        self.claim(found, task, now)
        return True

    def give_up(self, found: Task) -> None:
        """Nobody will ask for what a worker of an earlier keeper holds."""
        worker = self._roster.workers.get(found.worker) if found.worker is not None else None
        if worker is not None and worker.revoke(found.index) is None:
            self._dispatcher.kill(worker, KillReason.CANCELLED, found.index)

    def _superfluous(self, worker: Worker) -> Worker:
        """Return who is to leave where ``worker`` is one too many: one that is idle, if there is any."""
        return next(iter(self._roster.idle.values()), worker) if worker.inflight else worker

    def _hold(self, worker: Worker, page: Page | None, base: int, held: Iterable[Task | None]) -> None:
        """Take note of all that a worker holds; what it was believed to hold, and does not, waits again."""
        tasks = list(held)
        unheard = [task for task in worker.inflight if task is not None and task not in tasks]
        worker.page = page
        worker.base = base
        worker.inflight.clear()
        worker.inflight.extend(tasks)
        for index, task in enumerate(tasks, base):
            if task is not None:
                task.worker, task.index = worker.id, index
        for missed in unheard:
            self._backlog.cleared(missed)
        self._backlog.put_back(unheard)
