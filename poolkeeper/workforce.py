"""The keeper's processes: the fork server and the workers; started, watched, signalled, and missed when they are gone.

A worker is watched in three ways, and the first to speak is believed: its pidfd, the fork server's report, the end of
its link (which alone proves nothing: a worker whose link is lost calls back).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from .arena import ReleaseQueue
from .commands import Kill, Nudge, Retire, Spawn
from .core import Core
from .errors import ProtocolError
from .forkserver import Launched, launch
from .home import Home
from .ledger import Task
from .lifecycle import WorkerState
from .link import FDS_LIMIT
from .logs import emit
from .messages import Kind
from .page import KeeperPage
from .payload import Large
from .roster import Exit, Worker
from .settings import Settings
from .spool import Stowage
from .switchboard import Peer, Switchboard
from .worker_session import WorkerConfig

__all__ = ["WorkerPeer", "Workforce"]

UNKNOWN = Exit(None, None)


class WorkerPeer(Peer):
    """The session with one worker, and what else belongs to it; ``started`` is in seconds since the epoch."""

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
        """Return the numbers of the worker's arenas that the application has no view of any more."""
        return self.released.take() if self.released else []

    def executing(self) -> Task | None:
        """The task that the worker runs at this moment, by its page."""
        worker = self.worker
        if self.page is None or not worker.inflight:
            return None
        progress = self.page.observe()
        position = progress.started - worker.base
        if progress.started > progress.finished and 0 <= position < len(worker.inflight):
            return worker.inflight[position]
        return None


class Workforce:
    """Owns the processes of one keeper and tells the core what becomes of them; runs under the keeper's lock."""

    def __init__(
        self,
        settings: Settings,
        config: WorkerConfig,
        core: Core,
        selector: selectors.BaseSelector,
        stowage: Stowage,
        home: Home,
    ) -> None:
        self._settings = settings
        self._config = config
        self._core = core
        self._selector = selector
        self._stowage = stowage
        self._remove = home.temporary
        self._board: Switchboard
        self._peers: dict[int, WorkerPeer] = {}
        self._unreported: dict[int, Worker] = {}
        self._server = Peer()
        self._process: Launched | None = None

    def open(self, board: Switchboard) -> None:
        """Start the fork server, which will call at ``board``."""
        self._board = board
        self._launch()

    def __iter__(self) -> Iterator[WorkerPeer]:
        return iter(self._peers.values())

    def __getitem__(self, worker: int) -> WorkerPeer:
        return self._peers[worker]

    def get(self, worker: int | None) -> WorkerPeer | None:
        """Return the peer of a worker, None if it is gone."""
        return self._peers.get(worker) if worker is not None else None

    # -- commands -----------------------------------------------------------------------------------------------------

    def spawn(self, command: Spawn) -> None:
        """Ask the fork server for a worker."""
        worker = command.worker
        peer = self._peers[worker.id] = WorkerPeer(worker)
        try:
            if self._process is None:
                self._launch()
            worker.page = peer.page = KeeperPage()
        except OSError as error:
            self._core.start_failed(worker, f"the system refuses a new process or descriptor: {error}")
            self._gone(peer, UNKNOWN)
            return
        self._server.fds.append(peer.page.fd)
        self._board.post(self._server, (Kind.SPAWN, worker.id, worker.slot))
        if len(self._server.fds) == FDS_LIMIT:
            self._board.send(self._server)

    def retire(self, command: Retire) -> None:
        """Tell a worker to leave."""
        self._board.post(self._peers[command.worker.id], (Kind.RETIRE,))

    def kill(self, command: Kill) -> None:
        """Kill a worker; the fork server kills what it has started."""
        peer = self._peers[command.worker.id]
        peer.killed = True
        self.signal(peer, signal.SIGKILL)

    def nudge(self, command: Nudge) -> None:
        """Make a worker send what it holds back."""
        self.signal(self._peers[command.worker.id], signal.SIGURG)

    def kill_all(self) -> None:
        """Kill every worker."""
        for peer in self._peers.values():
            peer.killed = True
            self.signal(peer, signal.SIGKILL)

    @staticmethod
    def signal(peer: WorkerPeer, number: int) -> None:
        """Signal a worker, by its pidfd where there is one: that cannot name a stranger."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if peer.pidfd >= 0:
                signal.pidfd_send_signal(peer.pidfd, number)
            elif peer.worker.pid is not None:
                os.kill(peer.worker.pid, number)

    # -- links --------------------------------------------------------------------------------------------------------

    def introduce(self, hello: dict[str, Any]) -> Peer:
        """Return whose session a caller resumes; raises ProtocolError for one who is not ours."""
        if hello["role"] == "forkserver":
            return self._server
        peer = self._peers.get(hello["id"])
        if peer is None:
            raise ProtocolError(f"worker {hello['id']} is not one of this keeper's")
        return peer

    def connected(self, peer: Peer, hello: dict[str, Any]) -> None:
        """A link is up: a worker's process can be watched now, and it can be fed unless it initializes first."""
        if not isinstance(peer, WorkerPeer):
            return
        worker = peer.worker
        worker.pid = int(hello["pid"])
        if peer.page is not None:
            peer.page.close_fd()
        if peer.pidfd < 0 and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # no descriptor left, or gone again: the fork server reports its end
                peer.pidfd = os.pidfd_open(worker.pid)
                self._selector.register(peer.pidfd, selectors.EVENT_READ, partial(self._ended, peer))
        if peer.killed:
            self.signal(peer, signal.SIGKILL)
        if worker.state is WorkerState.READY:
            self._core.link_lost(worker)  # it has called again before the end of its link was seen
        if self._settings.initializer is None or worker.state is not WorkerState.STARTING:
            self._core.hello(worker)

    def disconnected(self, peer: Peer) -> None:
        """A link is gone: a worker that lives calls back, the fork server has died."""
        if not isinstance(peer, WorkerPeer):
            self._server_lost()
        elif peer.worker.state not in (WorkerState.STARTING, WorkerState.DEAD):
            self._core.link_lost(peer.worker)

    def hear_server(self, message: tuple[Any, ...]) -> None:
        """The fork server has said something."""
        kind = message[0]
        if kind == Kind.NOTICE:
            emit("WARNING", message[1])
            return
        peer = self._peers.get(message[1])
        if kind == Kind.SPAWNED:
            if peer is not None and peer.worker.pid is None:
                peer.worker.pid = message[2]
                if peer.killed:
                    self.signal(peer, signal.SIGKILL)
        elif kind == Kind.SPAWN_FAILED and peer is not None:
            self._core.start_failed(peer.worker, message[2])
            self._gone(peer, UNKNOWN)
        elif kind == Kind.EXITED:
            exit = Exit(message[2], message[3])
            unreported = self._unreported.pop(message[1], None)
            if unreported is not None:
                self._core.died(unreported, time.monotonic(), exit)
            elif peer is not None:
                self._gone(peer, exit)

    def hear_worker(self, peer: WorkerPeer, message: tuple[Any, ...]) -> None:
        """A worker has said how it fares."""
        worker, kind = peer.worker, message[0]
        if kind == Kind.STARTED:
            self._core.hello(worker)
        elif kind == Kind.START_FAILED:
            emit("ERROR", f"worker {worker.id} could not start: {message[1]}", worker=worker.id)
            self._core.start_failed(worker, message[1])
        elif kind == Kind.RECYCLE:
            emit("INFO", f"worker {worker.id} is replaced: {message[1]}", worker=worker.id)
            self._core.recycle(worker)

    def release(self, peer: WorkerPeer, arenas: list[int]) -> None:
        """A worker has no view of these arenas any more."""
        for id in arenas:
            large = peer.arenas.pop(id, None)
            if large is not None:
                large.holders -= 1
                self._stowage.recycle(large)

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _ended(self, peer: WorkerPeer, _: int) -> None:
        self._unreported[peer.worker.id] = peer.worker
        self._gone(peer, None)

    def _gone(self, peer: WorkerPeer, exit: Exit | None) -> None:
        """A worker's process has ended: drain its link, then let the core judge by its page."""
        worker = peer.worker
        if self._peers.get(worker.id) is not peer:
            return
        while self._board.read(peer):
            pass
        self._core.died(worker, time.monotonic(), exit)
        del self._peers[worker.id]
        self._board.detach(peer)
        if peer.pidfd >= 0:
            self._selector.unregister(peer.pidfd)
            os.close(peer.pidfd)
        if peer.page is not None:
            peer.page.close()
            worker.page = None
        self.release(peer, list(peer.arenas))

    def _launch(self) -> None:
        settings = self._settings
        self._server = Peer()
        self._server.name = "the fork server"
        self._process = launch(
            self._config,
            preload=settings.preload,
            start_method=settings.start_method,
            environment=settings.environment,
            inherit_output=settings.inherit_output,
            remove=self._remove,
        )
        if self._process.watch_fd is not None:
            self._selector.register(self._process.watch_fd, selectors.EVENT_READ, self._server_ended)

    def _server_ended(self, _: int) -> None:
        self._server_lost()

    def _server_lost(self) -> None:
        """The fork server has died. Its workers live on; those that it was to start count as failed starts."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.watch_fd is not None:
            self._selector.unregister(process.watch_fd)
        process.kill()  # before its link is closed, which it would take for the end of the keeper
        self._board.detach(self._server)
        emit("WARNING", "the fork server has ended; another is started when a worker is needed")
        self._server = Peer()
        for worker in self._unreported.values():
            self._core.died(worker, time.monotonic(), UNKNOWN)
        self._unreported.clear()
        for peer in list(self._peers.values()):
            if peer.worker.pid is None or peer.worker.state is WorkerState.STARTING:
                self._core.start_failed(peer.worker, f"the fork server has ended (exit code {process.exitcode})")
                self._gone(peer, UNKNOWN)

    def close(self) -> None:
        """Let the fork server end, and with it every worker that is left."""
        self._board.detach(self._server)
        if self._process is not None:
            self._process.end()
            self._process = None
        for peer in self._peers.values():
            self._board.detach(peer)
            if peer.pidfd >= 0:
                os.close(peer.pidfd)
            if peer.page is not None:
                peer.page.close()
        self._peers.clear()
