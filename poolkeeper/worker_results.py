"""How the results of a worker travel: as they are, pickled, or in an arena, alone or those of a chunk together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arena import Arena, ArenaPool
from .errors import PayloadError
from .messages import Code
from .payload import dumps, dumps_exception, dumps_in_band, is_plain, to_arena

__all__ = ["encode", "encode_items", "without_frames_of"]

HELD_BYTES = 1 << 16
"""A pickle beyond this goes into an arena."""


def encode(value: Any, name: str, arenas: ArenaPool) -> tuple[Any, int]:
    """Return what travels for the result of task ``name``, and how; raises PayloadError."""
    if is_plain(value):
        return value, Code.VALUE
    try:
        data, buffers = dumps(value)
    except PayloadError as error:
        raise PayloadError(f"the result of {name} {error}") from error.__cause__
    if buffers or len(data) > HELD_BYTES:
        try:
            return to_arena(data, buffers, arenas), Code.ARENA
        except OSError as error:
            raise PayloadError(f"no memory to send the result of {name}: {error}") from error
    return data, Code.PICKLED


def encode_items(
    values: list[Any], failed: Mapping[int, bytes], name: str, arenas: ArenaPool
) -> tuple[Any, Any, tuple[Arena, ...]]:
    """Return what travels for the results of a chunk: codes, values, and the arenas that go beside.

    Together where that can be done, else item by item; ``failed`` has what travels for an item that raised.
    """
    if not failed:
        try:
            encoded, code = encode(values, name, arenas)
        except PayloadError:
            pass  # one of them spoils it: item by item, then
        else:
            if code != Code.ARENA:
                return [code], encoded, ()
            return [code], encoded.wire(), (encoded.arena,)
    codes: list[int] = []
    sent: list[Any] = []
    for position, value in enumerate(values):
        if position in failed:
            sent.append(failed[position])
            codes.append(Code.EXCEPTION)
            continue
        try:
            sent.append(dumps_in_band(value))
            codes.append(Code.PICKLED)
        except PayloadError as error:
            sent.append(dumps_exception(PayloadError(f"the result of {name} {error}"), name))
            codes.append(Code.EXCEPTION)
    return codes, sent, ()


def without_frames_of(file: str, error: BaseException) -> BaseException:
    """Drop the frames of ``file`` from the top of the traceback: the user's code is what matters."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == file and trace.tb_next is not None:
        trace = trace.tb_next
    return error.with_traceback(trace)
