"""The keeper's runtime: waits for what happens, tells the core, carries out its commands.

One thread does all of it. Applications only append to ``_inbox`` and wake it; what they ask of the core itself
(cancel) they ask under ``_lock``. User code never runs here: results are unpickled by who asks for them, callbacks
and retry policies run on the delivery thread.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from .arena import ReleaseQueue
from .core import Core, Decide, Exit, Fail, Feed, Kill, Nudge, Retire, Settle, Spawn, Worker
from .delivery import Delivery
from .driving import Seat, SignalGuard
from .errors import PoolkeeperError, ProtocolError
from .forkserver import Launched, launch
from .futures import TaskFuture, Unread, settle_quietly
from .home import Home
from .ledger import Chunk, Code, Segment, Task
from .lifecycle import WorkerState
from .link import FDS_LIMIT
from .logs import emit
from .messages import Kind
from .page import CANCEL, KeeperPage
from .payload import Large, map_large
from .postmortem import Postmortem
from .spool import Counted, Spilled, Stowage
from .switchboard import Peer, Switchboard
from .worker import WorkerConfig

__all__ = ["Job", "KeeperRuntime", "Settings", "WorkerRow"]

LEAVE_SECONDS = 5.0
"""How long retired workers get to leave when the keeper ends, before they are killed."""

_ONE = (1).to_bytes(8, "little")
_LIGHT = frozenset({tuple, bytes, type(None)})
"""Payloads that are sent as they are."""


class Job(Protocol):
    """Who gathers the pieces of a map."""

    withdrawn: bool

    def settle(self, chunk: Chunk, codes: Any, values: Any) -> bool:
        """Take a piece in, under the keeper's lock; return whether somebody waits for it."""

    def fail(self, piece: Chunk | Segment, error: BaseException) -> bool:
        """Take in that a piece has failed; as ``settle``."""

    def announce(self) -> None:
        """Wake who waits."""


@dataclass(frozen=True)
class Settings:
    """What a keeper is made with, validated.

    ``environment`` is for the fork server and its workers. ``queue_bytes`` is how much queued payloads may weigh in
    memory; the rest waits on disk. ``max_memory`` is in bytes.
    """

    max_workers: int
    max_tasks: int | None
    start_method: str
    preload: tuple[str, ...]
    environment: dict[str, str]
    initializer: bytes | None
    max_memory: int | None
    inherit_output: bool
    queue_bytes: int


@dataclass(frozen=True)
class WorkerRow:
    """One worker as ``status()`` shows it; ``started`` is in seconds since the epoch."""

    id: int
    pid: int | None
    state: str
    task: Task | None
    started: float


class _WorkerPeer(Peer):
    """The session with one worker, and what else belongs to it."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.worker = worker
        self.name = f"worker {worker.id}"
        self.pidfd = -1
        self.page: KeeperPage | None = None
        self.arenas: dict[int, Large] = {}
        self.released = ReleaseQueue()
        self.started = time.time()
        self.killed = False

    def releases(self) -> list[int]:
        return self.released.take() if self.released else []


class KeeperRuntime:
    """Owns the processes, sessions and state of one keeper."""

    def __init__(self, settings: Settings, home: Home) -> None:
        self.settings = settings
        self.home = home
        self.core = Core(settings.max_workers, settings.max_tasks)
        self.refusal: str | None = None
        self.started = time.time()
        self.stowage = Stowage(home.path, settings.queue_bytes)
        self._inbox: deque[Task | Segment] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()
        self._sleeping = False
        self._seat = Seat()
        self._guard = SignalGuard()
        self._ended = threading.Event()
        self._retired_at: float | None = None
        self._peers: dict[int, _WorkerPeer] = {}
        self._unreported: dict[int, Worker] = {}
        self._jobs: list[Job] = []
        self._delivery = Delivery()
        self._postmortem = Postmortem(home.logs)
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = _wake_pair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._woken)
        self._board = Switchboard(home.socket, home.key, self._selector, self)
        self._worker_config = WorkerConfig(
            socket=home.socket,
            key=home.key,
            crash_log=str(home.logs / "worker-{}.crash"),
            log=None if settings.inherit_output else str(home.logs / "worker-{}.log"),
            initializer=settings.initializer,
            max_memory=settings.max_memory,
            arena_directory=str(home.path),
        )
        self._server = Peer()
        self._server_process: Launched | None = None
        self._launch_server()
        self._thread = threading.Thread(target=self._run, name="poolkeeper", daemon=True)
        self._thread.start()

    # -- what applications call, from any thread ----------------------------------------------------------------------

    def submit(self, task: Task | Segment) -> None:
        """Take on a task; never blocks."""
        self._inbox.append(task)
        if self._sleeping:
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
        self._sleeping = False
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, _ONE)

    def _refuse_late(self) -> None:
        """A submission slipped in between the last look at the inbox and the end: it must not wait for ever."""
        while self._inbox:
            task = self._inbox.popleft()
            error = RuntimeError(self.refusal)
            if isinstance(task, TaskFuture):
                if task.settle_exception(error):
                    task.run_callbacks()
            else:
                self._fail_piece(task, error)
                self._announce()

    def cancel(self, task: TaskFuture) -> bool:
        """Withdraw a task; see ``TaskFuture.cancel``."""
        with self._lock:
            if task.done():
                return task.cancelled()
            withdrawn = self.core.cancel(task)
            if withdrawn:
                has_callbacks = task.settle_cancelled()
            else:
                self._ask_to_stop(task)
        if withdrawn:
            self.wake()
            if has_callbacks:
                task.run_callbacks()
        return withdrawn

    def _ask_to_stop(self, task: Task) -> None:
        peer = self._peers.get(task.worker) if task.worker is not None else None
        if peer is not None and peer.page is not None:
            peer.page.words[CANCEL] = task.index
            self._signal(peer, signal.SIGURG)

    def is_running(self, task: TaskFuture) -> bool:
        """Whether a worker executes ``task`` now, by the worker's page."""
        with self._lock:
            peer = self._peers.get(task.worker) if task.worker is not None else None
            return peer is not None and peer.page is not None and peer.page.observe().started == task.index

    def withdraw_pending(self) -> None:
        """Cancel all that no worker has started."""
        withdrawn: list[Task | Segment] = []
        with self._lock:
            self._take_inbox()
            withdrawn.extend(self.core.abandon())
            for worker in self.core.workers.values():
                withdrawn.extend(task for task in worker.inflight if task is not None and self.core.cancel(task))
            for task in withdrawn:
                if isinstance(task, TaskFuture):
                    task.withdrawn = True
                    self._tell(task, task.settle_cancelled())
                elif isinstance(task, Chunk):
                    task.segment.job.withdrawn = True
                elif isinstance(task, Segment):
                    task.job.withdrawn = True
        self.wake()

    def close(self) -> None:
        """Finish what is taken on, then end; does not wait."""
        if self.refusal is None:
            self.refusal = "cannot schedule new futures after shutdown"
        self.call_soon(self.core.close)

    def kill_all(self) -> None:
        """Withdraw everything, kill the workers in the midst of what they do, and end."""
        self.withdraw_pending()
        self.close()
        self.call_soon(self._kill_workers)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all is done and every process is gone; return whether that is so."""
        if threading.current_thread() is self._thread:
            return False
        return self._ended.wait(timeout)

    def snapshot(self) -> tuple[int, int, list[WorkerRow]]:
        """Return how many tasks wait and how many run, and the workers."""
        with self._lock:
            queued = len(self.core.queue) + len(self._inbox)
            running = 0
            rows = []
            for peer in self._peers.values():
                worker = peer.worker
                task = None
                if peer.page is not None and worker.inflight:
                    progress = peer.page.observe()
                    position = progress.started - worker.base
                    if progress.started > progress.finished and 0 <= position < len(worker.inflight):
                        task = worker.inflight[position]
                    running += task is not None
                    queued += len(worker.inflight) - (task is not None)
                state = "busy" if task is not None else worker.state.value
                rows.append(WorkerRow(worker.id, worker.pid, state, task, peer.started))
            return queued, running, rows

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Signals are for the application's threads.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._finished():
                if self._seat.taken:
                    self.wake()  # what the driver waits for may have been done in the step before
                self._seat.stand_back()
                self._step()
        except BaseException as error:
            self._break(error)
        finally:
            self._end()

    def _step(self) -> None:
        self._sleeping = True
        ready = self._selector.select(0.0 if self._inbox or self._calls else self._timeout())
        self._sleeping = False
        self._process(ready)

    def _process(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        with self._lock:
            now = time.monotonic()
            registered = self._selector.get_map()
            for key, mask in ready:
                # What came before, or another driver, may have closed this descriptor or given it another meaning.
                if registered.get(key.fd) is key:
                    key.data(mask)
            while self._calls:
                self._calls.popleft()()
            self._take_inbox()
            for command in self.core.decide(now):
                _ACTIONS[type(command)](self, command)
            self._send_all()
        self._announce()

    def drive(self, task: TaskFuture, timeout: float | None) -> None:
        """Run the loop in the calling thread until ``task`` is done, if that may be; see ``driving``."""
        if not self._seat.take():
            return
        guard = self._guard if threading.current_thread() is threading.main_thread() else None
        try:
            if guard is not None and not guard.enter():
                return
            try:
                self._drive(task, None if timeout is None else time.monotonic() + timeout, guard)
            finally:
                if guard is not None:
                    guard.leave()
        finally:
            # Whoever submits next must wake the keeper's thread, unless it looks by itself in a moment.
            self._sleeping = not self._seat.parked
            if self._inbox or self._calls:
                self.wake()
            self._seat.leave()

    def _drive(self, task: TaskFuture, deadline: float | None, guard: SignalGuard | None) -> None:
        ready: list[tuple[selectors.SelectorKey, int]] = []
        while True:
            if guard is not None:
                guard.critical = True
            try:
                self._process(ready)
            except Exception as error:
                self._calls.append(partial(_raise, error))  # the keeper's thread fails with it
                return
            finally:
                if guard is not None:
                    guard.check()
            if task.done() or self._calls:
                return
            wait = self._timeout()
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                wait = left if wait is None else min(wait, left)
            self._sleeping = True
            ready = self._selector.select(0.0 if self._inbox or self._calls else wait)
            self._sleeping = False

    def _timeout(self) -> float | None:
        deadline = self.core.next_deadline()
        if self._retired_at is not None:
            leave = self._retired_at + LEAVE_SECONDS
            deadline = leave if deadline is None else min(deadline, leave)
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _take_inbox(self) -> None:
        inbox = self._inbox
        number = len(inbox)
        if number:
            self.core.submit([inbox.popleft() for _ in range(number)])

    def _finished(self) -> bool:
        core = self.core
        if not core.closing or self._inbox or self._calls or core.outstanding:
            return False
        if not core.workers:
            return True
        now = time.monotonic()
        if self._retired_at is None:
            self._retired_at = now
        elif now - self._retired_at >= LEAVE_SECONDS:
            with self._lock:
                self._kill_workers()
            self._retired_at = now
        return False

    def _announce(self) -> None:
        if self._jobs:
            jobs, self._jobs = self._jobs, []
            for job in jobs:
                job.announce()

    def _send_all(self) -> None:
        self._board.send(self._server)
        for peer in list(self._peers.values()):
            self._board.send(peer)

    def _woken(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _spawn(self, command: Spawn) -> None:
        worker = command.worker
        peer = self._peers[worker.id] = _WorkerPeer(worker)
        try:
            if self._server_process is None:
                self._launch_server()
            worker.page = peer.page = KeeperPage()
        except OSError as error:
            self.core.start_failed(worker, f"the system refuses a new process or descriptor: {error}")
            self._worker_gone(peer, Exit(None, None))
            self.wake()
            return
        self._server.outgoing.append((Kind.SPAWN, worker.id, worker.slot))
        self._server.fds.append(peer.page.fd)
        if len(self._server.fds) == FDS_LIMIT:
            self._board.send(self._server)

    def _feed(self, command: Feed) -> None:
        worker, tasks = command.worker, command.tasks
        peer = self._peers[worker.id]
        first = tasks[0]
        call = first.call
        if call.id not in worker.known:
            worker.known.add(call.id)
            peer.outgoing.append((Kind.DEFINE, call.id, call.name, call.blob, call.path))
        if type(first) is Chunk:
            items, segment = first.payload, first.segment
            if not segment.plain:
                items = [self._outbound(peer, item) for item in items]
            chunk = (Kind.CHUNK, command.first, call.id, items, segment.plain, segment.starred, first.careful)
            peer.outgoing.append(chunk)
            if len(peer.fds) >= FDS_LIMIT:
                self._board.send(peer)
            return
        payloads = [task.payload for task in tasks]
        infos = None
        if len(tasks) == 1:
            attempt = first.attempts + first.deaths
            if first.key is not None or attempt > 1:
                infos = [(first.key, attempt)]
        elif any([task.key is not None for task in tasks]):
            infos = [(task.key, 1) for task in tasks]
        if _LIGHT.issuperset(map(type, payloads)):
            peer.outgoing.append((Kind.TASKS, command.first, call.id, payloads, infos))
            return
        for position, payload in enumerate(payloads):  # one by one, for a frame carries few descriptors
            info = None if infos is None else [infos[position]]
            outbound = self._outbound(peer, payload)
            peer.outgoing.append((Kind.TASKS, command.first + position, call.id, [outbound], info))
            if len(peer.fds) == FDS_LIMIT:
                self._board.send(peer)

    def _outbound(self, peer: _WorkerPeer, payload: Any) -> Any:
        """Return what travels; a payload that lies in an arena, or on disk, takes its descriptor along."""
        if type(payload) is Counted:
            return payload.data
        if type(payload) is Spilled:
            payload = self.stowage.load(payload)
            if type(payload) is Large:
                payload.settled = True
        if type(payload) is Large:
            payload.holders += 1
            peer.arenas[payload.arena.id] = payload
            peer.fds.append(payload.arena.fd)
            return payload.wire()
        return payload

    def _settle(self, command: Settle) -> None:
        tasks, codes, values = command.tasks, command.codes, command.values
        if type(tasks[0]) is Chunk:
            self._settle_chunk(tasks[0], codes, values)
            return
        if codes is not None:
            values = [Unread(code, value) if code else value for code, value in zip(codes, values, strict=True)]
            if None in tasks:
                values = [value for task, value in zip(tasks, values, strict=True) if task is not None]
                tasks = [task for task in tasks if task is not None]
        futures: Any = tasks
        pid, seconds = command.worker.pid, command.seconds
        for future in futures:
            future.worker_pid = pid
            future.run_seconds = seconds
            if type(future.payload) not in _LIGHT:
                self.stowage.drop(future.payload)
            future.payload = None
        for future, value in settle_quietly(futures, values):
            self._tell(future, future.settle(value))

    def _settle_chunk(self, chunk: Chunk, codes: Any, values: Any) -> None:
        job: Any = chunk.segment.job
        if job.settle(chunk, codes, values):
            self._jobs.append(job)
        if not chunk.segment.plain:
            for item in chunk.payload:
                self.stowage.drop(item)

    def _tell(self, future: TaskFuture, has_callbacks: bool) -> None:
        if has_callbacks:
            self._delivery.post(future.run_callbacks)

    def _fail(self, command: Fail) -> None:
        task = command.task
        error = self._postmortem.explain(command)
        if isinstance(task, TaskFuture):
            if command.worker is not None:
                task.worker_pid = command.worker.pid
            self._tell(task, task.settle_exception(error))
            self.stowage.drop(task.payload)
            task.payload = None
        else:
            self._fail_piece(task, error)

    def _fail_piece(self, piece: Any, error: BaseException) -> None:
        job = piece.segment.job if isinstance(piece, Chunk) else piece.job
        if job.fail(piece, error):
            self._jobs.append(job)

    def _retire(self, command: Retire) -> None:
        self._peers[command.worker.id].outgoing.append((Kind.RETIRE,))

    def _kill(self, command: Kill) -> None:
        peer = self._peers[command.worker.id]
        peer.killed = True
        self._signal(peer, signal.SIGKILL)

    def _nudge(self, command: Nudge) -> None:
        self._signal(self._peers[command.worker.id], signal.SIGURG)

    def _signal(self, peer: _WorkerPeer, number: int) -> None:
        """Signal a worker by its pidfd, which cannot name a stranger; what it started dies with it (fork server)."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if peer.pidfd >= 0:
                signal.pidfd_send_signal(peer.pidfd, number)
            elif peer.worker.pid is not None:
                os.kill(peer.worker.pid, number)

    def _kill_workers(self) -> None:
        for peer in self._peers.values():
            peer.killed = True
            self._signal(peer, signal.SIGKILL)

    def _ask_policy(self, command: Decide) -> None:
        self._delivery.post(partial(self._ask_policy_now, command))

    def _ask_policy_now(self, command: Decide) -> None:
        """On the delivery thread, for a policy's strategies are user code."""
        from .retrying import delay_before_retry

        try:
            delay = delay_before_retry(command, time.monotonic())
        except Exception:
            emit("ERROR", f"the failure of {command.task.call.name} is final\n{traceback.format_exc()}")
            delay = None
        self.call_soon(lambda: self.core.decided(command, delay, time.monotonic()))

    # -- what the switchboard says ------------------------------------------------------------------------------------

    def introduce(self, hello: dict[str, Any]) -> Peer:
        """Return whose session a caller resumes."""
        if hello["role"] == "forkserver":
            return self._server
        peer = self._peers.get(hello["id"])
        if peer is None:
            raise ProtocolError(f"worker {hello['id']} is not one of this keeper's")
        return peer

    def connected(self, peer: Peer, hello: dict[str, Any]) -> None:
        """A link is up: a worker's process can be watched now, and it can be fed unless it initializes first."""
        if not isinstance(peer, _WorkerPeer):
            return
        worker = peer.worker
        worker.pid = int(hello["pid"])
        if peer.page is not None:
            peer.page.close_fd()
        if peer.pidfd < 0 and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # no descriptor left, or gone again: the fork server reports its end
                peer.pidfd = os.pidfd_open(worker.pid)
                self._selector.register(peer.pidfd, selectors.EVENT_READ, partial(self._process_ended, peer))
        if peer.killed:
            self._signal(peer, signal.SIGKILL)
        if worker.state is WorkerState.READY:
            self.core.link_lost(worker)  # it has called again before the end of its link was seen
        if self.settings.initializer is None or worker.state is not WorkerState.STARTING:
            self.core.hello(worker)

    def message(self, peer: Peer, message: tuple[Any, ...], fds: list[int]) -> None:
        """A peer has said something."""
        if not isinstance(peer, _WorkerPeer):
            self._hear_server(message)
            return
        worker = peer.worker
        kind = message[0]
        if kind == Kind.RESULTS:
            _, first, codes, values, seconds = message
            if codes is not None and Code.ARENA in codes:
                released = partial(self._released, peer)
                for position, code in enumerate(codes):
                    if code == Code.ARENA:
                        values[position] = map_large(values[position], fds.pop(0), released)
            self.core.results(worker, first, codes, values, seconds)
        elif kind == Kind.CHUNK_RESULT:
            _, index, codes, values, seconds = message
            if codes is not None and codes[0] == Code.ARENA:
                values = map_large(values, fds.pop(0), partial(self._released, peer))
            self.core.chunk_result(worker, index, codes, values, seconds)
        elif kind == Kind.RELEASE:
            for id in message[1]:
                large = peer.arenas.pop(id, None)
                if large is not None:
                    large.holders -= 1
                    self.stowage.recycle(large)
        elif kind == Kind.STARTED:
            self.core.hello(worker)
        elif kind == Kind.START_FAILED:
            emit("ERROR", f"worker {worker.id} could not start: {message[1]}", worker=worker.id)
            self.core.start_failed(worker, message[1])
        elif kind == Kind.RECYCLE:
            emit("INFO", f"worker {worker.id} is replaced: {message[1]}", worker=worker.id)
            self.core.recycle(worker)

    def _released(self, peer: _WorkerPeer, id: int) -> None:
        """Called by finalizers, in any thread: the application has dropped a result that lies in a worker's arena."""
        peer.released.add(id)
        if self._sleeping:
            self.wake()

    def disconnected(self, peer: Peer) -> None:
        """A link is gone: a worker that lives calls back, the fork server has died."""
        if not isinstance(peer, _WorkerPeer):
            self._server_lost()
        elif peer.worker.state not in (WorkerState.STARTING, WorkerState.DEAD):
            self.core.link_lost(peer.worker)

    # -- processes ----------------------------------------------------------------------------------------------------

    def _hear_server(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == Kind.NOTICE:
            emit("WARNING", message[1])
            return
        peer = self._peers.get(message[1])
        if kind == Kind.SPAWNED:
            if peer is not None and peer.worker.pid is None:
                peer.worker.pid = message[2]
                if peer.killed:
                    self._signal(peer, signal.SIGKILL)
        elif kind == Kind.SPAWN_FAILED and peer is not None:
            self.core.start_failed(peer.worker, message[2])
            self._worker_gone(peer, Exit(None, None))
        elif kind == Kind.EXITED:
            exit = Exit(message[2], message[3])
            unreported = self._unreported.pop(message[1], None)
            if unreported is not None:
                self.core.died(unreported, time.monotonic(), exit)
            elif peer is not None:
                self._worker_gone(peer, exit)

    def _process_ended(self, peer: _WorkerPeer, _: int) -> None:
        self._unreported[peer.worker.id] = peer.worker
        self._worker_gone(peer, None)

    def _worker_gone(self, peer: _WorkerPeer, exit: Exit | None) -> None:
        """A worker's process has ended: drain its link, then let the core judge by its page."""
        if self._peers.get(peer.worker.id) is not peer:
            return
        while self._board.read(peer):
            pass
        worker = peer.worker
        self.core.died(worker, time.monotonic(), exit)
        del self._peers[worker.id]
        self._board.detach(peer)
        if peer.pidfd >= 0:
            self._selector.unregister(peer.pidfd)
            os.close(peer.pidfd)
        if peer.page is not None:
            peer.page.close()
            worker.page = None
        for large in peer.arenas.values():
            large.holders -= 1
            self.stowage.recycle(large)

    def _launch_server(self) -> None:
        settings = self.settings
        self._server = Peer()
        self._server.name = "the fork server"
        self._server_process = launch(
            self._worker_config,
            preload=settings.preload,
            start_method=settings.start_method,
            environment=settings.environment,
            inherit_output=settings.inherit_output,
        )
        fd = self._server_process.watch_fd
        if fd is not None:
            self._selector.register(fd, selectors.EVENT_READ, lambda _: self._server_lost())

    def _server_lost(self) -> None:
        """The fork server has died. Its workers live on; those that it was to start count as failed starts."""
        if self._server_process is None:
            return
        process, self._server_process = self._server_process, None
        if process.watch_fd is not None:
            self._selector.unregister(process.watch_fd)
        self._board.detach(self._server)
        process.end()
        emit("WARNING", "the fork server has ended; another is started when a worker is needed")
        self._server = Peer()
        unknown = Exit(None, None)
        for worker in self._unreported.values():
            self.core.died(worker, time.monotonic(), unknown)
        self._unreported.clear()
        for peer in list(self._peers.values()):
            if peer.worker.pid is None or peer.worker.state is WorkerState.STARTING:
                self.core.start_failed(peer.worker, f"the fork server has ended (exit code {process.exitcode})")
                self._worker_gone(peer, unknown)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _break(self, error: BaseException) -> None:
        """The loop itself has failed: nothing may hang, so all that is pending fails with the reason."""
        text = "".join(traceback.format_exception(error))
        emit("CRITICAL", f"the keeper has failed; this is a defect of poolkeeper\n{text}")
        self.refusal = f"the keeper has failed: {error!r}"
        failure = PoolkeeperError(f"{self.refusal}; this is a defect of poolkeeper")
        failure.__cause__ = error
        with self._lock:
            self._take_inbox()
            pending: list[Any] = [*self.core.abandon()]
            for worker in self.core.workers.values():
                pending.extend(task for task in worker.inflight if task is not None)
            for task in pending:
                if isinstance(task, TaskFuture):
                    self._tell(task, task.settle_exception(failure))
                else:
                    self._fail_piece(task, failure)
        self._announce()

    def _end(self) -> None:
        """Leave nothing behind: no process, no descriptor, no file that should not stay."""
        self._seat.close()
        self._announce()
        self._board.detach(self._server)
        if self._server_process is not None:
            self._server_process.end()
        for peer in self._peers.values():
            self._board.detach(peer)
            if peer.pidfd >= 0:
                os.close(peer.pidfd)
        self._board.close()
        self.stowage.close()
        self._selector.close()
        self.home.remove()
        self._delivery.close()
        with self._lock:
            os.close(self._wake_reader)
            if self._wake_writer != self._wake_reader:
                os.close(self._wake_writer)
            self._wake_writer = self._wake_reader = -1
            self._sleeping = True  # for good: whoever submits now calls wake, which refuses
            self._ended.set()
        self.wake()

    def abandon_in_child(self) -> None:
        """In a fork of the application: let go of everything that belongs to the parent's keeper."""
        self.refusal = f"this keeper belongs to process {os.getppid()}; make a new one in process {os.getpid()}"
        self._lock = threading.RLock()
        self._ended.set()
        for key in list(self._selector.get_map().values()) if self._selector.get_map() else ():
            with contextlib.suppress(OSError):
                os.close(key.fd)
        if self._wake_writer != self._wake_reader:
            os.close(self._wake_writer)
        self._wake_writer = self._wake_reader = -1
        with contextlib.suppress(OSError):
            os.close(self._selector.fileno())  # type: ignore[attr-defined]


def _raise(error: Exception) -> None:
    raise error


def _wake_pair() -> tuple[int, int]:
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


_ACTIONS: dict[type, Callable[[KeeperRuntime, Any], None]] = {
    Settle: KeeperRuntime._settle,
    Feed: KeeperRuntime._feed,
    Spawn: KeeperRuntime._spawn,
    Fail: KeeperRuntime._fail,
    Retire: KeeperRuntime._retire,
    Kill: KeeperRuntime._kill,
    Nudge: KeeperRuntime._nudge,
    Decide: KeeperRuntime._ask_policy,
}
