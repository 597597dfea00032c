"""The worker's end of the session: tasks that come in, results that are held back, and all else that goes out.

A task may close any descriptor, those of arenas among them, and open files of its own in their place. So what comes
over a link is taken in, and what came beside it mapped, before anything more of the user's code runs; and before a
descriptor is sent it is looked at. The signal's handler may cut in anywhere; see ``worker_line``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from .arena import Arena, ArenaPool, ReleaseQueue
from .belonging import grace_of, has_home
from .frames import Frame
from .holdings import Holdings
from .link import FDS_LIMIT, Link
from .messages import Kind, Progress, pack, unpack
from .payload import Large, loads_view, map_large
from .worker_config import WorkerConfig
from .worker_line import LONGEST_RETRY, Retired, WorkerLine

__all__ = ["Mapped", "WorkerSession"]

OUTBOX_BYTES = 1 << 27
OUTBOX_FDS = 256
"""No further task is begun while so much waits for a keeper that does not read, or is not there."""


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
    """What one worker has been fed, and what it answers.

    ``inbox`` holds what has been taken in and not been handled yet: the messages of one frame in each entry.
    ``describe`` returns what a keeper must know of this worker that has not made it, and the descriptor of its page.
    ``begin_nothing`` has the worker skip every task that it has not begun, and returns how far it is.
    """

    def __init__(self, config: WorkerConfig, id: int = 0, birth: str = "") -> None:
        self.config = config
        self.describe: Callable[[], tuple[dict[str, Any], tuple[int, ...]]]
        self.begin_nothing: Callable[[], Progress]
        self._introduction: dict[str, Any] = {"role": "worker", "cloudpickle": config.cloudpickle}
        self.be(id, birth)
        self.line = WorkerLine(config, self._introduction, self._take_in, self._vet, self._attachment, self._leaving)
        self.summoned = self.line.summoned
        self._holdings: Holdings | None = None
        if config.orphan_grace is not None:
            from pathlib import Path

            from . import left_behind  # now: another version may be on disk when it is needed

            self._holdings = Holdings()
            self._left_behind = left_behind
            self._spool = Path(config.arena_directory or "") / "spool"
        self._idle_since: float | None = None
        self.inbox: deque[list[tuple[Any, ...]]] = deque()
        self.arenas = ArenaPool(config.arena_directory)
        self.released = ReleaseQueue()
        self.values: list[Any] = []
        self.codes: dict[int, int] = {}
        self.lending: dict[int, Arena] = {}
        self.first = 1
        self.began = 0.0
        self.flushed = 0.0

    def be(self, id: int, birth: str) -> None:
        """Speak for worker ``id`` of the keeper ``birth``, which is this process."""
        self.id = id
        self.birth = birth
        self._introduction.update(id=id, birth=birth, pid=os.getpid())

    @property
    def forked(self) -> bool:
        """Whether this is a fork of the worker: the task that has forked is the parent's."""
        return self.line.forked

    def begin(self, fd: int) -> None:
        """Take descriptor ``fd`` for the first link, or call the keeper where it is -1; raises Retired."""
        self.line.begin(fd)

    # -- results ------------------------------------------------------------------------------------------------------

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
        if self.values and not self.forked:
            self.line.unless_busy(self._flush)

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

    def _vet(self, fds: Iterable[int]) -> None:
        """Leave rather than send again what a task has closed since it was sent first, or somebody else's file."""
        if not self.arenas.holds(set(fds)):
            raise Retired

    def flush_before_next(self, now: float) -> float:
        """Flush, and wait where too much waits already; return what time it is. Raises Retired as ``receive``."""
        self.flush()
        while self.line.blocked and self._is_full and not self.forked:
            self.receive()
            now = time.monotonic()
        return now

    @property
    def _is_full(self) -> bool:
        """Whether as much waits for the keeper as may."""
        outbox = self.line.session.outbox
        fds = {fd for outgoing in outbox for fd in outgoing.fds}
        waiting = sum(len(outgoing.body) for outgoing in outbox) + self.arenas.size_of(fds)
        return len(fds) >= OUTBOX_FDS or waiting >= OUTBOX_BYTES

    # -- all else that goes out ---------------------------------------------------------------------------------------

    def send(self, message: tuple[Any, ...], arenas: Iterable[Arena] = ()) -> None:
        """Send one message, and the descriptors of ``arenas`` beside it; raises Retired as ``flush``."""
        if not self.forked:
            self.line.undisturbed(lambda: self._send(message, tuple([self._lend(arena) for arena in arenas])))

    def _send(self, message: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        """Send, with the releases that are due."""
        messages = [message]
        if self.released:
            messages.append((Kind.RELEASE, self.released.take()))
        session = self.line.session
        frame = session.send(pack(messages), fds)
        if self._holdings is not None:
            self._holdings.answered(message, session)
        self.line.send(frame, fds)
        if fds:
            # A frame that is not acknowledged may have to be sent again, with its descriptors.
            self.arenas.trim_lent({fd for outgoing in session.outbox for fd in outgoing.fds})

    def remark(self, message: tuple[Any, ...]) -> None:
        """Send progress or a notice, now or when a keeper listens; raises Retired as ``flush``."""
        self.line.remark(message)

    # -- what comes in ------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Wait for what comes next and take it in; raises Retired where there is no keeper to wait for."""
        trim_at = self.arenas.trim_at
        if trim_at is not None and self.line.is_quiet_until(trim_at):
            self.arenas.trim(trim_at)
        if self.line.receive():
            self._idle_since = None
        else:
            self._await_keeper()

    def _await_keeper(self) -> None:
        """Be idle without a keeper: call now and then, leave when none has come in time, or at once if one wants it."""
        self.line.reconnect(None)
        if self.line.link is not None or self._holdings is None:
            return
        now = time.monotonic()
        self._idle_since = now if self._idle_since is None else self._idle_since
        grace = 0.0 if self.line.leaving else grace_of(self.config)
        if now - self._idle_since >= grace:
            if not has_home(self.config):
                raise Retired
            try:
                self._leave_results(self._holdings)
            except OSError:  # the disk is full: perhaps that changes
                self._idle_since = now + LONGEST_RETRY
            else:
                raise Retired
        self.line.await_summons(self._idle_since + grace - now)

    def retire(self) -> NoReturn:
        """The keeper wants no more of this worker; raises Retired."""
        self.flush()
        if self._holdings is not None and self.line.link is None:  # it has gone since it said so
            with contextlib.suppress(OSError):
                self._leave_results(self._holdings)
        raise Retired

    def _leaving(self) -> dict[str, Any]:
        """Begin nothing more; return what a keeper must know that cannot hear the answers, see ``versions``."""
        assert self._holdings is not None
        progress = self.begin_nothing()
        base, held = self._holdings.unacknowledged(self.line.session)
        begun = held[: max(0, progress.started + 1 - base)]
        executing = bool(begun) and progress.executing is not None
        return {"holds": begun, "executing": executing, "since": progress.started_at}

    def _leave_results(self, holdings: Holdings) -> None:
        """Put what no keeper has acknowledged where the next one looks for it; raises OSError."""
        session = self.line.session
        left = self._left_behind.left_in(session.outbox, *holdings.unacknowledged(session))
        if left:
            self._left_behind.leave_results(self._spool, self.config.key, f"{self.birth}-{self.id}", left)

    def _take_in(self, link: Link, frames: Iterable[Frame]) -> None:
        """Put new messages into the inbox, large arguments mapped."""
        for frame in frames:
            fds = link.take_fds(frame) if frame.fds else []
            if not self.line.session.receive(frame):
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

    def _attachment(self) -> tuple[bytes, tuple[int, ...]]:
        """Return what a keeper must know that has not made this worker; the one before it holds nothing any more."""
        assert self._holdings is not None
        session = self.line.session
        self.arenas.reclaim({fd for outgoing in session.outbox for fd in outgoing.fds})
        self.released.take()
        base, held = self._holdings.unacknowledged(session)
        content, fds = self.describe()
        return pack([{**content, "base": base, "held": held}]), fds
