"""The census of one file: every figure against examples counted by hand, and the ways in which source can be broken."""

from __future__ import annotations

import ast
import pickle
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_census.analysis import Breakage, BrokenSource, ModuleStats, analyse, complexity

PATH = Path("somewhere/module.py")


def measure(source: str) -> ModuleStats:
    return analyse(PATH, dedent(source).encode())


def broken(raw: bytes) -> BrokenSource:
    with pytest.raises(BrokenSource) as caught:
        analyse(PATH, raw)
    return caught.value


# Lines and tokens ---------------------------------------------------------------------------------------------------


def test_an_empty_file_has_nothing_but_its_module_body() -> None:
    assert analyse(PATH, b"") == ModuleStats(
        path=PATH,
        size=0,
        encoding="utf-8",
        lines=0,
        code=0,
        docstring=0,
        comment=0,
        blank=0,
        tokens=0,
        functions=0,
        classes=0,
        nesting=0,
        complexity=1,
        worst_function=None,
        worst_line=None,
        worst_complexity=None,
        documentable=0,
        documented=0,
    )


def test_lines_are_told_apart() -> None:
    stats = measure('''\
        """A docstring

        of three lines."""

        # a comment
        x = 1  # code with a comment
        y = (  # code

            2,
        )
        ''')
    assert (stats.lines, stats.docstring, stats.comment, stats.code, stats.blank) == (10, 3, 1, 4, 2)


@pytest.mark.parametrize(
    ("source", "code", "docstring"),
    [
        ("'a'\n'b'\n", 0, 2),
        ("'a' \\\n'b'\n", 0, 2),
        ("'a'; x = 1\n", 1, 0),
        ("x = '''\n\n'''\n", 3, 0),
        ("def f(): 'inline'\n", 1, 0),
        ("('in parentheses')\n", 1, 0),
        ("def f():\n    'one'\n\n    return '''\n    '''\n", 3, 1),
        ("'''a\n''' + x\n", 2, 0),
    ],
)
def test_docstring_lines_belong_to_statements_that_are_only_a_string(source: str, code: int, docstring: int) -> None:
    stats = measure(source)
    assert (stats.code, stats.docstring) == (code, docstring)


@pytest.mark.parametrize(
    ("source", "lines"), [("x", 1), ("x\n", 1), ("x\n\n", 2), ("\n", 1), ("# c", 1), ("x\n\fy\n", 2)]
)
def test_the_last_line_counts_with_or_without_its_end(source: str, lines: int) -> None:
    assert measure(source).lines == lines


def test_tokens_leave_out_comments_line_ends_and_indentation() -> None:
    stats = measure("""\
        # nothing
        if x:
            f(1, "two")  # if x : f ( 1 , "two" )
        """)
    assert stats.tokens == 9


# Definitions --------------------------------------------------------------------------------------------------------


def test_functions_and_classes_count_wherever_they_stand() -> None:
    stats = measure("""\
        class Outer:
            class Inner:
                async def method(self): ...
        if x:
            def a(): ...
        elif y:
            def b(): ...
        else:
            def c(): ...
        try:
            def d(): ...
        except E:
            def e(): ...
        else:
            def f(): ...
        finally:
            def g(): ...
        for _ in ():
            with x:
                while y:
                    def h():
                        def i(): ...
        match x:
            case 1:
                def j(): ...
        k = lambda: 0
        """)
    assert (stats.functions, stats.classes) == (11, 2)


@pytest.mark.parametrize(
    ("source", "nesting"),
    [
        ("x = 1", 0),
        ("def f():\n    return 1", 1),
        ("def f(): return 1", 0),
        ("class C:\n  def f(self):\n    if x:\n      y\n    z", 3),
        ("if a:\n  b\nelif c:\n  d\nelse:\n  e", 1),
        ("match x:\n  case 1:\n    y", 2),
        ("x = [\n        1,\n]", 0),
    ],
)
def test_nesting_is_the_deepest_indentation(source: str, nesting: int) -> None:
    assert measure(source).nesting == nesting


def test_docstring_coverage_asks_the_module_and_its_public_definitions() -> None:
    stats = measure('''\
        """The module counts (1 of 1)."""
        class Public:
            """It counts (2 of 2)."""
            def method(self):
                """It counts (3 of 3)."""
                def local(): ...
                class Local: ...
            def undocumented(self): ...
            def blank(self):
                """   """
            def __init__(self): ...
        class _Private:
            def method(self): ...
        async def function():
            """It counts (4 of 6)."""
        ''')
    assert (stats.documented, stats.documentable) == (4, 6)


def test_a_module_of_comments_has_nothing_to_document() -> None:
    assert measure("# only this\n").docstring_coverage is None
    assert measure("x = 1\n").docstring_coverage == 0.0
    assert measure("'this'\ndef f(): ...\n").docstring_coverage == 0.5


# Complexity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "decisions"),
    [
        ("pass", 0),
        ("if a: b", 1),
        ("if a: b\nelif c: d\nelse: e", 2),
        ("x = a if b else c", 1),
        ("for a in b: c\nelse: d", 1),
        ("while a: b", 1),
        ("async def _g():\n  async for a in b: c", 0),  # a component of its own
        ("try: a\nexcept B: c\nexcept D: e\nelse: f\nfinally: g", 2),
        ("try: a\nexcept* B: c", 1),
        ("with a, b: c", 0),
        ("assert a", 0),
        ("x = a and b", 1),
        ("x = a and b and c or d", 3),
        ("if a and not b: c", 2),
        ("x = [a for b in c]", 1),
        ("x = {a: 0 for b in c if d if e for f in g}", 4),
        ("x = lambda: a or b", 1),
        ("match a:\n  case 1: b\n  case 2 if c: d\n  case _: e", 3),
        ("match a:\n  case 1: b\n  case x if c: d\n  case other: e", 2),
        ("@(a or b)\ndef _g(x=c if d else e): pass", 2),
        ("class _C:\n  x = a or b", 1),
        ("class _C:\n  def _g(self): return a or b", 0),
    ],
)
def test_decision_points(body: str, decisions: int) -> None:
    assert complexity(ast.parse(body).body) == decisions + 1


def test_a_file_is_the_sum_of_its_components() -> None:
    stats = measure("""\
        if debug:                           # module: 2
            level = 1

        def simple():                       # 1
            return 0

        class Parser:
            def feed(self, data):           # 4
                for char in data:
                    if char == "<" and self.open:
                        def handler():      # 2
                            return self.a or self.b
                        handler()
        """)
    assert stats.complexity == 2 + 1 + 4 + 2
    assert (stats.worst_function, stats.worst_line, stats.worst_complexity) == ("Parser.feed", 8, 4)


def test_of_equally_complex_functions_the_first_is_named() -> None:
    stats = measure("def a(): ...\ndef b(x): return x or 1\nclass C:\n  def d(self): return self or 1\n")
    assert (stats.worst_function, stats.worst_line) == ("b", 2)


def test_a_nested_function_is_named_by_what_it_stands_in() -> None:
    assert measure("def f():\n  class C:\n    def g(self):\n      if x: y\n").worst_function == "f.C.g"


# Whole programs, made with their figures ------------------------------------------------------------------------------

Block = tuple[list[str], int, int]
"""Lines, decision points, depth of nesting."""


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _compound(header: tuple[str, int], body: Block) -> Block:
    return [header[0], *_indented(body[0])], header[1] + body[1], body[2] + 1


def _sequence(first: Block, second: Block) -> Block:
    return first[0] + second[0], first[1] + second[1], max(first[2], second[2])


SIMPLE = st.sampled_from([(["x = 1"], 0), (["x = a or b"], 1), (["x = [", "    y for y in z if y", "]"], 2)]).map(
    lambda pair: (pair[0], pair[1], 0)
)
HEADERS = st.sampled_from([("if a:", 1), ("while a and b:", 2), ("for a in b:", 1), ("with a:", 0), ("class C:", 0)])
BLOCKS: st.SearchStrategy[Block] = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds(_compound, HEADERS, inner),
        st.builds(_sequence, inner, inner),
    ),
    max_leaves=12,
)


@given(BLOCKS)
@settings(deadline=None)
def test_figures_of_composed_programs(block: Block) -> None:
    lines, decisions, depth = block
    stats = analyse(PATH, "\n".join(lines).encode())
    assert (stats.lines, stats.code) == (len(lines), len(lines))
    assert (stats.complexity, stats.nesting) == (decisions + 1, depth)


# Encodings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (b"x = 1\n", "utf-8"),
        ("x = 'Grüße'\n".encode(), "utf-8"),
        (b"\xef\xbb\xbfx = 1\n", "utf-8-sig"),
        ("# coding: latin-1\nx = 'Grüße'\n".encode("latin-1"), "iso-8859-1"),
        ("#!/bin/python\n# -*- coding: cp1251 -*-\nx = 'Привет'\n".encode("cp1251"), "cp1251"),
    ],
)
def test_encodings_are_detected(raw: bytes, encoding: str) -> None:
    stats = analyse(PATH, raw)
    assert stats.encoding == encoding
    assert stats.size == len(raw)


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_line_ends_make_no_difference(newline: str) -> None:
    source = '"""Doc\nstring."""\n\n# comment\ndef f():\n    return (1 or\n            2)\n'
    expected = analyse(PATH, source.encode())
    raw = source.replace("\n", newline).encode()
    assert replace(analyse(PATH, raw), size=expected.size) == expected


@pytest.mark.parametrize(
    ("raw", "line", "reason"),
    [
        (b"# coding: uft-8\n", None, "unknown encoding"),
        (b"# coding: hex\n00\n", None, "not a text encoding"),
        (b"\xef\xbb\xbf# coding: latin-1\n", None, "utf-8"),
        (b"x = '\xe9'\n", None, "invalid or missing encoding declaration"),
        (b"x = 1\n\n\ny = '\xe9'\n", 4, "can't decode byte 0xe9"),
        (b"# coding: ascii\nx = '\xe9'\n", 2, "can't decode byte 0xe9"),
        ("x = 1\n".encode("utf-16"), None, "invalid or missing encoding declaration"),
        (b"# coding: utf-7\nx = '+2AA-'\n", None, "surrogates not allowed"),
    ],
)
def test_text_that_cannot_be_decoded_is_broken(raw: bytes, line: int | None, reason: str) -> None:
    error = broken(raw)
    assert (error.why, error.line) == (Breakage.ENCODING, line)
    assert reason in error.reason


# Broken source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "why", "line"),
    [
        ("x = 1\nx = = 2\n", Breakage.SYNTAX, 2),
        ("print 'Python 2'\n", Breakage.SYNTAX, 1),
        ("x = (1,\n", Breakage.SYNTAX, 1),
        ("'''never closed\n", Breakage.SYNTAX, 1),
        ("x = 1 \\", Breakage.SYNTAX, 1),
        ("x = " + "9" * 5000, Breakage.SYNTAX, 1),
        ("(" * 300 + ")" * 300, Breakage.SYNTAX, 1),
        ("x = 1\ny = '\0'\n", Breakage.NULL_BYTE, 2),
        ("if x:\ny\n", Breakage.INDENTATION, 2),
        ("if x:\n    y\n  z\n", Breakage.INDENTATION, 3),
        ("if x:\n\ty\n        z\n", Breakage.INDENTATION, 3),
        ("\n".join(" " * depth + "if x:" for depth in range(120)), Breakage.INDENTATION, 101),
        ("-" * 100_000 + "1", Breakage.TOO_DEEP, None),
        ("a" + ".b" * 100_000, Breakage.TOO_DEEP, None),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_broken_source_is_told_by_category_and_line(source: str, why: Breakage, line: int | None) -> None:
    error = broken(source.encode())
    assert (error.why, error.line) == (why, line)
    assert error.reason


def test_a_broken_source_error_names_file_line_and_reason() -> None:
    assert str(broken(b"x = 1\n1 = x\n")).startswith(f"{PATH}:2: syntax: cannot assign to literal")
    assert str(broken(b"# coding: uft-8\n")) == f"{PATH}: encoding: unknown encoding: uft-8"


def test_a_broken_source_error_survives_pickling() -> None:
    error = broken(b"x = = 1\n")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.line, copy.why, copy.reason) == (error.path, error.line, error.why, error.reason)
    assert str(copy) == str(error)


def test_figures_survive_pickling() -> None:
    stats = measure("def f(): return 1 or 2\n")
    assert pickle.loads(pickle.dumps(stats)) == stats


# Robustness ---------------------------------------------------------------------------------------------------------


def test_warnings_about_the_source_are_neither_shown_nor_fatal() -> None:
    raw = b"x = '\\d'\nif 0is 0: pass\n"
    for action in ("always", "error"):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter(action)
            assert analyse(PATH, raw).lines == 2
        assert not shown


def test_deep_expressions_that_parse_are_measured() -> None:
    assert measure("x = " + "(a or " * 150 + "b" + ")" * 150).complexity == 151
    assert measure("x = a" + " + a" * 500).tokens == 1003


def test_a_huge_file_is_measured() -> None:
    stats = analyse(PATH, b"x = [1, 2]\n" * 30_000)
    assert (stats.lines, stats.code, stats.tokens) == (30_000, 30_000, 210_000)


FRAGMENTS = st.sampled_from(
    [
        *"\n\r\f\v\t\0 \\#'\"{}()[]:=,.;@$?!x1\u00e9\u20ac\u2028\ufeff",
        *("\r\n", "    ", "\\\n", "'''", "f'", "b'", "0x", "# coding: latin-1\n", "# coding: utf-16\n"),
        *(
            "if x:",
            "else:",
            "def f():",
            "class C:",
            "try:",
            "except:",
            "match x:",
            "case _:",
            "return",
            "lambda",
            " or ",
        ),
        *("async ", "await ", "yield ", "print ", "exec "),
    ]
)


@given(st.one_of(st.binary(max_size=200), st.lists(FRAGMENTS, max_size=30).map(lambda parts: "".join(parts).encode())))
@settings(deadline=None)
def test_whatever_the_bytes_they_are_measured_or_broken(raw: bytes) -> None:
    with suppress(BrokenSource):
        stats = analyse(PATH, raw)
        assert stats.lines == stats.code + stats.docstring + stats.comment + stats.blank
        assert min(stats.code, stats.docstring, stats.comment, stats.blank) >= 0
        assert stats.documented <= stats.documentable
