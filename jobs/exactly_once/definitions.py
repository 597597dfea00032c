"""What the pipeline derives from a file: which classes and functions it defines, and where."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from source_census.analysis import BrokenSource, decode, find_definitions, parse

__all__ = ["as_json", "printable", "record_of"]


def record_of(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the definitions in the source ``raw``, in their order; ``broken`` says why there can be none."""
    record: dict[str, Any] = {"path": printable(path), "size": len(raw), "broken": None, "definitions": []}
    try:
        tree = parse(path, decode(path, raw)[1])
    except BrokenSource as error:
        record["broken"] = f"{error.why}: {error.reason}"
        return record
    found = [
        (definition.node.lineno, definition.name, "class" if isinstance(definition.node, ast.ClassDef) else "function")
        for definition in find_definitions(tree)
    ]
    record["definitions"] = [{"name": name, "kind": kind, "line": line} for line, name, kind in sorted(found)]
    return record


def as_json(record: dict[str, Any]) -> bytes:
    """Return ``record`` as the bytes that it always has."""
    return json.dumps(record, sort_keys=True).encode() + b"\n"


def printable(path: Path) -> str:
    """Return ``path`` with what UTF-8 cannot encode escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")
