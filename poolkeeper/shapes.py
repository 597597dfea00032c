"""The shape of a class: what its instances consist of, in words that can be compared later. Pure.

Pickle fills the attributes that an instance had into whatever class has its name now, and nobody notices before some
method misses one. The shape says which they were: the fields of a dataclass or named tuple, the members of an enum,
slots, annotated attributes and those that ``__init__`` sets. Methods may change, for a mended mistake must not cost the
work that is done. A class that restores itself (``__setstate__`` and its like) answers for its own past.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import Enum
from typing import Any

from .origins import is_project

__all__ = ["class_name", "find_class", "shape", "shapes"]

_OWN_WAYS = ("__setstate__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")


def class_name(kind: type) -> str:
    """Return the name under which ``find_class`` finds ``kind``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def find_class(name: str) -> Any:
    """Return what has this name among the modules that are imported, None if there is nothing."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def shapes(kinds: Iterable[type]) -> dict[str, str]:
    """Return the shapes of those ``kinds`` that a project's modules define, and that pickle finds by name."""
    return {
        class_name(kind): shape(kind) for kind in kinds if is_project(kind.__module__) and not _restores_itself(kind)
    }


def shape(kind: type) -> str:
    """Return what instances of ``kind`` consist of, in one line."""
    if issubclass(kind, Enum):
        return "members " + ", ".join(kind.__members__)
    named = getattr(kind, "_fields", None)
    if issubclass(kind, tuple) and isinstance(named, tuple):
        return "fields " + ", ".join(map(str, named))
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        return "fields " + ", ".join(fields)
    names: dict[str, None] = {}
    for base in reversed(kind.__mro__):
        if not is_project(base.__module__):
            continue
        slots = base.__dict__.get("__slots__", ())
        names.update(dict.fromkeys([slots] if isinstance(slots, str) else slots))
        names.update(dict.fromkeys(_annotated(base)))
        names.update(dict.fromkeys(_set_by_init(base)))
    return "attributes " + ", ".join(sorted(names))


def _annotated(kind: type) -> list[str]:
    import inspect  # slow to import, rarely needed

    try:
        return list(inspect.get_annotations(kind))
    except Exception:  # Python 3.14 evaluates them only now
        return []


def _set_by_init(kind: type) -> list[str]:
    code = getattr(kind.__dict__.get("__init__"), "__code__", None)
    if code is None:
        return []
    import dis  # slow to import, rarely needed

    return [str(step.argval) for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"]


def _restores_itself(kind: type) -> bool:
    """Whether a class of the project, not one of Python's, says how instances are pickled."""
    if issubclass(kind, Enum):
        return False
    for way in _OWN_WAYS:
        owner = next((base for base in kind.__mro__ if way in base.__dict__), None)
        if owner is not None and is_project(owner.__module__) and not _is_generated(owner, way):
            return True
    return False


def _is_generated(owner: type, way: str) -> bool:
    """Whether dataclasses or namedtuple have made the method, which then knows nothing of the past."""
    return not is_project(getattr(owner.__dict__[way], "__module__", None))
