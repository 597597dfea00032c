"""Who can speak with whom, and what becomes of a child whose versions differ from its keeper's. Pure.

A keeper meets children that another version of poolkeeper has made, an older or a newer one. So that they can part in
good order, the outermost part of the protocol never changes:

- the header of a frame, and the numbers of the kinds CHALLENGE, HELLO, REFUSE and LEAVING (``frames``);
- their bodies are JSON objects; unknown keys are ignored, missing ones have a default;
- the proofs that both sides know the key (``link``): each is over the nonce of the other and all else in its body;
- HELLO has ``role``, ``id``, ``birth``, ``pid`` and what ``Versions`` holds; ``leaving`` says whether the caller has
  been told to leave before;
- REFUSE has a ``verdict`` in place of a WELCOME, the value of one of ``Verdict``, and says ``why`` to a person;
- a worker that is told to drain answers with LEAVING: ``holds``, what it has begun and nobody has acknowledged, each as
  ``[call's name, attempt, claim]`` or null, oldest first; ``executing``, whether it still runs the last one, and
  ``since`` when, in seconds of the monotonic clock. The outcomes it leaves in the spool, whose files have a version of
  their own (``left_behind``).

What becomes of a caller by what differs (a caller that does not say what it has counts as having the same):

=========== ======= ====================== =======
role        nothing Python or cloudpickle  protocol
=========== ======= ====================== =======
a child     SPEAK   DRAIN                  DRAIN
any other   SPEAK   SPEAK                  REFUSE
=========== ======= ====================== =======
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["PROTOCOL", "Verdict", "Versions", "judge"]

PROTOCOL = 1

CHILDREN = frozenset({"worker", "service", "forkserver"})
"""Roles whose processes run the application's code, on what the keeper pickles."""


class Verdict(Enum):
    """What becomes of a caller: it is heard, it leaves when it has done what it does, or it is sent away."""

    SPEAK = "speak"
    DRAIN = "drain"
    REFUSE = "refuse"


class Versions(NamedTuple):
    """What one side of a link runs: poolkeeper's protocol, and the minor version of Python; None stands for any."""

    protocol: int | None
    python: str | None = None
    cloudpickle: str | None = None

    @classmethod
    def of(cls, hello: Mapping[str, Any]) -> Versions:
        """Return what a caller says of itself."""
        return cls(*(hello.get(name) or None for name in cls._fields))


def judge(mine: Versions, hello: Mapping[str, Any]) -> tuple[Verdict, str]:
    """Return what becomes of a caller, and why, as a predicate of the caller."""
    differs = [
        (name, theirs, ours)
        for name, theirs, ours in zip(Versions._fields, Versions.of(hello), mine, strict=True)
        if None not in (theirs, ours) and theirs != ours
    ]
    if hello.get("role") not in CHILDREN:
        differs = [difference for difference in differs if difference[0] == "protocol"]
        verdict = Verdict.REFUSE if differs else Verdict.SPEAK
    elif hello.get("leaving"):
        return Verdict.DRAIN, "has been told to leave by another keeper"
    else:
        verdict = Verdict.DRAIN if differs else Verdict.SPEAK
    return verdict, " and ".join(f"has {name} {theirs} where this keeper has {ours}" for name, theirs, ours in differs)
