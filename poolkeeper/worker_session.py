"""The worker's end of its session with the keeper: results that are held back, and all else that goes out.

The signal handler by which the keeper makes a worker flush runs between any two bytecodes of the main thread; what is
here is written so that it may cut in anywhere. Threads that a task has started may report progress meanwhile.

A task may close any descriptor, the link's and those of arenas among them, and open files of its own in their place.
So what comes over a link is taken in, and what came beside it mapped, before anything more of the user's code runs;
and before a descriptor is sent it is looked at.

A keeper that is stopped, or busy, may not read for hours. The worker goes on with what it has been fed: what the socket
does not take waits (and SIGURG tells of room), until so much waits that the next task does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .arena import Arena, ArenaPool, ReleaseQueue, identity
from .backoff import Backoff
from .connection import Connection
from .errors import ProtocolError
from .frames import Frame
from .holdings import Holdings
from .left_behind import Left, leave_results
from .link import FDS_LIMIT, Link, call_keeper, draw
from .messages import Code, Kind, pack, unpack
from .payload import Large, loads_view, map_large
from .remarks import Remarks
from .session import Session
from .worker_config import WorkerConfig

__all__ = ["Mapped", "Retired", "WorkerSession"]

CALL_TIMEOUT = 5.0
CALL_ATTEMPTS = 6
FIRST_RETRY = 0.02
LONGEST_RETRY = 1.0
SHARE = 20.0
"""A call that fails is followed by a pause of at least so many times its length: a keeper may be stopped."""

OUTBOX_BYTES = 1 << 27
OUTBOX_FDS = 256
"""No further task is begun while so much waits for a keeper that does not read, or is not there."""

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Retired(Exception):
    """The keeper has told this worker to leave, or is gone."""


class Mapped:
    """Arguments that lie in an arena; the views of it are let go as soon as they are loaded."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[bytes | None, list[memoryview]]) -> None:
        self._parts: tuple[bytes | None, list[memoryview]] | None = parts

    def load(self) -> Any:
        """Unpickle; raises PayloadError."""
        parts, self._parts = self._parts, None
        assert parts is not None
        return loads_view(parts)

    def drop(self) -> None:
        """Do without."""
        self._parts = None


class WorkerSession:
    """The worker's end of the session: results that are held back, and everything else that goes to the keeper.

    ``inbox`` holds what has been taken in and not been handled yet: the messages of one frame in each entry.
    ``describe`` returns what a keeper must know of this worker that has not made it, and the descriptor of its page.
    """

    def __init__(self, config: WorkerConfig, id: int, birth: str = "") -> None:
        self.config = config
        self.id = id
        self.birth = birth
        self.describe: Callable[[], tuple[dict[str, Any], tuple[int, ...]]]
        self._holdings = Holdings() if config.orphan_grace is not None else None
        self._connection = Connection(Backoff(FIRST_RETRY, LONGEST_RETRY), SHARE)
        self._idle_since: float | None = None
        self.session = Session()
        self.link: Link | None = None
        self.inbox: deque[list[tuple[Any, ...]]] = deque()
        self._identity: tuple[int, int] | None = None
        self.arenas = ArenaPool(config.arena_directory)
        self.released = ReleaseQueue()
        self.remarks = Remarks()
        self.values: list[Any] = []
        self.codes: dict[int, int] = {}
        self.lending: dict[int, Arena] = {}
        self.first = 1
        self.began = 0.0
        self.flushed = 0.0
        self._lock = threading.RLock()  # against other threads; the signal's handler passes it and sees _busy
        self._busy = False
        self.forked = False

    def leave_to_parent(self) -> None:
        """In a fork of the worker: the link, and the task that has forked, are the parent's."""
        self.forked = True
        if self.link is not None:
            self.link.close()
            self.link = None

    def hold(self, index: int, value: Any, code: int) -> None:
        """Hold back a result that is not a plain value."""
        self.codes[index] = code
        if type(value) is Large:
            value.arena.prepare()  # a task that follows may close its descriptor before it is sent
            self.lending[index] = value.arena
            value = value.wire()
        self.values.append(value)
        if len(self.lending) == FDS_LIMIT:
            self.flushed = 0.0  # long ago: the worker flushes before it goes on

    def flush(self) -> None:
        """Send the results that are held back, unless something is being sent this moment.

        Raises Retired where the keeper does not answer, or a result is lost.
        """
        if not self.values or self.forked:
            return
        with self._lock:
            if self._busy:
                return
            self._busy = True
            try:
                self._flush()
            finally:
                self._busy = False

    def _flush(self) -> None:
        number = len(self.values)
        if not number:
            return
        first, last = self.first, self.first + number
        values = self.values[:number]
        codes = None
        fds: list[int] = []
        if self.codes:
            codes = [self.codes.pop(index, 0) for index in range(first, last)]
            for index in range(first, last):
                arena = self.lending.pop(index, None)
                if arena is not None:
                    fds.append(self._lend(arena))
        self.first = last
        del self.values[:number]
        now = time.monotonic()
        seconds = now - self.began
        self.began = self.flushed = now
        self._send((Kind.RESULTS, first, codes, values, seconds), tuple(fds))

    def _lend(self, arena: Arena) -> int:
        """Return the descriptor of an arena that goes out; raises Retired where a task has closed it for good."""
        if not arena.intact:
            try:
                self.arenas.restore(arena)
            except OSError as error:
                raise Retired from error  # what is not answered runs again elsewhere
        self.arenas.lend(arena)
        return arena.fd

    def send(self, message: tuple[Any, ...], arenas: Iterable[Arena] = ()) -> None:
        """Send one message, and the descriptors of ``arenas`` beside it; raises Retired as ``flush``."""
        if self.forked:
            return
        with self._lock:
            busy, self._busy = self._busy, True
            try:
                self._send(message, tuple([self._lend(arena) for arena in arenas]))
            finally:
                self._busy = busy

    def _send(self, message: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        """Send, with the releases that are due; reconnect where the link is broken."""
        messages = [message]
        if self.released:
            messages.append((Kind.RELEASE, self.released.take()))
        frame = self.session.send(pack(messages), fds)
        if self._holdings is not None:
            self._holdings.answered(message, self.session)
        try:
            if self.link is None:
                raise ConnectionResetError
            if not self.link.send(frame, fds):
                self._await_room(self.link)
        except OSError:
            self._call()
        if self.remarks:
            self._remark()
        if fds:
            # A frame that is not acknowledged may have to be sent again, with its descriptors.
            self.arenas.trim_lent({fd for outgoing in self.session.outbox for fd in outgoing.fds})

    def remark(self, message: tuple[Any, ...]) -> None:
        """Send progress or a notice, now or when a keeper listens; raises Retired as ``flush``."""
        if self.forked:
            return
        with self._lock:
            self.remarks.add(message)
            if self._busy:
                return  # what is being sent takes it along, or what is sent next
            self._busy = True
            try:
                if self.link is None:
                    self._call()
                self._remark()
            finally:
                self._busy = False

    def _remark(self) -> None:
        link = self.link
        if link is None or not self.remarks:
            return
        try:
            if link.blocked and not self._push(link):
                return
            if not link.send(self.session.aside(pack(self.remarks.take()))):
                self._await_room(link)
        except OSError:
            self._call()

    # -- a keeper that does not read -----------------------------------------------------------------------------------

    def _await_room(self, link: Link) -> None:
        """Have a signal say when the keeper reads on; it might just have."""
        link.ask_for_signal(True)
        self._push(link)

    def _push(self, link: Link) -> bool:
        """Send what has waited, as far as the keeper takes it; return whether that is all."""
        if not link.flush():
            return False
        link.ask_for_signal(False)
        return True

    @property
    def _is_full(self) -> bool:
        """Whether as much waits for the keeper as may."""
        if self.link is not None and not self.link.blocked:
            return False
        outbox = self.session.outbox
        fds = {fd for outgoing in outbox for fd in outgoing.fds}
        waiting = sum(len(outgoing.body) for outgoing in outbox) + self.arenas.size_of(fds)
        return len(fds) >= OUTBOX_FDS or waiting >= OUTBOX_BYTES

    def flush_before_next(self, now: float) -> float:
        """Flush, and wait where too much waits already; return what time it is. Raises Retired as ``receive``."""
        self.flush()
        while (self.link is None or self.link.blocked) and self._is_full and not self.forked:
            self.receive()
            now = time.monotonic()
        return now

    def _wait_to_receive(self, link: Link) -> bool:
        """Send what has waited, while there is nothing to read; return whether there is."""
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN | select.POLLOUT)
        events = poll.poll()[0][1]
        if events & select.POLLOUT:
            with self._lock:
                busy, self._busy = self._busy, True
                try:
                    if self.link is link and link.blocked:
                        self._push(link)
                finally:
                    self._busy = busy
        return bool(events & ~select.POLLOUT)

    # -- the link ------------------------------------------------------------------------------------------------------

    def begin(self, fd: int) -> None:
        """Take descriptor ``fd`` for the first link, or call the keeper where it is -1; raises Retired."""
        if fd < 0:
            self.connect()
            return
        self._identity = identity(fd)
        link = Link(socket.socket(fileno=fd))
        link.reader.authenticated = True
        link.patient, link.vet = False, self._vet
        self.link = link
        self._connection.answered()
        self.send((Kind.HERE, os.getpid()))

    def receive(self) -> None:
        """Wait for what comes next and take it in; raises Retired where there is no keeper to wait for."""
        link = self.link
        if link is None:
            self._await_keeper()
            return
        try:
            if link.blocked and not self._wait_to_receive(link):
                return
            frames, alive = link.receive()
            with self._lock:
                busy, self._busy = self._busy, True
                try:
                    self._take_in(link, frames)
                finally:
                    self._busy = busy
        except (OSError, ProtocolError):
            self.reconnect(link)
            return
        if not alive and self.link is link:
            if self._holdings is None:
                raise Retired
            self.reconnect(link)

    def _await_keeper(self) -> None:
        """Be idle without a keeper: call now and then, leave when none has come in time."""
        self.reconnect(None)
        if self.link is not None or self._holdings is None:
            return
        now = time.monotonic()
        self._idle_since = now if self._idle_since is None else self._idle_since
        grace = self.config.orphan_grace or 0.0
        if now - self._idle_since >= grace:
            try:
                self._leave_results()
            except OSError:  # the disk is full, or the home is gone: perhaps that changes
                self._idle_since = now
            else:
                raise Retired
        due = self._connection.wait(now) or 0.0
        wait = max(0.001, min(due, self._idle_since + grace - now))
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGURG,))
        try:
            if self.link is None and _await_signal(signal.SIGURG, wait):
                self._connection.summon()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGURG,))

    def _leave_results(self) -> None:
        """Put what no keeper has acknowledged where the next one looks for it; raises OSError."""
        assert self._holdings is not None
        base, held = self._holdings.unacknowledged(self.session)
        left: list[Left] = []
        for outgoing in self.session.outbox:
            fds = list(outgoing.fds)
            for message in unpack(outgoing.body):
                if message[0] != Kind.RESULTS:
                    continue
                _, first, codes, values, seconds = message
                for position, sent in enumerate(values):
                    code = Code.VALUE if codes is None else codes[position]
                    value = map_large(sent, os.dup(fds.pop(0)), lambda _: None) if code == Code.ARENA else sent
                    what = held[first + position - base] if first + position >= base else None
                    if what is not None and what.claim is not None and code != Code.SKIPPED:
                        left.append(Left(what.claim, what.attempt, code, value, seconds / len(values)))
        if left:
            folder = Path(self.config.arena_directory or "") / "spool"
            leave_results(folder, self.config.key, f"{self.birth}-{self.id}", left)

    def summoned(self) -> None:
        """A signal has come, perhaps because another keeper is there: call it if the one that we had is gone."""
        if self.forked or (self._holdings is None and (self.link is None or not self.link.blocked)):
            return
        self._connection.summon()
        with self._lock:
            if self._busy:
                return  # what is being sent finds out by itself
            self._busy = True
            try:
                if self.link is None or self._is_broken(self.link):
                    self._call()
                elif self.link.blocked:
                    self._send_what_waits(self.link)
                if self.remarks:
                    self._remark()
            finally:
                self._busy = False

    def _is_broken(self, link: Link) -> bool:
        if identity(link.fileno()) != self._identity:
            return True
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        return any(events & _GONE for _, events in poll.poll(0))

    def _take_in(self, link: Link, frames: Iterable[Frame]) -> None:
        """Put new messages into the inbox, large arguments mapped."""
        for frame in frames:
            fds = link.take_fds(frame) if frame.fds else []
            if not self.session.receive(frame):
                for fd in fds:
                    os.close(fd)
                continue
            messages = unpack(frame.body)
            if fds:
                self._map_arenas(messages, fds)
            if self._holdings is not None:
                self._holdings.taken(messages)
            self.inbox.append(messages)

    def _map_arenas(self, messages: list[tuple[Any, ...]], fds: list[int]) -> None:
        for message in messages:
            if message[0] not in (Kind.TASKS, Kind.CHUNK):
                continue
            payloads: list[Any] = message[3]
            for position, payload in enumerate(payloads):
                if type(payload) is list:
                    payloads[position] = Mapped(map_large(payload, fds.pop(0), self.released.add))

    def connect(self) -> None:
        """Call the keeper; raises Retired where it does not answer."""
        self.reconnect(None)

    def reconnect(self, lost: Link | None) -> None:
        """Replace the link, unless somebody has replaced ``lost`` already."""
        with self._lock:
            if self.link is not lost:
                return
            busy, self._busy = self._busy, True  # what the signal's handler would send goes out afterwards
            try:
                self._call()
            finally:
                self._busy = busy

    def _call(self) -> None:
        """Resume the session over a new link, with this keeper or another one."""
        self._give_up_link()
        if self._holdings is not None:
            self._try_to_call()
            return
        delay = 0.01
        for attempt in range(CALL_ATTEMPTS):
            try:
                self._connect()
                return
            except (FileNotFoundError, ConnectionRefusedError):
                raise Retired from None
            except (OSError, ProtocolError) as error:
                if attempt == CALL_ATTEMPTS - 1:
                    raise Retired from error
                time.sleep(delay)
                delay *= 2

    def _send_what_waits(self, link: Link) -> None:
        with contextlib.suppress(OSError):  # a broken link is seen by whoever uses it next
            self._await_room(link)

    def _try_to_call(self) -> None:
        """Call where a keeper may answer, unless it is too early for that: the work goes on without one."""
        connection = self._connection
        if not connection.is_due(time.monotonic()):
            return
        connection.begin_call(time.monotonic())
        try:
            self._connect()
        except (OSError, ProtocolError):
            connection.unanswered(time.monotonic(), draw())
        except BaseException:
            connection.end()  # it leaves
            raise
        else:
            connection.answered()
            self._idle_since = None
            if self.remarks:
                self._remark()

    def _connect(self) -> None:
        introduction = {"role": "worker", "id": self.id, "birth": self.birth, "pid": os.getpid()}
        attach = None if self._holdings is None else self._attachment
        link = call_keeper(
            self.config.socket, self.config.key, self.session, introduction, CALL_TIMEOUT, self._vet, attach,
            patient=False,
        )  # fmt: skip
        try:
            early, link.early = link.early, []
            self._take_in(link, early)
        except BaseException:
            link.close()
            raise
        link.vet = self._vet
        self._identity = identity(link.fileno())
        self.link = link
        if link.blocked:
            self._send_what_waits(link)

    def _attachment(self) -> tuple[bytes, tuple[int, ...]]:
        """Return what a keeper must know that has not made this worker; the one before it holds nothing any more."""
        assert self._holdings is not None
        self.arenas.reclaim({fd for outgoing in self.session.outbox for fd in outgoing.fds})
        self.released.take()
        base, held = self._holdings.unacknowledged(self.session)
        content, fds = self.describe()
        return pack([{**content, "base": base, "held": held}]), fds

    def _give_up_link(self) -> None:
        link, self.link = self.link, None
        if link is None:
            return
        self._connection.lose(time.monotonic())
        if identity(link.fileno()) == self._identity:
            self._drain(link)
            link.close()
        else:  # a task has closed our descriptor, and may have opened something of its own with that number
            link.socket.detach()

    def _drain(self, link: Link) -> None:
        """Take in what a keeper has sent before it was lost: it can be worked on until there is another."""
        if self._holdings is None:
            return
        with contextlib.suppress(OSError, ProtocolError):
            link.socket.setblocking(False)
            alive = True
            while alive:
                frames, alive = link.receive()
                self._take_in(link, frames)

    def _vet(self, fds: Iterable[int]) -> None:
        """Leave rather than send again what a task has closed since it was sent first, or somebody else's file."""
        if not self.arenas.holds(set(fds)):
            raise Retired


def _await_signal(number: int, seconds: float) -> bool:
    """Wait for a signal that is blocked, and take it; return whether it has come."""
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(seconds)
        return False
    return signal.sigtimedwait((number,), seconds) is not None
