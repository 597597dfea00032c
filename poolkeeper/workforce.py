"""The workers: started, watched, signalled, and missed when they are gone.

A worker is watched in three ways, and the first to speak is believed: its pidfd, the fork server's report, the end of
its link (which alone proves nothing: a worker whose link is lost calls back).
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .arena import ReleaseQueue
from .children import Child, Parent
from .commands import Kill, Nudge, Retire, Spawn
from .core import Core
from .errors import ProtocolError
from .holdings import Held
from .ledger import Task
from .lifecycle import WorkerState
from .messages import Kind, Progress
from .nursery import UNKNOWN, Nursery
from .page import Executing, KeeperPage, find_page
from .payload import Large
from .process_identity import ProcessIdentity
from .reporting import report
from .roster import Exit, KillReason, Told, Worker
from .settings import Settings
from .sources import SourceCheck
from .spool import Stowage
from .switchboard import Switchboard

if TYPE_CHECKING:
    from .adoption import Adoption

__all__ = ["WorkerPeer", "Workforce"]


class WorkerPeer(Child):
    """The session with one worker, and what else belongs to it.

    ``started`` is in seconds since the epoch, ``born`` the same moment in seconds of the monotonic clock.
    """

    def __init__(self, parent: Parent, worker: Worker) -> None:
        super().__init__(parent)
        self.worker = worker
        self.tag = f"worker-{worker.id}"
        self.name = f"worker {worker.id}"
        self.about = ("worker", self.name, worker.slot, None)
        self.arenas: dict[int, Large] = {}
        self.released = ReleaseQueue()
        self.revoked_behind: int | None = None
        """The index behind which it is not to start what an earlier keeper has fed it, if that was so decided."""
        self.started, self.born = time.time(), time.monotonic()

    def releases(self) -> list[int]:
        """Return the numbers of the worker's arenas that the application has no view of any more."""
        return self.released.take() if self.released else []

    def executing(self) -> Task | None:
        """The task that the worker runs at this moment, by its page."""
        worker = self.worker
        progress = worker.observe()
        position = progress.started - worker.base
        if progress.started > progress.finished and 0 <= position < len(worker.inflight):
            return worker.inflight[position]
        return None


class Workforce:
    """Owns the workers of one keeper and tells the core what becomes of them; runs under the keeper's lock."""

    def __init__(
        self,
        settings: Settings,
        core: Core,
        nursery: Nursery,
        selector: selectors.BaseSelector,
        stowage: Stowage,
        birth: str,
    ) -> None:
        self._birth = birth
        self._survivors: dict[int, WorkerPeer] = {}  # the dead among them, too: a fork server may tell of them later
        self._unseen: set[str] = set()
        self.adoption: Adoption | None = None
        """Takes what the workers of an earlier keeper hold."""
        self.collect: Callable[[Worker, str], object] = lambda *_: None
        """Takes in what a worker that has gone has left behind under some name."""
        self.drained: list[int] = []
        """The pids of the workers that were told to leave, for their versions differ."""
        self._settings = settings
        self._core = core
        self._nursery = nursery
        self._selector = selector
        self._stowage = stowage
        self._board: Switchboard
        self._peers: dict[int, WorkerPeer] = {}
        self._sources = SourceCheck()
        self.hear_tasks: Callable[[WorkerPeer, tuple[Any, ...], list[int]], None]
        """Takes every message of a worker, and gives back to ``hear_worker`` what is not about tasks."""

    def open(self, board: Switchboard) -> None:
        """Speak to the workers through ``board``."""
        self._board = board
        board.on_wrong_key(self._disown)

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
        peer = self._peers[worker.id] = WorkerPeer(self, worker)
        try:
            self._nursery.spawn(peer, "worker", (worker.id, worker.slot, worker.birth))
        except OSError as error:
            self.refused(peer, f"the system refuses a new process or descriptor: {error}")
            return
        worker.page = peer.page

    def retire(self, command: Retire) -> None:
        """Tell a worker to leave."""
        self._board.post(self._peers[command.worker.id], (Kind.RETIRE,))

    def kill(self, command: Kill) -> None:
        """Kill a worker; the fork server kills what it has started."""
        worker = command.worker
        if worker.kill is not None and worker.kill[0] is KillReason.UNREACHABLE:
            report("WARNING", f"worker {worker.id} {worker.kill[0].value}: it is killed", worker=worker.id)
        self._peers[worker.id].signal(signal.SIGKILL)

    def nudge(self, command: Nudge) -> None:
        """Make a worker send what it holds back, or call."""
        if command.worker.absence is not None:
            self._board.mend()
        self._peers[command.worker.id].signal(signal.SIGURG)

    def kill_all(self) -> None:
        """Kill every worker."""
        for peer in self._peers.values():
            peer.signal(signal.SIGKILL)

    # -- links --------------------------------------------------------------------------------------------------------

    def introduce(self, hello: dict[str, Any]) -> WorkerPeer:
        """Return whose session a caller resumes; raises ProtocolError for one who is not ours."""
        if hello.get("birth") != self._birth:
            return self._introduce_survivor(hello)
        peer = self._peers.get(hello["id"])
        if peer is None:
            raise ProtocolError(f"worker {hello['id']} is not one of this keeper's")
        return peer

    def _introduce_survivor(self, hello: dict[str, Any]) -> WorkerPeer:
        pid, id, birth = int(hello["pid"]), int(hello["id"]), str(hello["birth"])
        peer = self._survivors.get(pid)
        if peer is not None and peer.gone:
            raise ProtocolError(f"worker {id} has ended")
        if peer is None:
            if self.adoption is None and f"worker-{id}" not in self._unseen:
                raise ProtocolError(f"worker {id} belongs to another keeper")
            peer = self._take_over(id, id, f"worker-{id}", pid)
            self._expect(peer)
        peer.worker.birth = birth
        return peer

    def expect(self, id: int, slot: int, tag: str, identity: ProcessIdentity) -> Worker | None:
        """Look after a worker of an earlier keeper; return None if it is gone."""
        peer = self._take_over(id, slot, tag, identity.pid)
        if _has_ended(identity):  # looked at behind the pidfd: it cannot be anybody else's now
            self._gone(peer, UNKNOWN)
            return None
        return peer.worker

    def summon(self, worker: Worker) -> None:
        """Have a worker of an earlier keeper call, also if it is busy."""
        self._peers[worker.id].signal(signal.SIGURG)

    def found(self, id: int, tag: str, pid: int) -> None:
        """Look after a worker that its fork server tells of, unless it is known, perhaps to be dead; have it call."""
        if pid not in self._survivors:
            peer = self._take_over(id, id, tag, pid)
            self._expect(peer)
            peer.signal(signal.SIGURG)

    def _expect(self, peer: WorkerPeer) -> None:
        """A worker will call of whom nothing was known; it may hold something unless we had it made ourselves."""
        if self.adoption is not None and peer.tag not in self._unseen:
            self.adoption.expect(peer.worker)

    def _take_over(self, id: int, slot: int, tag: str, pid: int) -> WorkerPeer:
        worker = self._core.succession.take_over(id, slot, "")
        peer = self._survivors[pid] = self._peers[worker.id] = WorkerPeer(self, worker)
        peer.attached = False
        peer.tag = tag
        worker.pid = pid
        peer.here(pid, self._selector, partial(self._ended, peer))
        self._nursery.expect(peer)
        return peer

    def _disown(self, pid: int) -> None:
        """A survivor does not know the key, for it is another by now: it can never be heard, and never hears us."""
        peer = self._survivors.get(pid)
        if peer is not None and not peer.attached and not peer.gone:
            why = "it does not know the key of this home, so it cannot be taken over, and what it runs is run again"
            report("WARNING", f"worker {peer.worker.id} (pid {pid}) is killed: {why}", worker=peer.worker.id)
            peer.signal(signal.SIGKILL)

    def look_at(self, worker: Worker) -> Executing | None:
        """Return what a worker of an earlier keeper executes that does not call, None: nothing, or it cannot be seen.

        It starts nothing else that it was fed by that keeper, if its page can be had.
        """
        peer = self._peers[worker.id]
        page = None if worker.pid is None else find_page(worker.pid, peer.tag)
        if page is None:
            return None
        if not peer.lives:  # the page may be of one that has its pid by now
            page.close()
            return None
        page.close_fd()
        peer.page = worker.page = page
        peer.revoked_behind = page.revoke_rest()
        return page.executing()

    # -- from one loop to the next ------------------------------------------------------------------------------------

    def part(self) -> list[WorkerPeer]:
        """Let go of the links, and return who there is."""
        for peer in self._peers.values():
            self._board.detach(peer)
            for large in peer.arenas.values():
                self._stowage.forsake(large)
            peer.arenas.clear()
        return list(self._peers.values())

    def hand_over(self, left: WorkerPeer, worker: Worker) -> None:
        """Look after ``worker``, who was another workforce's as ``left``, and have it call."""
        assert left.pid is not None
        peer = self._survivors[left.pid] = self._peers[worker.id] = WorkerPeer(self, worker)
        peer.take_over(left, self._selector, partial(self._ended, peer))
        peer.started = left.started
        self._nursery.expect(peer)
        if self.adoption is not None and not left.attached:
            self.adoption.expect(worker)
        peer.signal(signal.SIGURG)

    def await_unseen(self, left: WorkerPeer) -> None:
        """A worker of another workforce may exist, for it was asked for; if so, it calls."""
        self._unseen.add(left.tag)

    # -- what survivors say -------------------------------------------------------------------------------------------

    def attached(self, peer: WorkerPeer, content: dict[str, Any], fds: list[int]) -> None:
        """A worker of an earlier keeper tells what it holds."""
        worker = peer.worker
        worker.slot = content["slot"]
        if fds:
            if peer.page is not None:
                peer.page.close()
            peer.page = KeeperPage(fds.pop(0))
            peer.page.close_fd()
        worker.page = peer.page
        # What it was fed by ourselves needs no claim.
        claims = [
            None if index < worker.fed_before else what for index, what in enumerate(content["held"], content["base"])
        ]
        held: list[Task | None] = [None] * len(claims)
        if self.adoption is not None:
            held = self.adoption.take_in(worker, content["base"], claims, peer.revoked_behind)
        self._core.succession.attached(worker, peer.page, content["base"], held)
        if peer.page is not None:
            peer.page.allow(worker.next_index)
        if content["started"]:
            self._core.hello(worker)
        changed = self._sources.changed(content["sources"])
        if changed:
            report("INFO", f"worker {worker.id} is replaced: {changed[0]} has changed", worker=worker.id)
        if changed or content["recycling"]:
            self._core.recycle(worker)

    def turned_away(self, peer: WorkerPeer, hello: dict[str, Any], why: str) -> None:
        """A worker of another version has called."""
        worker, pid = peer.worker, int(hello["pid"])
        self.drained.append(pid)
        report("INFO", f"worker {worker.id} (pid {pid}) {why}: it finishes its task and leaves", worker=worker.id)
        if worker.birth == self._birth:
            self._core.start_failed(worker, f"its process {why}; what is on disk has changed since this program began")

    def leaving(self, peer: WorkerPeer, content: dict[str, Any]) -> None:
        """It tells what it has begun, which nobody else shall run; the outcomes are found when it has gone."""
        worker = peer.worker
        if peer.attached or peer.gone or isinstance(worker.page, Told):
            return
        held = [None if one is None else Held(str(one[0]), int(one[1]), tuple(one[2])) for one in content["holds"]]
        progress = Progress(len(held), len(held) - bool(content.get("executing")), 0, float(content.get("since", 0.0)))
        worker.page = told = Told(progress)
        begun = [None] * len(held) if self.adoption is None else self.adoption.take_in(worker, 1, held, None)
        self._core.succession.leaving(worker, told, begun)

    def connected(self, peer: WorkerPeer, hello: dict[str, Any]) -> None:
        """A worker has called again."""
        if peer.attached:
            self._here(peer, int(hello["pid"]))

    def _here(self, peer: WorkerPeer, pid: int) -> None:
        """There is a link: the process can be watched now, and it can be fed unless it initializes first."""
        worker = peer.worker
        worker.pid = pid
        peer.here(pid, self._selector, partial(self._ended, peer))
        if worker.state is WorkerState.READY:
            self._core.link_lost(worker, time.monotonic())  # it has called again before the end of its link was seen
        if self._settings.initializer is None or worker.state is not WorkerState.STARTING:
            self._core.hello(worker)

    def disconnected(self, peer: WorkerPeer) -> None:
        """A link is gone: a worker that lives calls back."""
        if peer.worker.state not in (WorkerState.STARTING, WorkerState.DEAD):
            self._core.link_lost(peer.worker, time.monotonic())

    def message(self, peer: WorkerPeer, message: tuple[Any, ...], fds: list[int]) -> None:
        """A worker has said something."""
        self.hear_tasks(peer, message, fds)

    def hear_worker(self, peer: WorkerPeer, message: tuple[Any, ...]) -> None:
        """A worker has said how it fares."""
        worker, kind = peer.worker, message[0]
        if kind == Kind.STARTED:
            self._core.hello(worker)
        elif kind == Kind.START_FAILED:
            report("ERROR", f"worker {worker.id} could not start: {message[1]}", worker=worker.id)
            self._core.start_failed(worker, message[1])
        elif kind == Kind.NOTICE:
            report("WARNING", message[1], worker=worker.id)
        elif kind == Kind.RECYCLE:
            report("INFO", f"worker {worker.id} is replaced: {message[1]}", worker=worker.id)
            self._core.recycle(worker)

    def release(self, peer: WorkerPeer, arenas: list[int]) -> None:
        """A worker has no view of these arenas any more."""
        for id in arenas:
            large = peer.arenas.pop(id, None)
            if large is not None:
                large.holders -= 1
                self._stowage.recycle(large)

    # -- what the nursery says ----------------------------------------------------------------------------------------

    def spawned(self, peer: WorkerPeer, pid: int, *, linked: bool) -> None:
        """The worker exists; if it has its link, what it is fed waits there for its first look.

        A fork server may tell so late of one that an earlier keeper has had made: that link was not ours.
        """
        worker = peer.worker
        worker.pid = pid
        ours = worker.birth == self._birth and self._peers.get(worker.id) is peer
        if linked and ours and peer.link is not None and not peer.watched:
            self._here(peer, pid)

    def refused(self, peer: WorkerPeer, why: str) -> None:
        """The worker could not be made."""
        self._core.refused(peer.worker, why)
        self._gone(peer, UNKNOWN)

    def exited(self, peer: WorkerPeer, exit: Exit) -> None:
        """The worker has ended, which its pidfd may have said before."""
        if self._peers.get(peer.worker.id) is peer:
            self._gone(peer, exit)
        else:
            self._core.died(peer.worker, time.monotonic(), exit)

    def orphaned(self, peer: WorkerPeer, why: str, *, killed: bool) -> None:
        """The fork server has died: unless it was ``killed``, a worker that it was about to make is a failed start."""
        if self._peers.get(peer.worker.id) is not peer:
            self._core.died(peer.worker, time.monotonic(), UNKNOWN)
        elif peer.worker.pid is None or peer.worker.state is WorkerState.STARTING:
            if killed:
                self._core.cut_short(peer.worker)
            else:
                self._core.start_failed(peer.worker, why)
            self._gone(peer, UNKNOWN)

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _ended(self, peer: WorkerPeer, _: int) -> None:
        self._gone(peer, None)

    def _gone(self, peer: WorkerPeer, exit: Exit | None) -> None:
        """A worker's process has ended: drain its link, then let the core judge by its page."""
        worker = peer.worker
        if self._peers.get(worker.id) is not peer:
            return
        self._board.hear_out(peer)
        self.collect(worker, f"{worker.birth}-{peer.tag.rpartition('-')[2]}")
        if worker.adopted and self.adoption is not None:
            self.adoption.gone(worker)
        self._core.died(worker, time.monotonic(), exit)
        del self._peers[worker.id]
        self._board.detach(peer)
        self._nursery.buried(peer, reported=exit is not None)
        peer.gone = True
        peer.unwatch(self._selector)
        if peer.page is not None:
            peer.page.close()
            worker.page = None
        self.release(peer, list(peer.arenas))

    def close(self) -> None:
        """Let go of every worker that is left; the nursery ends them."""
        for peer in self._peers.values():
            self._board.detach(peer)
            peer.unwatch(self._selector)
            if peer.page is not None:
                peer.page.close()
        self._peers.clear()


def _has_ended(identity: ProcessIdentity) -> bool:
    try:
        return not identity.is_alive()
    except OSError:  # as without a free descriptor; it will call, or its fork server tell of its end
        return False
