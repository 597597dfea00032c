"""The services' processes: carries out what the supervisor decides, and tells it what happens to them."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from .delivery import Delivery
from .descriptors import make_room
from .errors import ProtocolError, ServiceFailed
from .families import descendants, end_families
from .home import Home
from .limits import Limits
from .messages import Kind
from .nursery import UNKNOWN, Nursery
from .policy import RestartRecord
from .postmortem import Postmortem
from .process_identity import resident_bytes
from .program_notices import ProgramNotices, ProgramPulse
from .register import Register
from .replica import Replica, Service
from .reporting import report
from .roster import Exit
from .service_commands import Announce, Ask, Collapse, Consult, Destroy, Dump, Launch, Sample, ServiceCommand
from .service_exits import LastWords
from .service_model import ExitReason, ServiceEvent, ServiceState, ServiceStatus
from .service_news import ServiceNews
from .service_peer import ServicePeer, StackDumps, is_program
from .service_spec import ServiceSpec
from .service_worker import ServiceDefinition
from .supervisor import Supervisor
from .switchboard import Switchboard

__all__ = ["Supervision", "replica_status"]

REPORT_SECONDS = 5.0
"""How long the fork server gets to report how a process has ended; on a busy machine it may be late.

It is known at once where the fork server has died that had made the process.
"""

TURNS = 5
"""Decisions in one turn of the keeper's loop, at most."""


class Supervision:
    """Owns the processes of one keeper's services; runs under the keeper's lock."""

    def __init__(
        self,
        supervisor: Supervisor,
        nursery: Nursery,
        board: Switchboard,
        selector: selectors.BaseSelector,
        delivery: Delivery,
        postmortem: Postmortem,
        home: Home,
        call_soon: Callable[[Callable[[], None]], None],
        register: Register | None,
        max_workers: int,
    ) -> None:
        self.supervisor = supervisor
        self.news = ServiceNews(delivery, register)
        self._nursery = nursery
        self._board = board
        self._selector = selector
        self._delivery = delivery
        self._postmortem = postmortem
        self._stacks = StackDumps(home.logs)
        self._notices = ProgramNotices(home.path, selector, supervisor, self._programs)
        self._call_soon = call_soon
        self._max_workers = max_workers
        self._peers: dict[str, ServicePeer] = {}
        self._current: dict[Replica, ServicePeer] = {}
        self._definitions: dict[Service, tuple[bytes, Limits, dict[str, str]]] = {}
        self._gone: dict[ServicePeer, float] = {}
        self._actions: dict[type[ServiceCommand], Callable[[Any], None]] = {
            Launch: self._launch,
            Ask: self._ask,
            Dump: self._dump,
            Destroy: self._destroy,
            Consult: self._consult,
            Sample: self._sample,
            Announce: lambda command: self.news.tell(command.event),
            Collapse: self._collapse,
        }
        delivery.post(_warm_up)

    def add(self, spec: ServiceSpec, blob: bytes) -> Service:
        """Take on a service, not started yet; ``blob`` is its pickled target. Raises DeclarationError."""
        service = self.supervisor.add(spec)
        make_room(self._max_workers + self.supervisor.size)
        self._definitions[service] = (blob, Limits.of(spec.worker), dict(spec.worker.env or {}))
        return service

    # -- the keeper's loop --------------------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        given_up = [peer for peer, until in self._gone.items() if now >= until]
        if given_up:
            end_families({peer.pid: peer.family for peer in given_up if peer.pid is not None})
            for peer in given_up:
                self._ended(peer, UNKNOWN)
        for peer in self._stacks.look(now):
            self.supervisor.dumped(peer.replica, peer.attempt, now)
        self.supervisor.epoch = time.time() - now
        for _ in range(TURNS):  # what one decision has led to may ask for the next
            commands = self.supervisor.decide(now)
            for command in commands:
                self._actions[type(command)](command)
            if not commands:
                break
        self.news.notify()

    def next_deadline(self) -> float | None:
        """Return when ``carry_out`` must be called next even if nothing happens, None if never."""
        deadlines = [self.supervisor.next_deadline(), self._stacks.next_look(), *self._gone.values()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _launch(self, command: Launch) -> None:
        replica = command.replica
        peer = ServicePeer(self, replica, command.attempt)
        self._peers[peer.tag] = self._current[replica] = peer
        try:
            self._nursery.spawn(peer, "service", (tuple(self._definition(peer)),))
        except OSError as error:
            self.refused(peer, f"the system refuses a new process or descriptor: {error}")
            return
        replica.pulse = ProgramPulse() if is_program(replica.spec) else peer.page

    def _definition(self, peer: ServicePeer) -> ServiceDefinition:
        replica, spec = peer.replica, peer.replica.spec
        blob, limits, environment = self._definitions[replica.service]
        return ServiceDefinition(
            tag=peer.tag,
            service=spec.name,
            name=replica.name,
            replica=replica.number,
            attempt=peer.attempt,
            blob=blob,
            path=tuple(sys.path),
            limits=limits,
            environment=environment,
            stop_signal=spec.stop_signal,
            program=peer.is_program,
            variables=self._variables(spec),
        )

    def _variables(self, spec: ServiceSpec) -> dict[str, str]:
        if is_program(spec) and (spec.ready == "notify" or spec.watchdog is not None):
            return self._notices.variables(spec.watchdog)
        return {}

    def _programs(self) -> dict[int, Replica]:
        return {
            peer.pid: replica
            for replica, peer in self._current.items()
            if peer.pid is not None and is_program(replica.spec)
        }

    def _ask(self, command: Ask) -> None:
        self._send(command.replica, command.replica.spec.stop_signal)

    def _destroy(self, command: Destroy) -> None:
        self._send(command.replica, signal.SIGKILL)

    def _send(self, replica: Replica, number: int) -> None:
        peer = self._current.get(replica)
        if peer is not None:
            self._watch_family(peer)
            peer.signal(number)

    def _watch_family(self, peer: ServicePeer) -> None:
        """Where the fork server has died that would end what a process leaves behind, remember what there is."""
        if peer.pid is not None and not peer.gone and not self._nursery.will_report(peer):
            peer.family.update(descendants(peer.pid))

    def _dump(self, command: Dump) -> None:
        peer, now = self._current.get(command.replica), time.monotonic()
        if peer is not None and not self._stacks.ask(peer, now):
            self.supervisor.dumped(peer.replica, peer.attempt, now)

    def _consult(self, command: Consult) -> None:
        if command.replica.spec.restart.is_known and "tenacity" in sys.modules:
            self._decided(command, *self._consult_now(command))
        else:
            self._delivery.post(partial(self._consult_later, command))

    def _consult_later(self, command: Consult) -> None:
        """On the delivery thread, for the strategies of this policy are user code."""
        self._call_soon(partial(self._decided, command, *self._consult_now(command)))

    @staticmethod
    def _consult_now(command: Consult) -> tuple[float | None, RestartRecord, str]:
        """Return the policy's delay, its new record, and what went wrong with it."""
        replica = command.replica
        error = None if command.error is None else ServiceFailed(command.error)
        try:
            delay, record = replica.spec.restart.after_exit(
                replica.record, started=command.started, now=command.ended, error=error, healthy=command.healthy
            )
        except Exception as problem:
            why = f"its restart policy raised {type(problem).__name__}: {problem}"
            report("ERROR", f"service {replica.name}: {why}\n{traceback.format_exc()}", service=replica.name)
            return None, replica.record, why
        return delay, record, ""

    def _decided(self, command: Consult, delay: float | None, record: RestartRecord, why: str) -> None:
        self.supervisor.decided(command, delay, record, time.monotonic(), why)

    def _sample(self, command: Sample) -> None:
        now = time.monotonic()
        for replica in command.replicas:
            self.supervisor.sampled(replica, resident_bytes(replica.pid), now)

    def _collapse(self, command: Collapse) -> None:
        self.news.tell(ServiceEvent(time.time(), "fleet.failed", "", reason=command.reason))
        self.supervisor.stop_all(time.monotonic(), command.reason)

    # -- links --------------------------------------------------------------------------------------------------------

    def introduce(self, hello: dict[str, Any]) -> ServicePeer:
        """Return whose session a caller resumes; raises ProtocolError for one who is not ours."""
        peer = self._peers.get(hello["id"])
        if peer is None:
            raise ProtocolError(f"service process {hello['id']} is not one of this keeper's")
        return peer

    def connected(self, peer: ServicePeer, hello: dict[str, Any]) -> None:
        """A process has called again."""
        self._here(peer, int(hello["pid"]))

    def attached(self, peer: ServicePeer, content: dict[str, Any], fds: list[int]) -> None:
        """A service of an earlier keeper tells what it is."""
        raise ProtocolError(f"{peer.name} belongs to another keeper")

    def disconnected(self, peer: ServicePeer) -> None:
        """A link is gone, which proves nothing: programs have none."""

    def message(self, peer: ServicePeer, message: tuple[Any, ...], fds: list[int]) -> None:
        """A process has said how it fares."""
        kind, now = message[0], time.monotonic()
        replica, attempt = peer.replica, peer.attempt
        if kind == Kind.HERE:
            self._here(peer, message[1])
        elif kind == Kind.STARTED:
            self.supervisor.started(replica, attempt, now)
        elif kind == Kind.READY:
            self.supervisor.ready(replica, attempt, now)
        elif kind == Kind.STATUS:
            replica.detail = message[1]
        elif kind == Kind.NOTICE:
            report("WARNING", message[1], service=replica.name)
        elif kind == Kind.LAST_WORDS:
            peer.words = LastWords(ExitReason(message[1]), message[2], message[3])

    def _here(self, peer: ServicePeer, pid: int) -> None:
        self.supervisor.spawned(peer.replica, peer.attempt, pid)
        peer.here(pid, self._selector, partial(self._seen_to_end, peer))

    # -- what the nursery says ----------------------------------------------------------------------------------------

    def spawned(self, peer: ServicePeer, pid: int) -> None:
        """The process exists."""
        if not peer.watched and self._peers.get(peer.tag) is peer and not peer.gone:
            self._here(peer, pid)

    def refused(self, peer: ServicePeer, why: str) -> None:
        """The process could not be made."""
        self._drop(peer)
        report("WARNING", f"service {peer.replica.name} waits: {why}", service=peer.replica.name)
        self.supervisor.refused(peer.replica, peer.attempt, time.monotonic(), why)

    def exited(self, peer: ServicePeer, exit: Exit) -> None:
        """The process has ended."""
        self._ended(peer, exit)

    def orphaned(self, peer: ServicePeer, why: str) -> None:
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

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _seen_to_end(self, peer: ServicePeer, _: int) -> None:
        """The pidfd says so; how it ended the fork server says in a moment, unless it is gone."""
        peer.unwatch(self._selector)
        peer.gone = True
        self._gone[peer] = time.monotonic() + (REPORT_SECONDS if self._nursery.will_report(peer) else 0.0)

    def _ended(self, peer: ServicePeer, exit: Exit) -> None:
        if self._peers.get(peer.tag) is not peer:
            return
        while self._board.read(peer):
            pass
        stacks = self._stacks.take(peer, crashed=exit.code is not None and exit.code < 0)
        replica = peer.replica
        self._drop(peer)
        code = exit.code
        if code is None and peer.words is not None and peer.words.reason is ExitReason.RETURNED:
            code = 0
        self.supervisor.ended(
            replica,
            peer.attempt,
            time.monotonic(),
            code=code,
            words=peer.words,
            stacks=stacks,
            out_of_memory=self._postmortem.out_of_memory(code),
        )

    def _drop(self, peer: ServicePeer) -> None:
        """Forget a process that is gone."""
        self._gone.pop(peer, None)
        self._stacks.forget(peer)
        peer.gone = True
        self._peers.pop(peer.tag, None)
        if self._current.get(peer.replica) is peer:
            del self._current[peer.replica]
        self._board.detach(peer)
        self._nursery.buried(peer)
        peer.unwatch(self._selector)
        peer.replica.pulse = None
        if peer.page is not None:
            peer.page.close()
            peer.page = None

    def close(self) -> None:
        """Let go of every process that is left; the nursery ends them."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._notices.close()

    def announce_end(self) -> None:
        """Wake those who wait for a state that will not come any more; for when the keeper counts as ended."""
        self.news.notify_all()

    # -- what is to be seen -------------------------------------------------------------------------------------------

    def rows(self) -> list[ServiceStatus]:
        """Return what every replica is doing now."""
        now = time.monotonic()
        return [
            replica_status(replica, now)
            for service in self.supervisor.services.values()
            for replica in service.replicas
        ]


def replica_status(replica: Replica, now: float) -> ServiceStatus:
    """Return what one replica is doing at ``now``, in seconds of the monotonic clock."""
    ready_at = replica.ready_at
    return ServiceStatus(
        name=replica.name,
        state=replica.state,
        pid=replica.pid,
        restarts=replica.restarts,
        last_exit=replica.exits[-1].exitcode if replica.exits else None,
        uptime=now - ready_at if ready_at is not None and replica.state is ServiceState.RUNNING else None,
        service=replica.service.name,
        replica=replica.number,
        attempt=replica.attempt,
        detail=replica.detail,
        exits=tuple(replica.exits),
        wanted=replica.up,
    )


def _warm_up() -> None:
    """Import what the first restart needs, before it happens."""
    import tenacity  # noqa: F401
