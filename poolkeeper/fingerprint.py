"""Fingerprints of code and of arguments: equal when a task would do the same again, in whatever process. Pure.

Pickles are no fingerprints: they differ from run to run for sets and classes of ``__main__``, and are the same for a
function whose body has changed. What is walked here instead has a canonical form. Code: bytecode, constants, names,
defaults, closures, and the globals that it names; of a project's modules the functions and classes that it reaches, of
installed packages their version, and the version of Python. File names, line numbers and comments do not count,
docstrings do. Arguments: values by what they hold, sets and dictionaries in sorted order, equal objects equally whether
or not they are the same object; a ``Path`` with the size and time of what it names.

What has no canonical form (an open file, a lock, what refers to itself) has no fingerprint but a reason.
"""

from __future__ import annotations

import builtins
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from copyreg import dispatch_table
from enum import Enum
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from .code_names import all_names, global_names, imports
from .origins import is_project, is_project_file, version_of

__all__ = ["Fingerprint", "fingerprint_of_arguments", "fingerprint_of_code"]

DIGEST_BYTES = 16
DEEPEST = 200

_PYTHON = f"python {sys.version_info.major}.{sys.version_info.minor}"


class Fingerprint(NamedTuple):
    """``digest`` is in hexadecimal digits; None where there is no canonical form, for the ``reason``."""

    digest: str | None
    reason: str = ""


class _NoForm(Exception):
    """A value has no canonical form; the message says which, and why."""


def fingerprint_of_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, look: Callable[[Path], Any] = Path.stat
) -> Fingerprint:
    """Return the fingerprint of a call's arguments.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        look: returns the ``os.stat_result`` of what a path names, or raises OSError.
    """
    try:
        return Fingerprint(_Walk(look).digest((args, kwargs or {})).hex())
    except _NoForm as error:
        return Fingerprint(None, str(error))
    except RecursionError:
        return Fingerprint(None, "an argument is nested too deeply")


_known: weakref.WeakKeyDictionary[Any, Fingerprint] = weakref.WeakKeyDictionary()


def fingerprint_of_code(function: Callable[..., Any]) -> Fingerprint:
    """Return the fingerprint of what ``function`` does; functions without a closure are walked once."""
    lasting = type(function) is types.FunctionType and function.__closure__ is None
    if lasting and function in _known:
        return _known[function]
    try:
        found = Fingerprint(_Walk(None).digest((_PYTHON, function)).hex())
    except _NoForm as error:
        found = Fingerprint(None, str(error))
    except RecursionError:
        found = Fingerprint(None, f"{function!r} refers to something that is nested too deeply")
    if lasting:
        _known[function] = found
    return found


class _Walk:
    """One walk over a value and all that it refers to.

    Each value becomes bytes: a tag, and its content or the digests of its parts. ``look`` is None in code, where a path
    is but a constant.
    """

    def __init__(self, look: Callable[[Path], Any] | None) -> None:
        self._look = look
        self._code: dict[Any, bytes] = {}
        """The digests of functions, classes and modules."""
        self._open: list[Any] = []
        """Those of them that are being walked, from the outside in: they may well refer to each other."""
        self._kept: list[Any] = []  # an id is one only while its object lives
        self._within: set[int] = set()

    def digest(self, value: Any) -> bytes:
        return blake2b(self.form(value), digest_size=DIGEST_BYTES).digest()

    def form(self, value: Any) -> bytes:
        """Return the canonical form of ``value``; raises _NoForm."""
        way = _WAYS.get(type(value))
        if way is not None:
            return way(self, value)
        return self._other(value)

    # -- values -----------------------------------------------------------------------------------------------------

    def _singleton(self, value: Any) -> bytes:
        return _part(b"s", repr(value).encode())

    def _number(self, value: complex) -> bytes:
        return _part(type(value).__name__.encode(), repr(value).encode())

    def _text(self, value: str) -> bytes:
        return _part(b"t", value.encode("utf-8", "surrogatepass"))

    def _bytes(self, value: bytes | bytearray) -> bytes:
        return _part(b"b" if type(value) is bytes else b"B", value)

    def _sequence(self, value: tuple[Any, ...] | list[Any]) -> bytes:
        return self._nested(value, b"(" if type(value) is tuple else b"[", map(self.form, self._entered(value)))

    def _set(self, value: Iterable[Any]) -> bytes:
        tag = b"{" if type(value) is set else b"<"
        walked = sorted(self._entered(value), key=_place)  # what refers to each other looks different from each end
        return self._nested(value, tag, sorted(map(self.digest, walked)))

    def _dict(self, value: dict[Any, Any]) -> bytes:
        items = ((self.form(key), self.form(content)) for key, content in self._entered(value).items())
        return self._nested(value, b"d", (part for item in sorted(items) for part in item))

    def _entered(self, value: Any) -> Any:
        if id(value) in self._within:
            raise _NoForm(f"{_name(value)} refers to itself")
        if len(self._within) > DEEPEST:
            raise _NoForm(f"{_name(value)} is nested too deeply")
        self._within.add(id(value))
        return value

    def _nested(self, value: Any, tag: bytes, parts: Iterable[bytes]) -> bytes:
        try:
            return _part(tag, b"".join(parts))
        finally:
            self._within.discard(id(value))

    def _path(self, value: PurePath) -> bytes:
        text = str(value).encode("utf-8", "surrogateescape")
        if self._look is None or not isinstance(value, Path):
            return _part(b"p", text)
        try:
            found = self._look(value)
        except (OSError, ValueError):
            return _part(b"p", text + b"\0-")
        return _part(b"p", text + f"\0{found.st_size} {found.st_mtime_ns}".encode())

    def _other(self, value: Any) -> bytes:
        if isinstance(value, PurePath):
            return self._path(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, Enum):
            return _part(b"e", self._class(type(value)) + self._text(value.name))
        if isinstance(value, functools.partial):
            return _part(b"P", self.form((value.func, value.args, value.keywords)))
        if type(value) is _LRU_WRAPPER:
            return _part(b"c", self.form(value.__wrapped__))
        return self._reduced(value)

    def _reduced(self, value: Any) -> bytes:
        """The form of an object as pickle would take it apart."""
        try:
            reducer = dispatch_table.get(type(value))
            reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except Exception as error:
            raise _NoForm(f"{_name(value)} has no canonical form: {error}") from error
        if isinstance(reduced, str):
            return _part(b"g", f"{getattr(value, '__module__', '')}.{reduced}".encode())
        parts = list(reduced) + [None] * (5 - len(reduced))
        for position in (3, 4):  # items of lists and dictionaries that are subclassed
            if parts[position] is not None:
                parts[position] = list(parts[position])
        if parts[4] is not None:
            parts[4] = dict(parts[4])
        self._kept.append(parts)
        self._entered(value)
        return self._nested(value, b"o", map(self.form, parts[:5]))

    # -- code -------------------------------------------------------------------------------------------------------

    def _function(self, value: types.FunctionType) -> bytes:
        if not is_project(value.__module__) and value.__module__ is not None:
            return self._installed(value)
        return self._once(value, self._function_parts)

    def _function_parts(self, value: types.FunctionType) -> Iterable[bytes]:
        yield self.form(value.__code__)
        yield self.form(value.__defaults__)
        yield self.form(value.__kwdefaults__)
        wrapped = value.__dict__.get("__wrapped__")
        if wrapped is not None:
            yield self.form(wrapped)
        for cell in value.__closure__ or ():
            yield self._cell(cell, value, decorator=wrapped is not None)
        for imported in sorted(imports(value.__code__, value.__globals__.get("__package__") or "")):
            yield self._imported(imported)
        for name in sorted(global_names(value.__code__)):
            yield self._text(name)
            yield self._global(name, value)

    def _cell(self, cell: types.CellType, function: types.FunctionType, *, decorator: bool) -> bytes:
        """What a function closes over; what a decorator keeps for itself, a lock perhaps, counts as a global does."""
        try:
            value = cell.cell_contents
        except ValueError:
            return b"empty"
        return self._tool("its closure", value, function) if decorator else self.form(value)

    def _global(self, name: str, function: types.FunctionType) -> bytes:
        if name not in function.__globals__:
            return b"builtin" if hasattr(builtins, name) else b"unbound"
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            return self._module(value, function.__code__)
        return self._tool(name, value, function)

    def _tool(self, name: str, value: Any, function: types.FunctionType) -> bytes:
        """What a function works with rather than on: of a package's objects without a form the version counts."""
        within = set(self._within)
        try:
            return self.form(value)
        except _NoForm as error:
            self._within = within
            kind = type(value)
            if is_project(kind.__module__):
                raise _NoForm(f"{function.__qualname__} uses {name}, and {error}") from error
            return _part(b"opaque", f"{kind.__module__}.{kind.__qualname__} {version_of(kind.__module__)}".encode())

    def _module(self, module: types.ModuleType, code: types.CodeType) -> bytes:
        """Of a module of the project what the code may use of it counts, of others the version."""
        name = module.__name__
        if not is_project(name):
            return _part(b"v", f"{name} {version_of(name)}".encode())
        return self._once((module, code), lambda _: self._used(module, code), key=(id(module), id(code)))

    def _used(self, module: types.ModuleType, code: types.CodeType) -> Iterable[bytes]:
        for name in sorted(all_names(code)):
            value = vars(module).get(name, self)
            if value is self:
                continue
            yield self._text(name)
            if isinstance(value, types.ModuleType):
                yield self._module(value, code)
            else:
                yield self.form(value)

    def _imported(self, name: str) -> bytes:
        """Of a module of the project that is imported when the code runs the whole code counts; it is not imported."""
        if not is_project(name):
            return _part(b"v", f"{name} {version_of(name)}".encode())
        from importlib.util import find_spec

        spec = None
        try:
            spec = find_spec(name)
            code = spec.loader.get_code(name) if spec is not None else None  # type: ignore[union-attr]
        except Exception:  # it is not there, or no Python
            code = None
        if spec is None or code is None or not is_project_file(spec.origin):
            return _part(b"v", name.encode() if spec is None else f"{name} {version_of(name)}".encode())

        def parts(_: Any) -> Iterable[bytes]:
            yield self.form(code)
            package = name if spec.submodule_search_locations else name.rpartition(".")[0]
            for imported in sorted(imports(code, package)):
                yield self._imported(imported)

        return self._once(name, parts, key=name)

    def _code_object(self, code: types.CodeType) -> bytes:
        parts = [
            self._bytes(code.co_code),
            self._bytes(code.co_exceptiontable),
            *map(self.form, code.co_consts),
            *map(self._text, code.co_names + code.co_varnames + code.co_freevars + code.co_cellvars),
            self.form((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)),
        ]
        return _part(b"code", b"".join(parts))

    def _class(self, kind: type) -> bytes:
        if not is_project(kind.__module__):
            return self._installed(kind)
        return self._once(kind, self._class_parts)

    def _class_parts(self, kind: type) -> Iterable[bytes]:
        yield self._text(kind.__qualname__)
        yield from map(self.form, kind.__bases__)
        if type(kind) is not type:
            yield self._class(type(kind))
        members = kind.__members__ if issubclass(kind, Enum) else {}
        for name, member in members.items():
            yield self._text(name) + self.form(member._value_)  # its value may be overridden
        for name, member in sorted(vars(kind).items(), key=lambda item: item[0]):
            if name in _INCIDENTAL or name in members or isinstance(member, _DESCRIPTORS):
                continue
            yield self._text(name)
            yield self._member(member)

    def _member(self, member: Any) -> bytes:
        if isinstance(member, staticmethod | classmethod):
            return _part(type(member).__name__.encode(), self.form(member.__func__))
        if isinstance(member, property):
            return _part(b"property", self.form((member.fget, member.fset, member.fdel)))
        if isinstance(member, functools.cached_property):
            return _part(b"property", self.form(member.func))
        if isinstance(member, types.MappingProxyType):
            return self.form(dict(member))
        return self.form(member)

    def _method(self, value: types.MethodType) -> bytes:
        return _part(b"m", self.form(value.__func__) + self.form(value.__self__))

    def _builtin(self, value: Any) -> bytes:
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return self._installed(value)
        return _part(b"m", self._text(value.__name__) + self.form(owner))

    def _installed(self, value: Any) -> bytes:
        module = getattr(value, "__module__", None) or "builtins"
        name = getattr(value, "__qualname__", None) or type(value).__qualname__
        return _part(b"v", f"{module}.{name} {version_of(module)}".encode())

    def _module_value(self, value: types.ModuleType) -> bytes:
        version = "" if is_project(value.__name__) else version_of(value.__name__)
        return _part(b"v", f"{value.__name__} {version}".encode())

    def _once(self, value: Any, parts: Callable[[Any], Iterable[bytes]], key: Any = None) -> bytes:
        key = id(value) if key is None else key
        known = self._code.get(key)
        if known is not None:
            return known
        if key in self._open:
            return _part(b"again", str(len(self._open) - self._open.index(key)).encode())
        self._kept.append(value)
        self._open.append(key)
        try:
            known = self._code[key] = blake2b(b"".join(parts(value)), digest_size=DIGEST_BYTES).digest()
        finally:
            self._open.pop()
        return known


_LRU_WRAPPER = type(functools.lru_cache(lambda: None))
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType, types.DynamicClassAttribute)
_INCIDENTAL = frozenset((
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__",
    "__dataclass_fields__", "__dataclass_params__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "_member_map_",
    "_value2member_map_", "_member_names_", "_unhashable_values_", "_unhashable_values_map_", "_hashable_values_",
    "_generate_next_value_", "__new_member__", "_use_args_", "_member_type_", "_value_repr_", "_singles_mask_",
    "_all_bits_", "_flag_mask_", "_boundary_", "_inverted_", "_new_member_",
))  # fmt: skip
"""What a class has besides what its author wrote; fields of dataclasses are in what ``__init__`` takes."""


_WAYS: dict[type, Callable[[_Walk, Any], bytes]] = {
    type(None): _Walk._singleton,
    bool: _Walk._singleton,
    type(...): _Walk._singleton,
    type(NotImplemented): _Walk._singleton,
    int: _Walk._number,
    float: _Walk._number,
    complex: _Walk._number,
    str: _Walk._text,
    bytes: _Walk._bytes,
    bytearray: _Walk._bytes,
    tuple: _Walk._sequence,
    list: _Walk._sequence,
    set: _Walk._set,
    frozenset: _Walk._set,
    dict: _Walk._dict,
    types.FunctionType: _Walk._function,
    types.CodeType: _Walk._code_object,
    types.MethodType: _Walk._method,
    types.BuiltinFunctionType: _Walk._builtin,
    types.ModuleType: _Walk._module_value,
    type: _Walk._class,
}


def _part(tag: bytes, content: bytes | bytearray) -> bytes:
    """Return ``content`` so that no other content looks the same."""
    return b"%b%d:%b" % (tag, len(content), bytes(content))


def _name(value: Any) -> str:
    return f"an object of {type(value).__module__}.{type(value).__qualname__}"


def _place(value: Any) -> str:
    """Return an order for functions and classes that is the same in every process."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
