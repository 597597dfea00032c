"""What other people's programs say by sd_notify, told to the supervisor as if the services had said it themselves."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .notification import Notification
from .notify_socket import NotifySocket, belongs_to
from .replica import Replica
from .supervisor import Supervisor

__all__ = ["ProgramNotices", "ProgramPulse"]


class ProgramPulse:
    """The heartbeat of a program: it comes as a message, not in shared memory."""

    def __init__(self) -> None:
        self.at = 0.0

    def beat(self) -> float:
        """Return when it last gave a sign of life, in seconds of the monotonic clock; 0.0: never."""
        return self.at


class ProgramNotices:
    """Listens for programs; the socket is made when the first of them needs it.

    ``roots`` returns the replicas that are programs by their pids, ``entrust`` has the socket's descriptor held by who
    outlives us.
    """

    def __init__(
        self,
        home: Path,
        selector: selectors.BaseSelector,
        supervisor: Supervisor,
        roots: Callable[[], Mapping[int, Replica]],
        entrust: Callable[[int], None],
    ) -> None:
        self._home = home
        self._selector = selector
        self._supervisor = supervisor
        self._roots = roots
        self._entrust = entrust
        self._socket: NotifySocket | None = None

    def variables(self, watchdog: float | None) -> dict[str, str]:
        """Return what a program needs in its environment to find us; raises OSError where there is no such socket."""
        if self._socket is None:
            self._socket = NotifySocket.open(self._home)
            self._selector.register(self._socket.fileno(), selectors.EVENT_READ, self._hear)
            self._entrust(self._socket.fileno())
        variables = {"NOTIFY_SOCKET": self._socket.path}
        if watchdog is not None:
            variables["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        return variables

    def part(self) -> NotifySocket | None:
        """Let go of the socket, with all that has not been read, and return it, for ``listen``."""
        listening, self._socket = self._socket, None
        return listening

    def listen(self, listening: NotifySocket) -> None:
        """Go on with the socket of another one."""
        self._socket = listening
        self._selector.register(listening.fileno(), selectors.EVENT_READ, self._hear)

    def close(self, *, leave: bool) -> None:
        """Close the socket; ``leave`` it to who holds it beside us."""
        if self._socket is not None:
            self._selector.unregister(self._socket.fileno())
            if leave:
                self._socket.release()
            else:
                self._socket.close()
            self._socket = None

    def _hear(self, _: int) -> None:
        assert self._socket is not None
        roots = self._roots()
        for notification in self._socket.receive():
            replica = belongs_to(notification.pid, roots)
            if replica is not None:
                self._tell(replica, notification)

    def _tell(self, replica: Replica, notification: Notification) -> None:
        now = time.monotonic()
        if notification.watchdog and isinstance(replica.pulse, ProgramPulse):
            replica.pulse.at = now
        if notification.ready:
            self._supervisor.ready(replica, replica.attempt, now)
        if notification.status is not None:  # afterwards, for a change of state has words of its own
            replica.detail = notification.status
