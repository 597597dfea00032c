"""A pipeline that proves what it promises: each effect once, whatever is killed meanwhile.

    poolkeeper run jobs/pipeline.py                  # the standard library
    poolkeeper run jobs/pipeline.py -- src tests     # or any folders and files

A batch reads Python files and writes down which classes and functions they define; a service follows and keeps an index
of them in SQLite; an audit compares everything in the end, and fails the run if it finds the least contradiction. Kill
what you like: workers, the indexer, the keeper. Run again, it goes on.

What poolkeeper promises is one outcome per task. How often a task is *executed* is another matter: what was killed is
executed again, and nobody can know what it had done by then. So an effect must not happen twice when it is attempted
twice, and this is how (`exactly_once`): an append-only ledger notes every execution and every effect; the effect and
the line that proves it are made under a lock that a dying process gives back; and what consumes the ledger keeps its
position in the transaction in which it keeps what it has read.

Everything goes to `out/pipeline/`, a folder per run; `current` is the latest.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import sysconfig
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from exactly_once.definitions import as_json, printable, record_of
from exactly_once.effects import begin, digest_of, have_effect, ledger_of, place_of
from exactly_once.index import Index
from exactly_once.ledger import Kind
from source_census import sources
from tenacity import retry_if_exception_type

from poolkeeper import (
    BatchResult,
    ExecutionPolicy,
    Fleet,
    RestartPolicy,
    RetryPolicy,
    ServiceHandle,
    ServiceState,
    context,
)

OUT = Path("out/pipeline")
KEPT = 3
"""The folders of how many runs are kept."""
LOOK = 0.05
"""Seconds between two looks at a file that has no events."""

fleet = Fleet("pipeline")


class Source(NamedTuple):
    """A file to read, and the folder of the run that it is read for."""

    folder: str
    path: Path

    def __str__(self) -> str:
        return str(self.path)


class Derived(NamedTuple):
    """What became of a file: the digest of its record, and what is in it."""

    digest: str
    definitions: int
    broken: bool


# -- which run this is ------------------------------------------------------------------------------------------------


@fleet.batch(items=["folder"], key=str)
def choose(_: str) -> str:
    """Choose the folder of the run. It is an outcome like any other: a run that goes on gets the one that it had."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return str(Path.cwd() / OUT / "runs" / name)


@fleet.step(after=choose)
def prepare(chosen: BatchResult[str]) -> Path:
    """Begin the ledger, or go on with it, and let the indexer know."""
    chosen.raise_for_failures()
    folder = Path(chosen.values[0])
    here = Path.cwd() / OUT
    if folder.parent.parent != here:
        raise RuntimeError(
            f"the interrupted run has its ledger in {folder}: go on with it from there, or begin anew with --fresh"
        )
    folder.mkdir(parents=True, exist_ok=True)
    ledger_of(folder).write(Kind.BEGIN)
    link = here / f".current-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.relative_to(here))
    os.replace(link, here / "current")
    return folder


# -- the work ---------------------------------------------------------------------------------------------------------


def python_files(folder: Path) -> list[Source]:
    """Return the files to read: below the paths on the command line, or else the standard library but its tests."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    skip = frozenset({"site-packages", "dist-packages", "test", "tests"})
    roots = sources.roots_for(sys.argv[1:]) if sys.argv[1:] else [sources.Root(library, library, "Python", skip)]
    return [Source(str(folder), path) for path in sources.find_files(roots)]


# A worker that is killed while it has the ledger lets it go; one that is stopped keeps it, until its time is up.
patient = ExecutionPolicy(timeout=60, retry=RetryPolicy(attempts=3, deaths=5, retry=retry_if_exception_type(OSError)))


@fleet.batch(items=python_files, key=str, policy=patient, after=prepare)
def derive(source: Source) -> Derived:
    """Read one file, and have its record written once."""
    folder, attempt = Path(source.folder), context().attempt
    begin(folder, str(source), attempt)
    record = record_of(source.path, source.path.read_bytes())
    digest = have_effect(folder, str(source), as_json(record), attempt)
    return Derived(digest, len(record["definitions"]), record["broken"] is not None)


@fleet.service(restart=RestartPolicy.on_failure(max_retries=20, delay=0.1), watchdog=30.0)
def index() -> None:
    """Follow the ledger of the current run, and index what it tells of; ends with the fleet."""
    me = context()
    while not me.stopping:
        folder = current()
        if folder is None:
            me.heartbeat()
            me.wait(LOOK)
            continue
        with closing(Index(folder)) as found:
            found.count_start()
            while not me.stopping and current() == folder:
                me.heartbeat()
                if not found.take_in():
                    me.wait(LOOK)


def current() -> Path | None:
    """Return the folder of the run that goes on, None before the first has begun."""
    here = Path.cwd() / OUT
    with suppress(OSError):
        folder = here / os.readlink(here / "current")
        if ledger_of(folder).path.exists():
            return folder
    return None


# -- the proof --------------------------------------------------------------------------------------------------------


@fleet.step(after=[prepare, derive])
def seal(folder: Path, derived: BatchResult[Derived]) -> int:
    """Write the end mark, and return its number."""
    return ledger_of(folder).write(Kind.END).seq


@fleet.step(after=[prepare, derive, seal, index])
def audit(folder: Path, derived: BatchResult[Derived], end: int, indexer: ServiceHandle) -> None:
    """Check that each outcome has had its effect once, and show it."""
    from exactly_once import audit as auditor  # not at the top: workers do not audit, and need no rich
    from exactly_once import report

    entries, torn = ledger_of(folder).read()
    outcomes = [(str(task.item), task.value.digest if task.ok else None) for task in derived]
    figures = auditor.audit(entries, torn, outcomes, lambda digest: found_at(folder, digest))
    with closing(Index(folder)) as found:
        wait_for(found, end, folder, indexer)
        expected = {task.value.digest: task.value.definitions for task in derived if task.ok}
        auditor.compare_index(entries, found.effects(), expected, found.sizes())
        starts, names = found.position.starts, found.frequent(report.TOP)
    verdict = {name: getattr(figures, name) for name in figures.__slots__} | {"repeats": figures.repeats}
    (folder / "audit.json").write_text(json.dumps(verdict, indent=2) + "\n")
    report.show(figures, reused=derived.statistics.reused, starts=starts, names=names, folder=folder)
    broken = [printable(task.item.path) for task in derived if task.ok and task.value.broken]
    if broken:
        print(f"{len(broken):,} of the files are no Python source: {', '.join(broken[:3])}{', …' * (len(broken) > 3)}")
    forget_old_runs(folder)


def found_at(folder: Path, digest: str) -> str | None:
    """Return the digest of what lies where the effect ``digest`` should."""
    try:
        return digest_of(place_of(folder, digest).read_bytes())
    except FileNotFoundError:
        return None


def wait_for(found: Index, end: int, folder: Path, indexer: ServiceHandle) -> None:
    """Wait until the index has taken in the ledger up to its end mark.

    Raises:
        RuntimeError: if that will never be.
    """
    while found.position.ended < end:
        if indexer.state.at_rest:
            raise RuntimeError(f"the indexer is {indexer.state.value}: poolkeeper logs index, with -F, tells why")
        if current() != folder:
            raise RuntimeError(f"another run has taken over {folder.parent.parent}: let one end before the next begins")
        indexer.wait([state for state in ServiceState if state.at_rest], LOOK)


def forget_old_runs(folder: Path) -> None:
    """Remove the folders of all runs but the latest."""
    for old in sorted(folder.parent.iterdir())[:-KEPT]:
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
