"""Work that an earlier keeper has handed out and that still goes on, until the application asks for it again.

Its workers call, and tell what they hold: claims, by which a task is known across keepers. What the application
submits is looked up among them. As long as not all survivors have called, recorded tasks wait, for one of them may be
at work on it; but not for long, for a survivor may also be silent for hours (stopped, or within a long call of C code).
Of such a one the page says what it executes, by the digest of the claim; that alone is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .core import Core
from .futures import Keeps, TaskFuture, Unread
from .holdings import Held, digest_of
from .ledger import Call, Options, Task
from .left_behind import Left
from .messages import Code
from .page import Executing
from .recording import Recorder
from .roster import Worker
from .store import Entry, claim_of

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


class Adoption:
    """What the workers of an earlier keeper hold; under the keeper's lock, but for ``recorded``.

    Args:
        core: which knows these workers.
        recorder: the journal.
        keeper: of the futures.
        deliver: settles futures with their results; from any thread.
        deadline: until when recorded tasks wait, in seconds of the monotonic clock.
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
        awaits: Callable[[], bool] = lambda: False,
        look_at: Callable[[Worker], Executing | None] = lambda _: None,
    ) -> None:
        self._awaits = awaits
        self._look_at = look_at
        self._core = core
        self._recorder = recorder
        self._keeper = keeper
        self._deliver = deliver
        self._deadline: float | None = deadline
        self._awaited: set[Worker] = set()
        self._waiting: dict[TaskFuture, None] = {}
        self._asked: dict[Claim, TaskFuture] = {}
        self._found: dict[Claim, _Foundling] = {}
        self._executed: dict[tuple[int, int], tuple[Worker, int]] = {}  # by silent workers, and nobody has asked for it
        self._failed: dict[_Foundling, Unread] = {}
        self._settled: set[Claim] = set()
        self._settled_until = deadline - RECOVERY_SECONDS + SETTLED_SECONDS
        self._lock = threading.Lock()
        self.attached: list[int] = []
        """The pids of the workers that have called."""
        self.running = 0
        """How many tasks they held that somebody may ask for."""

    @property
    def awaited(self) -> tuple[Worker, ...]:
        """The workers that live and have not called yet."""
        return tuple(self._awaited)

    # -- survivors ----------------------------------------------------------------------------------------------------

    def expect(self, worker: Worker) -> None:
        """A worker is known to live, and has not called yet."""
        self._awaited.add(worker)
        if self._deadline is None:
            self._core.unheard(worker)

    def gone(self, worker: Worker) -> None:
        """A worker of an earlier keeper has ended, and is to be judged; what it has not answered is nobody's."""
        self._heard_of(worker)
        for claim, found in list(self._found.items()):
            if found.worker == worker.id and worker.task_at(found.index) is found:
                del self._found[claim]

    def _heard_of(self, worker: Worker) -> None:
        self._awaited.discard(worker)
        for digest in [digest for digest, (other, _) in self._executed.items() if other is worker]:
            del self._executed[digest]

    def take_in(
        self, worker: Worker, base: int, held: Iterable[Held | None], revoked_behind: int | None = None
    ) -> list[Task | None]:
        """Return the tasks behind what a worker holds, None for those that nobody can want of it.

        It does not start what is ``revoked_behind`` an index, if there is one; that may run elsewhere.
        """
        self._heard_of(worker)
        self.attached.append(worker.pid or 0)
        tasks: list[Task | None] = []
        asked = self._asked_for()
        for task in worker.inflight:  # its page has told of it
            if isinstance(task, TaskFuture) and (claim := claim_of(task.entry)) is not None:
                asked[claim] = task
        for index, what in enumerate(held, base):
            task = None
            if what is not None and what[2] is not None and (revoked_behind is None or index <= revoked_behind):
                task = self._task(worker, index, Held(*what), asked)
            tasks.append(task)
            self.running += task is not None
        return tasks

    def _asked_for(self) -> dict[Claim, TaskFuture]:
        """Return what the application has asked for and has no outcome yet."""
        asked = dict(self._asked)
        for task in self._core.tasks():
            if isinstance(task, TaskFuture) and type(task) is not _Foundling and not task.withdrawn:
                claim = claim_of(task.entry)
                if claim is not None:
                    asked[claim] = task
        return asked

    def _task(self, worker: Worker, index: int, held: Held, asked: dict[Claim, TaskFuture]) -> Task | None:
        claim = held.claim
        assert claim is not None
        wanted = asked.get(claim)
        if wanted is not None and wanted.worker == worker.id:
            del asked[claim]
            wanted.attempts = held.attempt
            return wanted
        if claim in self._found or claim in self._settled or self._recorder.knows(*claim):
            return None  # it has an outcome, or another worker is at it
        if wanted is not None:
            if wanted.withdrawn or wanted.worker is not None:
                return None
            if self._asked.pop(claim, None) is wanted:
                del self._waiting[wanted]
            elif not self._core.queue.take_out(wanted):
                return None
            wanted.attempts = held.attempt
            return wanted
        found = self._new(claim, held.name, held.attempt)
        found.worker, found.index = worker.id, index
        return found

    def _new(self, claim: Claim, name: str, attempt: int) -> _Foundling:
        batch, code, identity, arguments = claim
        found = self._found[claim] = _Foundling(self, name, self._keeper)
        found.entry = Entry(self._recorder.adopted(batch, code), identity, arguments)
        found.attempts = attempt
        return found

    def inherit(self, left: Iterable[Left]) -> None:
        """Take in what workers have left behind that are gone."""
        for claim, attempt, code, payload, seconds in left:
            if code == Code.SKIPPED or claim in self._found or self._recorder.knows(*claim):
                continue
            found = self._new(claim, "", attempt)
            found.run_seconds = seconds
            value = Unread(code, payload) if code else payload
            futures, values = self.answered([found], [value])
            if futures:
                self._recorder.settle(futures, values)

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
        return self._deadline if self._waiting or self._awaited else None

    def tend(self, now: float) -> None:
        """Let what has waited for survivors go its way, when they have all called or it has been long enough."""
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            for worker in self._awaited:
                self._core.unheard(worker)
                seen = self._look_at(worker)
                if seen is not None:
                    index, digest = seen
                    self._executed[digest] = worker, index
        if self._waiting and not self.is_open:
            self.give_out(now)

    def give_out(self, now: float) -> None:
        """Have all that waits run."""
        waiting, self._waiting = self._waiting, {}
        asked, self._asked = self._asked, {}
        if self._executed:
            for claim, task in asked.items():
                if not task.withdrawn and self._is_executed(claim, task, now):
                    del waiting[task]
        self._core.submit(waiting)

    def _is_executed(self, claim: Claim, task: TaskFuture, now: float) -> bool:
        """Whether a silent worker is at ``task``, which is to wait for it then."""
        seen = self._executed.pop(digest_of(claim), None) if self._executed else None
        if seen is None:
            return False
        worker, index = seen
        self._core.executes(worker, index, task, now)
        return True

    def sift(self, tasks: list[Any], now: float) -> list[Any]:
        """Return what of ``tasks`` is to run: not what some worker holds, nor what one may hold."""
        rest = []
        for task in tasks:
            claim = claim_of(task.entry) if isinstance(task, TaskFuture) else None
            if claim is None:
                rest.append(task)
                continue
            found = self._found.pop(claim, None)
            if found is not None and (found.answered or found in self._failed or found.worker is not None):
                self._hand_over(found, task, rest, now)
            elif self.is_open:
                self._asked[claim] = task
                self._waiting[task] = None
            elif not self._is_executed(claim, task, now):
                rest.append(task)
        return rest

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
            self._core.claim(found, task, now)

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
        return bool(self._found) or bool(self._settled_until)

    def abandon(self) -> list[Task]:
        """Return what somebody works on and nobody has asked for: the keeper ends."""
        return [found for found in self._found.values() if not found.answered and found not in self._failed]

    # -- answers ------------------------------------------------------------------------------------------------------

    def answered(self, futures: list[TaskFuture], values: Sequence[Any]) -> tuple[list[TaskFuture], Sequence[Any]]:
        """Return the answers that are to be recorded and delivered.

        A failure that nobody has asked for is kept as it is: whether it is final is for those to say who ask.
        """
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

    def _remember(self, futures: list[TaskFuture]) -> None:
        if time.monotonic() >= self._settled_until:
            self._settled_until = 0.0
            self._settled.clear()
            return
        self._settled.update(claim for future in futures if (claim := claim_of(future.entry)) is not None)

    def recorded(self, found: _Foundling, value: Any) -> None:
        """The outcome of a foundling is recorded; on the journal's thread."""
        with self._lock:
            heir = found.heir
        if heir is not None:
            self._deliver([heir], [value])
