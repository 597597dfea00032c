"""A service's line to its keeper: the session, and one link after the other to whichever keeper there is.

A service is nobody's to slow down. Without a keeper it calls now and then, and each attempt costs a small share of the
time; with a keeper that does not listen it waits for nothing but its last words. What is said meanwhile is forgotten
but for what a later keeper must know. A durable keeper's services go on without it, however long it takes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from .arena import identity
from .backoff import Backoff
from .connection import Connection
from .errors import ProtocolError
from .link import Link, TurnedAway, call_keeper, draw
from .messages import Kind, pack
from .session import Session
from .worker_config import WorkerConfig

__all__ = ["ServiceLine", "leave_words"]

CALL_SECONDS = 5.0
"""How long each step of a call may take where the keeper is expected to be there."""

BRIEF_SECONDS = 1.0
"""The same where a keeper may have come to the place of another."""

FIRST_RETRY = 0.05
LONGEST_RETRY = 5.0
SHARE = 20.0
"""A call that fails is followed by a pause of at least so many times its length."""

LAST_WORDS_SECONDS = 5.0
DOOR_ATTEMPTS = 10
DOOR_SECONDS = 0.1

_LASTING = (Kind.STARTED, Kind.READY, Kind.STATUS, Kind.NOTICE, Kind.LAST_WORDS)
"""What a keeper must hear though it was said in its absence, the last of each kind, in this order."""

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL

Description = tuple[dict[str, Any], tuple[int, ...]]


class ServiceLine:
    """The service's end of its session; not for two threads at a time.

    Args:
        config: which says where the keeper is, and whether there may be another.
        introduction: what the service says of itself whenever it calls.
        link: the descriptor of the first link, -1 where the service has to call.
        describe: returns what a keeper must know that has not made this service, and descriptors to go beside it,
            which are closed afterwards.
    """

    def __init__(
        self, config: WorkerConfig, introduction: dict[str, Any], link: int, describe: Callable[[], Description]
    ) -> None:
        self._config = config
        self._introduction = introduction
        self._describe = describe
        self._durable = config.orphan_grace is not None
        self._session = Session()
        self._link: Link | None = None
        self._identity: tuple[int, int] | None = None
        self._kept: dict[int, tuple[Any, ...]] = {}
        self._connection = Connection(Backoff(FIRST_RETRY, LONGEST_RETRY), SHARE, linked=link >= 0)
        self._beside: tuple[int, ...] = ()
        self._nobody = False
        if link >= 0:
            self._identity = identity(link)
            self._link = Link(socket.socket(fileno=link))
            self._link.reader.authenticated = True

    def say(self, message: tuple[Any, ...], *, last: bool = False) -> bool:
        """Tell the keeper, if it is there, and return whether it is; the ``last`` word is worth some waiting."""
        link = self._sound_link()
        if link is None:
            self._keep(message)
            return self.call(at_once=last)
        if not self._is_open(link, LAST_WORDS_SECONDS if last else 0.0):
            self._keep(message)  # it does not listen now, and will hear it later
            return True
        kept, self._kept = self._kept, {}
        messages = [kept[kind] for kind in _LASTING if kind in kept and kind != message[0]]
        try:
            link.send(self._session.send(pack([*messages, message])))
        except OSError:
            self.close()
            return self.call(at_once=last)  # what is unacknowledged goes out with it
        return True

    def summoned(self) -> None:
        """A keeper may be there: the next call need not wait."""
        self._connection.summon()

    def look(self) -> bool:
        """Call if there is no keeper, or another one than there was, and if it is time to; return whether one is."""
        return self._sound_link() is not None or self.call()

    def call(self, *, at_once: bool = False) -> bool:
        """Resume the session over a new link, unless it is too early to try again; return whether there is a link."""
        connection, began = self._connection, time.monotonic()
        if not at_once and not connection.is_due(began):
            return False
        connection.begin_call(began)
        config = self._config
        seconds = BRIEF_SECONDS if self._durable and not at_once else CALL_SECONDS
        attach = self._attachment if self._durable else None
        try:
            link = call_keeper(config.socket, config.key, self._session, self._introduction, seconds, attach=attach)
        except TurnedAway:
            self._nobody = False
            connection.refuse(time.monotonic())
            return False
        except (OSError, ProtocolError) as error:
            now = time.monotonic()
            self._nobody = isinstance(error, (FileNotFoundError, ConnectionRefusedError)) or now - began >= seconds
            connection.unanswered(now, draw())
            return False
        finally:
            beside, self._beside = self._beside, ()
            for fd in beside:
                os.close(fd)
        connection.answered()
        self._identity = identity(link.fileno())
        self._link = link
        return self._send_kept(link)

    def is_unwanted(self) -> bool:
        """Whether there is a keeper, and it refuses this process: it has made another, or does not wait any more."""
        for _ in range(DOOR_ATTEMPTS):
            if self.call(at_once=True):
                return False
            if self._nobody:
                return not self._durable
            time.sleep(DOOR_SECONDS * draw())  # one that has just died refuses as well
        return True

    def close(self) -> None:
        """Close the link, if it is still ours."""
        link, self._link = self._link, None
        if link is None:
            return
        self._connection.lose(time.monotonic())
        if identity(link.fileno()) == self._identity:
            link.close()
        else:  # closed by the callable, and the number may be its own file's by now
            link.socket.detach()

    def _sound_link(self) -> Link | None:
        """Return the link, with what has come over it taken in; None if it is broken, or was never there."""
        link = self._link
        if link is None:
            return None
        try:
            if identity(link.fileno()) != self._identity:
                raise ConnectionResetError
            poll = select.poll()
            poll.register(link.fileno(), select.POLLIN)
            while ready := poll.poll(0):
                frames, alive = link.receive()
                for frame in frames:
                    self._session.receive(frame)
                if not alive or ready[0][1] & _GONE:
                    raise ConnectionResetError
        except (OSError, ProtocolError):
            self.close()
            return None
        return link

    def _is_open(self, link: Link, seconds: float) -> bool:
        """Whether a message can be sent, now or within ``seconds``, without waiting for the keeper to read."""
        poll = select.poll()
        poll.register(link.fileno(), select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def _keep(self, message: tuple[Any, ...]) -> None:
        if message[0] in _LASTING:
            self._kept[message[0]] = message

    def _send_kept(self, link: Link) -> bool:
        kept, self._kept = self._kept, {}
        messages = [kept[kind] for kind in _LASTING if kind in kept]
        try:
            early, link.early = link.early, []
            for frame in early:
                self._session.receive(frame)
            if messages:
                link.send(self._session.send(pack(messages)))
        except (OSError, ProtocolError):
            self.close()
            return False
        return True

    def _attachment(self) -> tuple[bytes, tuple[int, ...]]:
        content, self._beside = self._describe()
        return pack([content]), self._beside


def leave_words(folder: str, tag: str, words: tuple[str, str, str]) -> None:
    """Write down why this service ends: no keeper may be there to hear it."""
    import json

    with contextlib.suppress(OSError, ValueError):
        path = os.path.join(folder, f"{tag}.words")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(words, file)
