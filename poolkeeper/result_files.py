"""Results that are too heavy for the journal, each in a sealed file of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

from .outcomes import SEAL_BYTES, Torn, seal, seal_parts, unseal
from .sealed_file import read_sealed, write_sealed

__all__ = ["ResultFiles"]

_TITLE = b"poolkeeper result 1"


class ResultFiles:
    """The files of heavy results in one folder, made when it is needed.

    The head of a file is the pickled lengths of the parts; behind it are the seal of the parts, and the parts.

    Args:
        folder: where they lie.
        key: seals them.
        durable: whether each is on the disk, not only with the system, when ``write`` returns.
    """

    def __init__(self, folder: Path, key: bytes, *, durable: bool = False) -> None:
        self._folder = folder
        self._key = key
        self._durable = durable

    def write(self, run: int, payload: Any) -> str:
        """Write a payload, bytes or a mapped arena, and return the file's name; raises OSError."""
        pickled, parts = payload if isinstance(payload, tuple) else (None, [memoryview(payload)])
        head = seal(pickle.dumps((isinstance(payload, tuple), pickled, [part.nbytes for part in parts])), self._key)
        path = self._folder / f"{_prefix(run)}{os.urandom(8).hex()}"
        write_sealed(path, _TITLE, head, [seal_parts(parts, self._key), *parts], durable=self._durable)
        return path.name

    def read(self, name: str) -> Any:
        """Return the payload in file ``name``; raises Torn for one that is damaged or missing."""
        try:
            head, rest = read_sealed(self._folder / name, _TITLE)
        except OSError as error:
            raise Torn(f"the result in spool/{name} cannot be read: {error.strerror}") from error
        is_arena, pickled, sizes = pickle.loads(unseal(head, self._key))
        unseal(rest, self._key)
        at = SEAL_BYTES
        parts = []
        for size in sizes:
            parts.append(rest[at : at + size])
            at += size
        return (pickled, parts) if is_arena else bytes(parts[0])

    def forget(self, run: int) -> None:
        """Remove the files of ``run``."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"{_prefix(run)}*"):
                path.unlink(missing_ok=True)


def _prefix(run: int) -> str:
    return f"run-{run}-"
