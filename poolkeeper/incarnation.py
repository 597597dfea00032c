"""What one run of the keeper's loop owns: decisions, processes, links. When the loop fails, another takes its place.

All of it runs under the keeper's lock, as a rule on its thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .commands import Command, Decide, Fail, Feed, Kill, Nudge, Retire, Settle, Spawn
from .core import Core
from .errors import ProtocolError
from .foundation import Foundation
from .futures import TaskFuture
from .ledger import Segment, Task
from .lifecycle import LEAVE_SECONDS, WorkerState
from .link import PYTHON
from .loop import LONGEST_WAIT, Ready
from .nursery import Nursery
from .peer import Peer
from .remains import Remains
from .reporting import at_any_rate
from .switchboard import Switchboard
from .traffic import Traffic
from .versions import PROTOCOL, Versions
from .worker_config import WorkerConfig, cloudpickle_version
from .workforce import WorkerPeer, Workforce

if TYPE_CHECKING:
    from .adoption import Adoption
    from .control import Control
    from .recording import Recorder
    from .recovery import Recovery
    from .register import Register
    from .supervision import LeftServices, Supervision

__all__ = ["Fallen", "Incarnation", "WorkerRow"]

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


class Fallen(NamedTuple):
    """What a loop that has failed leaves to the next."""

    remains: Remains
    workers: list[WorkerPeer]
    services: LeftServices | None
    recovery: Recovery | None
    listener: socket.socket | None


class Incarnation:
    """The core of one keeper, and all that carries out its commands.

    Args:
        base: what was there before and stays.
        fallen: what it goes on with; None for the first one.

    Raises:
        OSError: where the system refuses what it takes; nothing is left open then.
    """

    def __init__(self, base: Foundation, fallen: Fallen | None = None) -> None:
        self._base = base
        self._birth = os.urandom(6).hex()
        settings = base.settings
        self.core = Core(settings.max_workers, settings.max_tasks, self._birth, settings.reconnect_grace)
        self._due: deque[Command] = deque()
        self._arriving: Sequence[Any] = ()
        self._retired_at: float | None = None
        self.recovery: Recovery | None = None
        self.adoption: Adoption | None = None
        self._supervision: Supervision | None = None
        self.control: Control | None = None
        with contextlib.ExitStack() as undo:
            self._open(fallen, undo)
            if fallen is not None:
                self._go_on(fallen)
            undo.pop_all()

    def _open(self, fallen: Fallen | None, undo: contextlib.ExitStack) -> None:
        """Take from the system what it needs; ``undo`` gives it back should that fail half-way."""
        base = self._base
        settings, home, selector, register = base.settings, base.home, base.loop.selector, base.register
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
        self.nursery = Nursery(settings, config, selector, home, register)
        self.workforce = Workforce(settings, self.core, self.nursery, selector, base.stowage, self._birth)
        listener = home.listener if fallen is None else fallen.listener
        versions = Versions(PROTOCOL, PYTHON, config.cloudpickle or None)
        self.board = Switchboard(home.socket, home.key, selector, self._introduce, listener, versions)
        undo.callback(self.nursery.close, leave=fallen is not None and not home.ephemeral)
        undo.callback(self.board.close)  # first: a fork server that is still calling would wait for an answer
        self.traffic = Traffic(
            self.core,
            self.board,
            self.workforce,
            base.stowage,
            base.settlement,
            base.postmortem,
            base.recorder,
            base.host.wake_if_sleeping,
            base.place,
        )
        self._actions: dict[type[Command], Callable[[Any], None]] = {
            Settle: self.traffic.settle,
            Feed: self.traffic.feed,
            Fail: self.traffic.fail,
            Spawn: self.workforce.spawn,
            Retire: self.workforce.retire,
            Kill: self.workforce.kill,
            Nudge: self.workforce.nudge,
            Decide: base.host.ask_policy,
        }
        self.workforce.open(self.board)
        servers = () if register is None else register.survivors
        self.nursery.open(
            self.board,
            [child.identity for child in servers if child.role == "forkserver"],
            blind=register is not None and register.crashed and register.inherited is None,
        )
        if register is not None and base.recorder is not None:
            self._recover(register, base.recorder, None if fallen is None else fallen.recovery)
        if fallen is None and register is not None and register.has_services:
            self._supervision = self._new_supervision()
        _require_descriptors(base.loop.descriptor)

    def _recover(self, register: Register, recorder: Recorder, recovery: Recovery | None) -> None:
        """Look for what an earlier keeper has left, or go on with that."""
        base = self._base
        if recovery is not None:
            recovery.move(self.core, self.nursery, self.workforce)
        else:
            from .recovery import Recovery

            deliver = base.settlement.deliver
            recovery = Recovery(register, recorder, self.core, self.nursery, self.workforce, base.host, deliver)
        self.recovery, self.adoption = recovery, recovery.adoption
        self.workforce.adoption = self.traffic.adoption = recovery.adoption
        if not recovery.begun:
            recovery.begin(base.home.path / "spool", base.home.key)

    # -- from one to the next -----------------------------------------------------------------------------------------

    def remains(self) -> Remains:
        """Return the work that has no outcome yet."""
        return self.core.remains(self._due, self._arriving, _is_open)

    def fall(self) -> Fallen:
        """Let go of everything, for the loop has failed: what a durable keeper has made stays alive, and is found."""
        base, supervision = self._base, self._supervision
        durable = base.register is not None
        remains = self.remains()
        services = None if supervision is None else supervision.part()
        with contextlib.ExitStack() as rest:
            if self.control is not None:
                rest.callback(at_any_rate, self.control.close)
            if supervision is not None:
                rest.callback(at_any_rate, supervision.close, leave=durable)
            if base.register is not None:
                base.register.renew()  # first: what is let go of from now on does not count as gone
            rest.callback(at_any_rate, self.nursery.close, leave=durable)
            at_any_rate(self.board.close, listen_on=durable)
        workers = self.workforce.part()
        if not durable:
            for worker in list(remains.held):
                remains.recall(worker)
            self.workforce.close()
            base.home.restore()
        return Fallen(remains, workers, services, self.recovery, self.board.listener if durable else None)

    def _go_on(self, fallen: Fallen) -> None:
        remains, now = fallen.remains, time.monotonic()
        found = {peer.worker: peer for peer in fallen.workers if peer.pid is not None}
        for worker in list(remains.held):
            if worker not in found:
                remains.recall(worker)
        self.core.resume(remains)
        for worker, held in remains.held.items():
            self.workforce.hand_over(found[worker], self.core.succession.hand_over(worker, held, now))
        for peer in fallen.workers:
            if peer.pid is None:
                self.workforce.await_unseen(peer)
        self._due.extend(remains.commands)
        if fallen.services is not None:
            self._supervision = self._new_supervision()
            self._supervision.go_on(fallen.services)
        if remains.closing:
            self.close_down()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def hear(self, ready: Ready) -> None:
        """Deal with what has become ready."""
        if ready:
            registered = self._base.loop.selector.get_map()
            for key, mask in ready:
                # What came before, or another driver, may have closed this descriptor or given it another meaning.
                if registered.get(key.fd) is key:
                    key.data(mask)
        if self.board.deaf_until is not None:
            self.board.listen_again(time.monotonic())

    def take_in(self, inbox: deque[Task | Segment]) -> None:
        """Take on what was submitted."""
        tasks: list[Any] = []
        self._arriving = tasks  # at any moment, a task is in one place at least where it is found should this fail
        tasks.extend(inbox.popleft() for _ in range(len(inbox)))
        if self.adoption is not None and self.adoption.concerns:
            self.carry_out()  # first, what has just been answered is held by nobody
            tasks = self.adoption.sift(tasks, time.monotonic())
        self.core.submit(tasks)
        self._arriving = ()

    def carry_out(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        self.nursery.tend(now)
        if self.adoption is not None:
            self.adoption.tend(now)
        due = self._due
        self.core.decide(now, due)
        while due:
            command = due[0]
            self._actions[type(command)](command)
            due.popleft()
        if self._supervision is not None:
            self._supervision.carry_out()
        self.traffic.acknowledge_recorded()
        if self.recovery is not None:
            self.recovery.tidy()
        self.board.send_due()
        self._base.stowage.trim(now)

    def timeout(self) -> float | None:
        """Return the seconds until something is due, None for nothing."""
        deadline = min(self._deadlines(), default=None)
        return None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT)

    def _deadlines(self) -> Iterator[float]:
        deadlines = [self.core.next_deadline(), self.board.deaf_until, self.nursery.next_deadline()]
        deadlines.append(self._base.stowage.trim_at)
        if self._supervision is not None:
            deadlines.append(self._supervision.next_deadline())
        if self._retired_at is not None:
            deadlines.append(self._retired_at + LEAVE_SECONDS)
        if self.adoption is not None:
            deadlines.append(self.adoption.next_deadline())
        return (deadline for deadline in deadlines if deadline is not None)

    def close_down(self) -> None:
        """Finish what is taken on, and no more."""
        self.core.close()
        if self.adoption is not None:
            for found in self.adoption.abandon():
                self.core.succession.give_up(found)
        if self._supervision is not None:
            self._supervision.stop_all("the keeper ends")

    def is_down(self, now: float) -> bool:
        """Whether all is done and every process gone that was to go; those that do not go are killed in time."""
        core = self.core
        if not core.closing or core.outstanding:
            return False
        if self.adoption is not None and self.adoption.waiting:
            return False
        if self._supervision is not None and not self._supervision.down:
            return False
        if not core.workers:
            return True
        if self._retired_at is None:
            self._retired_at = now
        elif now - self._retired_at >= LEAVE_SECONDS:
            self.workforce.kill_all()
            self._retired_at = now
        return False

    def pending(self) -> list[Task | Segment]:
        """Return all that has no outcome yet, what waits for survivors as well."""
        if self.adoption is not None:
            self.adoption.give_out(time.monotonic())
        return list(self.remains().tasks())

    def close(self, *, leave: bool) -> None:
        """Leave nothing behind, no process and no descriptor; or ``leave`` the processes as they are."""
        at_any_rate(self.board.close)  # first: a fork server that has just been started would wait for an answer
        at_any_rate(self.nursery.close, leave=leave)
        at_any_rate(self.workforce.close)
        if self._supervision is not None:
            at_any_rate(self._supervision.close, leave=leave)
        if self.control is not None:
            at_any_rate(self.control.close)

    # -- who calls ----------------------------------------------------------------------------------------------------

    def _introduce(self, hello: dict[str, Any]) -> Peer:
        """Return whose session a caller resumes."""
        role = hello["role"]
        if role == "worker":
            return self.workforce.introduce(hello)
        if role == "forkserver":
            return self.nursery.introduce(hello)
        if role == "control":
            return self._introduce_client()
        if role == "service" and (self._supervision is not None or self._base.register is not None):
            return self.supervision.introduce(hello)
        raise ProtocolError(f"nobody here speaks to a caller that is {role!r}")

    def _introduce_client(self) -> Peer:
        if self.control is None:
            from .control import Control

            self.control = Control(self._base.host, self.board)
        return self.control.introduce()

    # -- services -----------------------------------------------------------------------------------------------------

    @property
    def has_services(self) -> bool:
        """Whether any service has been declared."""
        return self._supervision is not None

    @property
    def supervision(self) -> Supervision:
        """What looks after services; made when the first is declared, for most keepers have none."""
        if self._supervision is None:
            self._supervision = self._new_supervision()
        return self._supervision

    def _new_supervision(self) -> Supervision:
        from .supervision import Supervision
        from .supervisor import Supervisor

        base = self._base
        return Supervision(
            Supervisor(base.settings.max_starting),
            self.nursery,
            self.board,
            base.loop.selector,
            base.settlement.delivery,
            base.postmortem,
            base.home,
            base.host.call_soon,
            base.register,
            base.news,
            base.settings.max_workers,
            self._birth,
        )

    # -- what is asked of it ------------------------------------------------------------------------------------------

    def withdraw_pending(self) -> list[Task | Segment]:
        """Give up what no worker has started, and return it; what a worker is being started for counts as started."""
        if self.adoption is not None:
            self.adoption.give_out(time.monotonic())
        self.carry_out()
        core = self.core
        withdrawn = core.abandon()
        started = sum(worker.state is WorkerState.STARTING for worker in core.workers.values())
        kept = [task for task in withdrawn if isinstance(task, TaskFuture)][:started]
        core.submit(kept)
        withdrawn = [task for task in withdrawn if task not in kept]
        for worker in core.workers.values():
            withdrawn.extend(task for task in list(worker.inflight) if task is not None and core.cancel(task))
        return withdrawn

    def snapshot(self) -> tuple[int, int, list[WorkerRow]]:
        """Return how many tasks wait and how many run, and the workers."""
        queued = len(self.core.queue) + (0 if self.adoption is None else self.adoption.waiting)
        running = 0
        rows = []
        for peer in self.workforce:
            worker = peer.worker
            task = peer.executing()
            running += task is not None
            queued += len(worker.inflight) - worker.inflight.count(None) - (task is not None)
            state = "busy" if task is not None else worker.state.value
            rows.append(WorkerRow(worker.id, worker.pid, state, task, peer.started, peer.born))
        return queued, running, rows


def _is_open(task: Task | Segment) -> bool:
    """Whether somebody waits for ``task``, and its outcome is not on its way."""
    if isinstance(task, TaskFuture):
        return not (task.done() or task.answered)
    return not task.withdrawn


def _require_descriptors(fd: int) -> None:
    """Raise OSError now, where it is understood, if there are not even descriptors for the first worker."""
    with contextlib.ExitStack() as spare:
        for _ in range(FIRST_DESCRIPTORS):
            spare.callback(os.close, os.dup(fd))
