"""Where homes are: what the user has chosen is taken or refused, a default may move."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from poolkeeper.errors import HomeUnusable
from poolkeeper.places import base_folder, home_folder, local_base, make_folders


def nfs(path: Path) -> str:
    return "nfs4"


def local(path: Path) -> str:
    return "ext4"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POOLKEEPER_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_what_the_user_has_chosen_is_refused_on_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_folder(tmp_path, kind_of=local) == tmp_path
    with pytest.raises(HomeUnusable, match=r"network filesystem \(nfs4\).*pass home="):
        base_folder(tmp_path, kind_of=nfs)
    with pytest.raises(HomeUnusable):
        local_base(tmp_path, kind_of=nfs)
    monkeypatch.setenv("POOLKEEPER_HOME", str(tmp_path))
    assert base_folder(None, kind_of=local) == tmp_path
    with pytest.raises(HomeUnusable):
        base_folder(None, kind_of=nfs)


def test_a_default_moves(tmp_path: Path) -> None:
    assert base_folder(None, kind_of=local) == tmp_path / "state" / "poolkeeper"
    assert base_folder(None, kind_of=nfs) == Path(f"/var/tmp/poolkeeper-{os.getuid()}")
    elsewhere = tmp_path / "elsewhere"
    for _ in range(2):
        assert base_folder(None, kind_of=nfs, elsewhere=elsewhere) == elsewhere
        make_folders(elsewhere, home_folder(elsewhere, "etl", "default"))
    for path in (elsewhere, elsewhere / "etl", elsewhere / "etl" / "default"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_it_does_not_move_to_where_others_can_write(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    base_folder(None, kind_of=nfs, elsewhere=elsewhere)
    elsewhere.mkdir()
    elsewhere.chmod(0o777)
    with pytest.raises(HomeUnusable, match="only this user"):
        make_folders(elsewhere, elsewhere / "etl" / "default")
    assert not (elsewhere / "etl").exists()
    with pytest.raises(HomeUnusable):
        base_folder(None, kind_of=nfs, elsewhere=elsewhere)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(HomeUnusable):
        base_folder(None, kind_of=nfs, elsewhere=link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_it_does_not_move_to_what_belongs_to_somebody_else(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    os.chown(elsewhere, 65534, 65534)
    with pytest.raises(HomeUnusable):
        base_folder(None, kind_of=nfs, elsewhere=elsewhere)


@pytest.mark.parametrize("name", ["", ".", "..", " ", "\t\n", "a/b", "/", "a\0b", None, 7, b"x"])
def test_names_that_are_none(name: str) -> None:
    for names in ((name, "default"), ("etl", name)):
        with pytest.raises(ValueError, match="must be a non-empty string"):
            home_folder(Path("/x"), *names)


def test_names_that_would_make_trouble_say_why() -> None:
    for names in (("-rf", "default"), ("etl", "-rf")):
        with pytest.raises(ValueError, match="'-rf' must not begin with '-'"):
            home_folder(Path("/x"), *names)
    for name in ("x" * 256, "ä" * 128):
        with pytest.raises(ValueError, match=rf"name='{name[:39]}\.\.\. is too long: .* 255 bytes"):
            home_folder(Path("/x"), name, "default")


def test_names(tmp_path: Path) -> None:
    for name in ("etl", "...", "with blank", "naïve", "x" * 255):
        folder = home_folder(tmp_path, name, "default")
        make_folders(tmp_path, folder)
        assert folder.is_dir()
