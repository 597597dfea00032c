"""Finding the fleet that a file declares.

The file is imported under a name that workers can import too: its folder is on ``sys.path`` and its stem is the module.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .fleet import Fleet, FleetError

__all__ = ["load_fleet", "use_arguments"]

_NEEDED = frozenset(
    {"click", "cloudpickle", "loguru", "loky", "platformdirs", "poolkeeper", "psutil", "rich", "tenacity"}
)
"""What is imported later, perhaps in a worker, and would be the fleet's file there."""


def load_fleet(file: str | os.PathLike[str], arguments: Sequence[str] = ()) -> Fleet:
    """Import ``file`` and return its fleet; ``arguments`` become ``sys.argv[1:]``.

    Raises:
        FleetError: if the file cannot be imported (the cause is chained), or does not hold exactly one fleet.
    """
    path = Path(file).resolve()
    _check_importable(path)
    use_arguments([os.fspath(file), *arguments])
    folder = str(path.parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:
        raise FleetError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    origin = getattr(module, "__file__", None)
    if origin is None or Path(origin).resolve() != path:
        raise FleetError(f"{file}: its name belongs to another module, {origin or path.stem}; rename the file")
    fleets = {id(value): value for value in vars(module).values() if isinstance(value, Fleet)}
    if len(fleets) != 1:
        names = ", ".join(repr(fleet.name) for fleet in fleets.values())
        found = f"declares {len(fleets)} fleets ({names})" if fleets else "declares no fleet"
        raise FleetError(f'{file} {found}; it must declare one, as fleet = Fleet("{path.stem}")')
    return fleets.popitem()[1]


def use_arguments(arguments: Sequence[str]) -> None:
    """Make ``arguments`` this process' ``sys.argv``; workers do so before they import the fleet's file."""
    sys.argv = list(arguments)


def _check_importable(path: Path) -> None:
    if not path.is_file():
        raise FleetError(f"{path}: there is no such file")
    if path.suffix != ".py" or "." in path.stem:
        raise FleetError(f"{path.name}: a fleet's file must have a name like census.py, so that workers can import it")
    if path.stem in sys.stdlib_module_names:
        raise FleetError(f"{path.name}: this is the name of a module of the standard library; rename the file")
    if path.stem in _NEEDED:
        raise FleetError(f"{path.name}: this is the name of a module that poolkeeper needs; rename the file")
