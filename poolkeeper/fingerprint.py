"""Fingerprints of code and arguments: equal where running again would do the same. A first, small version. Pure."""

from __future__ import annotations

import functools
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

__all__ = ["fingerprint_arguments", "fingerprint_call"]

_ATOMS = (int, float, bool, complex, str, bytes, type(None), type(Ellipsis))


class _NoCanonicalForm(Exception):
    pass


def fingerprint_call(function: Callable[..., Any]) -> str | None:
    """Return the fingerprint of what calling ``function`` runs, None where it has none."""
    try:
        return _digest((sys.version_info[:2], _canonical_function(function, set())))
    except (_NoCanonicalForm, RecursionError):
        return None


def fingerprint_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of a call's arguments, None where they have none."""
    try:
        return _digest((_canonical(args), _canonical(dict(kwargs))))
    except (_NoCanonicalForm, RecursionError):
        return None


def _digest(value: Any) -> str:
    return blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _canonical(value: Any) -> Any:  # noqa: PLR0911 - one for each kind
    kind = type(value)
    if kind in _ATOMS:
        return (kind.__name__, value)
    if kind in (tuple, list):
        return (kind.__name__, [_canonical(each) for each in value])
    if kind in (set, frozenset):
        return (kind.__name__, sorted(repr(_canonical(each)) for each in value))
    if kind is dict:
        return ("dict", sorted((repr(_canonical(name)), repr(_canonical(each))) for name, each in value.items()))
    if isinstance(value, PurePath):
        return _canonical_path(value)
    if isinstance(value, (types.FunctionType, functools.partial)):
        return _canonical_function(value, set())
    try:
        return (kind.__qualname__, pickle.dumps(value, 5))
    except Exception as error:
        raise _NoCanonicalForm from error


def _canonical_path(path: PurePath) -> Any:
    try:
        found = path.stat()  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        return ("path", str(path), None)
    return ("path", str(path), found.st_size, found.st_mtime_ns)


def _canonical_function(function: Any, seen: set[int]) -> Any:
    if isinstance(function, functools.partial):
        inner = _canonical_function(function.func, seen)
        return ("partial", inner, _canonical(function.args), _canonical(function.keywords))
    if isinstance(function, types.MethodType):
        return ("method", _canonical_function(function.__func__, seen), _canonical(function.__self__))
    if not isinstance(function, types.FunctionType):
        return ("named", getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(type(function))))
    if id(function) in seen:
        return ("again", function.__qualname__)
    seen.add(id(function))
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(_canonical(cell.cell_contents))
        except ValueError:
            cells.append(None)
    helpers = []
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
            helpers.append((name, _canonical_function(value, seen)))
        elif type(value) in _ATOMS:
            helpers.append((name, _canonical(value)))
    defaults = (_canonical(function.__defaults__), _canonical(function.__kwdefaults__))
    return ("function", function.__qualname__, _canonical_code(function.__code__), defaults, cells, helpers)


def _canonical_code(code: types.CodeType) -> Any:
    constants = [
        _canonical_code(each) if isinstance(each, types.CodeType) else _canonical(each) for each in code.co_consts
    ]
    return (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, constants)


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            names |= _names(each)
    return names
