"""Outcomes of tasks as the journal keeps them: many to a row, each row sealed. Pure.

Why many to a row: sqlite3 gives the interpreter lock back for every row that it writes, and beside a busy thread has to
wait up to 5 ms to get it again. *Measured*: 3,400 rows/s there, 470,000/s alone; a row of 500 outcomes costs as much as
one.

A seal is a keyed checksum. What is torn, or was changed by somebody who has not the key, does not pass ``unseal``; so
what is unpickled here was written here.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from hmac import compare_digest
from pickle import PickleBuffer
from typing import Any, NamedTuple

from .messages import Code

__all__ = [
    "FILE_BYTES",
    "GROUP_BYTES",
    "SEAL_BYTES",
    "Columns",
    "Filed",
    "Outcome",
    "Torn",
    "grouped",
    "pack",
    "seal",
    "seal_parts",
    "unpack_body",
    "unpack_head",
    "unseal",
    "weight",
]

SEAL_BYTES = 16

GROUP_BYTES = 1 << 20
"""A row is closed when its results weigh this much: to read one of them, all have to be read."""

FILE_BYTES = 4 << 20
"""Heavier results lie in files of their own: SQLite would write them twice, and copy them to read them."""


class Torn(Exception):
    """A record is not what was written."""


class Filed(NamedTuple):
    """In the place of a payload: the name of the file that it lies in."""

    name: str


class Outcome(NamedTuple):
    """How one task has ended.

    ``batch`` is the number of its batch, ``identity`` its key or its position there, ``arguments`` their fingerprint
    (None: they have none). ``code`` says how ``payload`` is to be read, as it does on the way from a worker.
    """

    batch: int
    identity: str | int
    arguments: str | None
    code: int
    attempts: int
    deaths: int
    seconds: float | None
    payload: Any

    @property
    def ok(self) -> bool:
        """Whether the task succeeded."""
        return self.code != Code.EXCEPTION


class Columns(NamedTuple):
    """How tasks have ended, a list for each field of ``Outcome``.

    As rows they would take three times as long to gather, and be so many objects that the garbage collector sets in.
    """

    batches: list[int]
    identities: list[str | int]
    arguments: list[str | None]
    codes: list[int]
    attempts: list[int]
    deaths: list[int]
    seconds: list[float | None]
    payloads: list[Any]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome] = ()) -> Columns:
        """Return ``outcomes`` by column."""
        columns = cls([], [], [], [], [], [], [], [])
        for outcome in outcomes:
            columns.add(outcome)
        return columns

    def add(self, outcome: Iterable[Any]) -> None:
        """Append one outcome."""
        for column, value in zip(self.lists, outcome, strict=True):
            column.append(value)

    def extend(self, other: Columns) -> None:
        """Append all of ``other``."""
        for column, values in zip(self.lists, other.lists, strict=True):
            column.extend(values)

    @property
    def lists(self) -> tuple[list[Any], ...]:
        """All of it, in the order of the fields."""
        return tuple(self)


def weight(payload: Any) -> int:
    """Return how many bytes ``payload`` takes up, roughly."""
    kind = type(payload)
    if kind is bytes or kind is str:  # of which no subclass travels
        return len(payload)
    if kind is tuple:  # a mapped arena: a pickle, and the buffers beside it
        size: int = sum((part.nbytes for part in payload[1]), len(payload[0] or b""))
        return size
    return 32


def grouped(gathered: Iterable[Columns], limit: int = GROUP_BYTES) -> Iterator[Columns]:
    """Put together what is ``gathered``, and cut it where ``limit`` bytes are reached."""
    group, held = Columns.of(), 0
    for columns in gathered:
        sizes = list(map(weight, columns.payloads))
        total = sum(sizes)
        if held + total <= limit:
            group.extend(columns)
            held += total
            continue
        for outcome, size in zip(zip(*columns.lists, strict=True), sizes, strict=True):
            if group.payloads and held + size > limit:
                yield group
                group, held = Columns.of(), 0
            group.add(outcome)
            held += size
    if group.payloads:
        yield group


def pack(outcomes: Columns, key: bytes) -> tuple[bytes, bytes]:
    """Return what identifies ``outcomes`` and what they are, two sealed blobs."""
    *facts, payloads = outcomes
    head = pickle.dumps(facts, 5)
    body = pickle.dumps([_in_band(payload) for payload in payloads], 5)
    return seal(head, key), seal(body, key)


def unpack_head(blob: bytes, key: bytes) -> list[Outcome]:
    """Return the outcomes of a head, without their payloads; raises Torn."""
    try:
        facts = pickle.loads(unseal(blob, key))
        return [Outcome._make((*row, None)) for row in zip(*facts, strict=True)]
    except Torn:
        raise
    except Exception as error:
        raise Torn(f"a record cannot be read: {error}") from error


def unpack_body(blob: bytes, key: bytes) -> list[Any]:
    """Return the payloads of a body; raises Torn."""
    try:
        return [_out_of_band(payload) for payload in pickle.loads(unseal(blob, key))]
    except Torn:
        raise
    except Exception as error:
        raise Torn(f"a record cannot be read: {error}") from error


def seal(data: bytes, key: bytes) -> bytes:
    """Return ``data`` behind its seal."""
    return seal_parts((data,), key) + data


def seal_parts(parts: Iterable[Any], key: bytes) -> bytes:
    """Return the seal of ``parts``, one behind the other."""
    digest = blake2b(key=key, digest_size=SEAL_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def unseal(blob: Any, key: bytes) -> memoryview:
    """Return what is behind the seal; raises Torn where they do not belong together."""
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise Torn(f"a record is of type {type(blob).__name__}")
    view = memoryview(blob)
    if len(view) < SEAL_BYTES or not compare_digest(view[:SEAL_BYTES], seal_parts((view[SEAL_BYTES:],), key)):
        raise Torn("a record does not agree with its checksum")
    return view[SEAL_BYTES:]


def _in_band(payload: Any) -> Any:
    if type(payload) is tuple:
        return payload[0], [PickleBuffer(part) for part in payload[1]]
    return payload


def _out_of_band(payload: Any) -> Any:
    if type(payload) is tuple:  # arrays made of it are writable, as those are that come from a worker
        return payload[0], [memoryview(bytearray(part)) for part in payload[1]]
    return payload
