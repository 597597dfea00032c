"""Fields of frozen dataclasses that check and normalise their value once, when the instance is made.

A converter takes what the caller gave and returns what is kept, or raises ``ValueError`` or ``TypeError``
with the rest of the sentence "RetryPolicy(attempts=0): ...". The field puts the beginning before it.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, overload

__all__ = [
    "Checked",
    "Converted",
    "counts_by_name",
    "duration",
    "memory_size",
    "optional",
    "part_name",
    "positive_duration",
    "positive_number",
    "whole_number",
]

Given = TypeVar("Given")
Kept = TypeVar("Kept")


class Converted(Generic[Given, Kept]):
    """A dataclass field that passes through ``convert`` on its way into the instance.

    Dataclasses let a descriptor be a field: ``__init__`` assigns through ``__set__``, and type checkers take the
    parameter's type from there and the attribute's from ``__get__``. So ``max_memory`` may be given as ``"2GiB"``
    and is an int to whoever reads it. Without a default the field must be given.
    """

    def __init__(self, convert: Callable[[Any], Kept], *default: Given) -> None:
        self._convert = convert
        self._default = default
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Given: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Kept: ...

    def __get__(self, instance: object | None, owner: type) -> Given | Kept:
        if instance is None:  # how dataclasses ask for the default; AttributeError tells them that there is none
            if not self._default:
                raise AttributeError(self._name)
            return self._default[0]
        try:
            kept: Kept = instance.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None
        return kept

    def __set__(self, instance: object, value: Given) -> None:
        try:
            instance.__dict__[self._name] = self._convert(value)
        except (TypeError, ValueError) as error:
            where = f"{type(instance).__name__}({self._name}={value!r})"
            raise type(error)(f"{where}: {error}") from None


class Checked(Converted[Kept, Kept]):
    """A field whose converter checks the value and keeps its type."""


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def part_name(value: Any) -> str:
    """Check a name of a fleet, batch or service.

    It becomes a file's name, and a word on the command line where "/", ":" and "=" separate it from others.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("use letters, digits, '_', '.' and '-', at most 100 of them, and begin with no '.' or '-'")
    return value


def optional(convert: Callable[[Any], Kept]) -> Callable[[Any], Kept | None]:
    """Make a converter that keeps None, and gives everything else to ``convert``."""

    def converter(value: Any) -> Kept | None:
        return None if value is None else convert(value)

    return converter


def whole_number(minimum: int | None = None, maximum: int | None = None) -> Callable[[int], int]:
    """Make a converter for whole numbers from ``minimum`` to ``maximum``, both included."""

    def converter(value: int) -> int:
        number = _integer(value)
        if minimum is not None and number < minimum:
            raise ValueError(f"must be at least {minimum}")
        if maximum is not None and number > maximum:
            raise ValueError(f"must be at most {maximum}")
        return number

    return converter


def duration(value: float) -> float:
    """Check a time in seconds that may be zero, but not negative, infinite or NaN."""
    seconds = _finite(value, " of seconds")
    if seconds < 0:
        raise ValueError("must not be negative")
    return seconds


def positive_duration(value: float) -> float:
    """Check a time in seconds that must be greater than zero and finite."""
    seconds = _finite(value, " of seconds")
    if seconds <= 0:
        raise ValueError("must be more than 0 seconds")
    return seconds


def positive_number(value: float) -> float:
    """Check a number that must be greater than zero and finite."""
    number = _finite(value)
    if number <= 0:
        raise ValueError("must be more than 0")
    return number


_SIZE = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[a-z]*)", re.ASCII | re.IGNORECASE)

# One letter counts in powers of 1024, as in systemd.resource-control(5); kB, MB, GB and TB are the SI units.
_UNITS = {"": 1, "b": 1} | {
    name: base**power
    for power, letter in enumerate("kmgt", start=1)
    for name, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}


def memory_size(value: int | str) -> int:
    """Read a size of memory: bytes as a whole number, or text such as ``"512MiB"``, ``"2 GB"`` or ``"1.5G"``."""
    if not isinstance(value, str):
        size = _integer(value)
    else:
        match = _SIZE.fullmatch(value.strip())
        unit = _UNITS.get(match["unit"].lower()) if match else None
        if match is None or unit is None:
            raise ValueError('must be a number of bytes, or text such as "512MiB" or "2GB"')
        # Python ints are exact where a float would round sizes beyond 2**53
        whole, _, fraction = match["number"].partition(".")
        size = int(whole or 0) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
    if size < 1:
        raise ValueError("must be at least 1 byte")
    return size


def counts_by_name(value: Mapping[str, int]) -> dict[str, int]:
    """Check a mapping of names to whole numbers of at least 1, such as ``{"gpu": 2}``, and copy it."""
    if not isinstance(value, Mapping):
        raise TypeError('must be a mapping of names to counts, such as {"gpu": 1}')
    counts = {}
    for name, count in value.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"names must be non-empty strings, and {name!r} is not")
        try:
            counts[name] = whole_number(1)(count)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the count of {name!r} {error}, not {count!r}") from None
    return counts


def _integer(value: object) -> int:
    # a bool is an int to Python, and a mistake as a count
    if isinstance(value, bool):
        raise TypeError("must be a whole number")
    try:
        return operator.index(value)  # type: ignore[arg-type]  # a wrong type is what this line looks for
    except TypeError:
        raise TypeError("must be a whole number") from None


def _finite(value: object, of: str = "") -> float:
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"must be a number{of}")
    try:
        number = float(value)  # type: ignore[arg-type]  # a wrong type is what this line looks for
    except (TypeError, OverflowError):
        raise TypeError(f"must be a number{of}") from None
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number{of}; None, where it is allowed, means no limit")
    return number
