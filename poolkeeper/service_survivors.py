"""What an earlier keeper has left of services: records, and processes, until the services are declared again.

Its processes are known from the pidfile, from the fork server that has made them, or because they call. What they say
meanwhile is kept for those who claim them. Those that nobody claims, and those that are one too many, are ended: by
their stop signal, and by force if that does not help.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import ProtocolError
from .messages import Kind
from .nursery import Nursery
from .page import KeeperPage
from .pidfile import ChildRecord
from .process_identity import ProcessIdentity, identify
from .register import Register
from .replica import Ending
from .reporting import report
from .roster import Exit
from .service_exits import LastWords
from .service_handover import GroupRecord, ReplicaRecord, ServiceRecord
from .service_model import ExitReason, ServiceState
from .service_peer import Origin, ServicePeer
from .switchboard import Switchboard

__all__ = ["CLAIM_SECONDS", "ROLL_CALL_SECONDS", "Survivors", "read_words", "report_refusal", "take_page"]

ROLL_CALL_SECONDS = 2.0
"""How long no service is started where an earlier keeper may have left processes that nobody has told of yet."""

CLAIM_SECONDS = 30.0
"""How long processes go on whose service is not declared."""

KILL_SECONDS = 5.0
"""After this a process that was killed and is still there is killed once more."""

SUMMONS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds after the start at which processes that have not called are asked to."""

HEARD_LIMIT = 1000

_STATED = frozenset({Kind.STARTED, Kind.READY, Kind.STATUS, Kind.NOTICE, Kind.LAST_WORDS})


class Survivors:
    """Processes of an earlier keeper's services that are nobody's yet, and the records of services; see ``claim``."""

    def __init__(
        self, register: Register, nursery: Nursery, board: Switchboard, selector: selectors.BaseSelector, now: float
    ) -> None:
        self._register = register
        self._nursery = nursery
        self._board = board
        self._selector = selector
        document = register.inherited
        handover = None if document is None else document.services
        self.same_boot = register.same_boot
        self.groups: tuple[GroupRecord, ...] = () if handover is None else handover.groups
        self._records = {} if handover is None else {record.name: record for record in handover.services}
        self._peers: dict[Origin, ServicePeer] = {}
        self._leaving: dict[ServicePeer, tuple[float, float]] = {}
        self._claim_by: float | None = None
        self._summons = [(now + seconds) for seconds in SUMMONS]
        self._servers = {child.identity.pid for child in register.survivors if child.role == "forkserver"}
        self.roll_call: float | None = None
        """Until when nothing is to be started; None: all is known."""
        if self._servers or (register.crashed and document is None):
            self.roll_call = now + ROLL_CALL_SECONDS
        living = {child.identity.pid for child in register.survivors}
        for child in () if document is None else document.children:
            if child.role in ("service", "program"):
                self._take_in(child, lives=child.identity.pid in living)
        for record in self._records.values():
            self._take_in_unseen(record)
        if self._peers:
            self._claim_by = now + CLAIM_SECONDS
        for child in register.survivors:
            if child.role == "forkserver":
                with contextlib.suppress(OSError):
                    child.identity.signal(signal.SIGURG)

    @property
    def records(self) -> tuple[ServiceRecord, ...]:
        """What is known of services that nobody has declared yet."""
        return tuple(self._records.values())

    @property
    def down(self) -> bool:
        """Whether no process is left that nobody has claimed."""
        return not self._leaving and all(peer.gone for peer in self._peers.values())

    # -- who there is -------------------------------------------------------------------------------------------------

    def _take_in(self, child: ChildRecord, *, lives: bool) -> None:
        """Look after a process of which the pidfile tells."""
        origin = Origin.of(child.id)
        if origin is None or child.slot != origin.number or child.attempt != origin.attempt:
            return
        known = self._peers.get(origin)
        if known is not None and not known.gone:
            return
        peer = self._new_peer(child.id, origin, is_program=child.role == "program")
        peer.pid = child.identity.pid
        if lives and peer.found(child.identity, self._selector):
            self._nursery.expect(peer)
            self._summon(peer)
        else:
            peer.gone = True
            self._nursery.expect_report(peer)

    def _take_in_unseen(self, record: ServiceRecord) -> None:
        """Expect the end, or a sign of life, of processes that were being made."""
        for replica in record.replicas:
            origin = Origin(record.name, replica.number, replica.attempt)
            if replica.state.has_process and origin not in self._peers:
                single = len(record.replicas) == 1 and not replica.number
                label = record.name if single else f"{record.name}:{replica.number}"
                peer = self._new_peer(f"{label}#{replica.attempt}", origin)
                peer.gone = True
                self._nursery.expect_report(peer)

    def discover(self, tag: str, pid: int) -> ServicePeer:
        """Return the session with a process that somebody has told of; raises ProtocolError for one that is no service.

        It may be known, or nobody's yet, or may have been believed to be gone.
        """
        origin = Origin.of(tag)
        identity = _identify(pid)
        if origin is None or identity is None:
            raise ProtocolError(f"process {pid} is no service of this keeper's: {tag!r}")
        for peer in self._leaving:
            if peer.pid == pid:
                raise ProtocolError(f"service process {tag} is to end")
        known = self._peers.get(origin)
        if known is not None and not known.gone:
            if known.pid == pid:
                return known
            if not self.is_hearsay(known):
                raise ProtocolError(f"there is a service process {tag} already, with pid {known.pid}")
        if known is not None:
            self.forget(known)
        peer = self._new_peer(tag, origin)
        if not peer.found(identity, self._selector):
            self.forget(peer)
            raise ProtocolError(f"service process {tag} is gone")
        self._nursery.expect(peer)
        return peer

    def is_hearsay(self, peer: ServicePeer) -> bool:
        """Whether the pidfile alone says that ``peer`` has this pid: neither itself nor who has made it."""
        return not (peer.attached or self._nursery.will_report(peer))

    def give(self, peer: ServicePeer) -> None:
        """Give out one process."""
        del self._peers[peer.origin]

    def _new_peer(self, tag: str, origin: Origin, *, is_program: bool = False) -> ServicePeer:
        peer = ServicePeer(self, tag, origin, is_program=is_program)
        peer.attached = False
        self._peers[origin] = peer
        return peer

    def listed(self, pid: int) -> None:
        """A fork server has told of all its processes."""
        self._servers.discard(pid)
        if not self._servers:
            self.roll_call = None

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, name: str) -> tuple[ServiceRecord | None, list[ServicePeer]]:
        """Give out what is known of the service ``name``: its record and its processes, those that are gone as well."""
        record = self._records.pop(name, None)
        peers = [peer for peer in self._peers.values() if peer.origin.service == name]
        for peer in peers:
            del self._peers[peer.origin]
        late = [peer for peer in self._leaving if peer.origin.service == name]
        for peer in late:  # its successor waits for it
            del self._leaving[peer]
            record = _ending(record or ServiceRecord(name, wanted=True), peer.origin)
        return record, peers + late

    def next_deadline(self) -> float | None:
        """Return when ``tend`` has to be called."""
        deadlines = [deadline for _, deadline in self._leaving.values()]
        deadlines.extend(self._summons[:1] if self._silent() else ())
        deadlines.extend(when for when in (self._claim_by, self.roll_call) if when is not None)
        return min(deadlines, default=None)

    def tend(self, now: float) -> None:
        """Do what is due."""
        if self.roll_call is not None and now >= self.roll_call:
            self.roll_call = None
        while self._summons and now >= self._summons[0]:
            del self._summons[0]
            for peer in self._silent():
                self._summon(peer)
        if self._claim_by is not None and now >= self._claim_by:
            self.disown(now)
        for peer, (began, deadline) in list(self._leaving.items()):
            if now >= deadline:
                peer.signal(signal.SIGKILL)
                self._leaving[peer] = (began, now + KILL_SECONDS)

    def _silent(self) -> list[ServicePeer]:
        return [
            peer for peer in self._peers.values() if not (peer.gone or peer.attached or peer.refusal or peer.is_program)
        ]

    @staticmethod
    def _summon(peer: ServicePeer) -> None:
        """Ask a process to call; whoever does not know the signal ignores it."""
        if not peer.is_program:
            peer.signal(signal.SIGURG)

    # -- those that are to end ----------------------------------------------------------------------------------------

    def disown(self, now: float) -> None:
        """End what nobody has claimed: no further service will be declared."""
        self._claim_by = None
        for peer in list(self._peers.values()):
            if peer.gone:
                self.forget(peer)
            else:
                report("WARNING", f"{peer.name} (pid {peer.pid}) is not declared any more: it is stopped")
                self.dismiss(peer, now)
        self._records.clear()

    def dismiss(self, peer: ServicePeer, now: float) -> None:
        """End a process that is nobody's."""
        self._peers.pop(peer.origin, None)
        if peer.gone:
            self.forget(peer)
            return
        peer.belong_to(self)
        record = self._records.get(peer.origin.service) or ServiceRecord(peer.origin.service)
        self._leaving[peer] = (now, now + record.stop_timeout)
        peer.signal(record.stop_signal)
        peer.signal(signal.SIGCONT)

    def forget(self, peer: ServicePeer) -> None:
        """A process is gone."""
        self._leaving.pop(peer, None)
        if self._peers.get(peer.origin) is peer:
            del self._peers[peer.origin]
        peer.gone = True
        self._board.detach(peer)
        self._nursery.buried(peer)
        peer.unwatch(self._selector)
        if peer.page is not None:
            peer.page.close()
            peer.page = None

    def close(self) -> None:
        """Let go of all of them."""
        for peer in [*self._peers.values(), *self._leaving]:
            self._board.detach(peer)
            peer.unwatch(self._selector)
            if peer.page is not None:
                peer.page.close()
                peer.page = None
        self._peers.clear()
        self._leaving.clear()

    # -- what they say, and what is said of them ----------------------------------------------------------------------

    def connected(self, peer: ServicePeer, hello: dict[str, Any]) -> None:
        """A process has called."""

    def attached(self, peer: ServicePeer, content: dict[str, Any], fds: list[int]) -> None:
        """A process tells what it is."""
        peer.content = content
        take_page(peer, fds)

    def turned_away(self, peer: ServicePeer, hello: dict[str, Any], why: str) -> None:
        """A process of another version has called: it is replaced when its service is declared."""
        report_refusal(peer, why)

    def leaving(self, peer: ServicePeer, content: dict[str, Any]) -> None:
        """It need not say so."""

    def disconnected(self, peer: ServicePeer) -> None:
        """A link is gone, which proves nothing."""

    def message(self, peer: ServicePeer, message: tuple[Any, ...], fds: list[int]) -> None:
        """A process says how it fares."""
        if message[0] in _STATED and len(peer.heard) < HEARD_LIMIT:
            peer.heard.append(message)

    def spawned(self, peer: ServicePeer, pid: int, *, linked: bool) -> None:
        """The process exists."""

    def refused(self, peer: ServicePeer, why: str) -> None:
        """The process could not be made: it was asked for by the keeper before."""
        self.exited(peer, Exit(None, None))

    def exited(self, peer: ServicePeer, exit: Exit) -> None:
        """The process has ended."""
        peer.exit = exit
        self._ended(peer)

    def orphaned(self, peer: ServicePeer, why: str, *, killed: bool) -> None:
        """The fork server has died."""
        if not peer.watched:
            peer.signal(signal.SIGKILL)
            self._ended(peer)

    def seen_to_end(self, peer: ServicePeer) -> None:
        """The pidfd says so."""
        self._ended(peer)

    def _ended(self, peer: ServicePeer) -> None:
        peer.unwatch(self._selector)
        peer.gone = True
        if peer.pid is not None:
            self._register.lost(peer.pid)
        if peer in self._leaving:
            self.forget(peer)


def report_refusal(peer: ServicePeer, why: str) -> None:
    """Say that a process is of another version, and what becomes of it."""
    report("INFO", f"{peer.name} (pid {peer.pid}) {why}: it is stopped, and started anew")


def take_page(peer: ServicePeer, fds: list[int]) -> None:
    """Share the page that a process has sent."""
    if peer.page is None and fds:
        fd = fds.pop(0)
        try:
            peer.page = KeeperPage(fd)
        except (OSError, ValueError) as error:  # no page of ours, or no memory
            os.close(fd)
            raise ProtocolError(f"the page of {peer.name} cannot be mapped: {error}") from error
        peer.page.close_fd()


def read_words(folder: Path, tag: str) -> LastWords | None:
    """Return, and remove, what a process has written of its own end, as it had no keeper to tell."""
    path = folder / f"{tag}.words"
    try:
        reason, message, detail = json.loads(path.read_text(errors="replace"))
        path.unlink()
        return LastWords(ExitReason(reason), str(message), str(detail))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _identify(pid: int) -> ProcessIdentity | None:
    with contextlib.suppress(OSError):
        return identify(pid)
    return None


def _ending(record: ServiceRecord, origin: Origin) -> ServiceRecord:
    """Return ``record`` with a process that is being stopped, and is to be replaced if the service is wanted."""
    replicas = {replica.number: replica for replica in record.replicas}
    known = replicas.get(origin.number, ReplicaRecord(origin.number, up=True))
    replicas[origin.number] = replace(
        known, state=ServiceState.STOPPING, attempt=origin.attempt, ending=Ending.RESTART, forced=False
    )
    return replace(record, replicas=tuple(replicas[number] for number in sorted(replicas)))
