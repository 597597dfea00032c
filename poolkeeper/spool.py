"""Payloads that wait on disk because what is queued would exceed the memory bound."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

from .arena import ARENA_THRESHOLD, ArenaPool
from .payload import Large, to_arena

__all__ = ["Ballast", "Counted", "Spilled", "Stowage"]

COUNTED_BYTES = 4096
"""Smaller payloads are not worth a place on disk; the futures that wait for them weigh as much."""

QUEUED_ARENAS = 256
"""Arenas, and so descriptors, that queued payloads may hold at once."""


class Counted:
    """A pickle in memory that is heavy enough to be counted."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Spool:
    """One unnamed file into which payloads are written one behind the other; emptied when none is left in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._fd = -1
        self._end = 0
        self._live = 0

    def write(self, parts: list[memoryview]) -> Spilled:
        """Append ``parts``; raises OSError when the disk is full."""
        with self._lock:
            if self._fd < 0:
                import tempfile

                with tempfile.TemporaryFile(prefix="spool-", dir=self._directory) as file:
                    self._fd = os.dup(file.fileno())
            offset = self._end
            lengths = []
            for part in parts:
                written = 0
                while written < part.nbytes:
                    written += os.pwrite(self._fd, part[written:], self._end + written)
                self._end += part.nbytes
                lengths.append(part.nbytes)
            self._live += 1
        return Spilled(self, offset, lengths)

    def read(self, offset: int, length: int) -> bytes:
        """Return what was written there."""
        parts = []
        while length:
            part = os.pread(self._fd, length, offset)
            if not part:
                raise OSError("the spool file is shorter than what was written to it")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def dropped(self) -> None:
        """One payload is not needed any more."""
        with self._lock:
            self._live -= 1
            if not self._live and self._fd >= 0:
                self._end = 0
                os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Give the disk space back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Spilled:
    """A payload in the spool: a pickle, and the buffers beside it."""

    __slots__ = ("_lengths", "_offset", "_spool")

    def __init__(self, spool: Spool, offset: int, lengths: list[int]) -> None:
        self._spool = spool
        self._offset = offset
        self._lengths = lengths

    def load(self, arenas: ArenaPool) -> bytes | Large:
        """Return the pickle, or an arena with the pickle and its buffers."""
        offset = self._offset
        parts = []
        for length in self._lengths:
            parts.append(self._spool.read(offset, length))
            offset += length
        if len(parts) == 1 and len(parts[0]) < ARENA_THRESHOLD:
            return parts[0]
        arena, spans = arenas.write([memoryview(part) for part in parts])
        return Large(arena, None, spans)

    def drop(self) -> None:
        """The task has ended."""
        self._spool.dropped()


class Ballast:
    """Counts what queued payloads weigh, and says when the next one belongs on disk. Thread-safe."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._lock = threading.Lock()
        self.bytes = 0
        self.arenas = 0

    def admits(self, size: int, arena: bool) -> bool:
        """Take ``size`` bytes on board, or refuse."""
        with self._lock:
            if self.bytes + size > self._bound or (arena and self.arenas >= QUEUED_ARENAS):
                return False
            self.bytes += size
            self.arenas += arena
            return True

    def leave(self, size: int, arena: bool) -> None:
        """``size`` bytes are not queued any more."""
        with self._lock:
            self.bytes -= size
            self.arenas -= arena


class Stowage:
    """Where pickled arguments wait for a worker: in memory while there is room, else on disk. Thread-safe."""

    def __init__(self, directory: Path, bound: int) -> None:
        self.arenas = ArenaPool(str(directory))
        self._ballast = Ballast(bound)
        self._spool = Spool(directory)
        self._lock = threading.Lock()

    def stow(self, data: bytes, buffers: list[PickleBuffer]) -> Any:
        """Return a payload for a pickle and its buffers; raises OSError when neither memory nor disk has room."""
        size = len(data) + sum(buffer.raw().nbytes for buffer in buffers)
        if size < COUNTED_BYTES:
            return data
        large = bool(buffers) or len(data) >= ARENA_THRESHOLD
        if not self._ballast.admits(size, large):
            return self._spool.write([memoryview(data), *(buffer.raw() for buffer in buffers)])
        if not large:
            return Counted(data)
        with self._lock:
            payload = to_arena(data, buffers, self.arenas)
        payload.weight = size
        return payload

    def load(self, payload: Spilled) -> bytes | Large:
        """Bring a payload back from disk to be fed."""
        with self._lock:
            return payload.load(self.arenas)

    def drop(self, payload: Any) -> None:
        """The task has ended and will not be fed again."""
        kind = type(payload)
        if kind is Counted:
            self._ballast.leave(len(payload.data), False)
        elif kind is Spilled:
            payload.drop()
        elif kind is Large:
            payload.settled = True
            self._ballast.leave(payload.weight, True)
            self.recycle(payload)

    def recycle(self, payload: Large) -> None:
        """Reuse the arena of a payload that neither the queue nor a worker needs."""
        if payload.settled and not payload.holders:
            with self._lock:
                self.arenas.recycle(payload.arena)

    @property
    def trim_at(self) -> float | None:
        """When ``trim`` has something to do, in seconds of the monotonic clock."""
        return self.arenas.trim_at

    def trim(self, now: float) -> None:
        """Give back what was kept for arguments that might have followed."""
        if self.arenas.trim_at is not None:
            with self._lock:
                self.arenas.trim(now)

    def forsake(self, payload: Large) -> None:
        """A worker has this payload, and it will not be heard when it lets go of it: the arena is not used again."""
        payload.arena.spent = True
        payload.holders -= 1
        self.recycle(payload)

    def close(self) -> None:
        """Give memory and disk back."""
        with self._lock:
            self.arenas.close()
        self._spool.close()
