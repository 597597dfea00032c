"""The worker's line to its keeper: the session, and one link after the other to whichever keeper there is.

The signal handler by which the keeper makes a worker flush runs between any two bytecodes of the main thread; what is
here is written so that it may cut in anywhere. Threads that a task has started may report progress meanwhile.

A task may close any descriptor, the link's among them, and open files of its own in their place: so before a descriptor
is used it is looked at.

A keeper that is stopped, or busy, may not read for hours. The worker goes on with what it has been fed: what the socket
does not take waits, and SIGURG tells of room.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .arena import identity
from .backoff import Backoff
from .connection import Connection
from .errors import ProtocolError
from .frames import Frame
from .link import Link, TurnedAway, call_keeper, draw
from .messages import pack
from .remarks import Remarks
from .session import Session
from .worker_config import WorkerConfig

__all__ = ["Retired", "WorkerLine"]

CALL_TIMEOUT = 5.0
CALL_ATTEMPTS = 6
FIRST_RETRY = 0.02
LONGEST_RETRY = 1.0
SHARE = 20.0
"""A call that fails is followed by a pause of at least so many times its length: a keeper may be stopped."""

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL

T = TypeVar("T")


class Retired(Exception):
    """The keeper has told this worker to leave, or is gone."""


class WorkerLine:
    """The worker's end of the session, and its link, None while there is none.

    Args:
        config: which says where the keeper is, and whether there may be another.
        introduction: what the worker says of itself whenever it calls.
        take_in: is given each link and what has come over it.
        vet: is shown descriptors that are to be sent, late or again; raises Retired where they are not ours any more.
        attachment: returns what a keeper must know that has not made this worker, and the descriptors beside it.
        leaving: is called when a keeper wants this worker to leave; returns what that keeper must know.
    """

    def __init__(
        self,
        config: WorkerConfig,
        introduction: dict[str, Any],
        take_in: Callable[[Link, Iterable[Frame]], None],
        vet: Callable[[Iterable[int]], None],
        attachment: Callable[[], tuple[bytes, tuple[int, ...]]],
        leaving: Callable[[], dict[str, Any]],
    ) -> None:
        self._config = config
        self._introduction = introduction
        self._take_in = take_in
        self._vet = vet
        self._attachment = attachment
        self._leaving = leaving
        self._durable = config.orphan_grace is not None
        self._connection = Connection(Backoff(FIRST_RETRY, LONGEST_RETRY), SHARE)
        self._identity: tuple[int, int] | None = None
        self._remarks = Remarks()
        self._lock = threading.RLock()  # against other threads; the signal's handler passes it and sees _busy
        self._busy = False
        self.session = Session()
        self.link: Link | None = None
        self.forked = False
        self.leaving = False
        """Whether a keeper has wanted this worker to leave."""

    def leave_to_parent(self) -> None:
        """In a fork of the worker: the link is the parent's."""
        self.forked = True
        if self.link is not None:
            self.link.close()
            self.link = None

    def unless_busy(self, act: Callable[[], None]) -> None:
        """Speak to the keeper, unless somebody does this moment."""
        with self._lock:
            if self._busy:
                return
            self._busy = True
            try:
                act()
            finally:
                self._busy = False

    def undisturbed(self, act: Callable[[], T]) -> T:
        """Speak to the keeper; what the signal's handler would say has to wait."""
        with self._lock:
            busy, self._busy = self._busy, True
            try:
                return act()
            finally:
                self._busy = busy

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, frame: bytes, fds: tuple[int, ...]) -> None:
        """Send a frame of the session, or have it wait; raises Retired where there will be no keeper to wait for."""
        try:
            if self.link is None:
                raise ConnectionResetError
            if not self.link.send(frame, fds):
                self._await_room(self.link)
        except OSError:
            self._call()
        if self._remarks:
            self._remark()

    def remark(self, message: tuple[Any, ...]) -> None:
        """Send progress or a notice, now or when a keeper listens; raises Retired as ``send``."""
        if self.forked:
            return
        with self._lock:
            self._remarks.add(message)
            self.unless_busy(self._call_and_remark)  # else what is being sent takes it along, or what is sent next

    def _call_and_remark(self) -> None:
        if self.link is None:
            self._call()
        self._remark()

    def _remark(self) -> None:
        link = self.link
        if link is None or not self._remarks:
            return
        try:
            if link.blocked and not self._push(link):
                return
            if not link.send(self.session.aside(pack(self._remarks.take()))):
                self._await_room(link)
        except OSError:
            self._call()

    # -- a keeper that does not read ----------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether nothing can be sent now."""
        return self.link is None or self.link.blocked

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

    def _send_what_waits(self, link: Link) -> None:
        with contextlib.suppress(OSError):  # a broken link is seen by whoever uses it next
            self._await_room(link)

    def _wait_to_receive(self, link: Link) -> bool:
        """Send what has waited, while there is nothing to read; return whether there is."""
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN | select.POLLOUT)
        events = poll.poll()[0][1]
        if events & select.POLLOUT:
            self.undisturbed(lambda: self.link is link and link.blocked and self._push(link))
        return bool(events & ~select.POLLOUT)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Wait for what comes next and have it taken in; return False where there is no link.

        Raises Retired where there will be no keeper to wait for.
        """
        link = self.link
        if link is None:
            return False
        try:
            if link.blocked and not self._wait_to_receive(link):
                return True
            frames, alive = link.receive()
            self.undisturbed(lambda: self._take_in_from(link, frames))
        except (OSError, ProtocolError):
            self.reconnect(link)
            return True
        if not alive and self.link is link:
            if not self._durable:
                raise Retired
            self.reconnect(link)
        return True

    def is_quiet_until(self, deadline: float) -> bool:
        """Wait for what comes next until ``deadline`` (monotonic clock); return whether nothing has come by then."""
        left, link = deadline - time.monotonic(), self.link
        if left <= 0:
            return True
        if link is None or link.blocked:
            return False
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        return not poll.poll(left * 1000)

    def _take_in_from(self, link: Link, frames: list[Frame]) -> None:
        """Take in what has come, unless a signal's handler has called meanwhile: then it was told as not received."""
        if self.link is link:
            self._take_in(link, frames)

    def await_summons(self, seconds: float) -> None:
        """Wait until a call is due, a signal says that a keeper may be there, or for ``seconds``."""
        due = self._connection.wait(time.monotonic())
        wait = max(0.001, seconds if due is None else min(due, seconds))
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGURG,))
        try:
            if self.link is None and _await_signal(signal.SIGURG, wait):
                self._connection.summon()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGURG,))

    # -- the link ------------------------------------------------------------------------------------------------------

    def begin(self, fd: int) -> None:
        """Take descriptor ``fd`` for the first link, or call the keeper where it is -1; raises Retired."""
        if fd < 0:
            self.reconnect(None)
            return
        self._identity = identity(fd)
        link = Link(socket.socket(fileno=fd))
        link.reader.authenticated = True
        link.patient, link.vet = False, self._vet
        self.link = link
        self._connection.answered()

    def reconnect(self, lost: Link | None) -> None:
        """Replace the link, unless somebody has replaced ``lost`` already; raises Retired as ``send``."""
        with self._lock:
            if self.link is lost:
                self.undisturbed(self._call)  # what the signal's handler would send goes out afterwards

    def summoned(self) -> None:
        """A signal has come, perhaps because another keeper is there: call it if the one that we had is gone."""
        if self.forked or (not self._durable and (self.link is None or not self.link.blocked)):
            return
        self._connection.summon()
        self.unless_busy(self._look)  # else what is being sent finds out by itself

    def _look(self) -> None:
        if self.link is None or self._is_broken(self.link):
            self._call()
        elif self.link.blocked:
            self._send_what_waits(self.link)
        if self._remarks:
            self._remark()

    def _is_broken(self, link: Link) -> bool:
        if identity(link.fileno()) != self._identity:
            return True
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        return any(events & _GONE for _, events in poll.poll(0))

    def _call(self) -> None:
        """Resume the session over a new link, with this keeper or another one."""
        self._give_up_link()
        if self._durable:
            self._try_to_call()
            return
        delay = 0.01
        for attempt in range(CALL_ATTEMPTS):
            try:
                self._connect()
                return
            except (FileNotFoundError, ConnectionRefusedError, TurnedAway):
                raise Retired from None
            except (OSError, ProtocolError) as error:
                if attempt == CALL_ATTEMPTS - 1:
                    raise Retired from error
                time.sleep(delay)
                delay *= 2

    def _try_to_call(self) -> None:
        """Call where a keeper may answer, unless it is too early for that: the work goes on without one."""
        connection = self._connection
        if not connection.is_due(time.monotonic()):
            return
        connection.begin_call(time.monotonic())
        try:
            self._connect()
        except TurnedAway:
            connection.refuse(time.monotonic())
        except (OSError, ProtocolError):
            connection.unanswered(time.monotonic(), draw())
        except BaseException:
            connection.end()  # it leaves
            raise
        else:
            connection.answered()
            if self._remarks:
                self._remark()

    def _connect(self) -> None:
        config = self._config
        attach, leaving = (self._attachment, self._leave) if self._durable else (None, None)
        introduction = {**self._introduction, "leaving": self.leaving}
        link = call_keeper(
            config.socket, config.key, self.session, introduction, CALL_TIMEOUT, self._vet, attach, leaving,
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

    def _leave(self) -> dict[str, Any]:
        self.leaving = True
        return self._leaving()

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
        if not self._durable:
            return
        with contextlib.suppress(OSError, ProtocolError):
            link.socket.setblocking(False)
            alive = True
            while alive:
                frames, alive = link.receive()
                self._take_in(link, frames)


def _await_signal(number: int, seconds: float) -> bool:
    """Wait for a signal that is blocked, and take it; return whether it has come."""
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(seconds)
        return False
    return signal.sigtimedwait((number,), seconds) is not None
