"""Work that an earlier keeper has handed out and that still goes on, until the application asks for it again.

Its workers call, and tell what they hold: claims, by which a task is known across keepers. What the application
submits is looked up among them. As long as not all survivors have called, recorded tasks wait, for one of them may be
at work on it; but not for long, for a survivor may also be silent for hours (stopped, or within a long call of C code).
Of such a one the page says what it executes, by the digest of the claim; that alone is waited for.

Where the code of a task has changed, what a worker is in the midst of comes to its end with the code that it has
loaded. That is the outcome of the task for this run, and recorded as one of the old code. What has not begun runs with
the new code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .core import Core
from .futures import Keeps, TaskFuture, Unread
from .holdings import Held, digest_of, exactly, work_of
from .ledger import Call, Options, Task
from .left_behind import Left
from .messages import Code
from .page import Executing
from .recording import Recorder
from .roster import Worker
from .store import Entry, claim_of
from .summons import Summons

__all__ = ["Adoption"]

SETTLED_SECONDS = 30.0
"""How long after its start a keeper remembers what has been answered, for survivors that call late."""

RECOVERY_SECONDS = 2.0
"""How long recorded tasks wait for survivors that have not called."""

Claim = tuple[Any, ...]


class _Foundling(TaskFuture):
    """A task that some worker holds, and that nobody has asked for yet; ``heir`` is who has when it was too late."""

    heir: TaskFuture | None = None

    def __init__(self, adoption: Adoption, name: str, keeper: Keeps) -> None:
        super().__init__(Call(name, b"", Options()), None, None, keeper)
        self.withdrawn = True
        self._adoption = adoption

    def settle_unobserved(self, value: Any) -> bool:
        """Not without ``settle``."""
        return False

    def settle(self, value: Any) -> bool:
        """It is recorded: pass it on."""
        super().settle(value)
        self._adoption.recorded(self, value)
        return False


class _Older(NamedTuple):
    """What a worker runs with code that has changed since: what to record it under, and which execution that is."""

    entry: Entry
    worker: int
    attempts: int
    deaths: int


def _names_of(task: TaskFuture) -> tuple[Claim, ...]:
    """Return what a task is found by: with its code and without."""
    claim = claim_of(task.entry)
    return () if claim is None else (exactly(claim), work_of(claim))


class Adoption:
    """What the workers of an earlier keeper hold; under the keeper's lock, but for ``recorded`` and what is counted.

    Args:
        core: which knows these workers.
        recorder: the journal.
        keeper: of the futures.
        deliver: settles futures with their results; from any thread.
        deadline: until when recorded tasks wait, in seconds of the monotonic clock.
        summon: has a worker call.
        awaits: returns whether there may be survivors that are not known yet.
        look_at: returns what a silent worker executes, and sees to it that it does not start anything else.
    """

    def __init__(
        self,
        core: Core,
        recorder: Recorder,
        keeper: Keeps,
        deliver: Callable[[list[TaskFuture], Sequence[Any]], None],
        deadline: float,
        summon: Callable[[Worker], None],
        awaits: Callable[[], bool],
        look_at: Callable[[Worker], Executing | None],
    ) -> None:
        self._awaits = awaits
        self._look_at = look_at
        self._summons = Summons(summon)
        self._core = core
        self._recorder = recorder
        self._keeper = keeper
        self._deliver = deliver
        self._deadline: float | None = deadline
        self._awaited: set[Worker] = set()
        self._waiting: dict[TaskFuture, None] = {}
        self._found: dict[Claim, _Foundling] = {}
        self._begun: dict[Claim, _Foundling] = {}  # those not answered yet, by their work
        self._older: dict[TaskFuture, _Older] = {}
        self._executed: dict[tuple[int, int], tuple[Worker, int]] = {}  # by silent workers, and nobody has asked for it
        self._failed: dict[_Foundling, Unread] = {}
        self._settled: set[Claim] = set()
        self._answered: list[list[Entry | None]] = []  # what belongs there too, as soon as a survivor asks
        self._settled_until = deadline - RECOVERY_SECONDS + SETTLED_SECONDS
        self._known: dict[Claim, TaskFuture] | None = None
        self._lock = threading.Lock()
        self.attached: list[int] = []
        """The pids of the workers that have called."""
        self.running = 0
        """How many tasks they held that somebody may ask for."""

    @property
    def awaited(self) -> tuple[Worker, ...]:
        """The workers that live and have not called yet."""
        return tuple(self._awaited)

    def move(
        self,
        core: Core,
        summon: Callable[[Worker], None],
        awaits: Callable[[], bool],
        look_at: Callable[[Worker], Executing | None],
    ) -> None:
        """Go on with another core, which knows the same workers by the same ids; all of them are to call again."""
        self._core = core
        self._summons = Summons(summon)
        self._awaits = awaits
        self._look_at = look_at
        self._known = None
        self._awaited.clear()
        self._executed.clear()

    # -- survivors ----------------------------------------------------------------------------------------------------

    def expect(self, worker: Worker) -> None:
        """A worker is known to live, and has not called yet."""
        self._awaited.add(worker)

    def summon(self, worker: Worker) -> None:
        """Have a worker call that is expected, when it is its turn."""
        self._summons.add(worker)

    def gone(self, worker: Worker) -> None:
        """A worker of an earlier keeper has ended, and is to be judged; what it has not answered is nobody's."""
        self._heard_of(worker)
        for claim, found in list(self._found.items()):
            if found.worker == worker.id and worker.task_at(found.index) is found:
                del self._found[claim]

    def _heard_of(self, worker: Worker) -> None:
        self._awaited.discard(worker)
        self._summons.came(worker)
        for digest in [digest for digest, (other, _) in self._executed.items() if other is worker]:
            del self._executed[digest]

    def take_in(
        self, worker: Worker, base: int, held: Iterable[Held | None], revoked_behind: int | None = None
    ) -> list[Task | None]:
        """Return the tasks behind what a worker holds, None for those that nobody can want of it.

        It does not start what is ``revoked_behind`` an index, if there is one; that may run elsewhere.
        """
        if worker in self._awaited:
            self.attached.append(worker.pid or 0)
        self._heard_of(worker)
        tasks: list[Task | None] = []
        asked = self._asked_for()
        for task in worker.inflight:  # its page has told of it
            if isinstance(task, TaskFuture):
                asked.update(dict.fromkeys(_names_of(task), task))
        for index, what in enumerate(held, base):
            task = None
            if what is not None and what[2] is not None and (revoked_behind is None or index <= revoked_behind):
                task = self._task(worker, index, Held(*what), asked)
            tasks.append(task)
            self.running += task is not None
        return tasks

    def _asked_for(self) -> dict[Claim, TaskFuture]:
        """Return what the application has asked for and has no outcome yet.

        Many workers call at once, so it is gathered once for all that call before ``tend``.
        """
        if self._known is not None:
            return self._known
        asked = self._known = {}
        for task in (*self._waiting, *self._core.tasks()):
            if isinstance(task, TaskFuture) and type(task) is not _Foundling and not task.withdrawn:
                asked.update(dict.fromkeys(_names_of(task), task))
        return asked

    def _task(self, worker: Worker, index: int, held: Held, asked: dict[Claim, TaskFuture]) -> Task | None:
        claim = held.claim
        assert claim is not None
        exact, work = exactly(claim), work_of(claim)
        wanted = asked.get(exact, asked.get(work))
        if wanted is not None and wanted.worker == worker.id:
            for name in (exact, work):
                asked.pop(name, None)
            self._is_at(worker, wanted, claim, held.attempt)
            return wanted
        if exact in self._found or self._recorder.knows(*exact) or self._is_settled(exact):
            return None  # it has an outcome, or another worker is at it
        has_finished = index <= worker.observe().finished
        is_same = wanted is not None and exact in _names_of(wanted)
        if wanted is not None and (is_same or not has_finished):
            if not ((is_same or worker.keeps_at(index)) and self._take_out(wanted)):
                return None
            self._is_at(worker, wanted, claim, held.attempt)
            return wanted
        found = self._new(claim, held.name, held.attempt)
        found.worker, found.index = worker.id, index
        if not has_finished:
            self._begun[work] = found
        return found

    def _take_out(self, task: TaskFuture) -> bool:
        """Have ``task`` wait no more; return whether it did."""
        if task.withdrawn or task.worker is not None:
            return False
        if task not in self._waiting:
            return self._core.queue.take_out(task)
        del self._waiting[task]
        return True

    def _is_at(self, worker: Worker, task: TaskFuture, claim: Claim, attempt: int) -> None:
        """What a worker runs by the name of ``claim`` is ``task``, though its code may have changed since."""
        task.attempts = attempt
        if exactly(claim) not in _names_of(task):
            self._older[task] = _Older(self._entry(claim), worker.id, attempt, task.deaths)

    def _new(self, claim: Claim, name: str, attempt: int) -> _Foundling:
        found = self._found[exactly(claim)] = _Foundling(self, name, self._keeper)
        found.entry = self._entry(claim)
        found.attempts = attempt
        return found

    def _entry(self, claim: Claim) -> Entry:
        batch, code, identity, arguments = exactly(claim)
        return Entry(self._recorder.adopted(batch, code, work_of(claim)[1]), identity, arguments)

    def runs_as(self, task: Task | None) -> Claim:
        """Return what the outcome is known by of a task that a worker of an earlier keeper runs; () for nothing."""
        if not isinstance(task, TaskFuture):
            return ()
        older = self._older.get(task)
        return exactly(claim_of(task.entry if older is None else older.entry) or ())

    def inherit(self, left: Iterable[Left]) -> None:
        """Take in what workers have left behind that are gone."""
        for claim, attempt, code, payload, seconds in left:
            exact = exactly(claim)
            if code == Code.SKIPPED or exact in self._found or self._recorder.knows(*exact):
                continue
            found = self._new(claim, "", attempt)
            found.run_seconds = seconds
            value = Unread(code, payload) if code else payload
            futures, values = self.answered([found], [value])
            if futures:
                self._recorder.settle(futures, values)
            self._give_to_who_waits(exact, found)

    def _give_to_who_waits(self, exact: Claim, found: _Foundling) -> None:
        task = self._asked_for().get(exact)
        if task is not None and task in self._waiting:
            del self._waiting[task], self._found[exact]
            rest: list[Any] = []
            self._hand_over(found, task, rest, 0.0)
            self._core.submit(rest)

    # -- what the application asks for --------------------------------------------------------------------------------

    @property
    def concerns(self) -> bool:
        """Whether what is submitted has to be looked at."""
        return bool(self._found) or bool(self._executed) or self.is_open

    @property
    def is_open(self) -> bool:
        """Whether there may be survivors that hold what the application asks for, and they are worth waiting for."""
        return self._deadline is not None and (bool(self._awaited) or self._awaits())

    def next_deadline(self) -> float | None:
        """Return when ``tend`` has to be called."""
        if self._summons:
            return self._summons.deadline
        return self._deadline if self._waiting or self._awaited else None

    def tend(self, now: float) -> None:
        """Let what has waited for survivors go its way, when they have all called or it has been long enough."""
        self._known = None
        if self._summons:
            self._summons.go_on(now, self._awaited)
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            for worker in self._awaited:
                self._core.succession.unheard(worker)
                seen = self._look_at(worker)
                if seen is not None:
                    self._executed[seen.digest] = worker, seen.task
        if self._waiting and not self.is_open:
            self.give_out(now)

    def give_out(self, now: float) -> None:
        """Have all that waits run."""
        waiting, self._waiting = self._waiting, {}
        if self._executed:
            waiting = {task: None for task in waiting if task.withdrawn or not self._is_executed(task, now)}
        self._core.submit(waiting)

    def _is_executed(self, task: TaskFuture, now: float) -> bool:
        """Whether a silent worker is at ``task``, which is to wait for it then."""
        claim = claim_of(task.entry)
        assert claim is not None
        seen = self._executed.pop(digest_of(claim), None) if self._executed else None
        if seen is None:
            return False
        worker, index = seen
        self._core.succession.executes(worker, index, task, now)
        return True

    def sift(self, tasks: list[Any], now: float) -> list[Any]:
        """Return what of ``tasks`` is to run: not what some worker holds, nor what one may hold."""
        self._known = None
        rest = []
        for task in tasks:
            claim = claim_of(task.entry) if isinstance(task, TaskFuture) else None
            if claim is None:
                rest.append(task)
                continue
            found = self._found.pop(exactly(claim), None)
            if found is not None and (found.answered or found in self._failed or found.worker is not None):
                self._hand_over(found, task, rest, now)
            elif self._is_begun(claim, task, now):
                pass
            elif self.is_open:
                self._waiting[task] = None
            elif not self._is_executed(task, now):
                rest.append(task)
        return rest

    def _is_begun(self, claim: Claim, task: TaskFuture, now: float) -> bool:
        """Whether a worker is in the midst of ``task`` with code that has changed since; it begins no more of that."""
        found = self._begun.pop(work_of(claim), None) if self._begun else None
        if found is None or not self._core.succession.overtake(found, task, now):
            return False
        was = claim_of(found.entry)
        assert was is not None
        assert found.worker is not None
        self._found.pop(exactly(was), None)
        self._is_at(self._core.workers[found.worker], task, was, found.attempts)
        return True

    def _hand_over(self, found: _Foundling, task: TaskFuture, rest: list[Any], now: float) -> None:
        failure = self._failed.pop(found, None)
        if failure is not None:
            if task.call.options.retries_failures:
                task.attempts = found.attempts + 1
                rest.append(task)
            else:
                task.attempts = found.attempts
                self._settle(task, failure)
        elif found.answered:
            task.attempts, task.answered = found.attempts, True
            self._recorder.answered_elsewhere()
            with self._lock:
                if not found.done():
                    found.heir = task
                    return
            self._deliver([task], [found._result])  # noqa: SLF001 - it is our own
        else:
            self._core.succession.claim(found, task, now)

    def _settle(self, task: TaskFuture, value: Any) -> None:
        futures, values = self._recorder.settle([task], [value])
        self._deliver(futures, values)

    @property
    def waiting(self) -> int:
        """How many tasks wait for survivors."""
        return len(self._waiting)

    @property
    def hears_answers(self) -> bool:
        """Whether ``answered`` has to be told of what is answered."""
        return bool(self._found) or bool(self._older) or bool(self._settled_until)

    def abandon(self) -> list[Task]:
        """Return what somebody works on and nobody has asked for: the keeper ends."""
        return [found for found in self._found.values() if not found.answered and found not in self._failed]

    # -- answers ------------------------------------------------------------------------------------------------------

    def answered(self, futures: list[TaskFuture], values: Sequence[Any]) -> tuple[list[TaskFuture], Sequence[Any]]:
        """Return the answers that are to be recorded and delivered.

        A failure that nobody has asked for is kept as it is: whether it is final is for those to say who ask.
        """
        if self._older:
            for future in futures:
                self.ended(future)
        if self._settled_until:
            self._remember(futures)
        if not any(type(future) is _Foundling for future in futures):
            return futures, values
        kept: list[TaskFuture] = []
        kept_values = []
        for future, value in zip(futures, values, strict=True):
            if isinstance(future, _Foundling):
                if type(value) is Unread and value.code == Code.EXCEPTION:
                    self._failed[future] = value
                    continue
                assert future.entry is not None
                future.entry.shelf.expect()
            kept.append(future)
            kept_values.append(value)
        return kept, kept_values

    def ended(self, future: TaskFuture) -> None:
        """A task is to be recorded: that which ran on old code as what it was then."""
        older = self._older.pop(future, None)
        if older is None:
            return
        is_still_that = (future.attempts, future.deaths) == (older.attempts, older.deaths)
        if future.worker == older.worker or (future.worker is None and is_still_that):
            future.entry = older.entry

    def _remember(self, futures: list[TaskFuture]) -> None:
        if time.monotonic() >= self._settled_until:
            self._settled_until = 0.0
            self._settled.clear()
            self._answered.clear()
            return
        self._answered.append([future.entry for future in futures])

    def _is_settled(self, exact: Claim) -> bool:
        """Whether this keeper has had the outcome of a task, and has perhaps not recorded it yet."""
        claims = (claim_of(entry) for entries in self._answered for entry in entries)
        self._settled.update(exactly(claim) for claim in claims if claim is not None)
        self._answered.clear()
        return exact in self._settled

    def recorded(self, found: _Foundling, value: Any) -> None:
        """The outcome of a foundling is recorded; on the journal's thread."""
        with self._lock:
            heir = found.heir
        if heir is not None:
            self._deliver([heir], [value])
