"""What a Python process was told to run, read from its command line as the interpreter reads it. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

__all__ = ["Invocation", "Kind", "read_invocation"]


class Kind(Enum):
    """Where the program comes from."""

    SCRIPT = "a file"
    MODULE = "a module"
    COMMAND = "the text after -c"
    STDIN = "standard input"


class Invocation(NamedTuple):
    """A command line: the interpreter's own options, what it runs, and what that gets."""

    kind: Kind
    target: str
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


_BY_LETTER = {"c": Kind.COMMAND, "m": Kind.MODULE}
_LONG_WITH_VALUE = frozenset({"--check-hash-based-pycs"})
_OPTION = re.compile(r"-(?P<flags>[^cmWX-][^cmWX]*)?(?:(?P<letter>[cmWX])(?P<value>.*))?", re.DOTALL)


def read_invocation(argv: Sequence[str]) -> Invocation:
    """Return what ``argv``, with the interpreter first, means (see ``python --help``)."""
    options: list[str] = []
    words = deque(argv[1:])
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.popleft()
        found = _OPTION.fullmatch(word)
        letter = found and found["letter"]
        if found and letter and letter in "cm":
            if found["flags"]:
                options.append(f"-{found['flags']}")
            target = found["value"] or (words.popleft() if words else "")
            return Invocation(_BY_LETTER[letter], target, tuple(options), tuple(words))
        options.append(word)
        wants_value = word in _LONG_WITH_VALUE or (found and letter and not found["value"])
        if wants_value and words:
            options.append(words.popleft())
    if not words or words[0] == "-":
        return Invocation(Kind.STDIN, "-", tuple(options), tuple(words)[1:])
    return Invocation(Kind.SCRIPT, words[0], tuple(options), tuple(words)[1:])
