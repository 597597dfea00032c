"""The worker's end of its session with the keeper: results that are held back, and all else that goes out.

The signal handler by which the keeper makes a worker flush runs between any two bytecodes of the main thread; what is
here is written so that it may cut in anywhere.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, NamedTuple

from .arena import Arena, ArenaPool, ReleaseQueue
from .errors import ProtocolError
from .limits import Limits
from .link import FDS_LIMIT, Link, call_keeper
from .messages import Kind, pack
from .payload import Large
from .session import Session

__all__ = ["Retired", "WorkerConfig", "WorkerSession"]

CALL_TIMEOUT = 5.0
CALL_ATTEMPTS = 6


class WorkerConfig(NamedTuple):
    """What every worker of a keeper is started with.

    ``socket`` is the keeper's address and ``key`` the secret to prove; ``logs`` is the directory for the interpreter's
    last words, and for all output unless ``inherit_output``. ``max_memory`` is in bytes, ``max_age`` in seconds.
    """

    socket: str
    key: bytes
    logs: str
    inherit_output: bool = True
    initializer: bytes | None = None
    max_memory: int | None = None
    max_age: float | None = None
    arena_directory: str | None = None
    limits: Limits = Limits()


class Retired(Exception):
    """The keeper has told this worker to leave, or is gone."""


class WorkerSession:
    """The worker's end of the session: results that are held back, and everything else that goes to the keeper."""

    def __init__(self, config: WorkerConfig, id: int) -> None:
        self.config = config
        self.id = id
        self.session = Session()
        self.link: Link | None = None
        self.arenas = ArenaPool(config.arena_directory)
        self.released = ReleaseQueue()
        self.values: list[Any] = []
        self.codes: dict[int, int] = {}
        self.lending: dict[int, Arena] = {}
        self.first = 1
        self.began = 0.0
        self.flushed = 0.0
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
            self.lending[index] = value.arena
            value = value.wire()
        self.values.append(value)
        if len(self.lending) == FDS_LIMIT:
            self.flush()

    def flush(self) -> None:
        """Send the results that are held back, unless something is being sent this moment."""
        if self._busy or not self.values:
            return
        self._busy = True
        try:
            number = len(self.values)
            first, last = self.first, self.first + number
            values = self.values[:number]
            codes = None
            fds: list[int] = []
            if self.codes:
                codes = [self.codes.pop(index, 0) for index in range(first, last)]
                for index in range(first, last):
                    arena = self.lending.pop(index, None)
                    if arena is not None:
                        self.arenas.lend(arena)
                        fds.append(arena.fd)
            self.first = last
            del self.values[:number]
            now = time.monotonic()
            seconds = now - self.began
            self.began = self.flushed = now
            self._send((Kind.RESULTS, first, codes, values, seconds), tuple(fds))
        finally:
            self._busy = False

    def send(self, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        """Send one message."""
        busy, self._busy = self._busy, True
        try:
            self._send(message, fds)
        finally:
            self._busy = busy

    def _send(self, message: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        """Send, with the releases that are due; reconnect where the link is broken."""
        messages = [message]
        if self.released:
            messages.append((Kind.RELEASE, self.released.take()))
        frame = self.session.send(pack(messages), fds)
        try:
            if self.link is None:
                raise ConnectionResetError
            self.link.send(frame, fds)
        except OSError:
            self.reconnect()
        if fds:
            # A frame that is not acknowledged may have to be sent again, with its descriptors.
            self.arenas.trim_lent({fd for outgoing in self.session.outbox for fd in outgoing.fds})

    def begin(self, fd: int) -> None:
        """Take descriptor ``fd`` for the first link, or call the keeper where it is -1; raises Retired."""
        if fd < 0:
            self.connect()
            return
        self.link = Link(socket.socket(fileno=fd))
        self.link.reader.authenticated = True
        self.send((Kind.HERE, os.getpid()))

    def connect(self) -> None:
        """Call the keeper; raises Retired where it does not answer."""
        introduction = {"role": "worker", "id": self.id, "pid": os.getpid()}
        delay = 0.01
        for attempt in range(CALL_ATTEMPTS):
            try:
                self.link = call_keeper(self.config.socket, self.config.key, self.session, introduction, CALL_TIMEOUT)
                return
            except (FileNotFoundError, ConnectionRefusedError):
                raise Retired from None
            except (OSError, ProtocolError) as error:
                if attempt == CALL_ATTEMPTS - 1:
                    raise Retired from error
                time.sleep(delay)
                delay *= 2

    def reconnect(self) -> None:
        """Resume the session over a new link."""
        if self.link is not None:
            # A task may have closed our descriptor, and opened something of its own with that number.
            self.link.socket.detach()
            self.link = None
        self.connect()
