"""The fork server's line to its keeper: the session, and one link after the other to whichever keeper there is.

When a keeper is lost the line is dead for a while, and what is said meanwhile waits in the session's outbox. A keeper
that comes later is called: soon after the loss, then less and less often, and at once when it asks for that by a
signal. An ephemeral keeper has no successor, and its line ends with it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .backoff import Backoff
from .errors import ProtocolError
from .frames import Frame
from .link import Link, call_keeper, draw
from .messages import Kind, pack, unpack
from .session import Session
from .worker_session import WorkerConfig

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
        self._backoff = Backoff(FIRST_RETRY, LONGEST_RETRY)
        self._call_at = 0.0
        self._lost_at: float | None = None
        self.ended = False
        """Whether the keeper has ended in good order, or there can be no other one."""
        self._link: Link | None = self._call()

    @property
    def fd(self) -> int | None:
        """The link's descriptor, None while there is none."""
        return None if self._link is None else self._link.fileno()

    def early(self) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
        """Return what has come with the handshake; as ``receive``."""
        link = self._link
        if link is not None and link.early:
            frames, link.early = link.early, []
            yield from self._messages(link, frames)

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
        self._call_at = 0.0

    def call_if_due(self) -> bool:
        """Call where a keeper may answer, if there is none; return whether one has."""
        if self._link is not None or self.ended or time.monotonic() < self._call_at:
            return False
        try:
            self._link = self._call()
        except (OSError, ProtocolError):
            self._call_at = time.monotonic() + self._backoff.next(draw())
            return False
        self._backoff.reset()
        self._lost_at = None
        return True

    def timeout(self) -> float | None:
        """Return the milliseconds until ``call_if_due`` has something to do, None: it has not."""
        if self._link is not None or self.ended:
            return None
        return max(0.0, (self._call_at - time.monotonic()) * 1000)

    def lost_for(self) -> float:
        """Return for how many seconds there has been no keeper."""
        return 0.0 if self._lost_at is None else time.monotonic() - self._lost_at

    def close(self) -> None:
        """Close the link: in a child, or at the end."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _call(self) -> Link:
        config = self._config
        introduction = {"role": "forkserver", "id": 0, "birth": config.incarnation, "pid": os.getpid()}
        attach = None if config.orphan_grace is None else self._attachment
        return call_keeper(config.socket, config.key, self._session, introduction, CALL_TIMEOUT, attach=attach)

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
                        self.ended = True
                    else:
                        yield message, fds
            finally:
                for fd in fds:
                    os.close(fd)

    def _lose(self) -> None:
        self.close()
        if self._config.orphan_grace is None:
            self.ended = True
        elif self._lost_at is None:
            self._lost_at = time.monotonic()
