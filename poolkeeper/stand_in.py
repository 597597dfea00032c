"""What programs say by sd_notify while their keeper is away: the fork server, which outlives it, listens in its place.

The keeper binds the socket, and gives the fork server a descriptor of it, so that it stays open without the keeper.
Nobody reads it twice: the fork server does so from the loss of that keeper until another one has sent a socket of its
own. What passes in a moment, as a heartbeat does, is of no interest to the next keeper, and is dropped.
"""

from __future__ import annotations

import os
import select

from .notify_socket import NotifySocket, ancestry

__all__ = ["StandIn"]

SPEAKERS_LIMIT = 1000
"""Of how many processes it is remembered what they have said."""

Said = tuple[tuple[int, ...], bool, str | None]
"""Who has said it, see ``ancestry``; whether that it is ready; how it fares, None for nothing."""


class StandIn:
    """The fork server's hold on the keeper's notification socket.

    ``poll`` is what the fork server waits with.
    """

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._socket: NotifySocket | None = None
        self._listening = False
        self._said: dict[int, Said] = {}

    def hold(self, fd: int) -> None:
        """Keep the socket that ``fd`` is, which the keeper reads itself; what is left in the one before is heard."""
        try:
            adopted = NotifySocket.adopt(fd)
        except OSError:
            os.close(fd)
            return
        if self._listening:
            self.hear()
        self.let_go()
        self._socket = adopted

    def listen(self) -> None:
        """The keeper is lost."""
        if self._socket is not None and not self._listening:
            self._listening = True
            self._poll.register(self._socket.fileno(), select.POLLIN)

    def hear(self) -> None:
        """Read what there is, if this is the one to do so."""
        if self._socket is None or not self._listening:
            return
        for notification in self._socket.receive():
            if not notification.ready and notification.status is None:
                continue
            speaker = ancestry(notification.pid)  # now, for it may end before there is a keeper
            key = speaker[-1] if speaker else 0
            _, ready, status = self._said.get(key, (speaker, False, None))
            if speaker and (key in self._said or len(self._said) < SPEAKERS_LIMIT):
                later = status if notification.status is None else notification.status
                self._said[key] = (speaker, ready or notification.ready, later)

    def take(self) -> list[Said]:
        """Return, and forget, what has been said, the last of each kind for each service."""
        said, self._said = self._said, {}
        return list(said.values())

    def let_go(self) -> None:
        """Close the socket, whose path is not this process' to remove."""
        if self._socket is not None:
            if self._listening:
                self._poll.unregister(self._socket.fileno())
            self._socket.release()
        self._socket, self._listening = None, False
