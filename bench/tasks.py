"""The task functions, in a module of their own: workers of every start method can import it."""

from __future__ import annotations

import os
import struct
import time

TYPE_CHECKING = False  # as in typing, whose import would weigh on the peers that import this for each process
if TYPE_CHECKING:
    from typing import Any

    import numpy as np

BELL_RECORD = struct.Struct("qq")  # monotonic time in ns, pid
LEDGER_RECORD = struct.Struct("qq")  # index of the task, pid

LARGE_ARRAYS: dict[int, np.ndarray] = {}


def noop(_: object = None) -> None:
    """Do nothing."""


def increment(number: int) -> int:
    """Do next to nothing, with an argument and a result."""
    return number + 1


def hold(bell: str, gate: str) -> int:
    """Ring the bell at the first line, then wait until the gate is opened."""
    now = time.monotonic_ns()
    pid = os.getpid()
    descriptor = os.open(bell, os.O_WRONLY)
    os.write(descriptor, BELL_RECORD.pack(now, pid))
    os.close(descriptor)
    os.close(os.open(gate, os.O_RDONLY))  # the opening blocks until there is a writer
    return pid


def brief(ledger: str, index: int) -> int:
    """Sign the ledger, then take 2 ms."""
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, LEDGER_RECORD.pack(index, os.getpid()))
    os.close(descriptor)
    time.sleep(0.002)
    return index


def ends(array: np.ndarray) -> float:
    """Take a large array, return a small answer."""
    return float(array[0] + array[-1])


def large_array(length: int) -> np.ndarray:
    """Return a large array; made once per worker, so that only its way back is measured."""
    if length not in LARGE_ARRAYS:
        import numpy as np

        LARGE_ARRAYS[length] = np.arange(length, dtype=np.float64)
    return LARGE_ARRAYS[length]


def save_states(size: int, times: int, as_array: bool) -> tuple[list[float], list[float]]:
    """Save a state of random bytes again and again; return the seconds that each took, and each way back."""
    from poolkeeper import context

    state: Any = os.urandom(size)
    if as_array:
        import numpy as np

        state = np.frombuffer(state, dtype=np.uint8).copy()
    mine = context()
    saved, restored = [], []
    for _ in range(times):
        began = time.perf_counter()
        assert mine.checkpoint(state)
        middle = time.perf_counter()
        mine.restore()
        saved.append(middle - began)
        restored.append(time.perf_counter() - middle)
    return saved, restored
