"""The services' processes: carries out what the supervisor decides, and tells it what happens to them."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .delivery import Delivery
from .errors import ProtocolError, ServiceFailed
from .families import descendants, end_families
from .home import Home
from .limits import Limits
from .messages import Kind
from .nursery import UNKNOWN, Child, Nursery, Parent, watch_process
from .policy import RestartRecord
from .postmortem import Postmortem
from .process_setup import DUMP_SIGNAL, LOG_DUMP_SIGNAL
from .program import Program
from .program_notices import ProgramNotices, ProgramPulse
from .register import Register
from .replica import Replica, Service
from .reporting import report
from .roster import Exit
from .service_commands import Announce, Ask, Collapse, Consult, Destroy, Dump, Launch, Sample, ServiceCommand
from .service_exits import LastWords
from .service_model import ExitReason, ServiceEvent, ServiceState, ServiceStatus
from .service_spec import ServiceSpec
from .service_worker import ServiceDefinition
from .supervisor import Supervisor
from .switchboard import Switchboard

if TYPE_CHECKING:
    import psutil

__all__ = ["ServicePeer", "Supervision"]

REPORT_SECONDS = 5.0
"""How long the fork server gets to report how a process has ended; on a busy machine it may be late.

It is known at once where the fork server has died that had made the process.
"""

STACKS_BYTES = 65536

TURNS = 5
"""Decisions in one turn of the keeper's loop, at most."""

DUMP_LOOK_SECONDS = 0.02
"""How often to look whether a process has written its stacks."""

_PHRASES = {"backoff": "has ended, and will be started again", "failed": "has failed", "completed": "has completed"}
_LEVELS = {"waiting": "DEBUG", "starting": "DEBUG", "stopping": "DEBUG", "backoff": "WARNING", "failed": "ERROR"}


class ServicePeer(Child):
    """The session with one process of a service."""

    def __init__(self, parent: Parent, replica: Replica, attempt: int) -> None:
        super().__init__(parent)
        self.replica = replica
        self.attempt = attempt
        self.tag = f"{replica.name}#{attempt}"
        self.name = f"service {replica.name}"
        self.about = ("program" if is_program(replica.spec) else "service", replica.name, replica.number, attempt)
        self.pidfd = -1
        self.stopped = False
        """Whether it was stopped, as by SIGSTOP, when it was to write its stacks."""
        self.must_dump = False
        self.dumped = 0
        """How many bytes of stacks it had written at the last look."""
        self.dumped_to_log = False
        self.words: LastWords | None = None
        self.family: set[psutil.Process] = set()
        self.pending: list[int] = []
        """Signals that came before the process was there."""


class Supervision:
    """Owns the processes of one keeper's services; runs under the keeper's lock, but for ``changed``."""

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
    ) -> None:
        self.supervisor = supervisor
        self.changed = threading.Condition()
        self._listeners: list[tuple[str, Callable[[ServiceEvent], object]]] = []
        self._nursery = nursery
        self._board = board
        self._selector = selector
        self._delivery = delivery
        self._postmortem = postmortem
        self._logs = home.logs
        self._notices = ProgramNotices(home.path, selector, supervisor, self._programs)
        self._call_soon = call_soon
        self._register = register
        self._peers: dict[str, ServicePeer] = {}
        self._current: dict[Replica, ServicePeer] = {}
        self._definitions: dict[Service, tuple[bytes, Limits, dict[str, str]]] = {}
        self._gone: dict[ServicePeer, float] = {}
        self._dumping: dict[ServicePeer, float] = {}
        self._news = False
        self._actions: dict[type[ServiceCommand], Callable[[Any], None]] = {
            Launch: self._launch,
            Ask: self._ask,
            Dump: self._dump,
            Destroy: self._destroy,
            Consult: self._consult,
            Sample: self._sample,
            Announce: self._announce,
            Collapse: self._collapse,
        }
        delivery.post(_warm_up)

    def add(self, spec: ServiceSpec, blob: bytes) -> Service:
        """Take on a service, not started yet; ``blob`` is its pickled target. Raises DeclarationError."""
        service = self.supervisor.add(spec)
        self._definitions[service] = (blob, Limits.of(spec.worker), dict(spec.worker.env or {}))
        return service

    def listen(self, kind: str, listener: Callable[[ServiceEvent], object]) -> None:
        """Have ``listener`` called, on the delivery thread, with every event whose kind matches ``kind``."""
        if (kind, listener) not in self._listeners:  # the hooks of a fleet that runs again
            self._listeners.append((kind, listener))

    # -- the keeper's loop --------------------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        given_up = [peer for peer, until in self._gone.items() if now >= until]
        if given_up:
            end_families({peer.pid: peer.family for peer in given_up if peer.pid is not None})
            for peer in given_up:
                self._ended(peer, UNKNOWN)
        for peer, until in list(self._dumping.items()):
            if now >= until:
                self._look_at_stacks(peer, now)
        self.supervisor.epoch = time.time() - now
        for _ in range(TURNS):  # what one decision has led to may ask for the next
            commands = self.supervisor.decide(now)
            for command in commands:
                self._actions[type(command)](command)
            if not commands:
                break
        if self._news:
            self._news = False
            with self.changed:
                self.changed.notify_all()

    def next_deadline(self) -> float | None:
        """Return when ``carry_out`` must be called next even if nothing happens, None if never."""
        deadline = self.supervisor.next_deadline()
        for until in (*self._gone.values(), *self._dumping.values()):
            deadline = until if deadline is None else min(deadline, until)
        return deadline

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
            program=is_program(spec),
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
        peer = self._current.get(command.replica)
        self._watch_family(peer)
        self._signal(peer, command.replica.spec.stop_signal)

    def _destroy(self, command: Destroy) -> None:
        peer = self._current.get(command.replica)
        self._watch_family(peer)
        self._signal(peer, signal.SIGKILL)

    def _watch_family(self, peer: ServicePeer | None) -> None:
        """Where the fork server has died that would end what a process leaves behind, remember what there is."""
        if peer is not None and peer.pid is not None and peer not in self._gone and not self._nursery.will_report(peer):
            peer.family.update(descendants(peer.pid))

    def _dump(self, command: Dump) -> None:
        peer = self._current.get(command.replica)
        if peer is None:
            return
        if DUMP_SIGNAL is None or peer in self._gone or is_program(command.replica.spec):
            self.supervisor.dumped(peer.replica, peer.attempt, time.monotonic())
            return
        peer.must_dump = True
        peer.stopped = _is_stopped(peer.pid)
        self._signal(peer, signal.SIGCONT)
        self._signal(peer, DUMP_SIGNAL)
        self._dumping[peer] = time.monotonic() + DUMP_LOOK_SECONDS

    def _look_at_stacks(self, peer: ServicePeer, now: float) -> None:
        """Ask for the stacks again, for the log, when they are in the file: faulthandler writes one dump at a time."""
        self._dumping[peer] = now + DUMP_LOOK_SECONDS
        if peer.dumped_to_log:
            del self._dumping[peer]
            self.supervisor.dumped(peer.replica, peer.attempt, now)
            return
        before, peer.dumped = peer.dumped, _size(self._logs / f"{peer.tag}.crash")
        if 0 < peer.dumped == before and LOG_DUMP_SIGNAL is not None:
            peer.dumped_to_log = True
            self._signal(peer, LOG_DUMP_SIGNAL)

    def _signal(self, peer: ServicePeer | None, number: int) -> None:
        """Signal a process, by its pidfd where there is one: that cannot name a stranger."""
        if peer is None or peer in self._gone:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if peer.pidfd >= 0:
                signal.pidfd_send_signal(peer.pidfd, number)
            elif peer.pid is not None:
                os.kill(peer.pid, number)
            else:
                peer.pending.append(number)

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
            self.supervisor.sampled(replica, _resident(replica.pid), now)

    def _announce(self, command: Announce) -> None:
        event = command.event
        self._news = True
        report(
            _LEVELS.get(event.kind.partition(".")[2], "INFO"),
            _sentence(event),
            service=event.name,
            attempt=event.attempt,
            state=event.state,
        )
        if self._register is not None:
            self._register.tell(event)
        for kind, listener in self._listeners:
            if fnmatchcase(event.kind, kind):
                self._delivery.post(partial(_tell, listener, event))

    def _collapse(self, command: Collapse) -> None:
        self._announce(Announce(ServiceEvent(time.time(), "fleet.failed", "", reason=command.reason)))
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
        elif kind == Kind.LAST_WORDS:
            peer.words = LastWords(ExitReason(message[1]), message[2], message[3])

    def _here(self, peer: ServicePeer, pid: int) -> None:
        peer.pid = pid
        if peer.page is not None:
            peer.page.close_fd()
        self.supervisor.spawned(peer.replica, peer.attempt, pid)
        if peer.pidfd < 0:
            peer.pidfd = watch_process(pid)
            if peer.pidfd >= 0:
                self._selector.register(peer.pidfd, selectors.EVENT_READ, partial(self._seen_to_end, peer))
        pending, peer.pending = peer.pending, []
        for number in pending:
            self._signal(peer, number)

    # -- what the nursery says ----------------------------------------------------------------------------------------

    def spawned(self, peer: ServicePeer, pid: int) -> None:
        """The process exists."""
        if peer.pidfd < 0 and self._peers.get(peer.tag) is peer and peer not in self._gone:
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
        elif peer in self._gone:
            self._gone[peer] = time.monotonic()
        elif peer.pidfd < 0:  # its end could not be seen any more
            self._watch_family(peer)
            self._signal(peer, signal.SIGKILL)
            self._gone[peer] = time.monotonic()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _seen_to_end(self, peer: ServicePeer, _: int) -> None:
        """The pidfd says so; how it ended the fork server says in a moment, unless it is gone."""
        self._unwatch(peer)
        self._gone[peer] = time.monotonic() + (REPORT_SECONDS if self._nursery.will_report(peer) else 0.0)

    def _ended(self, peer: ServicePeer, exit: Exit) -> None:
        if self._peers.get(peer.tag) is not peer:
            return
        while self._board.read(peer):
            pass
        stacks = self._take_stacks(peer)
        if not peer.must_dump and (exit.code is None or exit.code >= 0):
            stacks = ""  # somebody has asked for them at another time
        if peer.stopped:
            stacks = (
                f"The process was stopped (by SIGSTOP, a terminal or a debugger) and was continued for this.\n{stacks}"
            )
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
        self._dumping.pop(peer, None)
        self._peers.pop(peer.tag, None)
        if self._current.get(peer.replica) is peer:
            del self._current[peer.replica]
        self._board.detach(peer)
        self._nursery.buried(peer)
        self._unwatch(peer)
        peer.replica.pulse = None
        if peer.page is not None:
            peer.page.close()
            peer.page = None

    def _unwatch(self, peer: ServicePeer) -> None:
        if peer.pidfd >= 0:
            self._selector.unregister(peer.pidfd)
            os.close(peer.pidfd)
            peer.pidfd = -1

    def _take_stacks(self, peer: ServicePeer) -> str:
        """Return what the process has written when it crashed or was asked for its stacks, and remove the file."""
        path = self._logs / f"{peer.tag}.crash"
        try:
            with open(path, errors="replace") as file:
                text = file.read(STACKS_BYTES)
            path.unlink()
        except OSError:
            return ""
        return text

    def close(self) -> None:
        """Let go of every process that is left; the nursery ends them."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._notices.close()

    def announce_end(self) -> None:
        """Wake those who wait for a state that will not come any more; for when the keeper counts as ended."""
        with self.changed:
            self.changed.notify_all()

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


def is_program(spec: ServiceSpec) -> bool:
    """Whether the service is another program, made by ``command``."""
    return isinstance(spec.target, Program)


def _tell(listener: Callable[[ServiceEvent], object], event: ServiceEvent) -> None:
    listener(event)


def _sentence(event: ServiceEvent) -> str:
    subject, _, what = event.kind.partition(".")
    said = _PHRASES.get(what, f"is {what}")
    pid = f" (pid {event.pid})" if event.pid is not None else ""
    reason = f": {event.reason}" if event.reason else ""
    return f"{' '.join(filter(None, (subject, event.name, said)))}{pid}{reason}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_stopped(pid: int | None) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def _resident(pid: int | None) -> int | None:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return None


def _warm_up() -> None:
    """Import what the first restart needs, before it happens."""
    import tenacity  # noqa: F401
