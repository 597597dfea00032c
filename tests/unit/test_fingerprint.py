"""Fingerprints: the same in each process and for moved code, others for what acts differently."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.fingerprint import fingerprint_of_arguments, fingerprint_of_code

ROOT = Path(__file__).resolve().parents[2]

BASE = """
    import math
    import helper
    from helper import LIMIT

    NAMES = {"a", "b", "c"}

    class Colour:
        def paint(self, x):
            return Colour, x

    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    def make(step):
        def inner(x):
            return x + step
        return inner

    add = make(3)

    def work(x, y=1):
        # what it does
        if x in {"p", "q", "r"} or x in NAMES:
            return helper.twice(y) + LIMIT
        from late import finish
        return finish(math.sqrt(y)), Colour().paint(even(4)), add(1)
"""
HELPER = """
    LIMIT = 10

    def twice(x):
        return factor() * x

    def factor():
        return 2

    def unused():
        return 1
"""
LATE = "def finish(x):\n    return x\n"
ASK = """
import sys
sys.path.insert(0, sys.argv[1])
from poolkeeper.fingerprint import fingerprint_of_arguments, fingerprint_of_code
from importlib import import_module
work = import_module(sys.argv[2]).work
print(*fingerprint_of_code(work))
print(*fingerprint_of_arguments(({"x", "y", "z"}, {"k": {1, "2", (3,)}}), {}))
"""


class Project:
    """A small project in a folder, and the fingerprint of its function in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0

    def ask(self, base: str = BASE, helper: str = HELPER, late: str = LATE, name: str = "main", seed: str = "1") -> str:
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        for module, text in ((name, base), ("helper", helper), ("late", late)):
            (folder / f"{module}.py").write_text(textwrap.dedent(text))
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", ASK, folder, name], check=True, capture_output=True, text=True, env=environment
        )
        code, arguments = done.stdout.splitlines()
        assert len(arguments.strip()) == 32
        return code.strip() + arguments.strip()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_code_is_the_same_in_each_process_and_wherever_it_stands(project: Project) -> None:
    first = project.ask()
    assert len(first) == 64
    assert project.ask(seed="2") == first
    assert project.ask(seed="3") == first
    moved = BASE.replace("# what it does", "# another comment\n\n").replace("import math", "\n\n    import math")
    assert project.ask(moved) == first
    assert project.ask(helper=HELPER.replace("return 1", "return 100")) == first  # nothing reaches it


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("helper.twice(y)", "helper.twice(x)"),
        ('"p", "q"', '"p", "s"'),
        ("y=1", "y=2"),
        ('"a", "b"', '"a", "d"'),
        ("return Colour, x", "return Colour"),
        ("n != 0 and", "n != 1 and"),
        ("make(3)", "make(4)"),
        ("math.sqrt", "math.cos"),
    ],
)
def test_code_that_acts_differently_is_told(project: Project, before: str, after: str) -> None:
    assert before in BASE
    assert project.ask(BASE.replace(before, after)) != project.ask()


def test_helpers_count_wherever_they_are(project: Project) -> None:
    first = project.ask()
    for before, after in (("factor() * x", "x"), ("return 2", "return 3"), ("LIMIT = 10", "LIMIT = 11")):
        assert project.ask(helper=HELPER.replace(before, after)) != first, before
    assert project.ask(late=LATE.replace("return x", "return -x")) != first


@dataclass
class Point:
    x: int
    y: int


class Shade(Enum):
    DARK = 1
    LIGHT = 2


VALUES: list[Any] = [
    None, 0, 1, True, 1.0, -0.0, 0.0, 1j, "", "1", b"1", bytearray(b"1"), (), [], {}, set(), frozenset(), (1,), [1],
    {1}, {1: 2}, {2: 1}, {1: [2]}, [[1], 2], [1, [2]], ["12"], ["1", "2"], Point(1, 2), Point(2, 1), Shade.DARK,
    Shade.LIGHT, Point, Shade, len, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), range(3), ...,
]  # fmt: skip


def digest(*args: Any, **kwargs: Any) -> str:
    found = fingerprint_of_arguments(args, kwargs)
    assert found.digest is not None, found.reason
    return found.digest


def test_different_values_have_different_fingerprints() -> None:
    assert len({digest(value) for value in VALUES}) == len(VALUES)
    assert digest(1, 2) != digest((1, 2))
    assert digest(x=1) != digest(x=2) != digest(1)


def test_it_does_not_matter_whether_equal_objects_are_the_same_object() -> None:
    text = str(b"ab", "ascii")
    one = [1, text]
    assert digest([one, one]) == digest([[1, "ab"], [1, str(b"ab", "ascii")]])


def test_an_array_counts_by_its_content() -> None:
    import numpy as np

    assert digest(np.arange(10)) == digest(np.arange(10))
    assert digest(np.arange(10)) != digest(np.arange(10, dtype=np.float32))
    assert digest(np.arange(10)) != digest(np.arange(11))


def test_a_path_counts_with_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "input"
    missing = digest(path)
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    present = digest(path)
    assert present != missing
    os.utime(path, ns=(2, 2))
    assert digest(path) != present
    os.utime(path, ns=(1, 1))
    assert digest(path) == present
    path.write_text("three")
    os.utime(path, ns=(1, 1))
    assert digest([path]) != digest([tmp_path])


def test_what_has_no_canonical_form_says_why() -> None:
    with open(os.devnull) as file:
        for value in (file, threading.Lock(), (number for number in range(3)), [io.StringIO().getvalue, object, file]):
            found = fingerprint_of_arguments((value,))
            assert found.digest is None
            assert "no canonical form" in found.reason
    circle: list[Any] = []
    circle.append(circle)
    assert fingerprint_of_arguments((circle,)) == (None, "an object of builtins.list refers to itself")
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert "deep" in fingerprint_of_arguments((deep,)).reason
    lock = threading.Lock()
    found = fingerprint_of_code(lambda: lock)
    assert found.digest is None
    assert "lock" in found.reason


def test_functions_as_arguments_count_by_what_they_do() -> None:
    assert digest(lambda x: x + 1) == digest(lambda x: x + 1)
    assert digest(lambda x: x + 1) != digest(lambda x: x + 2)
    assert digest(Point(1, 2).__eq__) == digest(Point(1, 2).__eq__)


def closing_over(value: object) -> Any:
    return lambda: value


def test_closures_count_by_what_they_close_over() -> None:
    assert fingerprint_of_code(closing_over({1, 2})) == fingerprint_of_code(closing_over({2, 1}))
    assert fingerprint_of_code(closing_over(1)) != fingerprint_of_code(closing_over(2))


def locked(function: Any) -> Any:
    lock = threading.Lock()

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        with lock:
            return function(*args)

    return wrapper


def test_what_a_decorator_keeps_for_itself_is_no_obstacle() -> None:
    first, second = (fingerprint_of_code(locked(function)) for function in (lambda x: x + 1, lambda x: x + 2))
    assert first.digest is not None
    assert second.digest is not None
    assert first != second
    assert first == fingerprint_of_code(locked(lambda x: x + 1))
    cached = [fingerprint_of_code(functools.lru_cache(function)) for function in (lambda x: x + 1, lambda x: x + 2)]
    assert None not in (cached[0].digest, cached[1].digest)
    assert cached[0] != cached[1]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.frozensets(st.text()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_a_copy_has_the_same_fingerprint(value: Any) -> None:
    import pickle

    assert digest(value) == digest(pickle.loads(pickle.dumps(value)))


@given(st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), PLAIN))
def test_the_order_of_a_dictionary_does_not_count(value: dict[Any, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


@given(PLAIN, PLAIN)
def test_equal_fingerprints_mean_equal_values(first: Any, second: Any) -> None:
    if digest(first) == digest(second):
        assert repr(first) == repr(second) or first == second
