"""The fork server's end of the logs: pipes for the output of workers, and the process that reads them.

The fork server keeps the read ends, too: no worker gets SIGPIPE when the log writer is killed, and its successor reads
on where it has stopped. What it had read and not yet written is lost with it. While the log writer is stopped (SIGSTOP)
a worker can write as much as its pipe holds, then it waits; lines are dropped for a slow disk only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import select
import socket
import time
from collections import deque
from typing import Any

from .logprocess import ALL, become_log_process

__all__ = ["LogPipe", "LogWriter"]

PIPE_BYTES = 256 * 1024
REPORT_SECONDS = 0.05
"""How long the report of a worker's end may wait for its last words to be on disk."""

RETRY_SECONDS = 1.0
"""Between two starts of a log writer, so that one that cannot live does not take the fork server with it."""

SEND_SECONDS = 0.02
"""How soon to try again to send to a log writer that did not listen."""


class LogPipe:
    """The pipe for the output of one process; the child gets ``write_end``."""

    def __init__(self, id: int, label: str, stem: str, attempt: int) -> None:
        self.id = id
        self.label = label
        self.stem = stem
        self.attempt = attempt
        self.pid = 0
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # beyond what this user may have
                fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        """Close what is still open of it."""
        self.close_write_end()
        if self.read_end >= 0:
            fd, self.read_end = self.read_end, -1
            os.close(fd)

    def take(self) -> int:
        """In the child: return the write end and close the other."""
        os.close(self.read_end)
        return self.write_end

    def close_write_end(self) -> None:
        """In the parent: leave the write end to the child."""
        if self.write_end >= 0:
            fd, self.write_end = self.write_end, -1
            os.close(fd)


class LogWriter:
    """Starts the log writer, hands pipes over to it, replaces it when it dies, and knows what it has written.

    Args:
        folder: where the files ``STEM.log`` are.
        report_seconds: how long a report may be held.
    """

    def __init__(self, folder: str, report_seconds: float = REPORT_SECONDS) -> None:
        self._folder = folder
        self._report_seconds = report_seconds
        self._pipes: dict[int, LogPipe] = {}
        self._held: dict[int, tuple[float, Any]] = {}
        self._released: list[Any] = []
        self._last_id = ALL
        self._pid: int | None = None
        self._channel: socket.socket | None = None
        self._poll: select.poll | None = None
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._heard = b""
        self._flushed = False
        self._start_at = 0.0
        self._start()

    @property
    def pid(self) -> int | None:
        """The pid of the log writer, None while there is none."""
        return self._pid

    def watch(self, poll: select.poll) -> None:
        """Have ``poll`` watch for what the log writer says; whenever it wakes, ``tend`` is to be called."""
        self._poll = poll
        if self._channel is not None:
            poll.register(self._channel.fileno(), select.POLLIN)

    def open(self, label: str, stem: str, attempt: int = 1) -> LogPipe:
        """Make the pipe for a process that is about to be forked; raises OSError.

        Args:
            label: what its lines are marked with: the name of the service or worker.
            stem: the name of its file; processes that share it append to the same one.
            attempt: which start this is.
        """
        self._last_id += 1
        return LogPipe(self._last_id, label, stem, attempt)

    def announce(self, pipe: LogPipe, pid: int) -> None:
        """Hand ``pipe`` over, now that process ``pid`` has it."""
        pipe.pid = pid
        pipe.close_write_end()
        self._pipes[pipe.id] = pipe
        self._hand_over(pipe)

    def hold(self, pipe: LogPipe, report: Any) -> None:
        """Keep ``report``, on the end of the process with ``pipe``, until its last words are on disk, or time is up."""
        if pipe.id not in self._pipes:
            self._released.append(report)
            return
        self._held[pipe.id] = (time.monotonic() + self._report_seconds, report)
        self._send(["flush", pipe.id])

    def tend(self) -> list[Any]:
        """Do what is due, without waiting; return the reports that need be held no longer."""
        now = time.monotonic()
        if self._pid is None and now >= self._start_at:
            self._start()
        self._flush_unsent()
        self._hear()
        released, self._released = self._released, []
        for id, (deadline, report) in list(self._held.items()):
            if now >= deadline:
                del self._held[id]
                released.append(report)
        return released

    def timeout(self) -> float | None:
        """Milliseconds until ``tend`` must be called, None if only an event can make that necessary."""
        now = time.monotonic()
        due = [deadline for deadline, _ in self._held.values()]
        if self._pid is None:
            due.append(self._start_at)
        if self._unsent and self._channel is not None:
            due.append(now + SEND_SECONDS)
        if self._released:
            due.append(now)
        return math.ceil(max(0.0, min(due) - now) * 1000) if due else None

    def reaped(self, pid: int) -> None:
        """Process ``pid`` has ended; it may have been the log writer."""
        if pid == self._pid:
            self._hear()
            self._disconnect()

    def leave(self) -> None:
        """In a fork of the fork server: close what belongs to it."""
        for pipe in self._pipes.values():
            pipe.close()
        if self._channel is not None:
            self._channel.close()

    def finish(self, seconds: float) -> None:
        """Wait until the log writer has written what is in the pipes, ``seconds`` at most, and leave it to itself."""
        deadline = time.monotonic() + seconds
        self._send(["flush", ALL])
        while self._channel is not None and not self._flushed and (left := deadline - time.monotonic()) > 0:
            self._flush_unsent()
            waiting = select.poll()
            waiting.register(self._channel.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0))
            waiting.poll(math.ceil(left * 1000))
            self._hear()
        # With no pipe left it ends at once: nothing of this keeper should be seen when the fork server has gone.
        if self._channel is not None and not self._pipes:
            self._channel.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                self._channel.setblocking(True)
                self._channel.settimeout(max(0.001, deadline - time.monotonic()))
                while self._channel.recv(4096):
                    pass
                if self._pid is not None:
                    os.waitpid(self._pid, 0)
        self.leave()

    # -- the process --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._start_at = time.monotonic() + RETRY_SECONDS
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            return
        if pid == 0:
            become_log_process(self._folder, theirs)
        theirs.close()
        ours.setblocking(False)
        self._pid, self._channel = pid, ours
        if self._poll is not None:
            self._poll.register(ours.fileno(), select.POLLIN)
        for pipe in self._pipes.values():
            self._hand_over(pipe)
        for id in self._held:
            self._send(["flush", id])

    def _disconnect(self) -> None:
        self._pid = None
        if self._channel is not None:
            if self._poll is not None:
                self._poll.unregister(self._channel.fileno())
            self._channel.close()
            self._channel = None
        self._unsent.clear()
        self._heard = b""

    # -- messages -----------------------------------------------------------------------------------------------------

    def _hand_over(self, pipe: LogPipe) -> None:
        self._send(["pipe", pipe.id, pipe.label, pipe.stem, pipe.pid, pipe.attempt], pipe.read_end)

    def _send(self, message: list[Any], *fds: int) -> None:
        if self._channel is not None:
            self._unsent.append((json.dumps(message).encode() + b"\n", fds))
            self._flush_unsent()

    def _flush_unsent(self) -> None:
        while self._unsent and self._channel is not None:
            data, fds = self._unsent[0]
            try:
                sent = socket.send_fds(self._channel, [data], list(fds)) if fds else self._channel.send(data)
            except OSError:
                return  # it does not listen now, or has ended, which its exit tells
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[sent:], ())

    def _hear(self) -> None:
        while self._channel is not None:
            try:
                data = self._channel.recv(1 << 16)
            except OSError:
                return
            if not data:
                if self._poll is not None:  # its exit is reported in a moment; this end would be ready all the while
                    self._poll.unregister(self._channel.fileno())
                self._channel.close()
                self._channel = None
                return
            *lines, self._heard = (self._heard + data).split(b"\n")
            for line in lines:
                self._learn(*json.loads(line))

    def _learn(self, what: str, id: int) -> None:
        if id == ALL:
            self._flushed = True
            return
        held = self._held.pop(id, None)
        if held is not None:
            self._released.append(held[1])
        if what == "closed" and (pipe := self._pipes.pop(id, None)) is not None:
            pipe.close()
