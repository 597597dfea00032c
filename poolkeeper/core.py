"""The keeper's decisions: what happened goes in as method calls, what to do comes out as commands. Pure.

The runtime tells the core what it has seen (work submitted, a worker's hello, results, deaths, time) and then asks
``decide(now)`` for commands. Nothing here knows a clock, a socket, a thread or a process; a worker's page is seen
through the ``Page`` protocol, which a test implements with three integers.

Each question has a module of its own: in which order (``backlog``), who gets what (``dispatch``), who is there
(``roster``), whose fault it was (``blame``), what was there before (``succession``). The core joins their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from itertools import islice
from typing import Any

from .backlog import Backlog
from .blame import judge
from .commands import Command, Decide, Fail, Failure, Kill, Nudge, Retire, Settle
from .dispatch import LATE, Dispatcher
from .errors import ProtocolError
from .ledger import Segment, Task
from .lifecycle import LEAVE_SECONDS, Absence, WorkerEvent, WorkerState
from .messages import Code
from .remains import Remains, gather
from .roster import Exit, KillReason, Roster, Worker
from .succession import Succession
from .timers import Timers

__all__ = ["Core"]

REPORT_WAIT = 0.25
"""Seconds that a final verdict waits for the exit status that explains it. Requeueing waits for nothing."""


class Core:
    """All decisions of one keeper.

    ``max_workers`` bounds the workers that take tasks; ``max_tasks`` is how many a worker may run before it is
    replaced, None for no bound. ``birth`` tells this keeper's workers from those of earlier ones. ``reconnect_grace``
    is how many seconds one may be away whose link is broken.
    """

    def __init__(
        self, max_workers: int, max_tasks: int | None = None, birth: str = "", reconnect_grace: float = 60.0
    ) -> None:
        self._reconnect_grace = reconnect_grace
        self.queue = Backlog()
        self.closing = False
        self._roster = Roster(max_workers, max_tasks, birth)
        self._timers = Timers()
        self._commands: list[Command] = []
        self._dispatcher = Dispatcher(self.queue, self._roster, self._timers, self._commands)
        self.succession = Succession(self.queue, self._roster, self._timers, self._dispatcher, self._commands)
        self._mourning: dict[int, Worker] = {}
        self._deciding: dict[Task, Decide] = {}
        self._start_error = ""
        self._is_short = False
        self._overdue = False  # a worker has died since the last decision

    @property
    def workers(self) -> dict[int, Worker]:
        """The workers that are not dead, by id."""
        return self._roster.workers

    # -- what the application does ------------------------------------------------------------------------------------

    def submit(self, tasks: Iterable[Task | Segment]) -> None:
        """Take on fresh work."""
        self.queue.submit(tasks)

    def cancel(self, task: Task) -> bool:
        """Withdraw ``task``; return False if it has ended, or runs and its options do not allow to kill it."""
        worker = self.workers.get(task.worker) if task.worker is not None else None
        if worker is not None and not task.withdrawn:
            kills = task.call.options.kill_on_cancel
            if worker.revoke(task.index) is not None:
                self.queue.cleared(task)
            elif not (kills and self._dispatcher.kill(worker, KillReason.CANCELLED, task.index)):
                return False
        task.withdrawn = True
        return True

    def close(self) -> None:
        """Take no more work; once all is done the workers are retired."""
        self.closing = True
        for worker in self.workers.values():
            if worker.absence is not None:
                self._timers.set(worker.id, 0.0)  # it has less time now

    def abandon(self) -> list[Task | Segment]:
        """Give up what no worker has, and return it; decisions about it come too late."""
        deciding, self._deciding = self._deciding, {}
        return [*self.queue.clear(), *deciding]

    # -- from one core to the next ------------------------------------------------------------------------------------

    def remains(
        self,
        commands: Iterable[Command],
        arriving: Iterable[Task | Segment],
        is_open: Callable[[Task | Segment], bool],
    ) -> Remains:
        """Return what there is for another core to go on with, as the loop of this one has failed.

        Args:
            commands: that were given out, and may not have been carried out.
            arriving: work that was about to be submitted.
            is_open: whether a task has no outcome yet, and somebody waits for it.
        """
        verdicts = [verdict for worker in self._mourning.values() for verdict in _verdicts(worker)]
        workers = list(self.workers.values())
        commands = [*commands, *self._commands, *verdicts]
        remains = gather(commands, workers, self._deciding.values(), self.queue, arriving, is_open)
        remains.closing = self.closing
        remains.next_worker = self._roster.next_id
        return remains

    def resume(self, remains: Remains) -> None:
        """Take on what another core has left, but for what its workers hold: see ``succession``."""
        self.closing = remains.closing
        self._roster.next_id = remains.next_worker
        self._deciding = {command.task: command for command in remains.commands if isinstance(command, Decide)}
        for due, task in remains.delayed:
            self.queue.delay(task, due)
        tried: list[Task] = []
        for entry in remains.waiting:
            if isinstance(entry, Task):
                entry.worker = None
                if entry.deaths or entry.attempts > 1:
                    tried.append(entry)
                    continue
            self.queue.submit((entry,))
        self.queue.put_back(tried)

    # -- what workers do ----------------------------------------------------------------------------------------------

    def hello(self, worker: Worker) -> None:
        """The worker's link is up (again)."""
        worker.absence = None
        self._roster.move(worker, WorkerEvent.HELLO)
        self._roster.file(worker)

    def link_lost(self, worker: Worker, now: float) -> None:
        """The worker's link is gone, its process is not known to be; nothing is fed until it calls back."""
        self._roster.move(worker, WorkerEvent.LINK_LOST)
        worker.absence = Absence(now)
        self._timers.set(worker.id, worker.absence.next_look(now, self._grace))

    def results(
        self, worker: Worker, first: int, codes: Sequence[int] | None, values: Sequence[Any], seconds: float
    ) -> None:
        """Results of consecutive indices have arrived; ``seconds`` is their total run time.

        Raises ProtocolError when they are not what the worker was fed; it is killed then.
        """
        number = len(values)
        self._expect(worker, first, number)
        tasks = list(islice(worker.inflight, number))
        if worker.adopted and codes is None and None in tasks:
            codes = [Code.VALUE] * number  # some answers are nobody's, though they are no different
        ran = number if codes is None else number - codes.count(Code.SKIPPED)
        if ran:
            learner = tasks[-1] or next((task for task in reversed(tasks) if task is not None), None)
            if learner is not None:
                learner.call.learn(ran, seconds)
            seconds /= ran
        self._clear(tasks)
        if codes is not None:
            self._divert(worker, tasks, codes, values, seconds)
        self._commands.append(Settle(worker, tasks, codes, values, seconds))
        self._took(worker, number)

    def chunk_result(
        self, worker: Worker, index: int, codes: Sequence[int] | None, values: Any, seconds: float
    ) -> None:
        """The outcome of a chunk has arrived; ``values`` is opaque here, ``codes`` marks items that raised.

        Raises ProtocolError when it is not what the worker was fed; it is killed then.
        """
        self._expect(worker, index, 1)
        chunk = worker.inflight[0]
        self._clear([chunk])
        if chunk is not None:
            chunk.call.learn(chunk.items, seconds)
            if chunk.items == 1 and codes and codes[0] == Code.EXCEPTION and chunk.call.options.retries_failures:
                self._ask(chunk, values[0], worker, seconds)
            else:
                self._commands.append(Settle(worker, [chunk], codes, values, seconds))
        self._took(worker, 1)

    def recycle(self, worker: Worker) -> None:
        """The worker asks to be replaced (its memory has grown); what it has not started goes elsewhere."""
        if worker.state is WorkerState.READY:
            self._dispatcher.replace(worker)

    def start_failed(self, worker: Worker, why: str) -> None:
        """The worker cannot start, as its initializer raised; ``why`` says so to a person."""
        self._start_error = why
        self._is_short = False

    def refused(self, worker: Worker, why: str) -> None:
        """The system has no process or descriptor for it, as it may have soon; ``why`` says so to a person."""
        self._start_error = why
        self._is_short = True

    def cut_short(self, worker: Worker) -> None:
        """The fork server was killed while it made the worker: no task is to blame, nor is there anything to mend."""
        worker.cut_short = True

    def died(self, worker: Worker, now: float, exit: Exit | None = None) -> None:
        """The worker's process is gone and its link is drained. ``exit`` is what is known of its end.

        Called again when more is known.
        """
        worker.exit = exit or worker.exit
        if worker.state is WorkerState.DEAD:
            self._bury(worker)
            return
        never_began = worker.kill is None and not worker.observe().started and self._was_wanted(worker)
        if never_began:
            self._roster.start_failed(worker, now)
        self._overdue = True
        self._pass_judgement(worker)
        self._roster.move(worker, WorkerEvent.EXIT)
        self._timers.cancel(worker.id)
        self._commands[:] = [command for command in self._commands if not _is_for(command, worker)]
        if worker.mourned and worker.exit is None:
            self._mourning[worker.id] = worker
            self._timers.set(worker.id, now + REPORT_WAIT)
        else:
            self._bury(worker)
        if (
            never_began
            and not worker.cut_short
            and self._roster.is_hopeless(explained=bool(self._start_error) and not self._is_short)
        ):
            self._give_up(worker)

    def decided(self, decision: Decide, delay: float | None, now: float) -> None:
        """The retry policy has spoken: another attempt after ``delay`` seconds, or None for none."""
        task = decision.task
        if self._deciding.get(task) is not decision:
            return
        if task.withdrawn:
            pass
        elif delay is not None:
            task.attempts += 1
            self.queue.delay(task, now + delay)
        elif decision.outcome is None:
            self._commands.append(Fail(task, Failure.TIMEOUT, decision.worker))
        else:
            values = [decision.outcome]
            self._commands.append(Settle(decision.worker, [task], [Code.EXCEPTION], values, decision.seconds))
        del self._deciding[task]

    # -- time and decisions -------------------------------------------------------------------------------------------

    def decide(self, now: float, due: MutableSequence[Command]) -> None:
        """Add to ``due`` what is to be done now. At any moment each command is there or still here, whatever fails."""
        self._overdue = False
        for number in self._timers.take(now):
            worker = self.workers.get(number)
            if worker is not None:
                self._check(worker, now)
            else:
                self._bury(self._mourning[number])
        self.queue.release(now)
        self._dispatcher.distribute(now)
        if self.closing and not self.queue and not self._deciding:
            self._retire_idle()
        due.extend(self._commands)
        self._commands.clear()

    def next_deadline(self) -> float | None:
        """Return when ``decide`` must be called next even if nothing happens, None if never.

        That is at once (0.0) if a worker was lost while the commands of the last decision were carried out.
        """
        if self._overdue:
            return 0.0
        deadlines = [self._timers.earliest, self.queue.next_due]
        if self._dispatcher.waits_to_spawn:
            deadlines.append(self._roster.spawn_after)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def outstanding(self) -> bool:
        """Whether any work is queued, fed or being decided on."""
        if self.queue or self._deciding or self._mourning or self._commands:
            return True
        return any(worker.inflight for worker in self.workers.values())

    @property
    def running(self) -> int:
        """How many workers hold work."""
        return sum(1 for worker in self.workers.values() if worker.inflight)

    def tasks(self) -> Iterator[Task]:
        """Return every task that waits or that a worker holds."""
        yield from self.queue.tasks()
        yield from self._deciding
        for worker in self.workers.values():
            yield from (task for task in worker.inflight if task is not None)

    # -- results ------------------------------------------------------------------------------------------------------

    def _expect(self, worker: Worker, first: int, number: int) -> None:
        if first == worker.base and number <= len(worker.inflight):
            return
        if worker.state is not WorkerState.KILLED:
            self._dispatcher.put_down(worker, KillReason.CONFUSED, 0)
        raise ProtocolError(f"worker {worker.id} answers {first}+{number} where {worker.base} is due")

    def _clear(self, tasks: Sequence[Task | None]) -> None:
        suspect = self.queue.suspect_out
        if suspect is not None and suspect in tasks:
            self.queue.cleared(suspect)

    def _took(self, worker: Worker, number: int) -> None:
        """Book what a worker has answered, for which all is done (see ``remains``): it may have room again."""
        popleft = worker.inflight.popleft
        for _ in range(number):
            popleft()
        worker.base += number
        self._roster.has_worked(worker)
        worker.stuck = False
        self._roster.file(worker)

    def _divert(
        self, worker: Worker, tasks: list[Task | None], codes: Sequence[int], values: Sequence[Any], seconds: float
    ) -> None:
        """Take out what is not to be settled: tasks that were skipped, failures that may be retried."""
        for position, code in enumerate(codes):
            task = tasks[position]
            if task is None:
                continue
            if code == Code.SKIPPED:
                # The mark was seen although the revocation had been given up: it never ran.
                tasks[position] = None
                self.queue.put_back([task])
            elif code == Code.EXCEPTION and task.call.options.retries_failures:
                tasks[position] = None
                self._ask(task, values[position], worker, seconds)

    def _ask(self, task: Task, outcome: Any, worker: Worker, seconds: float) -> None:
        if not task.withdrawn:
            task.attempted(worker.place)
            task.worker = None
            self._deciding[task] = command = Decide(task, outcome, worker, seconds)
            self._commands.append(command)

    # -- deaths and failures ------------------------------------------------------------------------------------------

    @staticmethod
    def _was_wanted(worker: Worker) -> bool:
        return bool(worker.inflight) or worker.state is not WorkerState.RETIRING

    def _pass_judgement(self, worker: Worker) -> None:
        judgement = judge(worker)
        for task in worker.inflight:
            if task is not None:
                self.queue.cleared(task)
        worker.mourned = judgement.ended
        self.queue.put_back(judgement.innocent)
        for task in judgement.suspects:
            self.queue.suspect(task)
        for task in judgement.timed_out:
            if task.call.options.retries_failures:
                self._ask(task, None, worker, task.call.options.timeout or 0.0)
            else:
                self._commands.append(Fail(task, Failure.TIMEOUT, worker))
        worker.inflight.clear()

    def _bury(self, worker: Worker) -> None:
        """The verdicts are final, and what is known of the death is known."""
        self._commands.extend(_verdicts(worker))
        worker.mourned = []
        if self._mourning.pop(worker.id, None) is not None:
            self._timers.cancel(worker.id)

    def _give_up(self, worker: Worker) -> None:
        """No worker can be started: what is queued fails with the reason, what comes later tries again."""
        detail = self._start_error or "new processes end before they take their first task"
        for task in self.queue.clear():
            if not task.withdrawn:
                self._commands.append(Fail(task, Failure.NO_WORKERS, worker, detail))
        self._roster.failed_rounds = 0
        self._start_error = ""

    # -- the course of time -------------------------------------------------------------------------------------------

    def _check(self, worker: Worker, now: float) -> None:
        """Look at a worker that is late: is an attempt beyond its timeout, are results held back, is it away?"""
        if worker.state is WorkerState.KILLED or (worker.absence is not None and self._is_lost(worker, now)):
            return
        if not worker.inflight:
            return
        progress = worker.observe()
        task = worker.task_at(progress.executing)
        if task is not None and task.call.options.timeout is not None:
            ends = progress.started_at + task.call.options.timeout
            if ends > now:
                self._timers.set(worker.id, ends)
            elif self._dispatcher.kill(worker, KillReason.TIMEOUT, task.index):
                return
        if progress.finished >= worker.base:
            self._commands.append(Nudge(worker))
        timeouts = [task.call.options.timeout for task in worker.inflight if task is not None]
        soonest = min((timeout for timeout in timeouts if timeout is not None), default=None)
        if soonest is not None:
            self._timers.set(worker.id, now + soonest)
        if len(worker.inflight) > 1:
            self._dispatcher.relieve(worker, now)
            self._timers.set(worker.id, now + 2 * LATE)

    def _is_lost(self, worker: Worker, now: float) -> bool:
        """Look at a worker whose link is broken: what it has not begun goes elsewhere, and it is asked to call.

        Return whether it has been away for too long, and is killed.
        """
        absence = worker.absence
        assert absence is not None
        self._dispatcher.take_back(worker)
        at_work = worker.page is None or worker.observe().executing is not None  # without a page that cannot be seen
        if absence.is_too_long(now, self._grace, at_work=at_work):
            self._dispatcher.put_down(worker, KillReason.UNREACHABLE, 0)
            return True
        self._commands.append(Nudge(worker))
        self._timers.set(worker.id, absence.next_look(now, self._grace))
        return False

    @property
    def _grace(self) -> float:
        return min(self._reconnect_grace, LEAVE_SECONDS) if self.closing else self._reconnect_grace

    def _retire_idle(self) -> None:
        leaving = (WorkerState.STARTING, WorkerState.READY, WorkerState.DETACHED)
        for worker in list(self.workers.values()):
            if not worker.inflight and worker.state in leaving:
                self._dispatcher.retire(worker)


def _verdicts(worker: Worker) -> Iterator[Fail]:
    for task in worker.mourned:
        if not task.withdrawn:
            final = Failure.LOST if task.call.options.at_most_once else Failure.QUARANTINED
            yield Fail(task, final, worker)


def _is_for(command: Command, worker: Worker) -> bool:
    """Whether ``command`` would have to be carried out on ``worker`` itself."""
    return isinstance(command, Kill | Nudge | Retire) and command.worker is worker
