"""Other versions of poolkeeper: copies of the package that differ in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import poolkeeper
from poolkeeper.versions import PROTOCOL

__all__ = ["NEXT_PROTOCOL", "next_version"]

PACKAGE = Path(poolkeeper.__file__).parent

NEXT_PROTOCOL = PROTOCOL + 1


def next_version(folder: Path) -> Path:
    """Make the package of a version whose protocol is another, and return the folder that it is to be found in."""
    shutil.copytree(PACKAGE, folder / "poolkeeper")
    path = folder / "poolkeeper" / "versions.py"
    source = path.read_text()
    assert source.count(f"PROTOCOL = {PROTOCOL}\n") == 1
    path.write_text(source.replace(f"PROTOCOL = {PROTOCOL}\n", f"PROTOCOL = {NEXT_PROTOCOL}\n"))
    return folder
