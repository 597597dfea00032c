"""Other versions of poolkeeper: copies of the package that differ in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import poolkeeper
from poolkeeper.versions import PROTOCOL

__all__ = ["copy_of_this_version", "next_version", "upgrade"]

PACKAGE = Path(poolkeeper.__file__).parent

NEXT_PROTOCOL = PROTOCOL + 1


def next_version(folder: Path) -> Path:
    """Make the package of a version whose protocol is another, and return the folder that it is to be found in."""
    return upgrade(copy_of_this_version(folder))


def copy_of_this_version(folder: Path) -> Path:
    """Return a folder for a copy of the package."""
    shutil.copytree(PACKAGE, folder / "poolkeeper")
    return folder


def upgrade(folder: Path) -> Path:
    """Make of a copy the next version."""
    path = folder / "poolkeeper" / "versions.py"
    source = path.read_text()
    assert source.count(f"PROTOCOL = {PROTOCOL}\n") == 1
    path.write_text(source.replace(f"PROTOCOL = {PROTOCOL}\n", f"PROTOCOL = {NEXT_PROTOCOL}\n"))
    return folder
