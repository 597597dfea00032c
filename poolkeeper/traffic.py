"""Between the core and the wire: tasks become messages to a worker, its messages become outcomes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .commands import Fail, Failure, Feed, Settle
from .core import Core
from .futures import TaskFuture, Unread
from .ledger import Chunk
from .link import FDS_LIMIT
from .messages import Code, Kind
from .payload import Large, map_large
from .peer import Peer
from .settlement import Settlement
from .spool import Counted, Spilled, Stowage
from .store import claim_of
from .switchboard import Switchboard
from .workforce import WorkerPeer, Workforce

if TYPE_CHECKING:
    from .adoption import Adoption
    from .postmortem import Postmortem
    from .recording import Recorder

__all__ = ["Traffic"]

_LIGHT = frozenset({tuple, bytes, type(None)})
"""Payloads that are sent as they are."""


class Traffic:
    """Carries tasks to workers and their answers back; runs under the keeper's lock.

    ``place`` tells this keeper's maps from those of all others: what their items save is found by that.
    """

    def __init__(
        self,
        core: Core,
        board: Switchboard,
        workforce: Workforce,
        stowage: Stowage,
        settlement: Settlement,
        postmortem: Postmortem,
        recorder: Recorder | None,
        wake_if_sleeping: Callable[[], None],
        place: str,
    ) -> None:
        self._place = place
        self._recorder = recorder
        self.adoption: Adoption | None = None
        self._unrecorded: list[tuple[Peer, int]] = []
        self._recorded: deque[list[tuple[Peer, int]]] = deque()
        self._core = core
        self._board = board
        self._workforce = workforce
        self._stowage = stowage
        self._settlement = settlement
        self._postmortem = postmortem
        self._wake_if_sleeping = wake_if_sleeping
        workforce.hear_tasks = self.hear

    # -- to workers ---------------------------------------------------------------------------------------------------

    def feed(self, command: Feed) -> None:
        """Send tasks, and before the first of a call its definition."""
        worker, tasks = command.worker, command.tasks
        peer = self._workforce[worker.id]
        first = tasks[0]
        call = first.call
        if call.id not in worker.known:
            worker.known.add(call.id)
            self._board.post(peer, (Kind.DEFINE, call.id, call.name, call.blob, call.path))
        if type(first) is Chunk:
            self._feed_chunk(peer, command.first, first)
            return
        payloads = [task.payload for task in tasks]
        infos: list[Any] | None = None
        if self._recorder is not None:
            infos = _infos(tasks)
        elif len(tasks) == 1:
            attempt = first.attempts + first.deaths
            if first.key is not None or attempt > 1:
                infos = [(first.key, attempt, first.first_place, None)]
        elif any([task.key is not None for task in tasks]):  # noqa: C419 - half as long as a generator
            infos = [(task.key, 1, None, None) for task in tasks]
        if _LIGHT.issuperset(map(type, payloads)):
            self._board.post(peer, (Kind.TASKS, command.first, call.id, payloads, infos))
            return
        for position, payload in enumerate(payloads):  # one by one, for a frame carries few descriptors
            info = None if infos is None else [infos[position]]
            outbound = self._outbound(peer, payload)
            self._board.post(peer, (Kind.TASKS, command.first + position, call.id, [outbound], info))
            self._send_if_full(peer)

    def _feed_chunk(self, peer: WorkerPeer, index: int, chunk: Chunk) -> None:
        items, segment = chunk.payload, chunk.segment
        if not segment.plain:
            items = [self._outbound(peer, item) for item in items]
        attempt = chunk.attempts + chunk.deaths
        place = (f"{self._place}.{segment.job.number}", chunk.start)
        message = (
            Kind.CHUNK, index, chunk.call.id, items, segment.plain, segment.starred, chunk.careful, attempt, place
        )  # fmt: skip
        self._board.post(peer, message)
        self._send_if_full(peer)

    def _send_if_full(self, peer: WorkerPeer) -> None:
        if len(peer.fds) >= FDS_LIMIT:
            self._board.send(peer)

    def _outbound(self, peer: WorkerPeer, payload: Any) -> Any:
        """Return what travels; a payload that lies in an arena, or on disk, takes its descriptor along."""
        if type(payload) is Counted:
            return payload.data
        if type(payload) is Spilled:
            payload = self._stowage.load(payload)
            if type(payload) is Large:
                payload.settled = True
        if type(payload) is Large:
            payload.holders += 1
            peer.arenas[payload.arena.id] = payload
            peer.fds.append(payload.arena.fd)
            return payload.wire()
        return payload

    # -- from workers -------------------------------------------------------------------------------------------------

    def hear(self, peer: WorkerPeer, message: tuple[Any, ...], fds: list[int]) -> None:
        """A worker has said something."""
        worker = peer.worker
        kind = message[0]
        if self._recorder is not None and kind == Kind.RESULTS:
            self._unrecorded.append((peer, peer.session.withhold()))
        if kind == Kind.RESULTS:
            _, first, codes, values, seconds = message
            if codes is not None and Code.ARENA in codes:
                self._map_results(peer, codes, values, fds)
            self._core.results(worker, first, codes, values, seconds)
        elif kind == Kind.CHUNK_RESULT:
            _, index, codes, values, seconds = message
            if codes is not None and codes[0] == Code.ARENA:
                values = map_large(values, fds.pop(0), partial(self._released, peer))
            self._core.chunk_result(worker, index, codes, values, seconds)
        elif kind == Kind.RELEASE:
            self._workforce.release(peer, message[1])
        else:
            self._workforce.hear_worker(peer, message)

    def acknowledge_recorded(self) -> None:
        """Have the answers acknowledged that the journal has by now, and the others as soon as it has them."""
        while self._recorded:
            for peer, sequence in self._recorded.popleft():
                peer.session.release(sequence)
                self._board.mark(peer)
        if self._unrecorded:
            assert self._recorder is not None
            unrecorded, self._unrecorded = self._unrecorded, []
            self._recorder.when_recorded(partial(self._recorded.append, unrecorded))

    def _map_results(self, peer: WorkerPeer, codes: list[int], values: list[Any], fds: list[int]) -> None:
        released = partial(self._released, peer)
        for position, code in enumerate(codes):
            if code == Code.ARENA:
                values[position] = map_large(values[position], fds.pop(0), released)

    def _released(self, peer: WorkerPeer, id: int) -> None:
        """Called by finalizers, in any thread: the application has dropped a result that lies in a worker's arena."""
        peer.released.add(id)
        self._board.mark(peer)
        self._wake_if_sleeping()

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def settle(self, command: Settle) -> None:
        """Give futures and maps their results."""
        tasks, codes, values = command.tasks, command.codes, command.values
        if type(tasks[0]) is Chunk:
            self._settlement.settle_chunk(tasks[0], codes, values)
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
                self._stowage.drop(future.payload)
            future.payload = None
        if self.adoption is not None and self.adoption.hears_answers:
            futures, values = self.adoption.answered(futures, values)
        if self._recorder is not None:
            futures, values = self._recorder.settle(futures, values)
        self._settlement.deliver(futures, values)

    def fail(self, command: Fail) -> None:
        """Tell a future or map that its task has ended without an outcome of its own."""
        task = command.task
        if isinstance(task, TaskFuture) and command.worker is not None:
            task.worker_pid = command.worker.pid
        error = self._postmortem.explain(command)
        # That no worker can be started is no outcome of the task.
        if isinstance(task, TaskFuture) and task.entry is not None and command.failure is not Failure.NO_WORKERS:
            assert self._recorder is not None
            self._settlement.drop_payload(task)
            if self.adoption is not None:
                self.adoption.ended(task)
            self._recorder.fail(task, error)
        else:
            self._settlement.fail_task(task, error)


def _infos(tasks: list[Any]) -> list[Any]:
    """Return what a worker is told of the tasks of a keeper whose work may outlive it."""
    infos = []
    for task in tasks:
        attempt = task.attempts + task.deaths
        infos.append((task.key, attempt, None if attempt == 1 else task.first_place, claim_of(task.entry)))
    return infos
