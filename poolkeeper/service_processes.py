"""The processes of a keeper's services: what they say, how they end, and that the supervisor hears of it."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any

from .families import descendants, end_families
from .messages import Kind
from .nursery import UNKNOWN, Nursery
from .postmortem import Postmortem
from .program_notices import ProgramPulse
from .replica import Replica
from .reporting import report
from .roster import Exit
from .service_exits import LastWords
from .service_model import ExitReason
from .service_peer import ServicePeer, StackDumps, is_program
from .service_survivors import read_words, report_refusal, take_page
from .sources import changed_sources
from .supervisor import Supervisor
from .switchboard import Switchboard

__all__ = ["ServiceProcesses"]

REPORT_SECONDS = 5.0
"""How long the fork server gets to report how a process has ended; on a busy machine it may be late.

It is known at once where the fork server has died that had made the process.
"""


class ServiceProcesses:
    """Looks after the sessions with the processes of services: ``peers`` by their tags, ``current`` by replicas.

    ``logs`` is where processes write their stacks and last words. Until ``roll_call``, which is None where all is
    known, an earlier keeper's fork servers may still tell how processes have ended.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        nursery: Nursery,
        board: Switchboard,
        selector: selectors.BaseSelector,
        postmortem: Postmortem,
        logs: Path,
    ) -> None:
        self.peers: dict[str, ServicePeer] = {}
        self.current: dict[Replica, ServicePeer] = {}
        self.roll_call: float | None = None
        self._supervisor = supervisor
        self._nursery = nursery
        self._board = board
        self._selector = selector
        self._postmortem = postmortem
        self._logs = logs
        self._stacks = StackDumps(logs)
        self._gone: dict[ServicePeer, float] = {}

    def add(self, peer: ServicePeer) -> None:
        """Look after a process that is asked for, or of an earlier keeper."""
        self.peers[peer.tag] = self.current[peer.replica] = peer
        peer.belong_to(self)

    def programs(self) -> dict[int, Replica]:
        """Return the replicas that are other people's programs, by pid."""
        return {
            peer.pid: replica
            for replica, peer in self.current.items()
            if peer.pid is not None and is_program(replica.spec)
        }

    def tend(self, now: float) -> None:
        """Do what is due."""
        given_up = [peer for peer, until in self._gone.items() if now >= until]
        if given_up:
            end_families({peer.pid: peer.family for peer in given_up if peer.pid is not None})
            for peer in given_up:
                self.end(peer, UNKNOWN)
        for peer in self._stacks.look(now):
            self._supervisor.dumped(peer.replica, peer.attempt, now)

    def next_deadline(self) -> float | None:
        """Return when ``tend`` must be called next even if nothing happens, None if never."""
        deadlines = [self._stacks.next_look(), *self._gone.values()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def dump(self, replica: Replica) -> None:
        """Have the process of a replica write down its stacks."""
        peer, now = self.current.get(replica), time.monotonic()
        if peer is not None and not self._stacks.ask(peer, now):
            self._supervisor.dumped(peer.replica, peer.attempt, now)

    def take_over(self, peer: ServicePeer, replica: Replica) -> None:
        """Look after a process of an earlier keeper, and hear what it has said meanwhile."""
        peer.replica = replica
        peer.is_program = is_program(replica.spec)
        self.add(peer)
        replica.pulse = ProgramPulse() if peer.is_program else None
        heard, peer.heard = peer.heard, []
        if not peer.gone and peer.pid is not None:
            self.here(peer, peer.pid)
            self.go_on(peer)
        for message in heard:
            self.message(peer, message, [])
        if peer.exit is not None:
            self.end(peer, peer.exit)
        elif peer.gone:
            self.await_report(peer)

    def send(self, replica: Replica, number: int) -> None:
        """Send a signal to the process of a replica."""
        peer = self.current.get(replica)
        if peer is not None:
            self._watch_family(peer)
            peer.signal(number)

    def _watch_family(self, peer: ServicePeer) -> None:
        """Where the fork server has died that would end what a process leaves behind, remember what there is."""
        if peer.pid is not None and not peer.gone and not self._nursery.will_report(peer):
            peer.family.update(descendants(peer.pid))

    def go_on(self, peer: ServicePeer) -> None:
        """Act on what a process of an earlier keeper has told of itself, as far as it has."""
        replica, attempt, now = peer.replica, peer.attempt, time.monotonic()
        stage, status = peer.content.get("stage"), peer.content.get("status")
        if peer.page is not None:
            replica.pulse = peer.page
        if peer.is_program or stage in ("started", "ready"):
            self._supervisor.started(replica, attempt, now)
        if stage == "ready":
            self._supervisor.ready(replica, attempt, now)
        if isinstance(status, str):
            replica.detail = status
        if peer.refusal:
            self._supervisor.muted(replica, attempt)
        elif changed_sources(peer.content.get("sources", {})):
            self._supervisor.outdated(replica, attempt)

    def connected(self, peer: ServicePeer, hello: dict[str, Any]) -> None:
        """A process has called again."""
        self.here(peer, int(hello["pid"]))

    def attached(self, peer: ServicePeer, content: dict[str, Any], fds: list[int]) -> None:
        """A process of an earlier keeper tells what it is."""
        peer.content = content
        take_page(peer, fds)
        self.go_on(peer)

    def turned_away(self, peer: ServicePeer, hello: dict[str, Any], why: str) -> None:
        """A process of another version has called."""
        report_refusal(peer, why)
        self.here(peer, int(hello["pid"]))
        self._supervisor.muted(peer.replica, peer.attempt)

    def leaving(self, peer: ServicePeer, content: dict[str, Any]) -> None:
        """It need not say so."""

    def disconnected(self, peer: ServicePeer) -> None:
        """A link is gone, which proves nothing: programs have none."""

    def message(self, peer: ServicePeer, message: tuple[Any, ...], fds: list[int]) -> None:
        """A process has said how it fares."""
        kind, now = message[0], time.monotonic()
        replica, attempt = peer.replica, peer.attempt
        if kind == Kind.HERE:
            self.here(peer, message[1])
        elif kind == Kind.STARTED:
            self._supervisor.started(replica, attempt, now)
        elif kind == Kind.READY:
            self._supervisor.ready(replica, attempt, now)
        elif kind == Kind.STATUS:
            replica.detail = message[1]
        elif kind == Kind.NOTICE:
            report("WARNING", message[1], service=replica.name)
        elif kind == Kind.LAST_WORDS:
            peer.words = LastWords(ExitReason(message[1]), message[2], message[3])

    def here(self, peer: ServicePeer, pid: int) -> None:
        """A process is known to exist."""
        self._supervisor.spawned(peer.replica, peer.attempt, pid)
        peer.is_here(pid, self._selector)

    def spawned(self, peer: ServicePeer, pid: int, *, linked: bool) -> None:
        """The process exists."""
        if not peer.watched and self.peers.get(peer.tag) is peer and not peer.gone:
            self.here(peer, pid)

    def refused(self, peer: ServicePeer, why: str) -> None:
        """The process could not be made."""
        self.drop(peer)
        report("WARNING", f"service {peer.replica.name} waits: {why}", service=peer.replica.name)
        self._supervisor.refused(peer.replica, peer.attempt, time.monotonic(), why)

    def exited(self, peer: ServicePeer, exit: Exit) -> None:
        """The process has ended."""
        self.end(peer, exit)

    def orphaned(self, peer: ServicePeer, why: str, *, killed: bool) -> None:
        """The fork server has died: nobody will report the end of what lives, and what it was to make is not made."""
        if peer.link is not None:
            with contextlib.suppress(OSError):
                # From now on it cannot say that it is there, and leaves; what it has said before is read.
                peer.link.socket.shutdown(socket.SHUT_RD)
            while self._board.read(peer):
                pass
        if peer.pid is None:
            self.refused(peer, why)
        elif peer.gone:
            self._gone[peer] = time.monotonic()
        elif not peer.watched:  # its end could not be seen any more
            self._watch_family(peer)
            peer.signal(signal.SIGKILL)
            peer.gone = True
            self._gone[peer] = time.monotonic()

    def seen_to_end(self, peer: ServicePeer) -> None:
        """The pidfd says so; how it ended the fork server says in a moment, unless it is gone."""
        peer.unwatch(self._selector)
        peer.gone = True
        self.await_report(peer)

    def await_report(self, peer: ServicePeer) -> None:
        """A process is gone; how it ended may be said yet."""
        now = time.monotonic()
        if self._nursery.will_report(peer):
            self._gone[peer] = now + REPORT_SECONDS
        elif not peer.birth and self.roll_call is not None:
            self._gone[peer] = self.roll_call
        else:
            self._gone[peer] = now

    def end(self, peer: ServicePeer, exit: Exit) -> None:
        """A process has ended, and all that can be known of that is known."""
        if self.peers.get(peer.tag) is not peer:
            return
        while self._board.read(peer):
            pass
        stacks = self._stacks.take(peer, crashed=exit.code is not None and exit.code < 0)
        written = read_words(self._logs, peer.tag)
        if peer.words is None:
            peer.words = written
        replica = peer.replica
        self.drop(peer)
        code = exit.code
        if code is None and peer.words is not None and peer.words.reason is ExitReason.RETURNED:
            code = 0
        self._supervisor.ended(
            replica,
            peer.attempt,
            time.monotonic(),
            code=code,
            words=peer.words,
            stacks=stacks,
            out_of_memory=self._postmortem.out_of_memory(code),
        )

    def drop(self, peer: ServicePeer) -> None:
        """Forget a process that is gone."""
        self._gone.pop(peer, None)
        self._stacks.forget(peer)
        peer.gone = True
        self.peers.pop(peer.tag, None)
        if self.current.get(peer.replica) is peer:
            del self.current[peer.replica]
        self._board.detach(peer)
        self._nursery.buried(peer)
        peer.unwatch(self._selector)
        peer.replica.pulse = None
        if peer.page is not None:
            peer.page.close()
            peer.page = None

    def close(self) -> None:
        """Let go of every process that is left."""
        for peer in list(self.peers.values()):
            self.drop(peer)
