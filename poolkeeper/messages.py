"""The messages inside DATA frames. A frame carries a list of them; each is a tuple that opens with its kind.

Keeper to worker:

- ``(DEFINE, call, name, pickled callable, sys.path or None)``
- ``(TASKS, first index, call, payloads, infos or None)``: consecutive indices; an info is ``(key, attempt)``
- ``(CHUNK, index, call, payload of the items, plain, starred, careful)``
- ``(RELEASE, arenas)``: the keeper has no view of them any more
- ``(RETIRE,)``: leave when all before this is done

Worker to keeper:

- ``(RESULTS, first index, codes or None, values, seconds)``: consecutive indices, their total run time
- ``(CHUNK_RESULT, index, codes or None, values, seconds)``: no codes: a list of plain values, or one payload
- ``(RELEASE, arenas)``
- ``(PROGRESS, index, done, total)``
- ``(STARTED,)``, ``(START_FAILED, why)``: how the initializer went
- ``(RECYCLE, why)``: the worker asks to be replaced
- ``(LEAVING,)``

Keeper to fork server: ``(SPAWN, worker, slot)`` with the page's descriptor beside the frame.
Fork server to keeper: ``(SPAWNED, worker, pid)``, ``(SPAWN_FAILED, worker, why)``,
``(EXITED, worker, exit code, peak memory in bytes)``, ``(NOTICE, text)``.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

__all__ = ["Kind", "pack", "unpack"]


class Kind(IntEnum):
    """What a message is."""

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
    LEAVING = 12
    SPAWN = 13
    SPAWNED = 14
    SPAWN_FAILED = 15
    EXITED = 16
    NOTICE = 17


def pack(messages: Sequence[tuple[Any, ...]]) -> bytes:
    """Return the body of a DATA frame."""
    return pickle.dumps(messages, 5)


def unpack(body: bytes | memoryview) -> list[tuple[Any, ...]]:
    """Return the messages of a DATA frame. Only for frames of a peer that has authenticated."""
    return pickle.loads(body)  # type: ignore[no-any-return]
