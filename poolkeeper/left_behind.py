"""Results that a worker leaves behind when it goes and no keeper takes them: one sealed file for the next one to find.

The version of the file is its own: whoever has written it, any keeper that knows this version can read it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .holdings import Held
from .logs import emit
from .messages import Code, Kind, unpack
from .outcomes import Columns, Outcome, Torn, pack, unpack_body, unpack_head
from .payload import map_large
from .sealed_file import PARTIAL, read_sealed, write_sealed
from .session import Outgoing

__all__ = ["Left", "leave_results", "left_in", "left_results"]

_TITLE = b"poolkeeper left behind 1"
_PREFIX = "left-"
_CORRUPT = ".corrupt"


class Left(NamedTuple):
    """How one task has ended: its claim (see ``messages``), the attempt, and the outcome as it travels."""

    claim: tuple[Any, ...]
    attempt: int
    code: int
    payload: Any
    seconds: float


def left_in(outbox: Iterable[Outgoing], base: int, held: Sequence[Held | None]) -> list[Left]:
    """Return the results in ``outbox`` that a later keeper can know; ``held`` are the tasks from index ``base`` on."""
    left: list[Left] = []
    for outgoing in outbox:
        fds = list(outgoing.fds)
        for message in unpack(outgoing.body):
            if message[0] != Kind.RESULTS:
                continue
            _, first, codes, values, seconds = message
            for position, sent in enumerate(values):
                code = Code.VALUE if codes is None else codes[position]
                value = map_large(sent, os.dup(fds.pop(0)), lambda _: None) if code == Code.ARENA else sent
                what = held[first + position - base] if first + position >= base else None
                if what is not None and what.claim is not None:
                    left.append(Left(what.claim, what.attempt, code, value, seconds / len(values)))
    return left


def leave_results(folder: Path, key: bytes, name: str, results: Sequence[Left]) -> None:
    """Write ``results`` into ``folder`` under a name of their own, sealed with ``key``; raises OSError."""
    outcomes = [
        Outcome(0, left.claim, None, left.code, left.attempt, 0, left.seconds, left.payload)  # type: ignore[arg-type]
        for left in results
    ]
    head, body = pack(Columns.of(outcomes), key)
    write_sealed(folder / f"{_PREFIX}{name}", _TITLE, head, [body], durable=False)


def left_results(folder: Path, key: bytes, name: str = "*") -> Iterator[tuple[Path, list[Left]]]:
    """Return each file in ``folder`` with what it holds, or that of ``name``.

    What is damaged or not ours is said, and set aside under another name: later keepers need not say it again.
    """
    for path in sorted(folder.glob(f"{_PREFIX}{name}")):
        if path.suffix in (PARTIAL, _CORRUPT):
            continue
        try:
            yield path, _read(path, key)
        except (OSError, Torn) as error:
            where = _set_aside(path) if isinstance(error, Torn) else path
            emit("WARNING", f"the results that a worker has left in {where} are not used, its tasks run again: {error}")


def _set_aside(path: Path) -> Path:
    """Return where the file is kept from now on: where it was, if it cannot be moved."""
    try:
        return path.rename(f"{path}{_CORRUPT}")
    except OSError:
        return path


def _read(path: Path, key: bytes) -> list[Left]:
    head, body = read_sealed(path, _TITLE)
    outcomes, payloads = unpack_head(bytes(head), key), unpack_body(bytes(body), key)
    return [
        Left(outcome.identity, outcome.attempts, outcome.code, payload, outcome.seconds or 0.0)  # type: ignore[arg-type]
        for outcome, payload in zip(outcomes, payloads, strict=True)
    ]
