"""Shared memory for large messages: one recycled file in memory per message.

The sender copies the buffers of a message into an arena and passes the descriptor. The first time it does so with
``pwrite``, which fails with an error where memory is short. When the arena is used again its pages are there, and a
copy by way of a mapping takes less than half as long (measured: 6 ms against 16 for 64 MiB). The receiver maps it
copy-on-write, so that what arrives is writable and nobody else sees the writes, and closes the descriptor. When the
last view of the mapping is gone, it releases the arena by its number, and the sender writes the next message there.

Arenas have no names: they vanish with the last process that holds them.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count

from .page import anonymous_file

__all__ = ["ARENA_THRESHOLD", "Arena", "ArenaPool", "ReleaseQueue", "identity", "map_arena"]

ARENA_THRESHOLD = 1 << 16
"""Messages from this many bytes on travel in an arena."""

KEEP_BYTES = 1 << 29
KEEP_FILES = 16
"""What a pool keeps for recycling at most, for as long as it lives."""

LARGE_SECONDS = 1.0
"""For how long it keeps a block that is larger than that by itself: one message of gigabytes follows upon the other, or
the memory is needed elsewhere. *Measured*: 0.32 ms to fill each MiB of a new one, 0.1 of one that is used again."""

LENT_FILES = 64
"""Arenas lent out for which a pool keeps the descriptor; the receivers of older ones hold them alone."""

ALIGNMENT = 64

MAPPED_SIZE = 1 << 18
"""Smaller arenas are filled as fast without a mapping."""


class Arena:
    """One block: its descriptor, its size in bytes, and the number by which the receiver releases it.

    ``spent`` is one that is not to be used again, for it is not known who still reads it.
    """

    __slots__ = ("_address", "_identity", "_map", "fd", "id", "size", "spent")

    # From anywhere, so that a worker never takes one of this process for one that an earlier keeper has sent.
    _ids = count(int.from_bytes(os.urandom(5)))

    def __init__(self, fd: int, size: int) -> None:
        self.id = next(Arena._ids)
        self.fd = fd
        self.size = size
        self.spent = False
        self._address: int | None = None
        self._map: memoryview | None = None
        self._identity = identity(fd)

    @property
    def intact(self) -> bool:
        """Whether the descriptor is still ours: user code may have closed it, and opened a file of its own as that."""
        return self.fd >= 0 and identity(self.fd) == self._identity

    def fill(self, spans: list[tuple[int, int]], buffers: list[memoryview]) -> None:
        """Copy each of ``buffers`` to its (offset, length); raises OSError where memory is short."""
        if self._map is not None:
            for (offset, length), buffer in zip(spans, buffers, strict=True):
                self._map[offset : offset + length] = buffer
            return
        for (offset, length), buffer in zip(spans, buffers, strict=True):
            written = 0
            while written < length:
                written += os.pwrite(self.fd, buffer[written:], offset + written)

    def prepare(self) -> None:
        """Map the arena, where the system allows it: it is filled faster next time, and outlives its descriptor."""
        if self._map is None:
            memory = _get_memory()
            self._address = memory.map(self.fd, self.size, mmap.MAP_SHARED)
            if self._address is not None:
                self._map = memory.view(self._address, self.size)

    def restore(self, directory: str | None) -> None:
        """Move what a prepared arena holds to a new file, its descriptor being lost; raises OSError."""
        if self._map is None:
            raise OSError(errno.EBADF, "the descriptor of an arena was closed")
        fd = anonymous_file("poolkeeper-arena", directory)
        try:
            written = 0
            while written < self.size:
                written += os.pwrite(fd, self._map[written:], written)
        except BaseException:
            os.close(fd)
            raise
        self._unmap()
        self.fd = fd
        self._identity = identity(fd)

    def close(self) -> None:
        """Let go of the memory; receivers that have mapped it keep it."""
        self._unmap()
        if self.intact:
            os.close(self.fd)
        self.fd = -1

    def _unmap(self) -> None:
        self._map = None
        address, self._address = self._address, None
        if address is not None:
            _get_memory().munmap(address, self.size)


def identity(fd: int) -> tuple[int, int] | None:
    """Return what tells the file behind ``fd`` from others, None where it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def size_class(size: int) -> int:
    """Return ``size`` rounded up to a quarter of its power of two, so that blocks of like size can be recycled."""
    step = max(mmap.PAGESIZE, 1 << max(0, size.bit_length() - 3))
    return -(-size // step) * step


class ArenaPool:
    """The arenas of one sender: free ones by size, and those that receivers hold.

    Not thread-safe; the owner locks. ``directory`` is where files go on systems without memfd.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        self._free: dict[int, list[Arena]] = {}
        self._free_bytes = 0
        self._free_files = 0
        self._lent: OrderedDict[int, Arena] = OrderedDict()
        self._large: Arena | None = None
        self.trim_at: float | None = None
        """When ``trim`` has something to do, in seconds of the monotonic clock."""

    def write(self, buffers: list[memoryview]) -> tuple[Arena, list[tuple[int, int]]]:
        """Copy ``buffers`` into an arena; return it and the (offset, length) of each.

        Raises OSError (ENOSPC, ENOMEM, EMFILE) when the system gives no more.
        """
        spans: list[tuple[int, int]] = []
        position = 0
        for buffer in buffers:
            spans.append((position, buffer.nbytes))
            position += -(-buffer.nbytes // ALIGNMENT) * ALIGNMENT
        arena = self._take(size_class(max(position, 1)))
        try:
            arena.fill(spans, buffers)
        except BaseException:
            arena.close()
            raise
        return arena, spans

    def lend(self, arena: Arena) -> None:
        """Keep ``arena`` until the receiver releases it; beyond a number, let the receivers alone hold the oldest."""
        self._lent[arena.id] = arena

    def trim_lent(self, needed: set[int]) -> None:
        """Forget the oldest lent arenas beyond what may be kept, but none whose descriptor is still ``needed``."""
        if len(self._lent) <= LENT_FILES:
            return
        for arena in list(self._lent.values())[: len(self._lent) - LENT_FILES]:
            if arena.fd not in needed:
                del self._lent[arena.id]
                arena.close()

    def holds(self, fds: set[int]) -> bool:
        """Whether each of ``fds`` is the descriptor of an arena that is lent, and still open."""
        return fds <= {arena.fd for arena in self._lent.values() if arena.fd in fds and arena.intact}

    def size_of(self, fds: set[int]) -> int:
        """Return how many bytes the arenas hold that are lent with these descriptors."""
        return sum(arena.size for arena in self._lent.values() if arena.fd in fds)

    def restore(self, arena: Arena) -> None:
        """Give an arena a new descriptor; raises OSError where its content is lost, or the system gives no more."""
        arena.restore(self._directory)

    def released(self, id: int) -> None:
        """The receiver has no view of this arena any more."""
        arena = self._lent.pop(id, None)
        if arena is not None:
            self.recycle(arena)

    def reclaim(self, needed: set[int]) -> None:
        """Another receiver comes: let go of what the one before it held, but for what is still ``needed``, by fds.

        None of it is used again: the application may still read it, if its keeper was rebuilt in place.
        """
        for arena in list(self._lent.values()):
            arena.spent = True
            if arena.fd not in needed:
                self.released(arena.id)

    def recycle(self, arena: Arena) -> None:
        """Take back an arena that nobody sees any more."""
        if arena.fd < 0:
            return
        if arena.size > KEEP_BYTES and not arena.spent:
            self._keep_for_a_while(arena)
            return
        if arena.spent or self._free_bytes + arena.size > KEEP_BYTES or self._free_files >= KEEP_FILES:
            arena.close()
            return
        if arena.size >= MAPPED_SIZE:
            arena.prepare()
        self._free.setdefault(arena.size, []).append(arena)
        self._free_bytes += arena.size
        self._free_files += 1

    def _keep_for_a_while(self, arena: Arena) -> None:
        self._drop_large()
        arena.prepare()
        self._large = arena
        self.trim_at = time.monotonic() + LARGE_SECONDS

    def trim(self, now: float) -> None:
        """Give back a large block that nothing was written to for a while."""
        if self.trim_at is not None and now >= self.trim_at:
            self._drop_large()

    def _drop_large(self) -> None:
        large, self._large, self.trim_at = self._large, None, None
        if large is not None:
            large.close()

    def close(self) -> None:
        """Close all descriptors."""
        self._drop_large()
        for arenas in [*self._free.values(), list(self._lent.values())]:
            for arena in arenas:
                arena.close()
        self._free.clear()
        self._lent.clear()
        self._free_bytes = self._free_files = 0

    def _take(self, size: int) -> Arena:
        free = self._free.get(size)
        while free:
            self._free_bytes -= size
            self._free_files -= 1
            arena = free.pop()
            if arena.intact:
                return arena
            arena.close()
        large = self._large
        if large is not None and large.size == size and large.intact:
            self._large = self.trim_at = None
            return large
        fd = anonymous_file("poolkeeper-arena", self._directory)
        try:
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return Arena(fd, size)


class _Memory:
    """mmap by way of the C library: Python's own would keep a descriptor open for every mapping (until 3.13).

    That descriptor is closed by number in the end, whoever has it by then.
    """

    def __init__(self) -> None:
        import ctypes

        self.ctypes = ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        self._mmap = libc.mmap
        self._mmap.restype = ctypes.c_void_p
        self._mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.munmap = libc.munmap
        self.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def map(self, fd: int, size: int, flags: int = mmap.MAP_PRIVATE) -> int | None:
        """Return the address of a writable mapping, None where the system refuses one more."""
        address = self._mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
        return None if address in (None, self.ctypes.c_void_p(-1).value) else int(address)

    def view(self, address: int, size: int) -> memoryview:
        """Return a view of a mapping, which does not own it."""
        return memoryview((self.ctypes.c_ubyte * size).from_address(address)).cast("B")


_memory: _Memory | None = None


def _get_memory() -> _Memory:
    global _memory  # noqa: PLW0603 - ctypes takes 10 ms to load, so it is loaded with the first large message
    if _memory is None:
        _memory = _Memory()
    return _memory


def map_arena(fd: int, size: int, id: int, released: Callable[[int], None]) -> memoryview:
    """Map a received arena copy-on-write, close ``fd``, and call ``released(id)`` when no view of it is left.

    ``released`` may be called in any thread, at any moment; it must neither block nor lock. Where no more mappings
    are to be had, the content is copied and released at once.
    """
    memory = _get_memory()
    try:
        address = memory.map(fd, size)
        if address is None:
            content = bytearray(size)
            os.preadv(fd, [content], 0)
            released(id)
            return memoryview(content)
    finally:
        os.close(fd)
    block = (memory.ctypes.c_ubyte * size).from_address(address)
    # Not at interpreter exit: views may outlive this, and the kernel unmaps anyway.
    weakref.finalize(block, _unmap, memory.munmap, address, size, id, released).atexit = False
    return memoryview(block).cast("B")


def _unmap(
    munmap: Callable[[int, int], int], address: int, size: int, id: int, released: Callable[[int], None]
) -> None:
    munmap(address, size)
    released(id)


class ReleaseQueue:
    """Arena numbers released by finalizers, waiting for the owner's next message."""

    def __init__(self) -> None:
        self._ids: deque[int] = deque()

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, id: int) -> None:
        """Note a release; safe in any thread and in finalizers."""
        self._ids.append(id)

    def take(self) -> list[int]:
        """Return and forget what was released so far."""
        ids = []
        while self._ids:
            ids.append(self._ids.popleft())
        return ids
