"""The process that writes the logs of workers: it reads their pipes, and a thread of its own writes the files.

It is a fork of the fork server that executes nothing, in a session of its own. It ends when the fork server is gone and
every pipe has come to its end, so that no worker loses a line with its fork server.

A worker must not wait for a disk. What the disk does not take waits in a bounded buffer; where a file's share of that
is used up its pipes wait for at most ``PATIENCE`` seconds, which a disk that works never needs, and then lines are
dropped, counted, and told of in the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import termios
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn

from .logbuffer import CALM, LogBuffer
from .loglines import OWN_LABEL, LineSplitter, dropped, prefix, stamped
from .rotation import RotatingFile

__all__ = ["ALL", "become_log_process"]

ALL = 0
"""In the place of a pipe's number: every pipe."""

READ_BYTES = 1 << 16
BUFFER_BYTES = 8 * 2**20
PATIENCE = 0.2
LOOK_MILLISECONDS = 50
_TOO_SLOW = "they came faster than the disk takes them"


class _Stream:
    """One pipe: whose output it carries, and how it fares.

    ``pressed`` is since when its file has no room in the buffer, ``refused`` the block that waits for room.
    """

    def __init__(self, id: int, fd: int, label: str, stem: str, pid: int, attempt: int) -> None:
        self.id = id
        self.fd = fd
        self.label = label
        self.stem = stem
        self.pid = pid
        self.attempt = attempt
        self.splitter = LineSplitter()
        self.pressed: float | None = None
        self.refused: bytes | None = None

    def stamp(self, block: bytes) -> bytes:
        """Return lines as they stand in the file."""
        return stamped(block, prefix(datetime.now(UTC), self.label, self.pid, self.attempt))


class _Files:
    """The thread that writes, and the files that are in use."""

    def __init__(self, folder: str, buffer: LogBuffer, wake: Callable[[], None]) -> None:
        self._folder = folder
        self._buffer = buffer
        self._wake = wake
        self._files: dict[str, RotatingFile] = {}
        self._users: dict[str, int] = {}
        self.thread = threading.Thread(target=self._run, name="poolkeeper-log-files")
        self.thread.start()

    def use(self, stem: str) -> None:
        """Keep the file open from now on, when it has had its first line."""
        self._users[stem] = self._users.get(stem, 0) + 1

    def release(self, stem: str) -> None:
        """Close the file if that was the last to use it; for the writing thread."""
        self._users[stem] -= 1
        if not self._users[stem]:
            del self._users[stem]
            file = self._files.get(stem)
            if file is not None:
                file.write(b"")
                file.close()
                if not file.dropped:  # else its notice is still to come
                    del self._files[stem]

    def _run(self) -> None:
        try:
            self._write_all()
        except BaseException:
            _crash(self._folder)  # a process that reads and writes nothing would be worse than none

    def _write_all(self) -> None:
        while (batch := self._buffer.take()) is not None:
            for stem, lines in batch.lost.items():
                file = self._file(stem)
                file.lose(lines, _TOO_SLOW)
                file.write(b"")
            for stem, blocks in batch.blocks.items():
                file = self._file(stem)
                for block in blocks:
                    file.write(block)
                    self._buffer.written(stem, len(block))
            for action in batch.after:
                action()
            self._wake()

    def _file(self, stem: str) -> RotatingFile:
        file = self._files.get(stem)
        if file is None:
            file = RotatingFile(os.path.join(self._folder, f"{stem}.log"), notice=_notice)
            self._files[stem] = file
        return file


def _notice(lines: int, why: str) -> bytes:
    """Return the line by which the log writer tells of lines that are missing."""
    return prefix(datetime.now(UTC), OWN_LABEL, os.getpid(), 0) + dropped(lines, why).encode() + b"\n"


class _LogProcess:
    """Reads the pipes; ``channel`` is how the fork server hands them over, and is told what is on disk."""

    def __init__(self, folder: str, channel: socket.socket) -> None:
        self._channel = channel
        self._connected = True
        self._heard = b""
        self._handed: deque[int] = deque()
        self._said = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._waiting: dict[int, _Stream] = {}
        self._news: deque[tuple[str, int]] = deque()
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        self._buffer = LogBuffer(BUFFER_BYTES)
        self._files = _Files(folder, self._buffer, self._wake)
        self._poll = select.poll()
        self._poll.register(self._wake_reader, select.POLLIN)
        self._poll.register(channel.fileno(), select.POLLIN)

    def run(self) -> None:
        """Read until the fork server is gone and all pipes are at their ends."""
        while self._connected or self._streams:
            for fd, _ in self._poll.poll(LOOK_MILLISECONDS if self._waiting or self._said else None):
                stream = self._streams.get(fd)
                if stream is not None:
                    if stream.refused is None:  # else a flush in this turn has found its file's share used up
                        self._read(stream)
                elif fd == self._wake_reader:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                elif self._connected:
                    self._hear()
            for stream in list(self._waiting.values()):
                self._offer_again(stream)
            self._tell()
        self._buffer.close()
        self._files.thread.join()
        self._tell()

    # -- pipes --------------------------------------------------------------------------------------------------------

    def _read(self, stream: _Stream) -> int:
        """Read once, so that every pipe has its turn; return how many bytes."""
        try:
            data = os.read(stream.fd, READ_BYTES)
        except BlockingIOError:
            return 0
        block = stream.splitter.feed(data) if data else stream.splitter.finish()
        if block:
            self._pass_on(stream, stream.stamp(block))
        if not data:
            self._ended(stream)
        return len(data)

    def _pass_on(self, stream: _Stream, block: bytes) -> None:
        impatient = stream.pressed is not None and time.monotonic() - stream.pressed > PATIENCE
        if self._buffer.offer(stream.stem, block, CALM if impatient else 1.0):
            if stream.pressed is not None and (impatient or self._buffer.is_calm(stream.stem)):
                stream.pressed = None
        elif impatient:
            self._buffer.lose(stream.stem, block.count(b"\n"))
        else:
            if stream.pressed is None:
                stream.pressed = time.monotonic()
            stream.refused = block
            self._waiting[stream.fd] = stream
            self._poll.unregister(stream.fd)

    def _offer_again(self, stream: _Stream) -> None:
        assert stream.refused is not None
        block, stream.refused = stream.refused, None
        del self._waiting[stream.fd]
        self._poll.register(stream.fd, select.POLLIN)
        self._pass_on(stream, block)

    def _ended(self, stream: _Stream) -> None:
        # Its last block may be the one that waits for room.
        refused, stream.refused = stream.refused, None
        if self._waiting.pop(stream.fd, None) is None:
            self._poll.unregister(stream.fd)
        del self._streams[stream.fd]
        os.close(stream.fd)
        if refused is not None:
            self._buffer.force(stream.stem, refused)
        self._buffer.then(partial(self._files.release, stream.stem))
        self._buffer.then(partial(self._news.append, ("closed", stream.id)))

    # -- the fork server ----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, READ_BYTES, 253)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._handed.extend(fds)
        if not data:
            self._connected = False
            self._poll.unregister(self._channel.fileno())
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message[0] == "pipe":
                self._take(*message[1:])
            elif message[0] == "flush":
                self._flush(message[1])

    def _take(self, id: int, label: str, stem: str, pid: int, attempt: int) -> None:
        if not self._handed:
            return  # no descriptor was left for it; the fork server still has its own
        fd = self._handed.popleft()
        stream = self._streams[fd] = _Stream(id, fd, label, stem, pid, attempt)
        self._buffer.then(partial(self._files.use, stream.stem))
        self._poll.register(fd, select.POLLIN)

    def _flush(self, id: int) -> None:
        """Read what is in a pipe at this moment, and say so when it is on disk."""
        for stream in list(self._streams.values()):
            if id in (ALL, stream.id):
                left = int.from_bytes(fcntl.ioctl(stream.fd, termios.FIONREAD, bytes(4)), "little")
                while stream.refused is None and left >= 0 and (count := self._read(stream)):
                    left -= count  # at 0 one more look tells whether that was the end
        self._buffer.then(partial(self._news.append, ("flushed", id)))

    def _tell(self) -> None:
        """Send what is known to be on disk; never wait for a fork server that does not listen."""
        while self._news:
            self._said += json.dumps(self._news.popleft()).encode() + b"\n"
        if self._said:
            try:
                del self._said[: self._channel.send(self._said)]
            except BlockingIOError:
                pass  # with the next news, or the next look
            except OSError:
                self._said.clear()

    def _wake(self) -> None:
        if not self._news and not self._waiting:
            return
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")


def become_log_process(folder: str, channel: socket.socket) -> NoReturn:
    """Be the log writer, in a fresh fork; ends the process."""
    try:
        _settle_down({channel.fileno()})
        channel.setblocking(False)
        _LogProcess(folder, channel).run()
        os._exit(0)
    except BaseException:
        _crash(folder)


def _crash(folder: str) -> NoReturn:
    """End the process after an exception, for the fork server to start another; leave the traceback in a file."""
    with contextlib.suppress(OSError), open(os.path.join(folder, "logwriter.crash"), "a") as file:
        file.write(traceback.format_exc())
    os._exit(1)


def _settle_down(keep: set[int]) -> None:
    """Leave everything of the fork server behind."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    gc.freeze()  # sockets of the fork server must not be finalized here, by numbers that mean something else by then
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    for fd in _open_descriptors():
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
    _name_process()
    _raise_descriptor_limit()


def _open_descriptors() -> list[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [int(name) for name in os.listdir(folder)]
    return list(range(4096))


def _name_process() -> None:
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write("poolkeeper-logs")


def _raise_descriptor_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
