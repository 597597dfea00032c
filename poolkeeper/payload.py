"""Python objects to what travels, and back.

In order of preference: values that cannot change travel as they are, inside the frame's own pickle; then plain
pickle, which is fast; then cloudpickle, for what pickle cannot name (lambdas, closures, anything of ``__main__``).
Large buffers (pickle protocol 5, PEP 574) and large pickles go into an arena.

On the way, a payload is told by its type: a tuple is a call's positional arguments, bytes are a pickle, a list
``[arena, size, pickle or None, spans]`` is an arena whose descriptor comes beside the frame.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

from .arena import ARENA_THRESHOLD, Arena, ArenaPool, map_arena
from .errors import PayloadError, RemoteError, RemoteTraceback, TaskExited

__all__ = [
    "SCALARS",
    "Large",
    "dumps",
    "dumps_arguments",
    "dumps_exception",
    "dumps_in_band",
    "is_plain",
    "loads",
    "loads_exception",
    "loads_view",
    "map_large",
    "pickle_callable",
    "to_arena",
]

SCALARS = frozenset({int, float, bool, complex, type(None)})
_TEXT_LIMIT = 4096
_MAIN = b"__main__"
_PROTOCOL = 5


class Large:
    """A payload whose bytes lie in an arena; it becomes ``wire()`` with the arena's descriptor beside the frame.

    Where a task may be fed more than once, ``holders`` counts the workers that have it mapped, and ``settled`` says
    that it will not be fed again. ``weight`` is what it counts for in the queue, in bytes.
    """

    __slots__ = ("arena", "data", "holders", "settled", "spans", "weight")

    def __init__(self, arena: Arena, data: bytes | None, spans: list[tuple[int, int]]) -> None:
        self.arena = arena
        self.data = data
        self.spans = spans
        self.holders = 0
        self.settled = False
        self.weight = 0

    def wire(self) -> list[Any]:
        """Return what goes into the frame."""
        return [self.arena.id, self.arena.size, self.data, self.spans]


def is_plain(value: object) -> bool:
    """Whether ``value`` cannot change and is small, so that it may travel as it is, and be unpickled anywhere."""
    kind = type(value)
    return kind in SCALARS or ((kind is str or kind is bytes) and len(value) <= _TEXT_LIMIT)  # type: ignore[arg-type]


class _LargeBytes:
    """Makes pickle hand a large bytes or bytearray over as a buffer instead of copying it into the stream."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self.value), (PickleBuffer(self.value),)


def _wrapped(value: Any) -> Any:
    if type(value) in (bytes, bytearray) and len(value) >= ARENA_THRESHOLD:
        return _LargeBytes(value)
    return value


def dumps_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[PickleBuffer]]:
    """Return the pickle of a call's arguments and the buffers beside it; raises PayloadError."""
    return dumps((tuple(map(_wrapped, args)), {name: _wrapped(value) for name, value in kwargs.items()}))


def dumps(value: Any) -> tuple[bytes, list[PickleBuffer]]:
    """Return the pickle of ``value`` and the buffers that are too large to lie in it; raises PayloadError."""
    value = _wrapped(value)
    buffers: list[PickleBuffer] = []
    try:
        data = pickle.dumps(value, _PROTOCOL, buffer_callback=buffers.append)
        if _MAIN in data:
            # Named by reference, it would be looked for in the worker's own __main__.
            data, buffers = _cloudpickle(value)
    except RecursionError as error:
        raise PayloadError(f"too deeply nested to be pickled: {_summary(error)}") from error
    except Exception as error:
        try:
            data, buffers = _cloudpickle(value)
        except Exception as second:  # cloudpickle gets further, and names the culprit
            raise PayloadError(f"cannot be pickled: {_summary(second)}") from error
    if buffers and sum(buffer.raw().nbytes for buffer in buffers) < ARENA_THRESHOLD:
        return dumps_in_band(value), []
    return data, buffers


def dumps_in_band(value: Any) -> bytes:
    """Return the pickle of ``value`` with all buffers in it; raises PayloadError."""
    try:
        data = pickle.dumps(value, _PROTOCOL)
        return data if _MAIN not in data else _cloudpickle(value, in_band=True)[0]
    except Exception as error:
        try:
            return _cloudpickle(value, in_band=True)[0]
        except Exception as second:
            raise PayloadError(f"cannot be pickled: {_summary(second)}") from error


def _cloudpickle(value: Any, in_band: bool = False) -> tuple[bytes, list[PickleBuffer]]:
    import cloudpickle

    if in_band:
        return cloudpickle.dumps(value, _PROTOCOL), []
    buffers: list[PickleBuffer] = []
    return cloudpickle.dumps(value, _PROTOCOL, buffer_callback=buffers.append), buffers


def pickle_callable(function: Callable[..., Any]) -> bytes:
    """Return the pickle of a callable, by reference where a worker can import it; raises PayloadError."""
    try:
        return dumps_in_band(function)
    except PayloadError as error:
        raise PayloadError(f"the callable {function!r} {error}") from error.__cause__


def to_arena(data: bytes, buffers: list[PickleBuffer], arenas: ArenaPool) -> Large:
    """Put a pickle's buffers, and the pickle itself if it is large, into an arena; raises OSError."""
    raw = [buffer.raw() for buffer in buffers]
    if len(data) < ARENA_THRESHOLD:
        arena, spans = arenas.write(raw)
        return Large(arena, data, spans)
    arena, spans = arenas.write([memoryview(data), *raw])
    return Large(arena, None, spans)


def loads(data: bytes | memoryview) -> Any:
    """Unpickle; raises PayloadError with the cause where that fails."""
    try:
        return pickle.loads(data)
    except (Exception, SystemExit) as error:
        raise PayloadError(f"cannot be unpickled: {_summary(error)}") from error


def map_large(wire: list[Any], fd: int, released: Callable[[int], None]) -> tuple[bytes | None, list[memoryview]]:
    """Map an arena, close its descriptor, and return what ``loads_view`` takes; no user code runs."""
    id, size, data, spans = wire
    view = map_arena(fd, size, id, released)
    return data, [view[offset : offset + length] for offset, length in spans]


def loads_view(mapped: tuple[bytes | None, list[memoryview]]) -> Any:
    """Unpickle a mapped arena. Raises PayloadError."""
    data, parts = mapped
    try:
        if data is None:
            return pickle.loads(parts[0], buffers=parts[1:])
        return pickle.loads(data, buffers=parts)
    except (Exception, SystemExit) as error:
        raise PayloadError(f"cannot be unpickled: {_summary(error)}") from error


def dumps_exception(error: BaseException, name: str) -> bytes:
    """Return an exception and its traceback as a pickle that is known to load again.

    ``name`` is the task's. An exception whose constructor takes other arguments than it keeps is rebuilt without it;
    one that cannot travel at all becomes a RemoteError. What would end the caller's process (``SystemExit``) arrives
    as TaskExited.
    """
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if not isinstance(error, Exception):
        error = TaskExited(
            f"{name} ended with {type(error).__name__}({', '.join(map(repr, error.args))})",
            getattr(error, "code", None),
        )
    for form in (error, _Rebuilt(error)):
        try:
            data = dumps_in_band((form, text))
            restored = pickle.loads(data)[0]
            if type(restored) is type(error) and (form is not error or _alike(restored, error)):
                return data
        except Exception:  # noqa: S112 - whatever a foreign __reduce__ raises, the next form is tried
            continue
    summary = f"{name} raised {type(error).__qualname__}, which cannot be pickled: {_summary(error)}"
    return pickle.dumps((RemoteError(summary), text), _PROTOCOL)


def _alike(restored: BaseException, error: BaseException) -> bool:
    """Whether an exception has kept its arguments; by their look, for few objects equal their copies."""
    return len(restored.args) == len(error.args) and str(restored) == str(error)


class _Rebuilt:
    """Pickles as the exception it holds, rebuilt from its class, arguments and attributes."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error, args = self.error, self.error.args
        if isinstance(error, BaseExceptionGroup):
            args = (error.message, [_Rebuilt(each) for each in error.exceptions])
        return _rebuild, (type(error), args, dict(error.__dict__))


def _rebuild(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def loads_exception(data: bytes | memoryview) -> BaseException:
    """Return the exception of a worker, the worker's traceback as its cause (as the standard executor does)."""
    try:
        error, text = pickle.loads(data)
    except (Exception, SystemExit) as failure:
        error, text = PayloadError(f"the task's exception cannot be unpickled: {_summary(failure)}"), _summary(failure)
    error.__cause__ = RemoteTraceback(text)
    return error  # type: ignore[no-any-return]


def _summary(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(error), error)).strip()
