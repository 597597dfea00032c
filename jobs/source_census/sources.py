"""Which files the census counts, and which distribution and package each of them belongs to."""

from __future__ import annotations

import os
import platform
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["Catalogue", "Origin", "Root", "find_files", "roots_for"]

_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})  # both lie inside the standard library's folder


@dataclass(frozen=True, slots=True)
class Root:
    """A folder below which all is counted, or a single file.

    Names of files are relative to ``folder``. ``distribution`` names what ships them; None in a folder of installed
    packages, each of which has its own. ``skip`` holds names of subfolders that do not belong to this root.
    """

    path: Path
    folder: Path
    distribution: str | None
    skip: frozenset[str] = frozenset()


def roots_for(arguments: Sequence[str]) -> list[Root]:
    """Return what the command line names; without arguments, what this interpreter ships and has installed.

    Raises FileNotFoundError if an argument is neither a file nor a folder.
    """
    return [_given(Path(argument)) for argument in arguments] or _installed()


def _given(path: Path) -> Root:
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    path = path.resolve()
    is_module = path.is_file() or (path / "__init__.py").is_file()
    return Root(path, path.parent if is_module else path, path.name or str(path))


def _installed() -> list[Root]:
    python = f"Python {platform.python_version()}"
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    packages = [Path(folder).resolve() for folder in (*site.getsitepackages(), *user)]
    roots = [Root(path, path, python, skip=_PACKAGE_FOLDERS) for path in library]
    roots += [Root(path, path, None) for path in packages]
    return [root for root in dict.fromkeys(roots) if root.path.is_dir()]


def find_files(roots: Iterable[Root]) -> list[Path]:
    """Return the ``.py`` files below ``roots``, each once, in the order of their paths.

    Hidden folders are skipped; a folder that cannot be read is named on stderr and skipped. A root that is a file
    counts whatever its name.
    """
    return [Path(path) for path in sorted({path for root in roots for path in _walk(root)})]


def _walk(root: Root) -> Iterator[str]:
    if root.path.is_file():
        yield str(root.path)
        return
    skip = root.skip | {"__pycache__"}
    for folder, subfolders, names in os.walk(root.path, onerror=_tell_skipped):
        subfolders[:] = [name for name in subfolders if name not in skip and not name.startswith(".")]
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(".py") and os.path.isfile(path):  # no dangling link, and no pipe that blocks its reader
                yield path


def _tell_skipped(error: OSError) -> None:
    print(f"census: skipped {error.filename}: {error.strerror}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file comes from: ``distribution`` with its version, top-level ``package``, ``file`` below the root."""

    distribution: str
    package: str
    file: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Tells where the files below ``roots`` come from; ``installed`` maps top-level packages to their distribution."""

    roots: Sequence[Root]
    installed: Mapping[str, str]

    @classmethod
    def of(cls, roots: Sequence[Root]) -> Catalogue:
        """Make the catalogue of ``roots``, reading what is installed only where one of them asks for it."""
        if all(root.distribution for root in roots):
            return cls(roots, {})
        return cls(roots, {package: _label(names) for package, names in metadata.packages_distributions().items()})

    def origin(self, path: Path) -> Origin:
        """Return the origin of ``path``, by the innermost of the roots that hold it.

        Raises ValueError if none of them does.
        """
        holding = [root for root in self.roots if path.is_relative_to(root.folder)]
        if not holding:
            raise ValueError(f"{path} lies below none of the roots of this census")
        root = max(holding, key=lambda root: len(root.folder.parts))
        relative = path.relative_to(root.folder)
        package = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        distribution = root.distribution or self.installed.get(package, package)
        return Origin(distribution, package, relative.as_posix())


def _label(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {_version(name)}".strip() for name in sorted(set(names)))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, KeyError):  # half-removed distributions: they have files but no metadata
        return ""
