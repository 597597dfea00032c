"""Effects that happen once, however often the execution that has them is begun.

The effect is a file that appears under the digest of its content, the proof of it a line of the ledger. Both are made
while the ledger is locked, so there are two moments only at which a process can die between them: before the file is
in its place (the next execution makes it), and before the line is written (the next one finds the file without a line,
and writes the line).
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from exactly_once.ledger import Kind, Ledger

__all__ = ["begin", "digest_of", "have_effect", "ledger_of", "place_of"]


def ledger_of(folder: Path) -> Ledger:
    """Return the ledger of the run in ``folder``."""
    return Ledger(folder / "ledger.jsonl")


def place_of(folder: Path, digest: str) -> Path:
    """Return where the effect of that digest lies."""
    return folder / "records" / f"{digest}.json"


def digest_of(content: bytes) -> str:
    """Return what identifies ``content``."""
    return blake2b(content, digest_size=16).hexdigest()


def begin(folder: Path, key: str, attempt: int) -> None:
    """Note that an execution begins."""
    ledger_of(folder).write(Kind.EXECUTION, key, attempt=attempt)


def have_effect(folder: Path, key: str, content: bytes, attempt: int) -> str:
    """Put ``content`` in its place unless an earlier execution has; return its digest."""
    digest = digest_of(content)
    place = place_of(folder, digest)
    with ledger_of(folder).writing() as pen:
        if place.exists() and any(
            (entry.kind, entry.key, entry.digest) == (Kind.EFFECT, key, digest) for entry in pen.entries()
        ):
            pen.write(Kind.FOUND, key, digest, attempt)
            return digest
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_suffix(".unfinished")  # the lock makes it ours, and who died here left it to us
        unfinished.write_bytes(content)
        os.replace(unfinished, place)
        pen.write(Kind.EFFECT, key, digest, attempt)
    return digest
