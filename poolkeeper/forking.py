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
import sys
from collections.abc import Callable
from multiprocessing.util import _flush_std_streams  # type: ignore[attr-defined]
from typing import Any, NoReturn, TextIO

from .process_setup import block_signals, unblock_signals

__all__ = ["Spare", "start"]

_SIZE = struct.Struct("!Q")
_FDS = 3
_USUAL = 1 << 14


class _Forked(multiprocessing.context.ForkProcess):
    """What multiprocessing says of a process of ours: its name, its parent, its number among its siblings."""

    lifeline: tuple[int, int] | None = None
    """One pipe for all, in the place of multiprocessing's two for each: by it they know whether their parent lives.

    Those of its own would stay open in here, and each new process would inherit those of all before it.
    """
    stdin: TextIO | None = None
    """What all read: nothing. Multiprocessing would open another one in each."""

    def run(self) -> None:
        """Do what the process is for."""
        sys.stdin = self.stdin
        super().run()


def start(name: str, target: Callable[..., None], arguments: tuple[Any, ...]) -> int:
    """Have ``target(*arguments)`` run in a new process as multiprocessing would, and return its pid; raises OSError.

    Signals are blocked in it: one that comes early must meet its own handlers, not ours. It lets them in when it has
    them. Multiprocessing's own start would look after all its children at each one, take their exit statuses from us,
    and write to pages that a fork leaves to be copied again.
    """
    if _Forked.lifeline is None:
        _Forked.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for all children
        _Forked.lifeline = os.pipe()
    process = _Forked(target=target, args=arguments, name=name)
    _flush_std_streams()  # or the child would write it, too
    block_signals()
    try:
        pid = os.fork()
        if pid == 0:
            _be(process, *_Forked.lifeline)
    finally:
        unblock_signals()
    return pid


def _be(process: Any, sentinel: int, ours: int) -> NoReturn:
    code = 1
    try:
        os.close(ours)
        sys.stdin = None  # or it would be closed
        code = process._bootstrap(parent_sentinel=sentinel)  # noqa: SLF001
    finally:
        os._exit(code)


class Spare:
    """A process that waits to be told what to become.

    ``prepare`` is called in it at once, ``become`` with what ``assign`` was given. It ends when its maker does.
    """

    def __init__(self, prepare: Callable[[], None], become: Callable[..., None]) -> None:
        self._ours, theirs = socket.socketpair()
        try:
            self.pid = start("spare", _wait, (self._ours, theirs, prepare, become))
        except OSError:
            self._ours.close()
            raise
        finally:
            theirs.close()

    def assign(self, tag: str, arguments: tuple[Any, ...], fds: list[int]) -> bool:
        """Have it call ``become(*arguments, *fds)`` under the name ``tag``; return False if it has died."""
        body = pickle.dumps((tag, arguments), 5)
        body = _SIZE.pack(len(body)) + body
        try:
            sent = socket.send_fds(self._ours, [body], fds)
            if sent < len(body):
                self._ours.sendall(memoryview(body)[sent:])
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
    told, fds, _, _ = socket.recv_fds(theirs, _USUAL, _FDS)
    body = bytearray(told)
    while len(body) < _SIZE.size or len(body) < _SIZE.size + _SIZE.unpack_from(body)[0]:
        part = theirs.recv(_USUAL)
        if not part:
            os._exit(0)
        body += part
    theirs.close()
    tag, arguments = pickle.loads(memoryview(body)[_SIZE.size :])
    multiprocessing.current_process().name = tag
    become(*arguments, *fds)
