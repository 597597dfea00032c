"""A census of Python source: what is in every file that this interpreter ships and has installed.

    poolkeeper run jobs/census.py                  # the standard library and all installed packages
    poolkeeper run jobs/census.py -- src tests     # or any folders and files

One task per file measures size, encoding, lines, tokens, definitions, nesting, cyclomatic complexity and docstrings
(`source_census.analysis` has the rules). Files that Python cannot parse are failures that the run reports and survives:
the standard library has some, to test with. Tables go to the terminal, all figures to `out/census/` as SQLite and CSV.
"""

from __future__ import annotations

import sys
from pathlib import Path

from source_census import sources
from source_census.analysis import BrokenSource, ModuleStats, analyse
from tenacity import retry_if_exception_type

from poolkeeper import BatchResult, ExecutionPolicy, Fleet, RetryPolicy

OUT = Path("out/census")

fleet = Fleet("census")


def python_files() -> list[Path]:
    """Return the files to count: below the paths on the command line, or else all that Python has here."""
    return sources.find_files(sources.roots_for(sys.argv[1:]))


# A timeout is an OSError too, so a slow or failing disk gets a second chance. Broken source stays broken.
patient = ExecutionPolicy(timeout=30, retry=RetryPolicy(attempts=2, retry=retry_if_exception_type(OSError)))


@fleet.batch(items=python_files, key=str, policy=patient, allow_failures=BrokenSource)
def parse(path: Path) -> ModuleStats:
    """Measure one file."""
    return analyse(path, path.read_bytes())


@fleet.step(after=parse)
def summarise(parsed: BatchResult[ModuleStats]) -> None:
    """Add up what the tasks returned, write it down and show it."""
    from source_census import store, tables, totals  # not at the top: workers parse, and need neither SQLite nor rich

    catalogue = sources.Catalogue.of(sources.roots_for(sys.argv[1:]))
    census = totals.take(((task.item, task.error or task.value) for task in parsed), catalogue.origin)
    tables.show(census, store.save(census, OUT))
