"""One file of a sealed head and what lies behind it, which is there as a whole or not at all.

It is: a line that says what it is, and in which version; the length of the head, eight bytes; the head, sealed; the
rest, of which the head tells.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from .outcomes import Torn

__all__ = ["PARTIAL", "read_sealed", "write_sealed"]

PARTIAL = ".part"
"""The end of the name while it is being written."""

_LENGTH = 8


def write_sealed(path: Path, title: bytes, head: bytes, rest: Iterable[bytes | memoryview], *, durable: bool) -> None:
    """Write a file in a folder that is made when it is needed; raises OSError.

    Args:
        path: must not exist, but for a writer that did not come to its end.
        title: the first line, without its end.
        head: is sealed already.
        rest: follows it.
        durable: whether it is on the disk, not only with the system, on return.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(path.name + PARTIAL)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(title + b"\n" + len(head).to_bytes(_LENGTH, "big") + head)
            file.writelines(rest)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def read_sealed(path: Path, title: bytes) -> tuple[memoryview, memoryview]:
    """Return the head, still sealed, and the rest, both writable; raises Torn, and OSError."""
    view = memoryview(bytearray(path.read_bytes()))
    at = len(title) + 1 + _LENGTH
    if len(view) < at or view[: len(title) + 1] != title + b"\n":
        raise Torn(f"{path.name} is no {title.decode()!r} file")
    end = at + int.from_bytes(view[at - _LENGTH : at], "big")
    return view[at:end], view[end:]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
