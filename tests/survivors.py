"""A keeper that a test kills, the processes that it leaves behind, and the next keeper."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from poolkeeper import Keeper
from poolkeeper.pidfile import ChildRecord, PidfileError, read_pidfile, survivors

from . import tasks
from .helpers import PATIENCE, wait_until
from .scripts import start_script

__all__ = ["LOST", "Lost", "end_survivors", "results", "survivors_in"]


def survivors_in(home: Path) -> tuple[ChildRecord, ...]:
    """Return what lives on of the keeper whose home this is."""
    try:
        return survivors(read_pidfile(home / "keeper.pid"))
    except (FileNotFoundError, PidfileError):
        return ()


def end_survivors(home: Path) -> None:
    """Kill what lives on, as a power failure would.

    Fork servers end by themselves, with all that they have made: the pidfile may not tell of all of it yet.
    """
    for child in survivors_in(home):
        child.identity.signal(signal.SIGTERM if child.role == "forkserver" else signal.SIGKILL)
    wait_until(lambda: not survivors_in(home))


LOST = """
    import sys, json
    from poolkeeper import Keeper
    from tests import tasks

    folder, name, first, items, options = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
    with Keeper(**{"max_workers": 2, "name": "lost", "home": folder + "/home", **options}) as keeper:
        task, view = getattr(tasks, name), keeper.options(key=lambda folder, item: str(item))
        for item in first:
            view.submit(task, folder, item).result()
        futures = [view.submit(task, folder, item) for item in items]
        print([future.result() for future in futures])
"""


class Lost:
    """A keeper that is killed while its workers stand before closed gates, each in a ``task`` of ``tests.tasks``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home" / "lost" / "default"
        self.task = "note_and_pass_gate"

    def begin(
        self, items: list[Any], started: int = 2, first: Sequence[Any] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """Return a keeper that is at work on ``items``, and has done the ``first`` ones one by one."""
        words = [self.folder, self.task, *map(json.dumps, (first, items, options))]
        process = start_script(self.folder, LOST, *words)
        wait_until(lambda: sum(self.ran.values()) >= len(first) + started, "the first tasks run")
        wait_until(lambda: len(self.workers) >= started, "the pidfile says so")
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a keeper."""
        process.kill()
        process.communicate(timeout=PATIENCE)

    def open(self, *items: object) -> None:
        """Let these tasks come to their end."""
        for item in items:
            (self.folder / f"gate-{item}").touch()

    @property
    def ran(self) -> Counter[str]:
        """How often each task has been executed."""
        lines = [path.read_text().split() for path in self.folder.glob("ran-*")]
        return Counter(word for words in lines for word in words)

    def worker_at(self, item: object) -> int:
        """The pid of the only worker that has executed ``item``."""
        (path,) = [path for path in self.folder.glob("ran-*") if str(item) in path.read_text().split()]
        return int(path.name.removeprefix("ran-"))

    @property
    def recorded(self) -> int:
        """How many outcomes the journal has."""
        with closing(sqlite3.connect(self.home / "journal.db")) as journal:
            return sum(count for (count,) in journal.execute("SELECT count FROM groups"))

    @property
    def workers(self) -> list[int]:
        """The pids of the workers that live."""
        return [child.identity.pid for child in survivors_in(self.home) if child.role == "worker"]

    @property
    def servers(self) -> set[int]:
        """The pids of the fork servers that live."""
        return {child.identity.pid for child in survivors_in(self.home) if child.role == "forkserver"}

    @property
    def server(self) -> int:
        """The pid of the only one."""
        (server,) = self.servers
        return server

    @contextmanager
    def again(self, **options: Any) -> Iterator[Keeper]:
        """Be the next keeper."""
        with Keeper(2, name="lost", home=self.folder / "home", **options) as keeper:
            yield keeper

    def submit(self, keeper: Keeper, items: Iterable[Any], **options: Any) -> list[Any]:
        """Submit tasks by their keys."""
        view = keeper.options(key=lambda folder, item: str(item), **options)
        return [view.submit(getattr(tasks, self.task), str(self.folder), item) for item in items]


def results(futures: list[Any]) -> list[Any]:
    """Return what comes of all of them."""
    return [future.result(PATIENCE) for future in futures]
