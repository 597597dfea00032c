"""The fork server's line to its keeper: the session, and one link after the other to whichever keeper there is.

When a keeper is lost the line is dead for a while, and what is said meanwhile waits in the session's outbox. A keeper
that comes later is called: soon after the loss, then less and less often, and at once when it asks for that by a
signal. One that does not read is not waited for: what its socket does not take goes out when it reads on, and is no
more than it has asked for: an answer for each process to start, and one for its end. An ephemeral keeper has no
successor, and its line ends with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .backoff import Backoff
from .connection import Connection
from .errors import ProtocolError
from .frames import Frame
from .link import Link, TurnedAway, call_keeper, draw
from .messages import Kind, pack, unpack
from .session import Session
from .worker_config import WorkerConfig

__all__ = ["KeeperLine"]

CALL_TIMEOUT = 10.0
FIRST_RETRY = 0.02
LONGEST_RETRY = 1.0


class KeeperLine:
    """The fork server's end of its session.

    Args:
        config: of the workers, which says where the keeper is and whether there may be another.
        describe: returns what a keeper must know that has not started this fork server.

    Raises:
        OSError, ProtocolError: when there is no keeper to begin with.
    """

    def __init__(self, config: WorkerConfig, describe: Callable[[], dict[str, Any]]) -> None:
        self._config = config
        self._describe = describe
        self._session = Session()
        self._link: Link | None = self._call()
        self._connection = Connection(Backoff(FIRST_RETRY, LONGEST_RETRY), linked=True)

    @property
    def ended(self) -> bool:
        """Whether the keeper has ended in good order, or there can be no other one."""
        return self._connection.ended

    @property
    def refused(self) -> bool:
        """Whether the keeper that there is has no use for this fork server: it looks after what it has made."""
        return self._connection.refused

    @property
    def awaits(self) -> tuple[int, int] | None:
        """The link's descriptor and what to wait for on it, None while there is no link."""
        if self._link is None:
            return None
        return self._link.fileno(), select.POLLIN | (select.POLLOUT if self._link.blocked else 0)

    def early(self) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
        """Return what has come with the handshake; as ``receive``."""
        link = self._link
        if link is not None and link.early:
            frames, link.early = link.early, []
            yield from self._messages(link, frames)

    def flush(self) -> None:
        """The link has room for what has waited."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.flush()

    def receive(self) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
        """Read once; return the messages, each with the descriptors that it may take from the list."""
        link = self._link
        if link is None:
            return
        try:
            frames, alive = link.receive()
            yield from self._messages(link, frames)
        except (OSError, ProtocolError):
            alive = False
        if not alive:
            self._lose()

    def send(self, message: tuple[Any, ...]) -> None:
        """Tell the keeper, or the next one."""
        frame = self._session.send(pack([message]))
        if self._link is not None:
            with contextlib.suppress(OSError):  # a keeper that is gone shows as the end of the link
                self._link.send(frame)

    def summoned(self) -> None:
        """A keeper may be there: call it without further delay, if there is no link."""
        self._connection.summon()

    def call_if_due(self) -> bool:
        """Call where a keeper may answer, if there is none; return whether one has."""
        connection = self._connection
        if not connection.is_due(time.monotonic()):
            return False
        connection.begin_call(time.monotonic())
        try:
            self._link = self._call()
        except TurnedAway:
            connection.refuse(time.monotonic())
            return False
        except (OSError, ProtocolError):
            connection.unanswered(time.monotonic(), draw())
            return False
        connection.answered()
        return True

    def timeout(self) -> float | None:
        """Return the milliseconds until ``call_if_due`` has something to do, None: it has not."""
        seconds = self._connection.wait(time.monotonic())
        return None if seconds is None else seconds * 1000

    def lost_for(self) -> float:
        """Return for how many seconds there has been no keeper."""
        return self._connection.lost_for(time.monotonic())

    def close(self) -> None:
        """Close the link: in a child, or at the end."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _call(self) -> Link:
        config = self._config
        introduction = {
            "role": "forkserver", "id": 0, "birth": config.incarnation, "pid": os.getpid(),
            "cloudpickle": config.cloudpickle,
        }  # fmt: skip
        attach = None if config.orphan_grace is None else self._attachment
        return call_keeper(
            config.socket, config.key, self._session, introduction, CALL_TIMEOUT, attach=attach, patient=False
        )

    def _attachment(self) -> tuple[bytes, tuple[int, ...]]:
        return pack([self._describe()]), ()

    def _messages(self, link: Link, frames: Iterable[Frame]) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
        for frame in frames:
            fds = link.take_fds(frame) if frame.fds else []
            try:
                if not self._session.receive(frame):
                    continue
                for message in unpack(frame.body):
                    if message[0] == Kind.FAREWELL:
                        self._connection.end()
                    else:
                        yield message, fds
            finally:
                for fd in fds:
                    os.close(fd)

    def _lose(self) -> None:
        self.close()
        if self._config.orphan_grace is None:
            self._connection.end()
        else:
            self._connection.lose(time.monotonic())
