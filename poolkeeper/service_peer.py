"""One process of a service, as the keeper holds it: its session, its pidfd, and the files of its last stacks."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from .nursery import Child, Parent
from .process_identity import process_state
from .process_setup import DUMP_SIGNAL, LOG_DUMP_SIGNAL
from .program import Program
from .replica import Replica
from .service_exits import LastWords
from .service_spec import ServiceSpec

if TYPE_CHECKING:
    import psutil

__all__ = ["ServicePeer", "StackDumps", "is_program"]

STACKS_BYTES = 65536

LOOK_SECONDS = 0.02
"""How often to look whether a process has written its stacks."""


class ServicePeer(Child):
    """The session with one process of a service; ``family`` are descendants that nobody but us would end."""

    def __init__(self, parent: Parent, replica: Replica, attempt: int) -> None:
        super().__init__(parent)
        self.replica = replica
        self.attempt = attempt
        self.tag = f"{replica.name}#{attempt}"
        self.name = f"service {replica.name}"
        self.is_program = is_program(replica.spec)
        self.about = ("program" if self.is_program else "service", replica.name, replica.number, attempt)
        self.words: LastWords | None = None
        self.family: set[psutil.Process] = set()


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
