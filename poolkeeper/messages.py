"""The messages inside DATA frames. A frame carries a list of them; each is a tuple that opens with its kind.

Keeper to worker:

- ``(DEFINE, call, name, pickled callable, sys.path or None)``
- ``(TASKS, first index, call, payloads, infos or None)``: consecutive indices; an info is
  ``(key, attempt, origin, claim)``, where the origin is that of ``ledger.Task``, and the claim is what a later keeper
  knows the task by, None where it cannot
- ``(CHUNK, index, call, payload of the items, plain, starred, careful, attempt, (number of the map, first position))``
- ``(RELEASE, arenas)``: the keeper has no view of them any more
- ``(RETIRE,)``: leave when all before this is done

Worker to keeper:

- ``(RESULTS, first index, codes or None, values, seconds)``: consecutive indices, their total run time
- ``(CHUNK_RESULT, index, codes or None, values, seconds)``: no codes: a list of plain values, or one payload
- ``(RELEASE, arenas)``
- ``(PROGRESS, index, done, total)``
- ``(STARTED,)``, ``(START_FAILED, why)``: how the initializer went
- ``(RECYCLE, why)``: the worker asks to be replaced
- ``(NOTICE, text)``: what the user should know, as from services and the fork server

Worker to a keeper that has not made it, in an ATTACH frame with the descriptor of its page (none: it is lost)::

    {"id", "birth", "slot": as the earlier keeper has made it, "base": index of the first task that is not acknowledged,
     "held": [(call's name, attempt, claim) or None, ...] from there on, "started": whether it has been initialized,
     "recycling": whether it has asked to be replaced, "sources": see ``sources``}

Service to keeper: ``(HERE, pid)`` over the link that it is born with, ``(STARTED,)`` before the callable is called,
``(READY,)``, ``(STATUS, text)``, ``(PROGRESS, 0, done, total)``, ``(LAST_WORDS, reason, message, detail)``. It is told
nothing: a signal stops it.

Keeper to fork server: ``(SPAWN, ticket, tag, role, arguments)`` with two descriptors beside the frame, the page and the
link; ``(FAREWELL,)``: end, and all that is left with it (a link that ends without that is a keeper that was lost);
``(ADOPT, authkey)``: from a keeper that has taken over, multiprocessing's key for the processes to come; ``(LISTEN,)``
with the descriptor of the keeper's notification socket, to be read when the keeper is lost.
Fork server to keeper: ``(SPAWNED, ticket, pid, whether the process has the link: else it calls)``,
``(SPAWN_FAILED, ticket, why)``,
``(EXITED, ticket, tag, pid, exit code, peak memory in bytes)``, ``(NOTICE, text)``, ``(SAID, ancestry, ready, status)``
for what has come over the notification socket of a lost keeper, ``(LOADED, sources)`` after the preload; in an ATTACH
frame
``{"children": [(tag, role, pid, ticket), ...], "digest": what it was started with, "sources": see ``sources``}``.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["WINDOW_LIMIT", "Code", "Kind", "Progress", "pack", "unpack"]


class Kind:
    """What a message is: a plain number, as the member of an enum would be pickled by its name.

    *Measured* for a task with its arguments: packed in 0.5 µs and unpacked in 0.6, by name in 1.9 and 1.9.
    """

    DEFINE = 1
    TASKS = 2
    CHUNK = 3
    RELEASE = 4
    RETIRE = 5
    RESULTS = 6
    CHUNK_RESULT = 7
    PROGRESS = 8
    STARTED = 9
    START_FAILED = 10
    RECYCLE = 11
    HERE = 12
    SPAWN = 13
    SPAWNED = 14
    SPAWN_FAILED = 15
    EXITED = 16
    NOTICE = 17
    READY = 18
    STATUS = 19
    LAST_WORDS = 20
    REQUEST = 21
    REPLY = 22
    FAREWELL = 23
    ADOPT = 24
    LISTEN = 25
    SAID = 26
    LOADED = 27
    UNPICKLE = 28


WINDOW_LIMIT = 2048
"""Tasks fed ahead at most; the page has two revocation marks for each, so that marks are never reused too early."""


class Code:
    """How a value travels in a result: as itself, pickled, in an arena, or as an exception. Numbers, as in ``Kind``."""

    VALUE = 0
    PICKLED = 1
    ARENA = 2
    EXCEPTION = 3
    SKIPPED = 4


class Progress(NamedTuple):
    """What a worker's page says: index started last, index finished last, item within a careful chunk, start time."""

    started: int
    finished: int
    item: int
    started_at: float

    @property
    def executing(self) -> int | None:
        """The index that is being executed."""
        return self.started if self.started > self.finished else None


def pack(messages: Sequence[Any]) -> bytes:
    """Return the body of a DATA frame; that of an ATTACH frame is a list of one dict."""
    return pickle.dumps(messages, 5)


def unpack(body: bytes | memoryview) -> list[Any]:
    """Return what ``pack`` was given. Only for frames of a peer that has authenticated."""
    return pickle.loads(body)  # type: ignore[no-any-return]
