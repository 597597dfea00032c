"""What a worker has been fed, as a later keeper must be told: the tasks whose answers are not acknowledged. Pure.

A keeper that takes over can make nothing of a result alone: the indices were given out by the one before it. So a
worker remembers of each task what a later keeper knows it by, until the answer is acknowledged. Of the one that it
executes it marks that on its page, for it may be unable to tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from struct import Struct
from typing import Any, NamedTuple

from .messages import Kind
from .session import Session

__all__ = ["Digests", "Held", "Holdings", "digest_of", "exactly", "work_of"]

_HALVES = Struct("<QQ")


class Held(NamedTuple):
    """What is known of one task: its call's name, the attempt, and its claim (see ``messages``)."""

    name: str
    attempt: int
    claim: tuple[Any, ...] | None


def exactly(claim: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what the outcome of a claim's task is reused by: batch, code, identity and arguments."""
    return claim[:4]


def work_of(claim: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what stays of a claim when the code of its task changes; two tasks that share it do not run at once."""
    batch, code, identity, arguments, *kin = claim
    return (batch, kin[0] if kin else code, identity, arguments)


def digest_of(claim: tuple[Any, ...]) -> tuple[int, int]:
    """Return 128 bits that stand for the work of a claim where there is no room for it, the same in every process."""
    return Digests().of(claim)


class Digests:
    """What ``digest_of`` returns, for one claim after the other: what many of them have in common is hashed once."""

    __slots__ = ("_kin", "_kind", "_name", "_start")

    def __init__(self) -> None:
        self._name: str | None = None
        self._kin = ""
        self._kind: type = str
        self._start: Any = None

    def of(self, claim: tuple[Any, ...]) -> tuple[int, int]:
        """Return the digest of ``claim``."""
        name, code, identity, arguments, *kin = claim
        tells = kin[0] if kin else code
        kind = type(identity)
        if kind is not self._kind or tells != self._kin or name != self._name:
            from hashlib import blake2b  # slow to import, and for those alone that are asked for by key

            self._name, self._kin, self._kind = name, tells, kind
            common = f"{name}\0{tells}\0{'position' if kind is int else 'key'}\0"
            self._start = blake2b(common.encode(errors="surrogatepass"), digest_size=_HALVES.size)
        digest = self._start.copy()
        digest.update(f"{identity}\0{arguments}".encode("utf-8", "surrogatepass"))
        return _HALVES.unpack(digest.digest())


class _Fed(NamedTuple):
    first: int
    number: int
    call: int
    infos: list[tuple[Any, ...]] | None


class Holdings:
    """The tasks of one worker, from the first on whose answer is not acknowledged."""

    def __init__(self) -> None:
        self._base = 1
        self._fed: deque[_Fed] = deque()
        self._answers: deque[tuple[int, int]] = deque()
        self._names: dict[int, str] = {}

    def taken(self, messages: Iterable[tuple[Any, ...]]) -> None:
        """Take note of what the keeper has sent."""
        for message in messages:
            kind = message[0]
            if kind == Kind.TASKS:
                self._fed.append(_Fed(message[1], len(message[3]), message[2], message[4]))
            elif kind == Kind.CHUNK:
                self._fed.append(_Fed(message[1], 1, message[2], None))
            elif kind == Kind.DEFINE:
                self._names[message[1]] = message[2]

    def answered(self, message: tuple[Any, ...], session: Session) -> None:
        """Take note of an answer that ``session`` has just numbered, and forget what is acknowledged."""
        kind = message[0]
        if kind == Kind.RESULTS:
            self._answers.append((session.sent, message[1] + len(message[3])))
        elif kind == Kind.CHUNK_RESULT:
            self._answers.append((session.sent, message[1] + 1))
        else:
            return
        self._trim(session.acknowledged)

    def unacknowledged(self, session: Session) -> tuple[int, list[Held | None]]:
        """Return the index of the first task whose answer is not acknowledged, and what is known of it and the rest.

        None stands for what no later keeper can know.
        """
        self._trim(session.acknowledged)
        held: list[Held | None] = []
        for first, number, call, infos in self._fed:
            name = self._names.get(call, "")
            for position in range(max(0, self._base - first), number):
                info = None if infos is None else infos[position]
                held.append(None if info is None or info[3] is None else Held(name, info[1], info[3]))
        return self._base, held

    def _trim(self, acknowledged: int) -> None:
        answers, fed = self._answers, self._fed
        while answers and answers[0][0] <= acknowledged:
            self._base = answers.popleft()[1]
        while fed and fed[0].first + fed[0].number <= self._base:
            fed.popleft()
