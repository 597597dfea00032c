"""The calls of one view of a keeper: which callable, pickled how, under which options."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

from .by_value import Likeness, likeness
from .ledger import Call, Options
from .payload import pickle_callable

__all__ = ["CallRegistry", "callable_name"]

_BY_REFERENCE = (types.FunctionType, types.BuiltinFunctionType, type)
_LIMIT = 1000


def callable_name(function: Any) -> str:
    """Return what messages call ``function``."""
    if isinstance(function, functools.partial):
        return callable_name(function.func)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).replace("<locals>.", "")


class CallRegistry:
    """Makes each callable a Call once, so that its pickle travels once and its run times are learnt.

    What pickles by reference never changes. What is pickled by value is pickled at every submission, unless it is sure
    that nothing has changed of what it refers to; equal pickles are the same call.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._by_function: dict[Any, Call] = {}
        self._by_blob: dict[bytes, Call] = {}
        self._by_likeness: dict[Any, tuple[Likeness, Call]] = {}
        self._outlines: dict[str, Call] = {}
        self._path = tuple(sys.path)

    def call(self, function: Callable[..., Any]) -> Call:
        """Return the call of ``function``; raises PayloadError if it cannot be pickled, TypeError if not callable."""
        try:
            return self._by_function[function]
        except (KeyError, TypeError):
            pass
        if not callable(function):
            raise TypeError(f"{function!r} is not callable")
        if type(function) is not types.FunctionType:
            return self._register(function)
        known = self._by_likeness.get(function)
        if known is not None and known[0].holds(function):
            return known[1]
        call = self._register(function)
        alike = likeness(function)
        if alike is not None:
            _make_room(self._by_likeness)
            self._by_likeness[function] = alike, call
        return call

    def outline(self, function: Callable[..., Any]) -> Call:
        """Return a call that only tells of ``function``, and that no worker can be fed: nothing is pickled."""
        name = callable_name(function)
        outline = self._outlines.get(name)
        if outline is None:
            _make_room(self._outlines)
            outline = self._outlines[name] = Call(name, b"", self._options)
        return outline

    def _register(self, function: Callable[..., Any]) -> Call:
        blob = pickle_callable(function)
        call = self._by_blob.get(blob)
        if call is None:
            path = tuple(sys.path)
            changed = list(path) if path != self._path else None
            call = Call(callable_name(function), blob, self._options, tuple(changed) if changed else None)
            _make_room(self._by_blob)
            self._by_blob[blob] = call
        if isinstance(function, _BY_REFERENCE) and len(blob) < 512 and b"cloudpickle" not in blob:
            _make_room(self._by_function)
            self._by_function[function] = call
        return call


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= _LIMIT:
        kept.clear()
