"""One process of a service, as the keeper holds it: its session, its pidfd, and the files of its last stacks."""

from __future__ import annotations

import selectors
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .children import Child, Parent
from .process_identity import ProcessIdentity, process_state
from .process_setup import DUMP_SIGNAL, LOG_DUMP_SIGNAL
from .program import Program
from .replica import Replica
from .roster import Exit
from .service_exits import LastWords
from .service_spec import ServiceSpec

if TYPE_CHECKING:
    import psutil

__all__ = ["Origin", "ServiceParent", "ServicePeer", "StackDumps", "is_program"]

STACKS_BYTES = 65536

LOOK_SECONDS = 0.02
"""How often to look whether a process has written its stacks."""


class ServiceParent(Parent, Protocol):
    """Who looks after the process of a service."""

    def seen_to_end(self, peer: Any) -> None:
        """The process has ended, by its pidfd."""


class Origin(NamedTuple):
    """Which process of which replica a process is."""

    service: str
    number: int
    attempt: int

    @classmethod
    def of(cls, tag: str) -> Origin | None:
        """Return what the tag of a service's process says; None for any other."""
        name, _, attempt = tag.rpartition("#")
        service, _, number = name.partition(":")
        if not service or not attempt.isdecimal() or not (number or "0").isdecimal():
            return None
        return cls(service, int(number or 0), int(attempt))


class ServicePeer(Child):
    """The session with one process of a service.

    ``birth`` the keeper that has it made, "" for an earlier
    one. ``family`` are descendants that nobody but us would end.
    One that an earlier keeper has made has no ``replica`` until its service is declared; what it says before is kept:
    ``content`` of its ATTACH frame, the messages ``heard``, and its ``exit``.
    """

    parent: ServiceParent
    replica: Replica

    def __init__(self, parent: ServiceParent, tag: str, origin: Origin, *, is_program: bool) -> None:
        super().__init__(parent)
        self.tag = tag
        self.origin = origin
        self.attempt = origin.attempt
        label = tag.rpartition("#")[0]
        self.name = f"service {label}"
        self.is_program = is_program
        self.about = ("program" if is_program else "service", label, origin.number, origin.attempt)
        self.birth = ""
        self.words: LastWords | None = None
        self.family: set[psutil.Process] = set()
        self.content: dict[str, Any] = {}
        self.heard: list[tuple[Any, ...]] = []
        self.exit: Exit | None = None

    @classmethod
    def for_replica(cls, parent: ServiceParent, replica: Replica, attempt: int, birth: str) -> ServicePeer:
        """Return the session with a process that the keeper ``birth`` is to make."""
        origin = Origin(replica.service.name, replica.number, attempt)
        peer = cls(parent, f"{replica.name}#{attempt}", origin, is_program=is_program(replica.spec))
        peer.replica = replica
        peer.birth = birth
        return peer

    def belong_to(self, parent: ServiceParent) -> None:
        """Have ``parent`` hear of it from now on."""
        self.parent = self.listener = parent

    def is_here(self, pid: int, selector: selectors.BaseSelector) -> None:
        """The process exists: have the parent told when it ends."""
        self.here(pid, selector, self._has_ended)

    def found(self, identity: ProcessIdentity, selector: selectors.BaseSelector) -> bool:
        """Watch a process of an earlier keeper; return whether it is that very process, and lives."""
        self.is_here(identity.pid, selector)
        if identity.is_alive():  # held by its pidfd by now, so that nobody else can get the pid in between
            return True
        self.unwatch(selector)
        self.gone = True
        return False

    def _has_ended(self, _: int) -> None:
        self.parent.seen_to_end(self)


def is_program(spec: ServiceSpec) -> bool:
    """Whether the service is another program, made by ``command``."""
    return isinstance(spec.target, Program)


class _Dump:
    """What is known of the stacks that one process has been asked for."""

    def __init__(self, due: float, *, stopped: bool) -> None:
        self.due = due
        self.stopped = stopped
        self.size = 0
        self.in_log = False


class StackDumps:
    """Has processes write down the stacks of their threads before they are killed: into a file, then into the log.

    ``folder`` is where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dumps: dict[ServicePeer, _Dump] = {}
        self._pending: set[ServicePeer] = set()

    def ask(self, peer: ServicePeer, now: float) -> bool:
        """Ask for the stacks; wakes who is stopped. Return False for a process that cannot write any."""
        if DUMP_SIGNAL is None or peer.gone or peer.is_program:
            return False
        self._dumps[peer] = _Dump(now + LOOK_SECONDS, stopped=process_state(peer.pid) in ("T", "t"))
        self._pending.add(peer)
        peer.signal(signal.SIGCONT)
        peer.signal(DUMP_SIGNAL)
        return True

    def next_look(self) -> float | None:
        """Return when to look next, None if nobody writes."""
        return min((self._dumps[peer].due for peer in self._pending), default=None)

    def look(self, now: float) -> list[ServicePeer]:
        """Return the processes that have written their stacks, both times: faulthandler writes one dump at a time."""
        written = []
        for peer in list(self._pending):
            dump = self._dumps[peer]
            if now < dump.due:
                continue
            dump.due = now + LOOK_SECONDS
            if dump.in_log:
                self._pending.remove(peer)
                written.append(peer)
                continue
            before, dump.size = dump.size, self._size(peer)
            if 0 < dump.size == before and LOG_DUMP_SIGNAL is not None:
                dump.in_log = True
                peer.signal(LOG_DUMP_SIGNAL)
        return written

    def take(self, peer: ServicePeer, *, crashed: bool) -> str:
        """Return what a process that has ended had written, as it ``crashed`` or as it was asked; remove the file."""
        dump = self._dumps.pop(peer, None)
        self._pending.discard(peer)
        path = self._path(peer)
        try:
            with open(path, errors="replace") as file:
                text = file.read(STACKS_BYTES)
            path.unlink()
        except OSError:
            text = ""
        if dump is None:
            return text if crashed else ""  # somebody has asked for them at another time
        if dump.stopped:
            return f"The process was stopped (by SIGSTOP, a terminal or a debugger) and was continued for this.\n{text}"
        return text

    def forget(self, peer: ServicePeer) -> None:
        """Nobody will ask for its stacks any more."""
        self._dumps.pop(peer, None)
        self._pending.discard(peer)

    def _path(self, peer: ServicePeer) -> Path:
        return self._folder / f"{peer.tag}.crash"

    def _size(self, peer: ServicePeer) -> int:
        try:
            return self._path(peer).stat().st_size
        except OSError:
            return 0
