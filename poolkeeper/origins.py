"""Where code comes from: Python itself, an installed package with its version, or the user's own project. Pure."""

from __future__ import annotations

import sys
from functools import cache

__all__ = ["is_project", "is_project_file", "version_of"]


@cache
def _installed_folders() -> tuple[str, ...]:
    import sysconfig  # slow to import, rarely needed

    paths = sysconfig.get_paths()
    return tuple({paths[name].rstrip("/") + "/" for name in ("purelib", "platlib")})


def is_project(module: str | None) -> bool:
    """Whether ``module`` belongs to the user's project, whose code changes without a version saying so.

    What has no file, as ``__main__`` of a notebook, does; poolkeeper does not, even where it runs from its sources.
    """
    if not module:
        return False
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return top == "__main__"
    if top == "poolkeeper":
        return False
    file = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None)
    return file is None or is_project_file(file)


def is_project_file(file: str | None) -> bool:
    """Whether ``file`` lies where no package is installed."""
    if file is None:
        return False
    return not (file.startswith(_installed_folders()) or "/site-packages/" in file or "/dist-packages/" in file)


@cache
def version_of(module: str) -> str:
    """Return the name and version of what ``module`` is a part of: ``python 3.11``, or ``numpy 2.1.0``."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    from importlib import metadata  # slow to import, rarely needed

    try:
        return f"{top} {metadata.version(top)}"
    except metadata.PackageNotFoundError:
        pass
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is None:
        names = metadata.packages_distributions().get(top)
        version = metadata.version(names[0]) if names else "?"
    return f"{top} {version}"
