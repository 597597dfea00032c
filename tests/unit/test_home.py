"""The key of a home: kept from one keeper of a name to the next, unless somebody else may know it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from poolkeeper.errors import HomeUnusable
from poolkeeper.home import Home


def key_of(base: Path, name: str | None = "etl") -> bytes:
    home = Home.open(name, "default", base)
    try:
        path = home.path / "authkey"
        assert path.read_bytes() == home.key
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_ISREG(path.lstat().st_mode)
        assert len(home.key) == 32
        assert sorted(found.name for found in home.path.iterdir() if found.name.startswith("authkey")) == ["authkey"]
        return home.key
    finally:
        home.remove()


def test_the_key_of_a_named_home_stays(tmp_path: Path) -> None:
    assert key_of(tmp_path) == key_of(tmp_path)
    assert key_of(tmp_path) != key_of(tmp_path, "other")
    assert key_of(tmp_path, None) != key_of(tmp_path, None)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.chmod(0o644),
        lambda path: path.write_bytes(bytes(31)),
        lambda path: path.write_bytes(bytes(33)),
        lambda path: path.unlink(),
        replace_by_link,
        replace_by_fifo,
    ],
)
def test_a_key_that_may_be_known_is_replaced(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    before = key_of(tmp_path)
    spoil(tmp_path / "etl" / "default" / "authkey")
    after = key_of(tmp_path)
    assert after != before
    assert key_of(tmp_path) == after


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_key_of_another_user_is_replaced(tmp_path: Path) -> None:
    before = key_of(tmp_path)
    os.chown(tmp_path / "etl" / "default" / "authkey", 12345, -1)
    assert key_of(tmp_path) != before


@pytest.mark.parametrize("take", [Path.touch, lambda path: path.symlink_to("/nowhere"), os.mkfifo])
def test_whatever_has_the_name_of_the_socket_is_removed(tmp_path: Path, take: Callable[[Path], object]) -> None:
    key_of(tmp_path)
    path = tmp_path / "etl" / "default" / "keeper.sock"
    take(path)
    key_of(tmp_path)
    assert not os.path.lexists(path)


def test_a_directory_with_the_name_of_the_socket_is_left_alone_and_named(tmp_path: Path) -> None:
    key_of(tmp_path)
    path = tmp_path / "etl" / "default" / "keeper.sock"
    path.mkdir()
    for _ in range(2):  # the lock is free again
        with pytest.raises(HomeUnusable, match=r"default/keeper\.sock, where .* move it away"):
            key_of(tmp_path)
    path.rmdir()
    key_of(tmp_path)
