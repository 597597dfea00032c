"""What this process tells systemd, if it is a service of systemd: that it is ready, how it fares, that it lives.

The protocol is sd_notify(3): datagrams of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names, and, by
sd_watchdog_enabled(3), a sign of life within every ``WATCHDOG_USEC``. Telling never raises and never blocks: a manager
that does not listen is no reason to stop working.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Mapping, MutableMapping

__all__ = ["Notifier"]

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
STATUS_BYTES = 2000
"""systemd ignores datagrams of more than 4096 bytes as a whole."""


class Notifier:
    """Speaks to systemd; each message returns whether the kernel has taken it. Any thread may call it.

    Args:
        address: of the manager's socket, a NUL in front for an abstract one.
        watchdog: seconds within which a sign of life is due, None for no watchdog.
        variables: what the environment said, for a program that takes this one's place; see ``variables``.
    """

    def __init__(self, address: str, watchdog: float | None = None, variables: Mapping[str, str] | None = None) -> None:
        self._address = address
        self._lock = threading.Lock()
        # Kept open: signs of life must get through when the process has run out of descriptors, too.
        self._socket: socket.socket | None = None
        self.watchdog_interval = None if watchdog is None else watchdog / 2
        """Seconds between two calls of ``watchdog()``, half of what is allowed; None where no watchdog waits."""
        self.variables = dict(variables or {})
        """The variables that speak of systemd; a re-exec puts them back, for the new program has the same pid."""
        self._open()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier | None:
        """Return how to reach systemd; None where it does not listen, or at an address of a kind not spoken here.

        Args:
            environ: the environment of this process.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if len(address) < 2 or address[0] not in "/@":
            return None
        variables = {name: environ[name] for name in VARIABLES if name in environ}
        return cls("\0" + address[1:] if address[0] == "@" else address, _watchdog_seconds(environ), variables)

    @classmethod
    def take_from(cls, environ: MutableMapping[str, str]) -> Notifier | None:
        """Do as ``from_environment``, and remove the variables, so that children do not speak in our name.

        Args:
            environ: the environment that children will get, ``os.environ`` as a rule.
        """
        notifier = cls.from_environment(environ)
        for name in VARIABLES:
            environ.pop(name, None)
        return notifier

    def ready(self, status: str | None = None) -> bool:
        """Say that the start, or a reload, is complete.

        Args:
            status: a sentence for ``systemctl status``.
        """
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """Set the sentence that ``systemctl status`` shows; lines are joined, and what is too long is cut."""
        return self._send(*_status(text))

    def stopping(self, status: str | None = None) -> bool:
        """Say that this process is about to end, and why."""
        return self._send("STOPPING=1", *_status(status))

    def reloading(self) -> bool:
        """Say that a reload begins; ``ready()`` ends it. The time is what Type=notify-reload asks for."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def watchdog(self) -> bool:
        """Give a sign of life; due every ``watchdog_interval`` seconds."""
        return self._send("WATCHDOG=1")

    def main_pid(self, pid: int | None = None) -> bool:
        """Say which process is the service's main one; None: this one."""
        return self._send(f"MAINPID={os.getpid() if pid is None else pid}")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for ``seconds`` from now on for the start, reload or stop that goes on."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1e6))}")

    def close(self) -> None:
        """Let go of the socket; a later message opens it again."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _send(self, *lines: str) -> bool:
        message = "\n".join(lines).encode(errors="replace")
        with self._lock:
            for _ in range(2):
                if self._socket is None and not self._open():
                    return False
                assert self._socket is not None
                try:
                    self._socket.sendto(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
                except OSError as error:
                    if error.errno not in (errno.EBADF, errno.ENOTSOCK):
                        return False
                    # Somebody has closed our descriptor, and the number may be that of another file by now.
                    self._socket.detach()
                    self._socket = None
                else:
                    return True
        return False

    def _open(self) -> bool:
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return False
        return True


def _status(text: str | None) -> list[str]:
    if text is None:
        return []
    line = " ".join(text.split())
    return ["STATUS=" + line.encode(errors="replace")[:STATUS_BYTES].decode(errors="ignore")]


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """What sd_watchdog_enabled(3) would answer, in seconds; None for off, or meant for another process."""
    allowed, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (allowed.isascii() and allowed.isdecimal()) or len(allowed) > 20 or int(allowed) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(allowed) / 1e6
