"""Whether a function that travels by value would be pickled as it was before, told without pickling it again. Pure.

The pickle of a function of ``__main__`` holds what it refers to, which may have changed since. To look whether the
names that it uses still mean the same constants, modules, and functions and classes of modules costs far less.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from itertools import repeat
from operator import is_
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

__all__ = ["Likeness", "likeness"]

_CONSTANTS = frozenset({type(None), bool, int, float, complex, str, bytes})
_NAMED = (type, FunctionType, BuiltinFunctionType)
_MISSING = object()


class Likeness(NamedTuple):
    """What the pickle of a function by value depends on.

    Args:
        code: of the function.
        defaults: of its parameters.
        names: that may be those of globals.
        values: what they stand for, each the same for as long as it is the same object.
        modules: how many modules were loaded, where the pickle names those of a package; else None.
    """

    code: CodeType
    defaults: tuple[Any, ...] | None
    names: tuple[str, ...]
    values: tuple[Any, ...]
    modules: int | None

    def holds(self, function: FunctionType) -> bool:
        """Whether ``function`` would be pickled as it was."""
        return (
            function.__code__ is self.code
            and function.__defaults__ is self.defaults
            and not function.__kwdefaults__
            and not function.__dict__
            and all(map(is_, map(function.__globals__.get, self.names, repeat(_MISSING)), self.values))
            and (self.modules is None or self.modules == len(sys.modules))
        )


def likeness(function: FunctionType) -> Likeness | None:
    """Return what the pickle of ``function`` depends on; None where it refers to what may change inside."""
    if function.__closure__ is not None or function.__dict__ or function.__kwdefaults__:
        return None
    defaults = function.__defaults__
    names = tuple(dict.fromkeys(_names(function.__code__)))
    values = tuple(map(function.__globals__.get, names, repeat(_MISSING)))
    described = _annotations(function).values()
    if not all(type(value) in _CONSTANTS for value in defaults or ()):
        return None
    if not all(map(_is_settled, values)) or not all(map(_is_settled, described)):
        return None
    modules = len(sys.modules) if any(hasattr(value, "__path__") for value in values) else None
    return Likeness(function.__code__, defaults, names, values, modules)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _annotations(function: FunctionType) -> Mapping[str, Any]:
    try:
        return function.__annotations__
    except Exception:  # Python 3.14 evaluates them only now
        return {"": function}  # not settled


def _is_settled(value: Any) -> bool:
    """Whether the pickle of ``value`` cannot change: it is a constant, or but a name."""
    if value is _MISSING or type(value) in _CONSTANTS:
        return True
    cloudpickle: Any = sys.modules.get("cloudpickle")
    if cloudpickle is not None and cloudpickle.list_registry_pickle_by_value():
        return False
    if type(value) is ModuleType:
        return value.__name__ != "__main__" and sys.modules.get(value.__name__) is value
    if not isinstance(value, _NAMED):
        return False
    try:
        return b"__main__" not in pickle.dumps(value)
    except Exception:  # it cannot be found by its name
        return False
