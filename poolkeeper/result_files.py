"""Results that are too heavy for the journal, each in a sealed file of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

from .outcomes import SEAL_BYTES, Torn, seal, seal_parts, unseal

__all__ = ["ResultFiles"]

_MAGIC = b"poolkeeper result 1\n"
_LENGTH = 8


class ResultFiles:
    """The files of heavy results in one folder, made when it is needed.

    A file is: the magic line, the length of the head, the head (a seal, and the pickled lengths of the parts), the seal
    of the parts, and the parts.

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
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = f"{_prefix(run)}{os.urandom(8).hex()}"
        temporary = self._folder / f"{name}.part"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(_MAGIC + len(head).to_bytes(_LENGTH, "big") + head + seal_parts(parts, self._key))
                file.writelines(parts)
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
            os.rename(temporary, self._folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if self._durable:
            self._sync_folder()
        return name

    def read(self, name: str) -> Any:
        """Return the payload in file ``name``; raises Torn for one that is damaged or missing."""
        try:
            content = bytearray((self._folder / name).read_bytes())
        except OSError as error:
            raise Torn(f"the result in spool/{name} cannot be read: {error.strerror}") from error
        view = memoryview(content)
        at = len(_MAGIC) + _LENGTH
        if view[: len(_MAGIC)] != _MAGIC:
            raise Torn(f"spool/{name} is no result file")
        length = int.from_bytes(view[len(_MAGIC) : at], "big")
        is_arena, pickled, sizes = pickle.loads(unseal(view[at : at + length], self._key))
        at += length
        unseal(view[at:], self._key)
        at += SEAL_BYTES
        parts = []
        for size in sizes:
            parts.append(view[at : at + size])
            at += size
        return (pickled, parts) if is_arena else bytes(parts[0])

    def forget(self, run: int) -> None:
        """Remove the files of ``run``."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"{_prefix(run)}*"):
                path.unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prefix(run: int) -> str:
    return f"run-{run}-"
