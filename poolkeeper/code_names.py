"""What code refers to by name: globals, modules that it imports when it runs, attributes. Read from bytecode. Pure."""

from __future__ import annotations

import types
from functools import lru_cache

from .origins import is_project

__all__ = ["all_names", "global_names", "imports"]


@lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> frozenset[str]:
    """Return the names that ``code``, and the code within it, looks up among the globals."""
    import dis  # slow to import, and only needed for code

    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for within in _within(code):
        names |= global_names(within)
    return frozenset(names)


@lru_cache(maxsize=4096)
def imports(code: types.CodeType, package: str) -> frozenset[str]:
    """Return the modules that ``code``, and the code within it, imports when it runs.

    Args:
        code: looked at, not run.
        package: the package that it belongs to, from which relative imports count.
    """
    import dis
    from importlib.util import resolve_name

    found: set[str] = set()
    steps = list(dis.get_instructions(code))
    for position, step in enumerate(steps):
        if step.opname != "IMPORT_NAME" or position < 2:
            continue
        level, names = steps[position - 2].argval, steps[position - 1].argval
        try:
            module = resolve_name("." * level + step.argval, package) if level else str(step.argval)
        except (ImportError, TypeError):
            continue
        found.add(module)
        if is_project(module):
            found.update(f"{module}.{name}" for name in names or () if _is_module(f"{module}.{name}"))
    for within in _within(code):
        found |= imports(within, package)
    return frozenset(found)


def all_names(code: types.CodeType) -> set[str]:
    """Return every name in ``code`` and the code within it, attributes among them."""
    names = set(code.co_names)
    for within in _within(code):
        names |= all_names(within)
    return names


def _within(code: types.CodeType) -> list[types.CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _is_module(name: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
