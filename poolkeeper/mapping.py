"""``map``: items cut into chunks that fit, their results put back in order, and pulled lazily where asked.

The chunks are cut by the keeper when a worker can take one. The consumer's thread does the rest: it reads the input,
pickles items, unpickles results and, with a ``buffersize``, pulls more input as results are consumed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import chain, count, islice, repeat
from typing import Any, Protocol, TypeVar, cast

from .errors import PayloadError
from .futures import Bell
from .ledger import Call, Chunk, Segment
from .messages import Code
from .payload import SCALARS, is_plain, loads, loads_exception, loads_view

__all__ = ["MapJob", "MapResults", "Mapper"]

T = TypeVar("T")


class Mapper(Protocol):
    """The keeper as a map sees it."""

    def submit(self, segment: Segment) -> None:
        """Take on a stretch of items."""

    def encode_item(self, item: Any) -> Any:
        """Return what travels in the place of ``item``; raises PayloadError."""

    def forget(self, segments: list[Segment]) -> None:
        """Give up what is left of ``segments``; the map is read no further."""


class _Piece:
    """The outcome of one chunk, or the error that took its place; ``taken`` is whether the consumer has had it."""

    __slots__ = ("codes", "count", "error", "taken", "values")

    def __init__(
        self, count: int, codes: Sequence[int] | None, values: Any, error: BaseException | None = None
    ) -> None:
        self.count = count
        self.codes = codes
        self.values = values
        self.error = error
        self.taken = False

    def read(self, name: str) -> tuple[list[Any], BaseException | None]:
        """Return the results up to the first failure, and that failure."""
        if self.error is not None:
            return [], self.error
        if self.codes is None:
            return self.values, None
        if isinstance(self.values, list):
            return self._read_each(name, self.codes)
        try:
            results = loads_view(self.values) if self.codes[0] == Code.ARENA else loads(self.values)
        except PayloadError as error:
            return [], PayloadError(f"the results of {name} {error}")
        return results, None

    def _read_each(self, name: str, codes: Sequence[int]) -> tuple[list[Any], BaseException | None]:
        results: list[Any] = []
        for code, value in zip(codes, self.values, strict=True):
            if code == Code.EXCEPTION:
                return results, loads_exception(value)
            try:
                results.append(loads(value))
            except PayloadError as error:
                return results, PayloadError(f"the result of {name} {error}")
        return results, None


class MapResults(chain[T]):
    """What ``map`` returns: goes from result to result without a line of Python, and can be closed as a generator."""

    _pieces: Generator[Iterator[T], None, None]

    @classmethod
    def of(cls, pieces: Generator[Iterator[T], None, None]) -> MapResults[T]:
        """Return the results in ``pieces``, which are read as they are needed."""
        results = cast("MapResults[T]", cls.from_iterable(pieces))  # typeshed: chain; CPython: cls
        results._pieces = pieces  # noqa: SLF001 - of this class
        return results

    def close(self) -> None:
        """Give up what has not been read: no more of it is started."""
        self._pieces.close()
        deque(self, maxlen=0)  # what is left of the piece that was being read


class MapJob:
    """One call of ``map``: gathers pieces under the keeper's lock, hands them out in the consumer's thread."""

    _numbers = count(1)

    def __init__(
        self, mapper: Mapper, call: Call, *, starred: bool, chunksize: int, single: bool, ordered: bool
    ) -> None:
        self.withdrawn = False
        self.number = next(self._numbers)
        self._mapper = mapper
        self._call = call
        self._starred = starred
        self._chunksize = chunksize
        self._single = single
        self._ordered = ordered
        self._submitted = 0
        self._pieces: dict[int, _Piece] = {}
        self._latest: tuple[int, _Piece] | None = None
        self._arrived: deque[int] = deque()
        self._segments: deque[Segment] = deque()
        self._awaited: int | None = None
        self._bell = Bell()

    # -- the keeper's side --------------------------------------------------------------------------------------------

    def settle(self, chunk: Chunk, codes: Sequence[int] | None, values: Any) -> bool:
        """Take in the outcome of ``chunk``; return whether the consumer waits for it."""
        return self._take_in(chunk.start, _Piece(chunk.items, codes, values))

    def fail(self, piece: Chunk | Segment, error: BaseException) -> bool:
        """Take in that these items have failed; as ``settle``."""
        if isinstance(piece, Chunk):
            return self._take_in(piece.start, _Piece(piece.items, None, None, error))
        return self._take_in(piece.start + piece.position, _Piece(piece.remaining, None, None, error))

    def _take_in(self, start: int, piece: _Piece) -> bool:
        if self._latest is not None and self._latest[0] == start:
            piece = self._latest[1]  # once more, for the keeper's loop has failed meanwhile
        self._latest = start, piece
        self._pieces[start] = piece
        if not self._ordered:
            self._arrived.append(start)
        return self._awaited in (start, -1)

    def announce(self) -> None:
        """Wake the consumer."""
        self._bell.ring()

    # -- the consumer's side ------------------------------------------------------------------------------------------

    def submit(self, items: Sequence[Any]) -> None:
        """Give ``items`` to the keeper, pickled here and now unless they cannot change.

        A range stays one, cut into ranges, to the worker that runs through it: not an int of it is pickled.
        """
        if type(items) is range:
            self._submit(items, plain=True)
            return
        values = chain.from_iterable(items) if self._starred else items
        if SCALARS.issuperset(map(type, values)) or self._all_plain(items):
            self._submit(items, plain=True)
            return
        encoded: list[Any] = []
        for item in items:
            try:
                encoded.append(self._mapper.encode_item(item))
            except PayloadError as error:
                self._submit(encoded, plain=False)
                encoded = []
                failure = PayloadError(f"an argument of {self._call.name} {error}")
                failure.__cause__ = error.__cause__
                self._take_in(self._submitted, _Piece(1, None, None, failure))
                self._submitted += 1
        self._submit(encoded, plain=False)

    def _all_plain(self, items: Sequence[Any]) -> bool:
        return all(map(is_plain, chain.from_iterable(items) if self._starred else items))

    def _submit(self, items: Sequence[Any], *, plain: bool) -> None:
        if not items:
            return
        # a frame carries few descriptors, so what brings one travels alone
        single = self._single or not (plain or all(type(item) is bytes for item in items))
        segment = Segment(
            self,
            self._call,
            items,
            self._submitted,
            starred=self._starred,
            plain=plain,
            chunksize=self._chunksize,
            single=single,
        )
        self._submitted += len(items)
        if not plain:
            while self._segments and not self._segments[0].remaining:
                self._segments.popleft()
            self._segments.append(segment)
        self._mapper.submit(segment)

    def results(
        self, source: Iterator[Any] | None, buffersize: int, deadline: float | None, timeout: float | None
    ) -> MapResults[Any]:
        """Iterate over the results; pull from ``source`` so that ``buffersize`` at most are submitted, not yielded."""
        return MapResults.of(self._read(source, buffersize, deadline, timeout))

    def _read(
        self, source: Iterator[Any] | None, buffersize: int, deadline: float | None, timeout: float | None
    ) -> Generator[Iterator[Any], None, None]:
        """Yield the results piece by piece."""
        yielded = 0
        try:
            while True:
                wanted = buffersize - (self._submitted - yielded)
                # Not item by item: what is submitted together is cut into chunks together.
                if source is not None and 2 * wanted >= buffersize:
                    items = list(islice(source, wanted))
                    if len(items) < wanted:
                        source = None
                    self.submit(items)
                if yielded >= self._submitted:
                    return
                piece = self._next(yielded, deadline, timeout)
                results, error = piece.read(self._call.name)
                yielded += piece.count
                piece.values = None
                yield iter(results) if piece.codes is None else _draining(results)
                if error is not None:
                    raise error
        finally:
            self.withdrawn = True
            if self._segments:
                self._mapper.forget(list(self._segments))

    def _next(self, position: int, deadline: float | None, timeout: float | None) -> _Piece:
        while True:
            # Published before the look: the keeper either sees it, or has put the piece there before.
            self._awaited = position if self._ordered else -1
            found = self._found(position)
            if found is not None:
                self._awaited = None
                return found
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"map of {self._call.name} has no result {position} after {timeout} s")
            self._bell.wait(left)

    def _found(self, position: int) -> _Piece | None:
        if self._ordered:
            return self._pieces.pop(position, None)
        while self._arrived:
            piece = self._pieces.pop(self._arrived.popleft(), None)
            if piece is not None and not piece.taken:
                piece.taken = True
                return piece
        return None


def _draining(results: list[Any]) -> Iterator[Any]:
    """Return an iterator over a list that does not keep what it has returned alive."""
    results.reverse()
    return map(list.pop, repeat(results, len(results)))
