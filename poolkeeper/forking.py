"""How the fork server makes processes: forked, as multiprocessing would, or taken from stock.

A fork and the first steps of a new process take some milliseconds, most of them for copying memory pages. Where
processes die that is what others wait for, so one *spare* is forked ahead, and is told what to become.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import pickle
import socket
import struct
from collections.abc import Callable
from multiprocessing import popen_fork
from multiprocessing.process import BaseProcess
from typing import Any

from .process_setup import block_signals, unblock_signals

__all__ = ["Forked", "Spare", "start"]

_SIZE = struct.Struct("!Q")
_FDS = 3


class _Fork(popen_fork.Popen):
    """Forks as multiprocessing does, but with one pipe for all children instead of two for each.

    By it they know whether their parent lives. Those of its own would stay open in here, and each new process would
    inherit those of all before it.
    """

    lifeline: tuple[int, int] | None = None

    def _launch(self, process: Any) -> None:
        if _Fork.lifeline is None:
            _Fork.lifeline = os.pipe()
        self.sentinel, ours = _Fork.lifeline  # nobody waits for the sentinel: the fork server reaps all there is
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(ours)
                code = process._bootstrap(parent_sentinel=self.sentinel)  # noqa: SLF001
            finally:
                os._exit(code)


class Forked(multiprocessing.context.ForkProcess):
    """A multiprocessing process that ``_Fork`` makes."""

    _Popen = staticmethod(_Fork)


def start(process: BaseProcess) -> int:
    """Start ``process`` and return its pid.

    Signals are blocked in it: one that comes early must meet its own handlers, not ours. It lets them in when it has
    them.
    """
    block_signals()
    try:
        process.start()
    finally:
        unblock_signals()
    # multiprocessing would look after all its children at every start, and take their exit statuses from us.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # noqa: SLF001
    assert process.pid is not None
    return process.pid


class Spare:
    """A process that waits to be told what to become.

    ``prepare`` is called in it at once, ``become`` with what ``assign`` was given. It ends when its maker does.
    """

    def __init__(self, prepare: Callable[[], None], become: Callable[..., None]) -> None:
        self._ours, theirs = socket.socketpair()
        process = Forked(target=_wait, args=(self._ours, theirs, prepare, become), name="spare")
        try:
            self.pid = start(process)
        except OSError:
            self._ours.close()
            raise
        finally:
            theirs.close()

    def assign(self, tag: str, arguments: tuple[Any, ...], fds: list[int]) -> bool:
        """Have it call ``become(*arguments, *fds)`` under the name ``tag``; return False if it has died."""
        body = pickle.dumps((tag, arguments), 5)
        try:
            socket.send_fds(self._ours, [_SIZE.pack(len(body))], fds)
            self._ours.sendall(body)
        except OSError:
            return False
        finally:
            self._ours.close()
        return True

    def close(self) -> None:
        """Let it end."""
        self._ours.close()


def _wait(ours: socket.socket, theirs: socket.socket, prepare: Callable[[], None], become: Callable[..., None]) -> None:
    ours.close()
    prepare()
    header, fds, _, _ = socket.recv_fds(theirs, _SIZE.size, _FDS)
    if len(header) < _SIZE.size:
        os._exit(0)
    (size,) = _SIZE.unpack(header)
    body = bytearray()
    while len(body) < size:
        part = theirs.recv(size - len(body))
        if not part:
            os._exit(0)
        body += part
    theirs.close()
    tag, arguments = pickle.loads(body)
    multiprocessing.current_process().name = tag
    become(*arguments, *fds)
