"""Finding the home of the keeper that a person means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import PoolkeeperError
from .instance import InstanceLock
from .places import base_folder

__all__ = ["KeeperHome", "NoSuchFleet", "choose_home", "find_homes"]

_DIGEST = re.compile(r"(.+)-[0-9a-f]{8}")


class NoSuchFleet(PoolkeeperError):
    """It is not clear which fleet is meant; the message lists those that there are."""


@dataclass(frozen=True)
class KeeperHome:
    """The home of a named keeper; ``running`` is whether one holds its lock."""

    path: Path
    name: str
    run_id: str
    running: bool

    @property
    def title(self) -> str:
        """The name as a person would write it: without the digest by which two files of one fleet differ."""
        match = _DIGEST.fullmatch(self.name)
        return self.name if match is None else match[1]

    @property
    def label(self) -> str:
        """What to give to ``-F``."""
        return f"{self.name}/{self.run_id}"


def find_homes() -> list[KeeperHome]:
    """Return the homes of all keepers of this user, those that run first."""
    try:
        base = base_folder(None)
    except OSError:
        return []
    homes = [
        KeeperHome(lock.parent, lock.parent.parent.name, lock.parent.name, _is_running(lock.parent, base))
        for lock in sorted(base.glob("*/*/keeper.lock"))
    ]
    return sorted(homes, key=lambda home: not home.running)


def choose_home(wanted: str | None, homes: Iterable[KeeperHome]) -> KeeperHome:
    """Return the home that ``wanted`` means: ``FLEET`` or ``FLEET/RUN_ID``; None: the only one there is.

    Those that run are meant before those that do not. Raises NoSuchFleet where none fits, or several do.
    """
    known = list(homes)
    fits = known if wanted is None else [home for home in known if _fits(home, wanted)]
    running = [home for home in fits if home.running]
    candidates = running or fits
    if len(candidates) == 1:
        return candidates[0]
    listed = "".join(f"\n  {home.label}{'' if home.running else '  (not running)'}" for home in (candidates or known))
    if not known:
        raise NoSuchFleet("there is no fleet yet: start one by `poolkeeper run FILE`")
    if not candidates:
        raise NoSuchFleet(f"there is no fleet {wanted!r}; there are:{listed}")
    raise NoSuchFleet(f"several fleets fit; say which one by -F:{listed}")


def _fits(home: KeeperHome, wanted: str) -> bool:
    name, _, run_id = wanted.partition("/")
    return name in (home.name, home.title) and run_id in ("", home.run_id)


def _is_running(home: Path, base: Path) -> bool:
    try:
        return InstanceLock(home.parent.name, home.name, base).is_locked()
    except OSError:
        return False
