"""What code names, found without running it."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from poolkeeper.code_names import all_names, global_names, imports


def code_of(source: str) -> types.CodeType:
    return compile(source, "example", "exec")


def test_globals_are_found_in_nested_code_and_locals_are_not() -> None:
    code = code_of("def outer(a):\n    b = LIMIT\n    return [helper(a, b, item) for item in TABLE]")
    assert global_names(code) >= {"LIMIT", "helper", "TABLE"}
    assert not global_names(code) & {"a", "b", "item"}


def test_attributes_are_names_but_no_globals() -> None:
    code = code_of("def f(thing):\n    return thing.colour(tools.mix)")
    assert "colour" not in global_names(code)
    assert all_names(code) >= {"colour", "tools", "mix"}


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import json", "", {"json"}),
        ("import os.path as p", "", {"os.path"}),
        ("def f():\n    def g():\n        import csv", "", {"csv"}),
        ("from . import sibling", "shop.till", {"shop.till"}),
        ("from ..stock import count", "shop.till", {"shop.stock"}),
        ("from ... import beyond", "shop", set()),
        ("x = 1", "", set()),
    ],
)
def test_modules_that_are_imported_when_the_code_runs(source: str, package: str, expected: set[str]) -> None:
    assert imports(code_of(source), package) == expected


def test_a_module_imported_from_a_package_of_the_project_counts_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code_names_shop").mkdir()
    (tmp_path / "code_names_shop" / "__init__.py").write_text("PRICE = 3\n")
    (tmp_path / "code_names_shop" / "till.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = imports(code_of("from code_names_shop import till, PRICE"), "")
    assert found == {"code_names_shop", "code_names_shop.till"}
