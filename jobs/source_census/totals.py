"""What the files of a census add up to: entries for files and packages, and the list of what could not be measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from source_census.analysis import BrokenSource, ModuleStats, share
from source_census.sources import Origin

__all__ = ["BrokenEntry", "Census", "FileEntry", "PackageEntry", "Totals", "take"]

Outcome = tuple[Path, ModuleStats | BaseException]
"""A file, with its figures or with the error that stands in their place."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A measured file."""

    origin: Origin
    stats: ModuleStats


@dataclass(frozen=True, slots=True)
class BrokenEntry:
    """A file without figures: ``why`` is the category, ``reason`` the details, ``line`` None where it is not known."""

    origin: Origin
    path: Path
    line: int | None
    why: str
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over measured files; ``files`` is their number, ``size`` in bytes."""

    files: int = 0
    size: int = 0
    lines: int = 0
    code: int = 0
    docstring: int = 0
    comment: int = 0
    blank: int = 0
    tokens: int = 0
    functions: int = 0
    classes: int = 0
    complexity: int = 0
    documentable: int = 0
    documented: int = 0

    @classmethod
    def of(cls, modules: Iterable[ModuleStats]) -> Totals:
        """Add up ``modules``."""
        listed = list(modules)
        return cls(len(listed), *(sum(getattr(stats, name) for stats in listed) for name in _SUMMED))

    @property
    def docstring_coverage(self) -> float | None:
        """The documented part of what can be documented, from 0 to 1; None where there is nothing to document."""
        return share(self.documented, self.documentable)


_SUMMED = tuple(field.name for field in fields(Totals) if field.name != "files")


@dataclass(frozen=True, slots=True)
class PackageEntry:
    """A top-level package or module of a distribution; ``broken`` counts its files without figures."""

    distribution: str
    package: str
    totals: Totals
    broken: int
    nesting: int
    worst_complexity: int


@dataclass(frozen=True, slots=True)
class Census:
    """The whole: every list in the order of distribution, package and file."""

    files: tuple[FileEntry, ...]
    packages: tuple[PackageEntry, ...]
    broken: tuple[BrokenEntry, ...]
    totals: Totals


def take(outcomes: Iterable[Outcome], origin: Callable[[Path], Origin]) -> Census:
    """Take the census of ``outcomes``; ``origin`` tells where a file comes from."""
    files: list[FileEntry] = []
    broken: list[BrokenEntry] = []
    for path, outcome in outcomes:
        if isinstance(outcome, ModuleStats):
            files.append(FileEntry(origin(path), outcome))
        elif isinstance(outcome, BrokenSource):
            broken.append(BrokenEntry(origin(path), path, outcome.line, outcome.why, outcome.reason))
        else:  # nothing is wrong with the file as far as we know: it took too long, cannot be read, killed its worker
            broken.append(BrokenEntry(origin(path), path, None, type(outcome).__name__, str(outcome)))
    files.sort(key=lambda entry: _place(entry.origin))
    broken.sort(key=lambda entry: _place(entry.origin))
    return Census(tuple(files), _packages(files, broken), tuple(broken), Totals.of(entry.stats for entry in files))


def _place(origin: Origin) -> tuple[str, str, str]:
    return origin.distribution, origin.package, origin.file


def _packages(files: Iterable[FileEntry], broken: Iterable[BrokenEntry]) -> tuple[PackageEntry, ...]:
    measured: defaultdict[tuple[str, str], list[ModuleStats]] = defaultdict(list)
    unmeasured: defaultdict[tuple[str, str], int] = defaultdict(int)
    for entry in files:
        measured[entry.origin.distribution, entry.origin.package].append(entry.stats)
    for failed in broken:
        unmeasured[failed.origin.distribution, failed.origin.package] += 1
    return tuple(
        PackageEntry(
            distribution=name[0],
            package=name[1],
            totals=Totals.of(measured[name]),
            broken=unmeasured[name],
            nesting=max((stats.nesting for stats in measured[name]), default=0),
            worst_complexity=max((stats.worst_complexity or 0 for stats in measured[name]), default=0),
        )
        for name in sorted({*measured, *unmeasured})
    )
