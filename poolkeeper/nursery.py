"""The keeper's side of the fork server: what it is asked to start, and whom its reports concern.

Whoever asks for a process (the workforce for workers, the supervision for services) is its *parent* here and hears of
it: that it exists, that it could not be made, how it ended. Each new process comes with its first link, one end of a
socket pair, so that nobody has to call before the work begins; the keeper's socket is for those that lose it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .forkserver import Launched, launch
from .home import Home
from .link import FDS_LIMIT
from .messages import Kind
from .page import KeeperPage
from .reporting import report
from .roster import Exit
from .settings import Settings
from .switchboard import Listener, Peer, Switchboard
from .worker_session import WorkerConfig

if TYPE_CHECKING:
    from .register import Register

__all__ = ["UNKNOWN", "Child", "Nursery", "Parent"]

UNKNOWN = Exit(None, None)


class Child(Peer):
    """A process that the fork server makes, and the session with it.

    ``tag`` is unique among all processes of a keeper. ``their_end`` is the process' end of its first link, until it has
    it. ``gone`` is whether the process is known to have ended.
    """

    tag = ""
    about: tuple[str, str, int | None, int | None] = ("", "", None, None)
    """Its role, name, slot and attempt, for the pidfile."""

    def __init__(self, parent: Parent) -> None:
        super().__init__(parent)
        self.parent = parent
        self.pid: int | None = None
        self.page: KeeperPage | None = None
        self.their_end: socket.socket | None = None
        self.gone = False
        self._pidfd = -1
        self._pending: list[int] = []

    @property
    def watched(self) -> bool:
        """Whether its end will be seen."""
        return self._pidfd >= 0

    def exists(self, pid: int) -> None:
        """The process is there: send it the signals that came too early."""
        self.pid = pid
        pending, self._pending = self._pending, []
        for number in pending:
            self.signal(number)

    def here(self, pid: int, selector: selectors.BaseSelector, ended: Callable[[int], None]) -> None:
        """The process exists: have ``ended`` called when it ends."""
        if self.page is not None:
            self.page.close_fd()
        if self._pidfd < 0:
            self._pidfd = _watch_process(pid)
            if self._pidfd >= 0:
                selector.register(self._pidfd, selectors.EVENT_READ, ended)
        self.exists(pid)

    def signal(self, number: int) -> None:
        """Signal the process, by its pidfd where there is one: that cannot name a stranger."""
        if self.gone:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self.pid is not None:
                os.kill(self.pid, number)
            else:
                self._pending.append(number)

    def unwatch(self, selector: selectors.BaseSelector) -> None:
        """Close the pidfd."""
        if self._pidfd >= 0:
            selector.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def let_go(self) -> None:
        """Close what only a process that is being made needs."""
        if self.their_end is not None:
            self.their_end.close()
            self.their_end = None


class Parent(Listener, Protocol):
    """Who has asked for a process, and hears from it and of it."""

    def spawned(self, child: Any, pid: int) -> None:
        """The process exists."""

    def refused(self, child: Any, why: str) -> None:
        """The process could not be made."""

    def exited(self, child: Any, exit: Exit) -> None:
        """The process has ended; said once, whether or not that was seen before."""

    def orphaned(self, child: Any, why: str) -> None:
        """The fork server has died: if the process lives, nobody will report its end."""


class Nursery:
    """Owns the fork server: starts it, asks it for processes, and starts another when it has died."""

    def __init__(
        self,
        settings: Settings,
        config: WorkerConfig,
        selector: selectors.BaseSelector,
        home: Home,
        register: Register | None,
    ) -> None:
        self._settings = settings
        self._config = config
        self._selector = selector
        self._remove = home.temporary
        self._register = register
        self._board: Switchboard
        self._children: dict[str, Child] = {}
        self._process: Launched | None = None
        self.server = self._new_server()

    def open(self, board: Switchboard) -> None:
        """Start the fork server, which will call at ``board``."""
        self._board = board
        self._launch()

    @property
    def pid(self) -> int | None:
        """The fork server's pid, None while there is none."""
        return None if self._process is None else self._process.pid

    def will_report(self, child: Child) -> bool:
        """Whether the fork server that has made ``child`` is there to say how it ends."""
        return self._process is not None and self._children.get(child.tag) is child

    def spawn(self, child: Child, role: str, arguments: tuple[Any, ...]) -> None:
        """Ask for a process that plays ``role``; raises OSError where the system refuses what it takes."""
        if self._process is None:
            self._launch()
        ours: socket.socket | None = None
        try:
            child.page = KeeperPage()
            ours, child.their_end = socket.socketpair()
            self._board.adopt(child, ours)
        except OSError:
            if ours is not None:
                ours.close()
            child.let_go()
            raise
        self._children[child.tag] = child
        self.server.fds += (child.page.fd, child.their_end.fileno())
        self._board.post(self.server, (Kind.SPAWN, child.tag, role, arguments))
        if len(self.server.fds) + 2 > FDS_LIMIT:
            self._board.send(self.server)

    def connected(self, peer: Peer, hello: dict[str, Any]) -> None:
        """The fork server has called."""

    def disconnected(self, peer: Peer) -> None:
        """The fork server has died: it holds its link for as long as it lives."""
        self.lost()

    def message(self, peer: Peer, message: tuple[Any, ...], fds: list[int]) -> None:
        """The fork server has said something."""
        kind = message[0]
        if kind == Kind.NOTICE:
            report("WARNING", message[1])
            return
        tag = message[1]
        if kind == Kind.SPAWNED:
            child = self._children.get(tag)
            if child is not None:
                child.exists(message[2])
                child.let_go()
                if self._register is not None:
                    role, name, slot, attempt = child.about
                    self._register.born(tag, role, name, message[2], slot, attempt)
                child.parent.spawned(child, message[2])
            return
        child = self._children.pop(tag, None)
        if child is None:
            return
        child.let_go()
        if kind == Kind.SPAWN_FAILED:
            child.parent.refused(child, message[2])
        elif kind == Kind.EXITED:
            child.parent.exited(child, Exit(message[2], message[3]))

    def buried(self, child: Child) -> None:
        """Its parent has seen a process to its end."""
        if self._register is not None:
            self._register.gone(child.tag)

    def lost(self) -> None:
        """The fork server has died. What it has made lives on; another is started when it is needed."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.watch_fd is not None:
            self._selector.unregister(process.watch_fd)
        process.kill()  # before its link is closed, which it would take for the end of the keeper
        self._board.detach(self.server)
        if self._register is not None:
            self._register.gone("forkserver")
        report("WARNING", "the fork server has ended; another is started when a worker is needed")
        self.server = self._new_server()
        children = list(self._children.values())
        self._children.clear()
        for child in children:
            child.let_go()
            child.parent.orphaned(child, f"the fork server has ended (exit code {process.exitcode})")

    def close(self) -> None:
        """Let the fork server end, and with it every process that is left."""
        self._board.detach(self.server)
        for child in self._children.values():
            child.let_go()
        self._children.clear()
        if self._process is not None:
            self._process.end()
            self._process = None

    def _new_server(self) -> Peer:
        server = Peer(self)
        server.name = "the fork server"
        return server

    def _launch(self) -> None:
        settings = self._settings
        self._process = launch(
            self._config,
            preload=settings.preload,
            start_method=settings.start_method,
            environment=settings.environment,
            inherit_output=settings.inherit_output,
            remove=self._remove,
        )
        if self._register is not None:
            self._register.born("forkserver", "forkserver", "the fork server", self._process.pid)
        if self._process.watch_fd is not None:
            self._selector.register(self._process.watch_fd, selectors.EVENT_READ, self._ended)

    def _ended(self, _: int) -> None:
        self.lost()


def _watch_process(pid: int) -> int:
    """Return a descriptor that becomes readable when process ``pid`` ends, -1 where there is none to be had."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # no descriptor left, or gone again: the fork server reports its end
            return os.pidfd_open(pid)
    return -1
