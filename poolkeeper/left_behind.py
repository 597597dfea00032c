"""Results that a worker leaves behind when it goes and no keeper has come: one sealed file for the next one to find."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .logs import emit
from .outcomes import Outcome, Torn, pack, unpack_body, unpack_head

__all__ = ["Left", "leave_results", "left_results"]

_MAGIC = b"poolkeeper left behind 1\n"
_LENGTH = 8
_PREFIX = "left-"


class Left(NamedTuple):
    """How one task has ended: its claim (see ``messages``), the attempt, and the outcome as it travels."""

    claim: tuple[Any, ...]
    attempt: int
    code: int
    payload: Any
    seconds: float


def leave_results(folder: Path, key: bytes, name: str, results: Sequence[Left]) -> None:
    """Write ``results`` into ``folder`` under a name of their own, sealed with ``key``; raises OSError."""
    outcomes = [
        Outcome(0, left.claim, None, left.code, left.attempt, 0, left.seconds, left.payload)  # type: ignore[arg-type]
        for left in results
    ]
    head, body = pack(outcomes, key)
    folder.mkdir(mode=0o700, exist_ok=True)
    temporary = folder / f"{_PREFIX}{name}.part"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_MAGIC + len(head).to_bytes(_LENGTH, "big") + head)
            file.write(body)
        os.rename(temporary, temporary.with_suffix(""))
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def left_results(folder: Path, key: bytes) -> Iterator[tuple[Path, list[Left]]]:
    """Return each file in ``folder`` with what it holds; what is damaged or not ours is said, and left where it is."""
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        if path.suffix == ".part":
            continue
        try:
            yield path, _read(path.read_bytes(), key)
        except (OSError, Torn) as error:
            emit("WARNING", f"the results that a worker has left in {path} are not used, its tasks run again: {error}")


def _read(content: bytes, key: bytes) -> list[Left]:
    view = memoryview(content)
    start = len(_MAGIC) + _LENGTH
    if bytes(view[: len(_MAGIC)]) != _MAGIC or len(view) < start:
        raise Torn("it is no such file")
    end = start + int.from_bytes(view[len(_MAGIC) : start], "big")
    outcomes, payloads = unpack_head(bytes(view[start:end]), key), unpack_body(bytes(view[end:]), key)
    return [
        Left(outcome.identity, outcome.attempts, outcome.code, payload, outcome.seconds or 0.0)  # type: ignore[arg-type]
        for outcome, payload in zip(outcomes, payloads, strict=True)
    ]
