"""A process that a fork server makes for the keeper: its session, its pidfd, and who hears of it."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any, Protocol

from .page import KeeperPage
from .peer import Heir, Peer
from .roster import Exit

__all__ = ["Child", "Parent"]


class Child(Peer):
    """A process that the fork server makes, and the session with it.

    ``tag`` is unique among all processes of a keeper. ``their_end`` is the process' end of its first link, until it has
    it. ``gone`` is whether the process is known to have ended.
    """

    tag = ""
    ticket = ""
    """By which its fork server reports on it: no other process has the same, whichever keeper has it made."""
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

    @property
    def lives(self) -> bool:
        """Whether it has not ended yet; False where it is not watched."""
        poll = select.poll()
        if self.watched:
            poll.register(self._pidfd, select.POLLIN)
        return self.watched and not poll.poll(0)

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

    def take_over(self, other: Child, selector: selectors.BaseSelector, ended: Callable[[int], None]) -> None:
        """Be the session with the process of ``other``, whose selector is closed; have ``ended`` called at its end."""
        assert other.pid is not None
        self.tag, self.attached = other.tag, False
        self.page, other.page = other.page, None
        self._pidfd, other._pidfd = other._pidfd, -1
        if self._pidfd >= 0:
            selector.register(self._pidfd, selectors.EVENT_READ, ended)
        self.here(other.pid, selector, ended)

    def unwatch(self, selector: selectors.BaseSelector) -> None:
        """Close the pidfd."""
        if self._pidfd >= 0:
            with contextlib.suppress(KeyError):  # of a loop that has failed nothing is watched any more
                selector.unregister(self._pidfd)
            pidfd, self._pidfd = self._pidfd, -1
            os.close(pidfd)

    def let_go(self) -> None:
        """Close what only a process that is being made needs."""
        if self.their_end is not None:
            self.their_end.close()
            self.their_end = None


class Parent(Heir, Protocol):
    """Who has asked for a process, and hears from it and of it."""

    def spawned(self, child: Any, pid: int, *, linked: bool) -> None:
        """The process exists, and has its first link if it is ``linked``; else it will call."""

    def refused(self, child: Any, why: str) -> None:
        """The process could not be made."""

    def exited(self, child: Any, exit: Exit) -> None:
        """The process has ended; said once, whether or not that was seen before."""

    def orphaned(self, child: Any, why: str, *, killed: bool) -> None:
        """The fork server has died, or somebody has ``killed`` it: if the process lives, nobody will report its end."""


def _watch_process(pid: int) -> int:
    """Return a descriptor that becomes readable when process ``pid`` ends, -1 where there is none to be had."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # no descriptor left, or gone again: the fork server reports its end
            return os.pidfd_open(pid)
    return -1
