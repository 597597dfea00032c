"""Whether a function that travels by value is still what it was."""

from __future__ import annotations

import json
import os
import sys
import types
from collections import OrderedDict
from typing import Any

import cloudpickle
import pytest

from poolkeeper.by_value import likeness
from poolkeeper.calls import CallRegistry
from poolkeeper.ledger import Options

SOURCE = """
LIMIT = 3
NAMES = ["a"]
class Local: pass
def helper(): return 1
def plain(x): return os.getpid() + LIMIT + len(json.dumps(x))
def inner(x): return [LIMIT + y for y in x]
def lists(x): return NAMES + x
def calls(x): return helper()
def classes(x): return Local()
def defaults(x, y=4): return x + y
def mutable(x, y=[]): return y
def keyword(x, *, y=4): return y
def annotated(x: Local): return x
def builtin(x): return OrderedDict(x)
def missing(x): return absent(x)
"""


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module whose functions travel by value, as those of ``__main__``."""
    module = types.ModuleType("__main__")
    module.__dict__.update(os=os, json=json, OrderedDict=OrderedDict)
    exec(compile(SOURCE, "main.py", "exec", dont_inherit=True), module.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@pytest.mark.parametrize("name", ["plain", "inner", "defaults", "builtin", "missing"])
def test_what_refers_to_constants_and_names_alone_is_the_same_until_one_of_them_changes(main: Any, name: str) -> None:
    function = getattr(main, name)
    alike = likeness(function)
    assert alike is not None
    assert alike.holds(function)
    main.unrelated = 1
    assert alike.holds(function)
    for value in ("LIMIT", "OrderedDict", "absent", "json"):
        setattr(main, value, object())
    function.__defaults__ = None
    assert not alike.holds(function)


@pytest.mark.parametrize("name", ["lists", "calls", "classes", "mutable", "keyword", "annotated"])
def test_nothing_is_sure_of_what_refers_to_something_that_may_change_inside(main: Any, name: str) -> None:
    assert likeness(getattr(main, name)) is None


def test_a_closure_a_note_and_new_code_make_a_function_another(main: Any) -> None:
    def close(value: int) -> Any:
        return lambda: value

    assert likeness(close(1)) is None
    alike = likeness(main.plain)
    assert alike is not None
    main.plain.note = 1
    assert not alike.holds(main.plain)
    assert likeness(main.plain) is None
    del main.plain.note
    assert alike.holds(main.plain)
    main.plain.__code__ = main.inner.__code__
    assert not alike.holds(main.plain)


def test_a_module_of_a_package_that_is_loaded_later_may_be_named_by_the_pickle(
    main: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = likeness(main.plain)  # json is a package
    assert alike is not None
    monkeypatch.setitem(sys.modules, "one_more", types.ModuleType("one_more"))
    assert not alike.holds(main.plain)


def test_modules_that_travel_by_value_are_not_but_names(main: Any) -> None:
    cloudpickle.register_pickle_by_value(json)
    try:
        assert likeness(main.plain) is None
    finally:
        cloudpickle.unregister_pickle_by_value(json)


def test_a_function_is_another_call_when_what_it_refers_to_has_changed(main: Any) -> None:
    registry = CallRegistry(Options())
    before = registry.call(main.plain)
    assert registry.call(main.plain) is before
    main.LIMIT = 4
    after = registry.call(main.plain)
    assert after is not before
    assert registry.call(main.plain) is after
    main.LIMIT = 3
    assert registry.call(main.plain) is before
    main.NAMES.append("b")
    assert registry.call(main.lists) is registry.call(main.lists)
    one = registry.call(main.lists)
    main.NAMES.append("c")
    assert registry.call(main.lists) is not one


def test_an_outline_tells_of_a_function_and_pickles_nothing() -> None:
    registry = CallRegistry(Options(priority=3))
    unpicklable = sys._getframe()
    outline = registry.outline(lambda: unpicklable)
    assert outline is registry.outline(lambda: unpicklable)
    assert outline.options.priority == 3
    assert outline.name.endswith("<lambda>")
    assert outline.blob == b""
