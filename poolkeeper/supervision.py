"""The services' processes: carries out what the supervisor decides, and tells it what happens to them."""

from __future__ import annotations

import contextlib
import selectors
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .delivery import Delivery
from .descriptors import make_room
from .errors import ProtocolError
from .home import Home
from .limits import Limits
from .notify_socket import NotifySocket
from .nursery import UNKNOWN, Nursery
from .postmortem import Postmortem
from .process_identity import resident_bytes
from .program_notices import ProgramNotices, ProgramPulse
from .register import Register
from .replica import Service
from .reporting import report
from .service_commands import Announce, Ask, Collapse, Consult, Destroy, Dump, Launch, Sample, ServiceCommand
from .service_context import ServiceDefinition
from .service_handover import GroupRecord, Handover, ServiceRecord, cut_off
from .service_model import ServiceEvent, ServiceStatus
from .service_news import ServiceNews
from .service_peer import ServicePeer, is_program
from .service_policies import Policies
from .service_processes import ServiceProcesses
from .service_spec import DeclarationError, ServiceSpec
from .service_survivors import Survivors
from .status import replica_status
from .supervisor import Supervisor
from .switchboard import Switchboard

__all__ = ["LeftServices", "Supervision"]

TURNS = 5
"""Decisions in one turn of the keeper's loop, at most."""


class LeftService(NamedTuple):
    """One service of a supervision that has ended.

    ``rests`` is whether it is stopped, but not for good, ``ending`` whether its fleet ends.
    """

    spec: ServiceSpec
    blob: bytes
    code: str
    record: ServiceRecord
    rests: bool
    ending: bool


class LeftServices(NamedTuple):
    """What a supervision leaves to the next: services in the order of their declaration, and what is beside them."""

    services: list[LeftService]
    groups: tuple[GroupRecord, ...]
    notices: NotifySocket | None
    collapsed: bool


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
        news: ServiceNews,
        max_workers: int,
        birth: str,
    ) -> None:
        self.supervisor = supervisor
        self.news = news
        self._nursery = nursery
        self._processes = ServiceProcesses(supervisor, nursery, board, selector, postmortem, home.logs)
        self._notices = ProgramNotices(home.path, selector, supervisor, self._processes.programs, nursery.entrust)
        self._max_workers = max_workers
        self._birth = birth
        self._register = register
        self._records: dict[str, ServiceRecord] = {}
        self._collapsed = False
        self._definitions: dict[Service, tuple[bytes, Limits, dict[str, str]]] = {}
        self._actions: dict[type[ServiceCommand], Callable[[Any], None]] = {
            Launch: self._launch,
            Ask: self._ask,
            Dump: lambda command: self._processes.dump(command.replica),
            Destroy: self._destroy,
            Consult: Policies(supervisor, delivery, call_soon).consult,
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
            self._processes.roll_call = survivors.roll_call
            nursery.on_listed(self._listed)

    def take_on(self, spec: ServiceSpec, blob: bytes, code: str = "", left: ServiceRecord | None = None) -> Service:
        """Take on a service, and start it or go on with what an earlier keeper has left of it.

        ``blob`` is its pickled target, ``code`` the fingerprint of that and of its options; ``left`` is what is known
        of it beyond what was written down. Raises DeclarationError.
        """
        self._tell_time(time.monotonic())
        if left is None:
            self._make_room(spec.name, spec.replicas, spec.replicas)
        service = self.supervisor.add(spec, code)
        self._definitions[service] = (blob, Limits.of(spec.worker), dict(spec.worker.env or {}))
        record, peers = (None, []) if self._survivors is None else self._survivors.claim(spec.name)
        record = left or record
        if record is None and not peers:
            self.supervisor.start(service, time.monotonic())
        else:
            self._adopt(service, record, peers)
        return service

    def definition_of(self, service: Service) -> tuple[bytes, dict[str, str]]:
        """Return a service's pickled target, and the variables that its processes get."""
        blob, _, environment = self._definitions[service]
        return blob, environment

    def restart(self, service: Service) -> None:
        """Replace the processes of a service by ones that run the code on disk; that it can be loaded is known."""
        self.supervisor.admit(service)
        if not is_program(service.spec) and self._nursery.renew(service):
            service.code = ""  # is another than that of its declaration
        self.supervisor.restart(service, time.monotonic())

    def scale(self, service: Service, number: int) -> None:
        """Have ``number`` replicas of a service; raises DeclarationError for more than there can be descriptors for."""
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

    # -- from one loop to the next ------------------------------------------------------------------------------------

    def part(self) -> LeftServices:
        """Return what there is for another supervision to go on with; ``close`` this one next."""
        now = time.monotonic()
        self.supervisor.epoch = time.time() - now
        services = [
            LeftService(
                service.spec,
                self._definitions[service][0],
                service.code,
                *self.supervisor.leave(service, now),
                service.ending,
            )
            for service in self.supervisor.services.values()
        ]
        self._write_down(now)
        return LeftServices(services, self.supervisor.describe_groups(), self._notices.part(), self._collapsed)

    def go_on(self, left: LeftServices) -> None:
        """Go on with what another supervision has left."""
        self._collapsed = left.collapsed
        if left.notices is not None:
            self._notices.listen(left.notices)
        self.supervisor.inherit_groups(left.groups)
        for each in left.services:
            record = each.record if self._survivors is not None else cut_off(each.record)
            service = self.take_on(each.spec, each.blob, each.code, record)
            if each.rests or each.ending:
                self.supervisor.end(service, time.monotonic())
            if not each.ending:
                self.supervisor.readmit(service)

    # -- the keeper's loop --------------------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        self._processes.tend(now)
        if self._survivors is not None:
            self._survivors.tend(now)
            self._processes.roll_call = self._survivors.roll_call
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
        deadlines = [self.supervisor.next_deadline(), self._processes.next_deadline()]
        if self._survivors is not None:
            deadlines.append(self._survivors.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _launch(self, command: Launch) -> None:
        replica = command.replica
        peer = ServicePeer.for_replica(self._processes, replica, command.attempt, self._birth)
        self._processes.add(peer)
        try:
            self._nursery.spawn(peer, "service", (tuple(self._definition(peer)),), replica.service)
        except OSError as error:
            self._processes.refused(peer, f"the system refuses a new process or descriptor: {error}")
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

    def _ask(self, command: Ask) -> None:
        self._processes.send(command.replica, command.replica.spec.stop_signal)

    def _destroy(self, command: Destroy) -> None:
        self._processes.send(command.replica, signal.SIGKILL)

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
        with contextlib.suppress(OSError):  # said when the next process is made
            self._variables(spec)  # programs that live may have something to say
        if left is None:
            left = ServiceRecord(spec.name, wanted=True, declared=spec.replicas, count=spec.replicas)
        processes: dict[int, int] = {}
        for peer in peers:
            if not peer.gone:
                processes[peer.origin.number] = max(peer.attempt, processes.get(peer.origin.number, 0))
        same_boot = survivors is None or survivors.same_boot
        self.supervisor.adopt(service, left, now, processes, same_boot=same_boot)
        for peer in peers:
            self._take_over(peer, service)
        for replica in list(service.replicas):
            if replica.state.has_process and replica not in self._processes.current:
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
            or replica in self._processes.current
        ):
            survivors.dismiss(peer, time.monotonic())
            return
        self._processes.take_over(peer, replica)
        if self._register is not None and self._register.crashed and is_program(replica.spec):
            self.supervisor.presume(replica, peer.attempt)

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
        self._processes.roll_call = survivors.roll_call
        if survivors.roll_call is None:
            self.supervisor.hold(None)

    def _find(self, survivors: Survivors, tag: str, pid: int) -> ServicePeer:
        """Return the session with a process that is there; raises ProtocolError for one that nobody wants."""
        peer = self._processes.peers.get(tag)
        if peer is not None and not peer.birth and peer.pid == pid and not peer.gone:
            return peer
        found = survivors.discover(tag, pid)
        service = self.supervisor.services.get(found.origin.service)
        if service is None:
            return found  # it may be declared yet
        now = time.monotonic()
        replica = self.supervisor.replica(service, found.origin.number)
        current = None if replica is None else self._processes.current.get(replica)
        doubtful = current is not None and not current.birth and (current.gone or survivors.is_hearsay(current))
        if current is not None and replica is not None and doubtful:
            if current.attempt == found.attempt:  # it was believed to have ended, or to be another process
                self._processes.drop(current)
            elif current.gone and current.attempt < found.attempt:
                self._processes.end(current, current.exit or UNKNOWN)
                replica = self.supervisor.found(service, found.origin.number, found.attempt, now)
        else:
            replica = self.supervisor.found(service, found.origin.number, found.attempt, now)
        if replica is None or replica in self._processes.current:
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
        peer = self._processes.peers.get(tag)
        if peer is None or peer.birth != self._birth:
            raise ProtocolError(f"service process {tag} is not one of this keeper's")
        return peer

    def close(self, *, leave: bool) -> None:
        """Let go of every process that is left; the nursery ends them, unless it is to ``leave`` them."""
        self._processes.close()
        if self._survivors is not None:
            self._survivors.close()
        self._notices.close(leave=leave)

    # -- what is to be seen -------------------------------------------------------------------------------------------

    def rows(self) -> list[ServiceStatus]:
        """Return what every replica is doing now."""
        now = time.monotonic()
        return [
            replica_status(replica, now)
            for service in self.supervisor.services.values()
            for replica in service.replicas
        ]
