"""Arenas whose descriptors user code closes, and opens files of its own in their place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkeeper.arena import MAPPED_SIZE, Arena, ArenaPool


@pytest.fixture
def pool() -> Iterator[ArenaPool]:
    pool = ArenaPool()
    yield pool
    pool.close()


def filled(pool: ArenaPool, size: int) -> Arena:
    arena, _ = pool.write([memoryview(b"x" * size)])
    return arena


def take_number(fd: int, path: Path) -> None:
    """Close ``fd`` behind its owner's back, and open a file as that number."""
    other = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(other, fd)
    os.close(other)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_prepared_arena_holds_no_second_descriptor(pool: ArenaPool) -> None:
    arena = filled(pool, MAPPED_SIZE)
    before = open_descriptors()
    arena.prepare()
    assert open_descriptors() == before
    arena.close()
    assert open_descriptors() == before - 1


def test_what_was_recycled_is_filled_with_new_content(pool: ArenaPool) -> None:
    arena = filled(pool, MAPPED_SIZE)
    pool.recycle(arena)
    again, spans = pool.write([memoryview(b"y" * MAPPED_SIZE)])
    assert again is arena
    assert os.pread(again.fd, MAPPED_SIZE + 1, spans[0][0]) == b"y" * MAPPED_SIZE
    again.close()


def test_one_that_is_larger_than_what_is_kept_is_kept_for_a_while(
    pool: ArenaPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkeeper.arena.KEEP_BYTES", MAPPED_SIZE - 1)
    before = open_descriptors()
    first = filled(pool, MAPPED_SIZE)
    pool.recycle(first)
    assert filled(pool, MAPPED_SIZE) is first
    assert pool.trim_at is None
    pool.recycle(first)
    assert pool.trim_at is not None
    other = filled(pool, 2 * MAPPED_SIZE)
    pool.recycle(other)
    assert first.fd == -1, "one is enough"
    pool.trim(pool.trim_at - 0.1)
    assert other.intact
    pool.trim(pool.trim_at)
    assert (other.fd, pool.trim_at, open_descriptors()) == (-1, None, before)


def test_a_prepared_arena_outlives_its_descriptor(pool: ArenaPool, tmp_path: Path) -> None:
    arena = filled(pool, 100_000)
    arena.prepare()
    stolen = arena.fd
    take_number(stolen, tmp_path / "file")
    assert not arena.intact
    pool.restore(arena)
    assert arena.intact
    assert os.pread(arena.fd, 100_000, 0) == b"x" * 100_000
    arena.close()
    os.close(stolen)  # it was left alone
    assert (tmp_path / "file").stat().st_size == 0


def test_an_arena_that_is_not_prepared_is_lost_with_its_descriptor(pool: ArenaPool) -> None:
    arena = filled(pool, 100_000)
    os.close(arena.fd)
    with pytest.raises(OSError, match="was closed"):
        pool.restore(arena)


def test_a_pool_knows_which_descriptors_are_its_own(pool: ArenaPool, tmp_path: Path) -> None:
    arenas = [filled(pool, 100_000) for _ in range(2)]
    fds = {arena.fd for arena in arenas}
    assert not pool.holds(fds)
    for arena in arenas:
        pool.lend(arena)
    assert pool.holds(fds)
    assert pool.holds(set())
    take_number(arenas[1].fd, tmp_path / "file")
    assert not pool.holds(fds)
    assert pool.holds({arenas[0].fd})
    os.close(arenas[1].fd)


def test_what_another_receiver_may_still_read_is_not_used_again() -> None:
    pool = ArenaPool()
    gone, needed = (pool.write([memoryview(bytes([number]) * 100)])[0] for number in range(2))
    for arena in (gone, needed):
        pool.lend(arena)
    pool.reclaim({needed.fd})
    assert gone.fd == -1
    pool.released(needed.id)
    assert needed.fd == -1
    pool.close()
