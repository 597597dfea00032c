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
import sys
import time
from collections.abc import Callable, Collection
from itertools import count
from typing import TYPE_CHECKING, Any

from .children import Child
from .errors import ProtocolError
from .home import Home
from .launching import Inherited, ServerProcess, Start, launch
from .link import FDS_LIMIT
from .messages import Kind
from .page import KeeperPage
from .peer import Peer
from .process_identity import ProcessIdentity
from .reporting import report
from .roster import Exit
from .settings import Settings
from .sources import Sources, changed_sources
from .switchboard import Switchboard
from .worker_config import WorkerConfig

if TYPE_CHECKING:
    from .register import Register

__all__ = ["UNKNOWN", "Nursery"]

UNKNOWN = Exit(None, None)

Listed = Callable[[int, list[tuple[str, str, int]]], None]
"""Is told the pid of a fork server and its children: tag, role, pid."""

BLIND_SECONDS = 1.2
"""The same where only the calls tell what there is: those who have lost their keeper call at least once a second."""

KILLED = (None, -signal.SIGKILL, -signal.SIGTERM)
"""Exit codes of a fork server that somebody has killed, or that was not ours: none that it has brought on itself."""

PATIENCE_SECONDS = 0.5
"""How long a new keeper waits for the fork server of the one before it, before it starts its own."""


class Server(Peer):
    """A fork server, the session with it, and the processes that it has made.

    ``children`` are those that somebody asks for, by ticket; ``strangers`` tag and pid of those of an earlier keeper
    that nobody has claimed yet. ``process`` is the handle on the process itself, ``sources`` what it has loaded, as far
    as it has told. ``makes`` is whether it is one for processes to come, ``unpickles`` whether it was told that what
    they run comes by value.
    """

    name = "the fork server"

    def __init__(self, nursery: Nursery, process: ServerProcess) -> None:
        super().__init__(nursery)
        self.process = process
        self.children: dict[str, Child] = {}
        self.strangers: dict[str, tuple[str, int]] = {}
        self.listed: list[tuple[str, str, int]] = []
        self.sources: Sources = {}
        self.makes = False
        self.unpickles = False

    def take(self, ticket: str, child: Child) -> None:
        """Count ``child`` among its processes."""
        child.ticket = ticket
        self.children[ticket] = child

    @property
    def needed(self) -> bool:
        """Whether it has any process to look after."""
        return bool(self.children or self.strangers)


class Nursery:
    """Owns the fork servers: the one that makes processes, and those of earlier keepers whose processes still run.

    One is started when a process is needed, and one for each ``renew`` that finds other code on disk. A keeper that
    takes over goes on with the fork server that it finds, if it would have started the same one and none of its code
    has changed; else that only looks after what it has made.
    """

    def __init__(
        self,
        settings: Settings,
        config: WorkerConfig,
        selector: selectors.BaseSelector,
        home: Home,
        register: Register | None,
    ) -> None:
        self._start = Start(
            config,
            preload=settings.preload,
            start_method=settings.start_method,
            environment=settings.environment,
            inherit_output=settings.inherit_output,
            remove=home.temporary if home.ephemeral else (),
        )
        self._birth = config.incarnation
        self._durable = not home.ephemeral
        self._selector = selector
        self._register = register
        self._board: Switchboard
        self._server: Server | None = None
        self._servers: dict[int, Server] = {}
        self._renewed: dict[object, Server] = {}
        self._expected: dict[tuple[str, int], Child] = {}
        self._waiting: list[tuple[Child, str, tuple[Any, ...]]] = []
        self._patience: float | None = None
        self._awaited: dict[int, ProcessIdentity] = {}
        self._tickets = count(1)
        self._on_listed: list[Listed] = []
        self._ear = -1

    def open(self, board: Switchboard, expected: Collection[ProcessIdentity] = (), *, blind: bool = False) -> None:
        """Start the fork server, which will call at ``board``; or ask those to call that are ``expected``, and wait.

        ``blind`` is for a keeper that knows that there was another one, and nothing else of it.
        """
        self._board = board
        self._awaited = {identity.pid: identity for identity in expected}
        if expected or blind:
            self._patience = time.monotonic() + (BLIND_SECONDS if blind else PATIENCE_SECONDS)
            for identity in expected:
                with contextlib.suppress(OSError):
                    identity.signal(signal.SIGURG)
        else:
            self._launch()

    @property
    def pid(self) -> int | None:
        """The pid of the fork server that makes processes, None while there is none."""
        return None if self._server is None else self._server.process.pid

    @property
    def awaits(self) -> bool:
        """Whether a fork server of an earlier keeper may still call, which knows of workers that nobody has told of."""
        return self._patience is not None

    def next_deadline(self) -> float | None:
        """Return when ``tend`` has to be called."""
        return self._patience

    def tend(self, now: float) -> None:
        """Start a fork server if the one that was expected has not called in time."""
        if self._patience is not None and now >= self._patience:
            self._end_patience()

    def on_listed(self, listener: Listed) -> None:
        """Tell ``listener`` the pid and the children of each fork server that an earlier keeper has left."""
        self._on_listed.append(listener)
        for server in self._servers.values():
            if server.listed:  # it was faster
                left = set(server.strangers.values())
                listener(
                    server.process.pid, [(tag, role, pid) for tag, role, pid in server.listed if (tag, pid) in left]
                )

    def entrust(self, fd: int) -> None:
        """Have the notification socket ``fd`` listened to by the fork server while there is no keeper."""
        if self._durable:
            self._ear = fd
            if self._server is not None:
                self._entrust(self._server)

    def _entrust(self, server: Server) -> None:
        if self._ear >= 0:
            server.fds += (self._ear,)
            self._board.post(server, (Kind.LISTEN,))
            self._board.send(server)

    def will_report(self, child: Child) -> bool:
        """Whether the fork server that has made ``child`` is there to say how it ends."""
        return any(server.children.get(child.ticket) is child for server in self._servers.values())

    def expect(self, child: Child) -> None:
        """Look after a process that an earlier keeper has made: its fork server, if that lives, reports its end."""
        assert child.pid is not None
        self._note_birth(child, child.pid)
        for server in self._servers.values():
            for ticket, stranger in server.strangers.items():
                if stranger == (child.tag, child.pid):
                    del server.strangers[ticket]
                    server.take(ticket, child)
                    return
        self._expected[child.tag, child.pid] = child

    def expect_report(self, child: Child) -> None:
        """Pass on how a process has ended that an earlier keeper has had made: it is known to be gone, or may be."""
        self._expected[child.tag, child.pid or 0] = child

    def renew(self, owner: object) -> bool:
        """Have the next processes of ``owner`` made from the code on disk; return whether the others' may be older."""
        self._end_patience()
        servers = [server for server in self._servers.values() if server.makes]
        current = next((server for server in servers if not changed_sources(server.sources)), None) or self._start_one()
        before = self._renewed.pop(owner, None)
        if current is not self._server:
            self._renewed[owner] = current
        if before is not None:
            self._dismiss_if_done(before)
        return current is not self._server

    def spawn(self, child: Child, role: str, arguments: tuple[Any, ...], owner: object = None) -> None:
        """Ask for a process that plays ``role``; raises OSError where the system refuses what it takes.

        ``owner`` is whose process it is, see ``renew``.
        """
        ours: socket.socket | None = None
        try:
            child.page = KeeperPage(worker=child.tag if role == "worker" else "")
            ours, child.their_end = socket.socketpair()
            self._board.adopt(child, ours)
        except OSError:
            if ours is not None:
                ours.close()
            child.let_go()
            raise
        if self._server is None and self._patience is not None:
            self._waiting.append((child, role, arguments))
        else:
            self._order(self._maker(owner), child, role, arguments)

    def _maker(self, owner: object) -> Server:
        """Return the fork server for the next process of ``owner``."""
        server = self._renewed.get(owner)
        if server is None:
            return self._server or self._launch()
        if self._servers.get(server.process.pid) is not server:  # it has died
            server = self._renewed[owner] = self._start_one()
        return server

    def _order(self, server: Server, child: Child, role: str, arguments: tuple[Any, ...]) -> None:
        assert child.page is not None
        assert child.their_end is not None
        server.take(f"{self._birth}.{next(self._tickets)}", child)
        if not server.unpickles and "cloudpickle" in sys.modules:
            server.unpickles = True
            self._board.post(server, (Kind.UNPICKLE,))  # loaded once, in place of in each worker
        server.fds += (child.page.fd, child.their_end.fileno())
        self._board.post(server, (Kind.SPAWN, child.ticket, child.tag, role, arguments))
        if len(server.fds) + 2 > FDS_LIMIT:
            self._board.send(server)

    # -- what fork servers say ----------------------------------------------------------------------------------------

    def introduce(self, hello: dict[str, Any]) -> Server:
        """Return whose session a fork server resumes; raises ProtocolError for one that cannot be ours."""
        pid = int(hello["pid"])
        server = self._servers.get(pid)
        if server is None:
            if hello.get("birth") == self._birth or not self._durable:
                raise ProtocolError(f"process {pid} is no fork server of this keeper")
            try:
                server = Server(self, Inherited(pid))
            except OSError as error:
                raise ProtocolError(f"the fork server {pid} of an earlier keeper is gone") from error
            server.attached = False
            self._add(server)
        return server

    def connected(self, peer: Server, hello: dict[str, Any]) -> None:
        """A fork server has called."""

    def attached(self, peer: Server, content: dict[str, Any], fds: list[int]) -> None:
        """A fork server of an earlier keeper says what it has made, and what it is."""
        for tag, _role, pid, ticket in content["children"]:
            child = self._expected.pop((tag, pid), None)
            if child is None:
                peer.strangers[ticket] = (tag, pid)
            else:
                peer.take(ticket, child)
        self._awaited.pop(peer.process.pid, None)
        peer.listed = [(tag, role, pid) for tag, role, pid, _ in content["children"]]
        for listener in self._on_listed:
            listener(peer.process.pid, peer.listed)
        changed = changed_sources(content["sources"])
        if self._server is None and content["digest"] == self._start.digest and not changed:
            self._server = peer
            peer.sources, peer.makes = content["sources"], True
            import multiprocessing

            authkey = bytes(multiprocessing.current_process().authkey)
            self._board.post(peer, (Kind.ADOPT, authkey))
            self._entrust(peer)
            self._end_patience()
            return
        self._dismiss_if_done(peer)
        if self._patience is not None and not self._awaited:
            self._end_patience()

    def turned_away(self, peer: Server, hello: dict[str, Any], why: str) -> None:
        """A fork server of another version has called: it leaves when the last of its processes has gone."""
        pid = peer.process.pid
        if hello.get("birth") == self._birth:
            peer.refusal = f"{why}; what is on disk has changed since this program began"
            report("ERROR", f"the fork server (pid {pid}) {peer.refusal}")
            return
        report("INFO", f"the fork server (pid {pid}) {why}: it looks after what it has made, and leaves")
        self._awaited.pop(pid, None)
        if self._patience is not None and not self._awaited:
            self._end_patience()

    def leaving(self, peer: Server, content: dict[str, Any]) -> None:
        """It need not say so."""

    def disconnected(self, peer: Server) -> None:
        """A fork server has died: it holds its link for as long as it lives."""
        self._lost(peer)

    def message(self, peer: Server, message: tuple[Any, ...], fds: list[int]) -> None:
        """A fork server has said something."""
        kind = message[0]
        if kind == Kind.NOTICE:
            report("WARNING", message[1])
            return
        if kind == Kind.LOADED:
            peer.sources = message[1]
            return
        if kind == Kind.SAID:
            self._said(*message[1:])
            return
        ticket = message[1]
        if kind == Kind.SPAWNED:
            child = peer.children.get(ticket)
            if child is not None:
                child.exists(message[2])
                child.let_go()
                self._note_birth(child, message[2])
                child.parent.spawned(child, message[2], linked=message[3])
            return
        peer.strangers.pop(ticket, None)
        child = peer.children.pop(ticket, None)
        if child is None and kind == Kind.EXITED:
            child = self._late(message[2], message[3])
        self._dismiss_if_done(peer)
        if child is None:
            return
        child.let_go()
        if kind == Kind.SPAWN_FAILED:
            child.parent.refused(child, message[2])
        elif kind == Kind.EXITED:
            child.parent.exited(child, Exit(message[4], message[5]))

    def _said(self, ancestry: tuple[int, ...], ready: bool, status: str | None) -> None:
        """Pass on what a program has said while there was no keeper."""
        children = [
            *self._expected.values(),
            *(child for one in self._servers.values() for child in one.children.values()),
        ]
        by_pid = {child.pid: child for child in children if child.about[0] in ("service", "program")}
        child = next((by_pid[pid] for pid in ancestry if pid in by_pid), None)
        if child is not None and ready:
            child.listener.message(child, (Kind.READY,), [])
        if child is not None and status is not None:  # afterwards, for a change of state has words of its own
            child.listener.message(child, (Kind.STATUS, status), [])

    def _late(self, tag: str, pid: int) -> Child | None:
        """Return the process behind a report that comes after the end of its keeper; its pid may not be known."""
        return self._expected.pop((tag, pid), None) or self._expected.pop((tag, 0), None)

    def buried(self, child: Child, *, reported: bool = True) -> None:
        """Its parent has seen a process to its end; unless ``reported``, its fork server may still say how it was."""
        if reported:
            for key in [key for key, expected in self._expected.items() if expected is child]:
                del self._expected[key]
        if self._register is not None:
            self._register.gone(child.tag)

    def _note_birth(self, child: Child, pid: int) -> None:
        if self._register is not None:
            role, name, slot, attempt = child.about
            self._register.born(child.tag, role, name, pid, slot, attempt)

    # -- their lives --------------------------------------------------------------------------------------------------

    def _launch(self) -> Server:
        self._patience = None
        server = self._server = self._start_one()
        self._entrust(server)
        return server

    def _start_one(self) -> Server:
        server = Server(self, launch(self._start))
        server.makes = True
        self._add(server)
        return server

    def _add(self, server: Server) -> None:
        process = server.process
        self._servers[process.pid] = server
        if self._register is not None:
            self._register.born(f"forkserver-{process.pid}", "forkserver", "the fork server", process.pid)
        if process.watch_fd is not None:
            self._selector.register(process.watch_fd, selectors.EVENT_READ, lambda _: self._lost(server))

    def _end_patience(self) -> None:
        """Have made what waits for a fork server, by the one that has come or by one of our own."""
        self._patience = None
        waiting, self._waiting = self._waiting, []
        server = self._server or self._launch()
        for child, role, arguments in waiting:
            self._order(server, child, role, arguments)

    def _dismiss_if_done(self, server: Server) -> None:
        """Let a fork server of an earlier keeper end that this one makes no use of, when its last process has gone."""
        used = server is self._server or server in self._renewed.values()
        if not used and not server.needed and server.attached:
            self._board.post(server, (Kind.FAREWELL,))

    def _lost(self, server: Server) -> None:
        """A fork server has died. What it has made lives on; another is started when it is needed."""
        process = server.process
        if self._servers.pop(process.pid, None) is not server:
            return
        if process.watch_fd is not None:
            self._selector.unregister(process.watch_fd)
        process.kill()  # before its link is closed, which it would take for the end of the keeper
        self._board.detach(server)
        if self._register is not None:
            self._register.gone(f"forkserver-{process.pid}")
        if server is self._server:
            self._server = None
            report("WARNING", "the fork server has ended; another is started when a worker is needed")
        why = f"the fork server {server.refusal or f'has ended (exit code {process.exitcode})'}"
        killed = not server.refusal and process.exitcode in KILLED
        for child in list(server.children.values()):
            child.let_go()
            child.parent.orphaned(child, why, killed=killed)

    def close(self, *, leave: bool = False) -> None:
        """Let the fork servers end, and with them every process that is left; or ``leave`` all of them as they are."""
        for child, _, _ in self._waiting:
            child.let_go()
        for server in self._servers.values():
            if not server.attached and not leave:
                server.process.dismiss()  # it could not be told
            elif self._durable and not leave:
                self._board.post(server, (Kind.FAREWELL,))
                self._board.send(server)
                self._board.flush(server)
            self._board.detach(server)
            for child in server.children.values():
                child.let_go()
        processes = [server.process for server in self._servers.values()]
        if leave:
            for process in processes:
                process.leave()
        else:
            for process in (*processes, *self._dismiss_awaited()):
                process.end()
        self._servers.clear()
        self._server = None

    def kill(self) -> None:
        """Have every fork server end at once, and with it what it has made; safe in any thread."""
        for server in list(self._servers.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.process.pid, signal.SIGTERM)
        for identity in list(self._awaited.values()):
            with contextlib.suppress(OSError):
                identity.signal(signal.SIGTERM)

    def _dismiss_awaited(self) -> list[ServerProcess]:
        """Ask fork servers to end that have had no time to call; return them."""
        asked: list[ServerProcess] = []
        for pid, identity in self._awaited.items():
            with contextlib.suppress(OSError):
                process = Inherited(pid)  # held first, so that it is no stranger that is waited for
                if identity.signal(signal.SIGTERM):
                    asked.append(process)
                else:
                    process.leave()
        self._awaited.clear()
        return asked
