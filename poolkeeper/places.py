"""Where homes are: the base folder, a folder for each name and run below it, and that they lie on this machine."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from . import logs
from .errors import HomeUnusable
from .filesystems import filesystem_type, is_network

__all__ = ["base_folder", "check_name", "default_base", "home_folder", "home_unusable", "local_base", "make_folders"]

LONGEST_NAME = 255
SHOWN = 40

_NAME = re.compile(r"[^/\0]+")
_moved: set[Path] = set()
"""Default bases of which it has been said that they are not used."""
_suspect: set[Path] = set()
"""Bases in a directory to which everybody may write."""


def default_base() -> Path:
    """Return the directory that holds the homes of all named keepers (XDG base directory specification)."""
    given = os.environ.get("POOLKEEPER_HOME")
    if given:
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "poolkeeper"


def base_folder(
    base: str | os.PathLike[str] | None,
    *,
    kind_of: Callable[[Path], str | None] = filesystem_type,
    elsewhere: Path | None = None,
) -> Path:
    """Return the directory that holds homes: ``base``, else the default one, on a filesystem of this machine.

    Args:
        base: as the user has said; None: $POOLKEEPER_HOME, or the default.
        kind_of: tells the type of the filesystem that a path lies on.
        elsewhere: what takes the place of a default that lies on the network; None: below /var/tmp.

    Raises:
        HomeUnusable: for a directory on the network that the user has chosen, and where ``elsewhere`` belongs to
            somebody else.
    """
    if base is not None:
        return local_base(base, kind_of=kind_of)
    if os.environ.get("POOLKEEPER_HOME"):
        return local_base(default_base(), kind_of=kind_of)
    default = default_base()
    kind = kind_of(default)
    if not is_network(kind):
        return default
    if elsewhere is None:
        elsewhere = Path(f"/var/tmp/poolkeeper-{os.getuid()}")  # noqa: S108  # only if it is ours
    _check_ours(elsewhere)
    if default not in _moved:
        _moved.add(default)
        logs.emit("WARNING", f"{default} is on a network filesystem ({kind}): homes are in {elsewhere} instead")
    return elsewhere


def local_base(base: str | os.PathLike[str], *, kind_of: Callable[[Path], str | None] = filesystem_type) -> Path:
    """Return ``base``, which the user has chosen, for whatever working directory a process may have.

    Raises HomeUnusable if it lies on the network.
    """
    path = Path(os.path.abspath(base))
    kind = kind_of(path)
    if is_network(kind):
        raise HomeUnusable(
            errno.EOPNOTSUPP,
            f"{path} is on a network filesystem ({kind}), where locks, sockets and the journal do not work; "
            "pass home=... or set POOLKEEPER_HOME to a directory on this machine",
        )
    return path


def home_folder(base: Path, name: str, run_id: str) -> Path:
    """Return the home of run ``run_id`` of ``name``; raises ValueError for what is no name of a directory."""
    return base / _checked("name", name) / _checked("run_id", run_id)


def make_folders(base: Path, folder: Path) -> None:
    """Create ``base`` and what is between it and ``folder``, which is below it, with mode 0700.

    Raises:
        OSError: where that cannot be done; HomeUnusable where the base below /var/tmp belongs to somebody else.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    base.mkdir(mode=0o700, exist_ok=True)
    if base in _suspect:
        _check_ours(base)  # once more: somebody else may have been faster
    path = base
    for part in folder.relative_to(base).parts:
        path /= part
        path.mkdir(mode=0o700, exist_ok=True)


def home_unusable(where: object, error: OSError) -> HomeUnusable:
    """Return the exception that tells the user what is wrong with ``where``, and the remedy."""
    return HomeUnusable(
        error.errno,
        f"the keeper cannot use {where} as its home: {error.strerror or error}; "
        "pass home=... or set POOLKEEPER_HOME to a directory that it may write to",
    )


def _check_ours(folder: Path) -> None:
    """Refuse a folder with a name that everybody can guess, in a place where everybody can create it, unless ours."""
    _suspect.add(folder)
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise HomeUnusable(
            errno.EPERM,
            f"{folder} is not a directory that only this user may write to; "
            "pass home=... or set POOLKEEPER_HOME to a directory on this machine",
        )


def _checked(what: str, name: str) -> str:
    try:
        check_name(name)
    except ValueError as error:
        shown = repr(name) if len(repr(name)) <= SHOWN else f"{repr(name)[:SHOWN]}..."
        raise ValueError(f"{what}={shown} {error}") from None
    return name


def check_name(name: object) -> None:
    """Raise ValueError, with the rest of a sentence, for what cannot name a home, or only with trouble."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (".", "..") or name.isspace():
        raise ValueError("must be a non-empty string without '/' or NUL, for it names a directory")
    if name.startswith("-"):
        raise ValueError("must not begin with '-', as an option does")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise ValueError(f"is too long: it names a directory, and may have {LONGEST_NAME} bytes")
