"""Whether a process can ever be found by a later keeper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from poolkeeper.belonging import HOMELESS_SECONDS, grace_of, has_home
from poolkeeper.worker_config import WorkerConfig

KEY = b"k" * 32


def nothing(home: Path) -> None:
    pass


def another_key(home: Path) -> None:
    (home / "authkey").write_bytes(b"o" * 32)


def no_key(home: Path) -> None:
    (home / "authkey").unlink()


def no_home(home: Path) -> None:
    no_key(home)
    home.rmdir()


def a_file(home: Path) -> None:
    no_home(home)
    home.touch()


def unreadable(home: Path) -> None:
    no_key(home)
    (home / "authkey").mkdir()


@pytest.mark.parametrize("becomes", [nothing, another_key, no_key, no_home, a_file, unreadable])
def test_who_has_no_home_does_not_wait_for_long(tmp_path: Path, becomes: Callable[[Path], None]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "authkey").write_bytes(KEY)
    config = WorkerConfig("", KEY, "", arena_directory=str(home), orphan_grace=300.0)
    becomes(home)
    assert has_home(config) == (becomes in (nothing, unreadable))
    assert grace_of(config) == (300.0 if has_home(config) else HOMELESS_SECONDS)
    assert grace_of(config._replace(orphan_grace=1.0)) == 1.0
