"""The keeper's runtime: waits for what happens, tells the core, carries out its commands.

One thread does all of it, or in its place the thread that waits for a result (see ``loop``). Applications only
append to ``_inbox`` and wake it; what they ask of the core itself (cancel) they ask under ``_lock``. User code never
runs here: results are unpickled by who asks for them, callbacks and retry policies run on the delivery thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .commands import Command, Decide, Fail, Feed, Kill, Nudge, Retire, Settle, Spawn
from .core import Core
from .errors import PoolkeeperError, ProtocolError, ReexecRefused
from .futures import TaskFuture
from .home import Home
from .ledger import Segment, Task
from .lifecycle import WorkerState
from .link import PYTHON
from .logs import emit
from .loop import LONGEST_WAIT, Loop, Ready
from .nursery import Nursery
from .page import CANCEL
from .reporting import flush, report
from .settings import Settings
from .spool import Stowage
from .switchboard import Peer, Switchboard
from .traffic import Traffic
from .versions import PROTOCOL, Versions
from .worker_config import WorkerConfig, cloudpickle_version
from .workforce import Workforce

if TYPE_CHECKING:
    from .adoption import Adoption
    from .control import Control
    from .recording import Recorder
    from .recovered import Recovered
    from .recovery import Recovery
    from .reexec import Estate
    from .register import Register
    from .service_model import ServiceStatus
    from .supervision import Supervision

__all__ = ["KeeperRuntime", "WorkerRow"]

T = TypeVar("T")

LEAVE_SECONDS = 5.0
"""How long retired workers get to leave when the keeper ends, before they are killed."""

FIRST_DESCRIPTORS = 8
"""What a fork server and a first worker cost the keeper, with something to spare."""


class WorkerRow(NamedTuple):
    """One worker as ``status()`` shows it.

    ``started`` is in seconds since the epoch, ``born`` the same moment in seconds of the monotonic clock.
    """

    id: int
    pid: int | None
    state: str
    task: Task | None
    started: float
    born: float


class KeeperRuntime:
    """Owns the loop and the lock of one keeper, and through its parts all else."""

    def __init__(self, settings: Settings, home: Home) -> None:
        self.settings = settings
        self.refusal: str | None = None
        self.started, self.born = time.time(), time.monotonic()
        self.name = None if home.ephemeral else home.path.parent.name
        self.run_id = home.path.name
        self.stowage = Stowage(home.path, settings.queue_bytes)
        self._home = home
        self._birth = os.urandom(6).hex()
        self._core = Core(settings.max_workers, settings.max_tasks, self._birth)
        self._inbox: deque[Task | Segment] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._mourners: list[Callable[[], object]] = []
        self._retired_at: float | None = None
        self.recorder: Recorder | None = None
        self._recovery: Recovery | None = None
        self._adoption: Adoption | None = None
        self._supervision: Supervision | None = None
        self._register: Register | None = None
        self._control: Control | None = None
        self._on_shutdown: Callable[[str], object] | None = None
        self._progress: Callable[[], dict[str, Any]] | None = None
        self._departing: str | None = None
        self._detached = False
        self._at_rest = threading.Event()
        self._stranded: Future[None] = Future()
        undo = contextlib.ExitStack()
        with undo:
            self._open(settings, home, undo)
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="poolkeeper", daemon=True)
        self._thread.start()

    def _open(self, settings: Settings, home: Home, undo: contextlib.ExitStack) -> None:
        """Take from the system what the keeper needs; ``undo`` gives it back should that fail half-way."""
        self._loop = Loop(self)
        selector = self._loop.selector
        undo.callback(selector.close)
        undo.callback(self._loop.close)
        config = WorkerConfig(
            socket=home.socket,
            key=home.key,
            logs=str(home.logs),
            inherit_output=settings.inherit_output,
            initializer=settings.initializer,
            max_memory=settings.max_memory,
            max_age=settings.max_age,
            arena_directory=str(home.path),
            limits=settings.limits,
            checkpoints=str(home.checkpoints),
            incarnation=self._birth,
            orphan_grace=None if home.ephemeral else settings.orphan_grace,
            cloudpickle="" if home.ephemeral else cloudpickle_version(),
        )
        core = self._core
        if not home.ephemeral:
            from .register import Register

            self._register = Register(home, self.name or "", self.run_id)
            undo.callback(self._register.close, keep=bool(self._register.survivors))
            self.recorder = self._open_recorder(settings, home)
            if self.recorder is not None:
                undo.callback(self.recorder.close)
        self._nursery = Nursery(settings, config, selector, home, self._register)
        self._workforce = Workforce(settings, core, self._nursery, selector, self.stowage, self._birth)
        versions = Versions(PROTOCOL, PYTHON, config.cloudpickle or None)
        self._board = Switchboard(home.socket, home.key, selector, self._introduce, home.listener, versions)
        undo.callback(self._nursery.close)
        undo.callback(self._board.close)  # first: a fork server that is still calling would wait for an answer
        from .postmortem import Postmortem  # slow to import; and when a worker dies there may be no descriptor left

        self._postmortem = Postmortem(home.logs)
        self._traffic = Traffic(
            core, self._board, self._workforce, self.stowage, self._postmortem, self._wake_if_sleeping, self._birth
        )
        self._traffic.recorder = self.recorder
        self._actions: dict[type[Command], Callable[[Any], None]] = {
            Settle: self._traffic.settle,
            Feed: self._traffic.feed,
            Fail: self._traffic.fail,
            Spawn: self._workforce.spawn,
            Retire: self._workforce.retire,
            Kill: self._workforce.kill,
            Nudge: self._workforce.nudge,
            Decide: self._ask_policy,
        }
        self._workforce.open(self._board)
        survivors = () if self._register is None else self._register.survivors
        self._nursery.open(
            self._board,
            [child.identity for child in survivors if child.role == "forkserver"],
            blind=self._register is not None and self._register.crashed and self._register.inherited is None,
        )
        if self._register is not None and self.recorder is not None:
            from .recovery import Recovery

            traffic = self._traffic
            recovery = Recovery(
                self._register, self.recorder, core, self._nursery, self._workforce, self, traffic.deliver
            )
            self._recovery, self._adoption = recovery, recovery.adoption
            self._workforce.adoption = traffic.adoption = recovery.adoption
            recovery.begin(home.path / "spool", home.key)
        if self._register is not None and self._register.has_services:
            self._supervision = self._new_supervision()
        _require_descriptors(self._loop.descriptor)

    def _open_recorder(self, settings: Settings, home: Home) -> Recorder | None:
        from .recording import open_recorder

        return open_recorder(
            home.path,
            home.key,
            "interrupted" if home.inherited else settings.resume,  # a re-exec is no new run, whatever the options say
            settings.durability,
            settings.keep_runs,
            # There is no traffic yet.
            lambda futures, values: self._traffic.deliver(futures, values),  # noqa: PLW0108
            lambda future, error: self._traffic.deliver_failure(future, error),  # noqa: PLW0108
            self.wake,
        )

    # -- what applications call, from any thread ----------------------------------------------------------------------

    def submit(self, task: Task | Segment) -> None:
        """Take on a task; never blocks."""
        self._inbox.append(task)
        if self._loop.sleeping:
            self.wake()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have ``call`` run on the keeper's thread, under the lock."""
        self._calls.append(call)
        self.wake()

    def wake(self) -> None:
        """Make the keeper's thread look around; safe in finalizers."""
        if self._ended.is_set():
            self._refuse_late()
            return
        self._loop.wake()

    def _wake_if_sleeping(self) -> None:
        if self._loop.sleeping:
            self.wake()

    def _refuse_late(self) -> None:
        """A submission slipped in between the last look at the inbox and the end: it must not wait for ever."""
        while self._inbox:
            self._traffic.fail_task(self._inbox.popleft(), RuntimeError(self.refusal))
        self._traffic.announce()

    def cancel(self, task: TaskFuture) -> bool:
        """Withdraw a task; see ``TaskFuture.cancel``."""
        with self._lock:
            if task.done():
                return task.cancelled()
            if task.answered:
                return False
            withdrawn = self._core.cancel(task)
            if withdrawn:
                has_callbacks = task.settle_cancelled()
                self._traffic.drop_payload(task)
            else:
                self._ask_to_stop(task)
        if withdrawn:
            self.wake()
            if has_callbacks:
                task.run_callbacks()
        return withdrawn

    def _ask_to_stop(self, task: Task) -> None:
        peer = self._workforce.get(task.worker)
        if peer is not None and peer.page is not None:
            peer.page.words[CANCEL] = task.index
            peer.signal(signal.SIGURG)

    def forget(self, segments: list[Segment]) -> None:
        """Give up what is left of ``segments``: their map is read no further."""
        if not self._ended.is_set():
            self.call_soon(partial(self._traffic.forget, segments))

    def ask(self, call: Callable[[], T]) -> T:
        """Have ``call`` run on the keeper's thread, with what follows from it; return its result or raise its error."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                result = call()
                self._carry_out()
            except BaseException as error:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        if self.refusal is not None or self._ended.is_set():
            raise RuntimeError(self.refusal)
        self.call_soon(run)
        while True:
            try:
                return answer.result(1.0)
            except FutureTimeoutError:
                if self._ended.is_set() and not answer.done():
                    raise RuntimeError(self.refusal) from None

    @property
    def supervision(self) -> Supervision:
        """What looks after services; made when the first is declared, for most keepers have none."""
        if self._supervision is None:
            with self._lock:
                if self._supervision is None:
                    self._supervision = self._new_supervision()
        return self._supervision

    @property
    def has_services(self) -> bool:
        """Whether any service has been declared."""
        return self._supervision is not None

    def recovered(self) -> Recovered | None:
        """Return what was found of an earlier keeper."""
        with self._lock:
            return None if self._recovery is None else self._recovery.recovered()

    def service_rows(self) -> list[ServiceStatus]:
        """Return what every service is doing."""
        if self._supervision is None:
            return []
        with self._lock:
            return self._supervision.rows()

    def _new_supervision(self) -> Supervision:
        from .supervision import Supervision
        from .supervisor import Supervisor

        return Supervision(
            Supervisor(self.settings.max_starting),
            self._nursery,
            self._board,
            self._loop.selector,
            self._traffic.delivery,
            self._postmortem,
            self._home,
            self.call_soon,
            self._register,
            self.settings.max_workers,
            self._birth,
        )

    def expect_callbacks(self) -> None:
        """Start the thread that runs callbacks while that is still possible."""
        self._traffic.delivery.start()

    def is_running(self, task: TaskFuture) -> bool:
        """Whether a worker executes ``task`` now, by the worker's page."""
        with self._lock:
            peer = self._workforce.get(task.worker)
            return peer is not None and peer.page is not None and peer.page.observe().started == task.index

    def withdraw_pending(self) -> None:
        """Cancel all that no worker has started; what a worker is being started for counts as started."""
        with self._lock:
            self._take_inbox()
            self._give_out()
            self._carry_out()
            withdrawn = self._core.abandon()
            started = sum(worker.state is WorkerState.STARTING for worker in self._core.workers.values())
            kept = [task for task in withdrawn if isinstance(task, TaskFuture)][:started]
            self._core.submit(kept)
            withdrawn = [task for task in withdrawn if task not in kept]
            for worker in self._core.workers.values():
                withdrawn.extend(task for task in list(worker.inflight) if task is not None and self._core.cancel(task))
            for task in withdrawn:
                self._traffic.withdraw(task)
        self.wake()

    def publish(self, progress: Callable[[], dict[str, Any]]) -> None:
        """Have ``progress``, called on the keeper's thread, say how far the run has come when others ask for it."""
        self._progress = progress

    def progress(self) -> dict[str, Any]:
        """Return what is published, nothing where nothing is."""
        return {} if self._progress is None else self._progress()

    def on_shutdown(self, callback: Callable[[str], object]) -> None:
        """Have ``callback`` called, on the delivery thread, when another program asks this keeper to end."""
        self._on_shutdown = callback

    def kill(self) -> None:
        """Have the fork servers end, and with them all that they have made; from any thread."""
        self._nursery.kill()

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called, on the keeper's thread, when it has ended; at once if it has already."""
        with self._lock:
            if not self._ended.is_set():
                self._mourners.append(callback)
                return
        callback()

    def request_shutdown(self, reason: str) -> None:
        """Another program asks this keeper to end."""
        callback = self._on_shutdown
        if callback is not None:
            self._traffic.delivery.post(lambda: (callback(reason), None)[1])
        else:
            self.refusal = f"this keeper was shut down from outside: {reason}"
            self.close()

    def request_reexec(self, answer: Callable[[str], None]) -> None:
        """Another program asks for a re-exec; ``answer`` is called, on the keeper's thread, with why it is refused."""
        threading.Thread(target=self._reexec, args=(answer,), name="poolkeeper-reexec", daemon=True).start()

    def _reexec(self, answer: Callable[[str], None]) -> None:
        from .reexec import PROCESS

        try:
            PROCESS.perform(self)
        except Exception as error:
            why = str(error) if isinstance(error, PoolkeeperError) else repr(error)
            report("WARNING", f"re-exec: {why}")
            self.call_soon(partial(answer, why))

    def leave_unfinished(self, reason: str) -> None:
        """Have the next run go on with this one, whatever comes to its end in this one."""
        if self.recorder is not None:
            self.recorder.leave(reason)

    def close(self) -> None:
        """Finish what is taken on, then end; does not wait."""
        if self.refusal is None:
            self.refusal = "cannot schedule new futures after shutdown"
        if not self._ended.is_set():
            self.call_soon(self._close)

    def _close(self) -> None:
        self._core.close()
        if self._adoption is not None:
            for found in self._adoption.abandon():
                self._core.give_up(found)
        if self._supervision is not None:
            self._supervision.stop_all("the keeper ends")

    def detach(self) -> None:
        """End, and leave every process as it is to a later keeper of this name; what is pending fails.

        Raises PoolkeeperError for a keeper that is ephemeral, RuntimeError for one that has been shut down.
        """
        if self._home.ephemeral:
            raise PoolkeeperError(
                "an ephemeral keeper's processes end with it, for none could find them: give it a name"
            )
        with self._lock:
            if self.refusal is not None and not self._detached:
                raise RuntimeError(self.refusal)
            self.refusal = f"{self._title} was detached"
            self.leave_unfinished("detached")
            self._detached = True
        self.wake()
        if not self._traffic.delivery.is_caller:  # a callback, for which the end itself waits
            self.join()

    @property
    def _title(self) -> str:
        return f"keeper {self.name}/{self.run_id}"

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all is done and every process is gone; return whether that is so."""
        if threading.current_thread() is self._thread:
            return False
        return self._ended.wait(timeout)

    def snapshot(self) -> tuple[int, int, list[WorkerRow]]:
        """Return how many tasks wait and how many run, and the workers."""
        with self._lock:
            queued = len(self._core.queue) + len(self._inbox)
            if self._adoption is not None:
                queued += self._adoption.waiting
            running = 0
            rows = []
            for peer in self._workforce:
                worker = peer.worker
                task = peer.executing()
                running += task is not None
                queued += len(worker.inflight) - (task is not None)
                state = "busy" if task is not None else worker.state.value
                rows.append(WorkerRow(worker.id, worker.pid, state, task, peer.started, peer.born))
            return queued, running, rows

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Signals are for the application's threads.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while self._departing is None and not self._finished():
                self._loop.step()
            if self._departing is not None:
                self._come_to_rest(self._departing)
                raise self._stranded.exception() or AssertionError  # unless the process is replaced meanwhile
        except BaseException as error:
            self._try_reexec(error)
            self._break(error)
        finally:
            self._end()

    def process(self, ready: Ready) -> None:
        """Deal with what has become ready, and with all else that is to be done."""
        with self._lock:
            registered = self._loop.selector.get_map()
            for key, mask in ready:
                # What came before, or another driver, may have closed this descriptor or given it another meaning.
                if registered.get(key.fd) is key:
                    key.data(mask)
            if self._board.deaf_until is not None:
                self._board.listen_again(time.monotonic())
            while self._calls:
                self._calls.popleft()()
            self._take_inbox()
            self._carry_out()
        self._traffic.announce()

    def _carry_out(self) -> None:
        now = time.monotonic()
        self._nursery.tend(now)
        if self._adoption is not None:
            self._adoption.tend(now)
        for command in self._core.decide(now):
            self._actions[type(command)](command)
        if self._supervision is not None:
            self._supervision.carry_out()
        self._traffic.acknowledge_recorded()
        if self._recovery is not None:
            self._recovery.tidy()
        self._board.send_due()

    def has_news(self) -> bool:
        """Whether there is something to process without waiting."""
        return bool(self._inbox or self._calls or self._departing or self._detached)  # who drives shall leave the seat

    def runs_one_short_task(self, task: TaskFuture, limit: float) -> float | None:
        """Return how many seconds ``task`` takes if nothing else runs, and it takes less than ``limit``; else None."""
        cost = task.call.cost
        return None if cost is None or cost > limit or self._core.running > 1 else cost

    def failed(self, error: Exception) -> None:
        """Have the keeper's own thread fail with what processing has raised in another one."""
        self._calls.append(partial(_raise, error))

    def drive(self, task: TaskFuture, timeout: float | None) -> None:
        """Do the keeper's work until ``task`` is done, if the calling thread may; ``timeout`` in seconds."""
        self._loop.drive(task, timeout)

    def timeout(self) -> float | None:
        """Return the seconds until something is due, None for nothing."""
        deadline = self._core.next_deadline()
        if self._supervision is not None:
            deadline = _earlier(deadline, self._supervision.next_deadline())
        if self._retired_at is not None:
            deadline = _earlier(deadline, self._retired_at + LEAVE_SECONDS)
        deadline = _earlier(deadline, self._board.deaf_until)
        deadline = _earlier(deadline, self._nursery.next_deadline())
        if self._adoption is not None:
            deadline = _earlier(deadline, self._adoption.next_deadline())
        return None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT)

    def _take_inbox(self) -> None:
        inbox = self._inbox
        number = len(inbox)
        if number:
            tasks: list[Any] = [inbox.popleft() for _ in range(number)]
            if self._adoption is not None and self._adoption.concerns:
                self._carry_out()  # first, what has just been answered is held by nobody
                tasks = self._adoption.sift(tasks, time.monotonic())
            self._core.submit(tasks)

    def _give_out(self) -> None:
        """Let nothing wait for survivors any more."""
        if self._adoption is not None:
            self._adoption.give_out()

    def _finished(self) -> bool:
        core = self._core
        if self._detached:
            return True
        if not core.closing or self._inbox or self._calls or core.outstanding:
            return False
        if self._adoption is not None and self._adoption.waiting:
            return False
        if self._supervision is not None and not self._supervision.down:
            return False
        if not core.workers:
            return True
        now = time.monotonic()
        if self._retired_at is None:
            self._retired_at = now
        elif now - self._retired_at >= LEAVE_SECONDS:
            with self._lock:
                self._workforce.kill_all()
            self._retired_at = now
        return False

    def _introduce(self, hello: dict[str, Any]) -> Peer:
        """Return whose session a caller resumes."""
        role = hello["role"]
        if role == "worker":
            return self._workforce.introduce(hello)
        if role == "forkserver":
            return self._nursery.introduce(hello)
        if role == "control":
            return self._introduce_client()
        if role == "service" and (self._supervision is not None or self._register is not None):
            return self.supervision.introduce(hello)
        raise ProtocolError(f"nobody here speaks to a caller that is {role!r}")

    def _introduce_client(self) -> Peer:
        if self._control is None:
            from .control import Control

            self._control = Control(self, self._board)
        return self._control.introduce()

    # -- retry policies -----------------------------------------------------------------------------------------------

    def _ask_policy(self, command: Decide) -> None:
        self._traffic.delivery.post(partial(self._ask_policy_now, command))

    def _ask_policy_now(self, command: Decide) -> None:
        """On the delivery thread, for a policy's strategies are user code."""
        from .retrying import delay_before_retry

        try:
            delay = delay_before_retry(command, time.monotonic())
        except Exception:
            emit("ERROR", f"the failure of {command.task.call.name} is final\n{traceback.format_exc()}")
            delay = None
        self.call_soon(lambda: self._core.decided(command, delay, time.monotonic()))

    # -- re-exec ------------------------------------------------------------------------------------------------------

    def answers(self, seconds: float) -> bool:
        """Whether the loop runs; raises ReexecRefused when it does nothing for ``seconds``."""
        if threading.current_thread() is self._thread:
            return True
        answered = threading.Event()
        self.call_soon(answered.set)
        if self._wait(answered, seconds):
            return True
        if self._ended.is_set():
            return False
        raise ReexecRefused(f"the keeper's loop has not answered within {seconds:g} s; the old program goes on")

    def depart(self, reason: str, seconds: float) -> bool:
        """Come to rest, with everything recorded, for a new program takes this one's place.

        Children are not told: to them the keeper is away for a moment. Return whether that is so within ``seconds``.
        """
        if threading.current_thread() is self._thread:
            self._come_to_rest(reason)
        else:
            self._departing = reason
            self.wake()
        return self._wait(self._at_rest, seconds)

    def estate(self) -> Estate | None:
        """Return what a successor in this process takes over; None for an ephemeral keeper."""
        from .reexec import Estate

        if self._home.lock is None:
            return None
        return Estate(self._home.lock, self._board.listener.fileno(), self._home.socket)

    def strand(self, error: BaseException) -> None:
        """No new program takes this one's place: end, as nothing else is left to do."""
        if not self._stranded.done():
            self._stranded.set_exception(error)

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not event.wait(0.1):
            if self._ended.is_set() or time.monotonic() >= deadline:
                return event.is_set()
        return True

    def _come_to_rest(self, reason: str) -> None:
        self._loop.leave()
        self._traffic.announce()
        self.leave_unfinished(reason)
        if self.recorder is not None:
            self.recorder.close()
        if self._register is not None:
            self._register.close(keep=True)
        if self._home.ephemeral:
            self._board.close()
            self._nursery.close()
            self._home.remove()
        flush()
        self._at_rest.set()

    def _try_reexec(self, error: BaseException) -> None:
        """Where the command line owns the process, a new program goes on in place of a loop that has failed."""
        from .reexec import PROCESS

        if PROCESS.owned_as is None or self.name is None or self._departing is not None:
            return
        text = "".join(traceback.format_exception(error))
        report("CRITICAL", f"the keeper has failed, and is replaced; this is a defect of poolkeeper\n{text}")
        try:
            PROCESS.perform(self, automatic=True)
        except Exception as refusal:
            report("ERROR", f"re-exec: {refusal}")

    # -- ending -------------------------------------------------------------------------------------------------------

    def _break(self, error: BaseException) -> None:
        """The loop itself has failed: nothing may hang, so all that is pending fails with the reason."""
        text = "".join(traceback.format_exception(error))
        report("CRITICAL", f"the keeper has failed; this is a defect of poolkeeper\n{text}")
        self.refusal = f"the keeper has failed: {error!r}"
        self.leave_unfinished(self.refusal)
        failure = PoolkeeperError(f"{self.refusal}; this is a defect of poolkeeper")
        failure.__cause__ = error
        self._fail_pending(failure)

    def _fail_pending(self, failure: PoolkeeperError) -> None:
        with self._lock:
            self._take_inbox()
            self._give_out()
            pending = self._core.abandon()
            for worker in self._core.workers.values():
                pending.extend(task for task in worker.inflight if task is not None)
            for task in pending:
                self._traffic.fail_task(task, failure)
        self._traffic.announce()

    def _part(self) -> None:
        """Write down, for a later keeper, all that goes on; from now on nothing that is let go of counts as gone."""
        if self._register is not None:
            self._register.close(keep=True)
        if self.recorder is not None:
            self.recorder.close()  # before what is pending fails, for that is no outcome
        message = f"{self._title} was detached: what runs goes on, and a later keeper of this name has its outcome"
        self._fail_pending(PoolkeeperError(message))

    def _end(self) -> None:
        """Leave nothing behind, no process, no descriptor, no file that should not stay; unless detached."""
        self._loop.leave()
        self._traffic.announce()
        if self._detached:
            self._part()
        self._board.close()  # first: a fork server that has just been started would wait for an answer
        self._nursery.close(leave=self._detached)
        self._workforce.close()
        if self._supervision is not None:
            self._supervision.close(leave=self._detached)
        if self._control is not None:
            self._control.close()
        self.stowage.close()
        self._loop.selector.close()
        if self._detached:
            self._home.close_lock()
        else:
            self._vacate()
        self._traffic.delivery.close()
        flush()
        with self._lock:
            self._loop.close()  # whoever submits now calls wake, which refuses
            self._ended.set()
        if self._supervision is not None:
            self._supervision.announce_end()
        for callback in self._mourners:
            callback()
        self.wake()

    def _vacate(self) -> None:
        """No process is left: nor shall a file be that speaks of one."""
        if self._register is not None:
            self._register.close()
        if self.recorder is not None:
            self.recorder.close()
        self._home.remove()

    def abandon_in_child(self) -> None:
        """In a fork of the application: let go of everything that belongs to the parent's keeper."""
        self.refusal = f"this keeper belongs to process {os.getppid()}; make a new one in process {os.getpid()}"
        self._lock = threading.RLock()
        self._ended.set()
        self._home.close_lock()
        if self._register is not None:
            self._register.abandon_in_child()
        if self.recorder is not None:
            self.recorder.abandon_in_child()
        self._loop.abandon_in_child()


def _earlier(first: float | None, second: float | None) -> float | None:
    """Return the earlier of two deadlines, None for none."""
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def _raise(error: Exception) -> None:
    raise error


def _require_descriptors(fd: int) -> None:
    """Raise OSError now, where it is understood, if there are not even descriptors for the first worker."""
    with contextlib.ExitStack() as spare:
        for _ in range(FIRST_DESCRIPTORS):
            spare.callback(os.close, os.dup(fd))
