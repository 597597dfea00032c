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
from .service_handover import Handover, ServiceRecord
from .service_model import ExitReason, ServiceEvent, ServiceState, ServiceStatus
from .service_news import ServiceNews
from .service_peer import ServicePeer, StackDumps, is_program
from .service_spec import DeclarationError, ServiceSpec
from .service_survivors import Survivors, read_words, report_refusal, take_page
from .service_worker import ServiceDefinition
from .sources import changed_sources
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
        birth: str,
    ) -> None:
        self.supervisor = supervisor
        self.news = ServiceNews(delivery, register)
        self._nursery = nursery
        self._board = board
        self._selector = selector
        self._delivery = delivery
        self._postmortem = postmortem
        self._stacks = StackDumps(home.logs)
        self._notices = ProgramNotices(home.path, selector, supervisor, self._programs, nursery.entrust)
        self._call_soon = call_soon
        self._max_workers = max_workers
        self._birth = birth
        self._register = register
        self._logs = home.logs
        self._records: dict[str, ServiceRecord] = {}
        self._collapsed = False
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
        self._survivors: Survivors | None = None
        if register is not None:
            self._survivors = survivors = Survivors(register, nursery, board, selector, time.monotonic())
            supervisor.inherit_groups(survivors.groups)
            if survivors.roll_call is not None:
                supervisor.hold(survivors.roll_call)
            nursery.on_listed(self._listed)
        delivery.post(_warm_up)

    def take_on(self, spec: ServiceSpec, blob: bytes, code: str = "") -> Service:
        """Take on a service, and start it or go on with what an earlier keeper has left of it.

        ``blob`` is its pickled target, ``code`` the fingerprint of that and of its options. Raises DeclarationError.
        """
        self._tell_time(time.monotonic())
        self._make_room(spec.name, spec.replicas, spec.replicas)
        service = self.supervisor.add(spec, code)
        self._definitions[service] = (blob, Limits.of(spec.worker), dict(spec.worker.env or {}))
        record, peers = (None, []) if self._survivors is None else self._survivors.claim(spec.name)
        if record is None and not peers:
            self.supervisor.start(service, time.monotonic())
        else:
            self._adopt(service, record, peers)
        return service

    def scale(self, service: Service, number: int) -> None:
        """Have ``number`` replicas of a service; raises ValueError for more than this process has descriptors for."""
        self._make_room(service.name, number, number - len(service.replicas))
        self.supervisor.scale(service, number, time.monotonic())

    def _make_room(self, name: str, number: int, more: int) -> None:
        wanted = self._max_workers + self.supervisor.size + max(0, more)
        most = make_room(wanted)
        if most is not None and more > 0:
            raise DeclarationError(
                f"service {name!r} in {number} processes needs more open files than this process may have "
                f"(ulimit -Hn); at most {max(0, number - wanted + most)} fit"
            )

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
        if self._survivors is not None:
            self._survivors.tend(now)
        self._tell_time(now)
        for _ in range(TURNS):  # what one decision has led to may ask for the next
            commands = self.supervisor.decide(now)
            for command in commands:
                self._actions[type(command)](command)
            if not commands:
                break
        self._write_down(now)
        self.news.notify()

    def _tell_time(self, now: float) -> None:
        self.supervisor.epoch = time.time() - now

    def _write_down(self, now: float) -> None:
        """Have the next keeper know what has changed."""
        records = self.supervisor.describe(now)
        if records and self._register is not None and not self._collapsed:
            self._records.update({record.name: record for record in records})
            unclaimed = () if self._survivors is None else self._survivors.records
            self._register.describe(Handover((*self._records.values(), *unclaimed), self.supervisor.describe_groups()))

    @property
    def down(self) -> bool:
        """Whether no process is left and none is to come."""
        return self.supervisor.down and (self._survivors is None or self._survivors.down)

    def stop_all(self, reason: str) -> None:
        """Stop everything, what depends on others first, for the keeper ends."""
        now = time.monotonic()
        self.supervisor.close(now, reason)
        if self._survivors is not None:
            self._survivors.disown(now)

    def disown(self) -> None:
        """End what an earlier keeper has left and nobody has declared: nothing more will be declared."""
        if self._survivors is not None:
            self._survivors.disown(time.monotonic())

    def next_deadline(self) -> float | None:
        """Return when ``carry_out`` must be called next even if nothing happens, None if never."""
        deadlines = [self.supervisor.next_deadline(), self._stacks.next_look(), *self._gone.values()]
        if self._survivors is not None:
            deadlines.append(self._survivors.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _launch(self, command: Launch) -> None:
        replica = command.replica
        peer = ServicePeer.for_replica(self, replica, command.attempt, self._birth)
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
            birth=self._birth,
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
        self._collapsed = True  # the next keeper begins anew
        if self._register is not None:
            self._register.describe(Handover())
        self.supervisor.stop_all(time.monotonic(), command.reason)

    # -- what an earlier keeper has left ------------------------------------------------------------------------------

    def _adopt(self, service: Service, left: ServiceRecord | None, peers: list[ServicePeer]) -> None:
        """Go on with a service."""
        survivors, spec, now = self._survivors, service.spec, time.monotonic()
        assert survivors is not None
        with contextlib.suppress(OSError):  # said when the next process is made
            self._variables(spec)  # programs that live may have something to say
        if left is None:
            left = ServiceRecord(spec.name, wanted=True, declared=spec.replicas, count=spec.replicas)
        processes: dict[int, int] = {}
        for peer in peers:
            if not peer.gone:
                processes[peer.origin.number] = max(peer.attempt, processes.get(peer.origin.number, 0))
        self.supervisor.adopt(service, left, now, processes, same_boot=survivors.same_boot)
        for peer in peers:
            self._take_over(peer, service)
        for replica in list(service.replicas):
            if replica.state.has_process and replica not in self._current:
                self.supervisor.ended(replica, replica.attempt, now, code=None)

    def _take_over(self, peer: ServicePeer, service: Service) -> None:
        """Look after a process, if the supervisor knows it."""
        survivors = self._survivors
        assert survivors is not None
        replica = self.supervisor.replica(service, peer.origin.number)
        if (
            replica is None
            or replica.attempt != peer.attempt
            or not replica.state.has_process
            or replica in self._current
        ):
            survivors.dismiss(peer, time.monotonic())
            return
        peer.replica = replica
        peer.is_program = is_program(replica.spec)
        peer.belong_to(self)
        self._peers[peer.tag] = self._current[replica] = peer
        replica.pulse = ProgramPulse() if peer.is_program else None
        heard, peer.heard = peer.heard, []
        if not peer.gone and peer.pid is not None:
            self._here(peer, peer.pid)
            self._go_on(peer)
        for message in heard:
            self.message(peer, message, [])
        if peer.exit is not None:
            self._ended(peer, peer.exit)
        elif peer.gone:
            self._await_report(peer)

    def _go_on(self, peer: ServicePeer) -> None:
        """Act on what a process of an earlier keeper has told of itself, as far as it has."""
        replica, attempt, now = peer.replica, peer.attempt, time.monotonic()
        stage, status = peer.content.get("stage"), peer.content.get("status")
        if peer.page is not None:
            replica.pulse = peer.page
        if peer.is_program or stage in ("started", "ready"):
            self.supervisor.started(replica, attempt, now)
        if stage == "ready":
            self.supervisor.ready(replica, attempt, now)
        if isinstance(status, str):
            replica.detail = status
        if peer.refusal or changed_sources(peer.content.get("sources", {})):
            self.supervisor.outdated(replica, attempt)

    def _listed(self, server: int, children: list[tuple[str, str, int]]) -> None:
        """A fork server tells which processes it has made for earlier keepers, and that live."""
        survivors = self._survivors
        assert survivors is not None
        for tag, role, pid in children:
            if role == "service":
                try:
                    self._find(survivors, tag, pid)
                except ProtocolError as error:
                    report("WARNING", str(error))
        survivors.listed(server)
        if survivors.roll_call is None:
            self.supervisor.hold(None)

    def _find(self, survivors: Survivors, tag: str, pid: int) -> ServicePeer:
        """Return the session with a process that is there; raises ProtocolError for one that nobody wants."""
        peer = self._peers.get(tag)
        if peer is not None and not peer.birth and peer.pid == pid and not peer.gone:
            return peer
        found = survivors.discover(tag, pid)
        service = self.supervisor.services.get(found.origin.service)
        if service is None:
            return found  # it may be declared yet
        now = time.monotonic()
        replica = self.supervisor.replica(service, found.origin.number)
        current = None if replica is None else self._current.get(replica)
        if current is not None and replica is not None and current.gone and not current.birth:
            if current.attempt == found.attempt:  # it was believed to have ended
                self._drop(current)
            elif current.attempt < found.attempt:
                self._ended(current, current.exit or UNKNOWN)
                replica = self.supervisor.found(service, found.origin.number, found.attempt, now)
        else:
            replica = self.supervisor.found(service, found.origin.number, found.attempt, now)
        if replica is None or replica in self._current:
            survivors.dismiss(found, now)
            raise ProtocolError(f"service process {tag} is one too many, and is stopped")
        survivors.give(found)
        self._take_over(found, service)
        return found

    # -- links --------------------------------------------------------------------------------------------------------

    def introduce(self, hello: dict[str, Any]) -> ServicePeer:
        """Return whose session a caller resumes; raises ProtocolError for one who is not ours."""
        tag = str(hello["id"])
        if hello.get("birth") != self._birth and self._survivors is not None:
            return self._find(self._survivors, tag, int(hello["pid"]))
        peer = self._peers.get(tag)
        if peer is None or peer.birth != self._birth:
            raise ProtocolError(f"service process {tag} is not one of this keeper's")
        return peer

    def connected(self, peer: ServicePeer, hello: dict[str, Any]) -> None:
        """A process has called again."""
        self._here(peer, int(hello["pid"]))

    def attached(self, peer: ServicePeer, content: dict[str, Any], fds: list[int]) -> None:
        """A process of an earlier keeper tells what it is."""
        peer.content = content
        take_page(peer, fds)
        self._go_on(peer)

    def turned_away(self, peer: ServicePeer, hello: dict[str, Any], why: str) -> None:
        """A process of another version has called."""
        report_refusal(peer, why)
        self._here(peer, int(hello["pid"]))
        self.supervisor.outdated(peer.replica, peer.attempt)

    def leaving(self, peer: ServicePeer, content: dict[str, Any]) -> None:
        """It need not say so."""

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
        peer.is_here(pid, self._selector)

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

    def seen_to_end(self, peer: ServicePeer) -> None:
        """The pidfd says so; how it ended the fork server says in a moment, unless it is gone."""
        peer.unwatch(self._selector)
        peer.gone = True
        self._await_report(peer)

    def _await_report(self, peer: ServicePeer) -> None:
        now = time.monotonic()
        roll_call = None if self._survivors is None else self._survivors.roll_call
        if self._nursery.will_report(peer):
            self._gone[peer] = now + REPORT_SECONDS
        elif not peer.birth and roll_call is not None:
            self._gone[peer] = roll_call
        else:
            self._gone[peer] = now

    def _ended(self, peer: ServicePeer, exit: Exit) -> None:
        if self._peers.get(peer.tag) is not peer:
            return
        while self._board.read(peer):
            pass
        stacks = self._stacks.take(peer, crashed=exit.code is not None and exit.code < 0)
        written = read_words(self._logs, peer.tag)
        if peer.words is None:
            peer.words = written
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

    def close(self, *, leave: bool) -> None:
        """Let go of every process that is left; the nursery ends them, unless it is to ``leave`` them."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        if self._survivors is not None:
            self._survivors.close()
        self._notices.close(leave=leave)

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
