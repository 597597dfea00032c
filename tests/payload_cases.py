"""Objects that misbehave when they are pickled, unpickled or collected; importable by workers."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from poolkeeper import context


def in_worker() -> bool:
    """Whether this process is a worker, in which objects may do harm."""
    return context().name != ""


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise TypeError("I do not want to be pickled")


class PickledByExit:
    """Ends the interpreter by SystemExit when it is pickled."""

    def __reduce__(self) -> NoReturn:
        sys.exit(5)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


class Unloadable:
    """Can be pickled, and raises wherever it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, ("I do not want to be unpickled",)


def _unload_at_home(pid: int) -> object:
    if os.getpid() == pid:
        raise ValueError("not at home")
    return None


class UnloadableAtHome:
    """Made in a worker; cannot be unpickled in the process ``pid``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return _unload_at_home, (self.pid,)


def _die() -> NoReturn:
    if in_worker():
        os._exit(9)
    raise AssertionError("this was to happen in a worker")


class DiesWhenLoaded:
    def __reduce__(self) -> tuple[Any, ...]:
        return _die, ()


class DiesWhenPickled:
    """Harmless where it is made; kills the worker that sends it back."""

    def __reduce__(self) -> tuple[Any, ...]:
        if in_worker():
            os._exit(9)
        return DiesWhenPickled, ()


class DiesWhenCollected:
    def __del__(self) -> None:
        if in_worker():
            os._exit(9)


def make(kind: type, *args: object) -> object:
    return kind(*args)


def make_if(number: int, bad: int, kind: type) -> object:
    return kind() if number == bad else number


def make_garbage() -> int:
    """Leave a cycle behind that kills the worker when the collector finds it."""
    cycle: list[object] = [DiesWhenCollected()]
    cycle.append(cycle)
    return 1


def collect() -> int:
    import gc

    return gc.collect()


class TwoArguments(Exception):
    """Its constructor takes other arguments than it keeps in ``args``."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class HoldsUnpicklable(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.handle = Unpicklable()


class UnloadableError(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, ("an exception that cannot be unpickled",)


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Interrupt(BaseException):
    pass


def raise_error(kind: type[BaseException], *args: object, **kwargs: object) -> NoReturn:
    raise kind(*args, **kwargs)


def raise_chained() -> NoReturn:
    try:
        raise KeyError("the first")
    except KeyError as error:
        raise ValueError("the second") from error


def raise_group() -> NoReturn:
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


def raise_group_of_unloadable() -> NoReturn:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [UnloadableError("two")])])


def raise_local() -> NoReturn:
    class Local(Exception):
        pass

    raise Local("of a class that only lives here")


def nested_list(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value
