"""What a pre-flight does in the child for programs that are not poolkeeper's own: compiles them, and runs nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from typing import Any

from .invocation import Kind
from .preflight_answer import answer

__all__ = ["check_program"]

OURS = ("pool", "reexec", "control")


def check_program(kind: str, target: str) -> None:
    """Compile the program and import the new poolkeeper; answer if that went well.

    Args:
        kind: the name of a ``Kind``.
        target: the file or module to run.

    Raises:
        SyntaxError, ImportError, OSError: as they come, for whoever reads the traceback.
    """
    if Kind[kind] is Kind.MODULE:
        _compile_module(target)
    elif os.path.isfile(target) and not target.endswith((".pyc", ".pyz", ".zip")):
        with open(target, "rb") as file:
            compile(file.read(), target, "exec", dont_inherit=True)
    else:
        _code_of(_spec_in(target), "__main__")
    for name in OURS:
        importlib.import_module(f".{name}", __package__)
    answer()
    sys.stdout.flush()


def _compile_module(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"there is no module {name}")
    _code_of(spec, name)


def _spec_in(path: str) -> ModuleSpec:
    """Return where the ``__main__`` of a folder or archive is."""
    finder: Any = pkgutil.get_importer(path)
    spec: ModuleSpec | None = None if finder is None else finder.find_spec("__main__")
    if spec is None:
        raise ImportError(f"there is no __main__ in {path}")
    return spec


def _code_of(spec: ModuleSpec, name: str) -> None:
    loader: Any = spec.loader
    if hasattr(loader, "get_code"):
        loader.get_code(name)
