"""What there is to know about one Python source file, from its bytes alone.

The rules, so that every figure can be checked by hand:

- *Lines.* **Docstring** lines belong to a statement that is nothing but a string literal; **code** lines hold at least
  one other token; **comment** lines hold a comment and nothing else; the rest is **blank**. The four add up to the
  lines of the file.
- *Tokens* are names, keywords, literals and operators, as the `tokenize` module cuts them (since Python 3.12 it also
  cuts f-strings into parts); comments, line ends and indentation do not count.
- *Nesting* is the number of indented blocks around the most deeply indented statement; a module's own level is 0.
- *Cyclomatic complexity* (T. J. McCabe, "A Complexity Measure", IEEE Transactions on Software Engineering SE-2(4),
  1976) is the number of decision points of a component, plus one. Components are the functions and, as one, all code
  outside of them; a file's complexity is the sum over its components. Decision points are: `if`, `elif` and the
  conditional expression; `for` and `while`; `except`; each `case` that can fail to match, and each guard; each `for`
  and `if` of a comprehension; and each further operand of `and` and `or`, as McCabe counts the parts of a compound
  predicate. A nested function is a component of its own; lambdas and comprehensions belong to the function around
  them, decorators and default values to the code in which the `def` stands.
- *Docstring coverage* is the documented part of the public definitions: the module unless it is empty, and the classes
  and functions that stand in no function and have no name (own or of a class around them) with a leading underscore.

Trees are walked with a stack of their own rather than by recursion: an expression may be nested more deeply than the
interpreter recurses.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["Breakage", "BrokenSource", "ModuleStats", "analyse", "complexity", "share"]


class Breakage(StrEnum):
    """Why a file is not Python source."""

    ENCODING = "encoding"
    NULL_BYTE = "null byte"
    INDENTATION = "indentation"
    SYNTAX = "syntax"
    TOO_DEEP = "too deeply nested"


class BrokenSource(Exception):
    """The file is not source that this Python version can parse.

    ``line`` is where it shows, None where the parser does not say; ``why`` is the category, ``reason`` the details.
    """

    def __init__(self, path: Path, line: int | None, why: Breakage, reason: str) -> None:
        super().__init__(path, line, why, reason)  # all of them in args, from which pickle makes it again
        self.path = path
        self.line = line
        self.why = why
        self.reason = reason

    def __str__(self) -> str:
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.why}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ModuleStats:
    """The figures of one file, by the rules above; ``size`` in bytes, ``worst_*`` None in a file without functions."""

    path: Path
    size: int
    encoding: str
    lines: int
    code: int
    docstring: int
    comment: int
    blank: int
    tokens: int
    functions: int
    classes: int
    nesting: int
    complexity: int
    worst_function: str | None
    worst_line: int | None
    worst_complexity: int | None
    documentable: int
    documented: int

    @property
    def docstring_coverage(self) -> float | None:
        """The documented part of what can be documented, from 0 to 1; None where there is nothing to document."""
        return share(self.documented, self.documentable)


def share(part: int, whole: int) -> float | None:
    """Return ``part`` of ``whole``, None of nothing."""
    return part / whole if whole else None


def analyse(path: Path, raw: bytes) -> ModuleStats:
    """Measure the source ``raw``; ``path`` only names it.

    Raises BrokenSource if it is not valid source.
    """
    encoding, text = decode(path, raw)
    tree = parse(path, text)
    layout = measure_layout(path, text)
    definitions = list(find_definitions(tree))
    functions = [definition for definition in definitions if isinstance(definition.node, _FUNCTIONS)]
    rated = [(complexity(function.node.body), function) for function in functions]
    # Of equals the first in the source.
    worst_complexity, worst = max(rated, key=lambda pair: (pair[0], -pair[1].node.lineno), default=(None, None))
    documentable, documented = count_docstrings(tree, definitions)
    return ModuleStats(
        path=path,
        size=len(raw),
        encoding=encoding,
        lines=layout.lines,
        code=layout.code,
        docstring=layout.docstring,
        comment=layout.comment,
        blank=layout.lines - layout.code - layout.docstring - layout.comment,
        tokens=layout.tokens,
        functions=len(functions),
        classes=len(definitions) - len(functions),
        nesting=layout.nesting,
        complexity=complexity(tree.body) + sum(value for value, _ in rated),
        worst_function=worst.name if worst else None,
        worst_line=worst.node.lineno if worst else None,
        worst_complexity=worst_complexity,
        documentable=documentable,
        documented=documented,
    )


# Text ---------------------------------------------------------------------------------------------------------------


def decode(path: Path, raw: bytes) -> tuple[str, str]:
    """Return the declared encoding (UTF-8 where none is) and the text, its lines ending with line feeds."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = bytes(error.object).count(b"\n", 0, error.start) + 1
        raise BrokenSource(path, line, Breakage.ENCODING, str(error)) from error
    except (SyntaxError, UnicodeError, LookupError) as error:  # LookupError: a codec like hex, that makes no text
        raise BrokenSource(path, None, Breakage.ENCODING, str(error)) from error
    return encoding, text.replace("\r\n", "\n").replace("\r", "\n")


def parse(path: Path, text: str) -> ast.Module:
    """Return the syntax tree of ``text``, without printing what the compiler warns of."""
    if "\0" in text:  # the exception for it differs from one Python release to the next
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BrokenSource(path, line, Breakage.NULL_BYTE, "source code cannot contain null bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        _raise_broken(path, error)
    except UnicodeError as error:  # lone surrogates, which a codec such as utf-7 lets through
        raise BrokenSource(path, None, Breakage.ENCODING, str(error)) from error
    except (RecursionError, MemoryError) as error:  # the parser's words for "my stack is full"
        reason = str(error) or "the parser's stack is full"
        raise BrokenSource(path, None, Breakage.TOO_DEEP, reason) from error


def _raise_broken(path: Path, error: SyntaxError) -> NoReturn:
    why = Breakage.INDENTATION if isinstance(error, IndentationError) else Breakage.SYNTAX
    raise BrokenSource(path, error.lineno or None, why, error.msg) from error


@dataclass(frozen=True, slots=True)
class Layout:
    """What the tokens of a file say, without its grammar."""

    lines: int
    code: int
    docstring: int
    comment: int
    tokens: int
    nesting: int


_INVISIBLE = frozenset({tokenize.NL, tokenize.ENDMARKER})


def measure_layout(path: Path, text: str) -> Layout:
    """Count lines, tokens and nested blocks of ``text``, whose lines end with line feeds."""
    code = docstring = comment = tokens = depth = nesting = 0
    last = 0  # the last line known to hold a token
    statement = 0  # lines that the current statement has added, only_strings while that is all it has
    only_strings = True
    try:
        for kind, _, (start, _), (end, _), _ in tokenize.generate_tokens(io.StringIO(text).readline):
            if kind == tokenize.NEWLINE:
                if only_strings:
                    docstring += statement
                else:
                    code += statement
                statement, only_strings = 0, True
            elif kind == tokenize.COMMENT:
                comment += start != last
            elif kind == tokenize.INDENT:
                depth += 1
                nesting = max(nesting, depth)
            elif kind == tokenize.DEDENT:
                depth -= 1
            elif kind not in _INVISIBLE:
                tokens += 1
                only_strings = only_strings and kind == tokenize.STRING
                statement += end - max(last, start - 1)
                last = end
    except SyntaxError as error:  # tokenize is stricter than the parser in a few odd places
        _raise_broken(path, error)
    except tokenize.TokenError as error:
        reason, (line, _) = error.args
        raise BrokenSource(path, line, Breakage.SYNTAX, reason) from error
    lines = text.count("\n") + (not text.endswith("\n") and text != "")
    return Layout(lines, code, docstring, comment, tokens, nesting)


# Definitions --------------------------------------------------------------------------------------------------------

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)
_BLOCKS = ("body", "handlers", "cases", "orelse", "finalbody")
_SIMPLE_STATEMENTS = (ast.Expr, ast.Assign, ast.Return)  # no more than the most frequent: the others have no blocks


@dataclass(frozen=True, slots=True)
class Definition:
    """A class or function; ``name`` is qualified by what it stands in, ``public`` says whether it wants a docstring."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    name: str
    public: bool


def find_definitions(tree: ast.Module) -> Iterator[Definition]:
    """Yield every class and function, at whatever depth."""
    stack: list[tuple[ast.AST, str, bool]] = [(tree, "", True)]
    while stack:
        parent, prefix, public = stack.pop()
        for node in (node for block in _BLOCKS for node in getattr(parent, block, ())):
            if isinstance(node, _DEFINITIONS):
                definition = Definition(node, prefix + node.name, public and not node.name.startswith("_"))
                yield definition
                stack.append((node, f"{definition.name}.", definition.public and isinstance(node, ast.ClassDef)))
            elif not isinstance(node, _SIMPLE_STATEMENTS):
                stack.append((node, prefix, public))


def count_docstrings(tree: ast.Module, definitions: Iterable[Definition]) -> tuple[int, int]:
    """Return how many public definitions there are, and how many of them have a docstring that says something."""
    nodes: list[Any] = [definition.node for definition in definitions if definition.public]
    if tree.body:
        nodes.append(tree)
    documented = sum(1 for node in nodes if (ast.get_docstring(node, clean=False) or "").strip())
    return len(nodes), documented


# Complexity ---------------------------------------------------------------------------------------------------------


def _one(_: ast.AST) -> int:
    return 1


def _further_operands(node: ast.BoolOp) -> int:
    return len(node.values) - 1


def _loop_and_filters(node: ast.comprehension) -> int:
    return 1 + len(node.ifs)


def _case(node: ast.match_case) -> int:
    always_matches = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
    return (not always_matches) + (node.guard is not None)


_DECISION_POINTS: dict[type[ast.AST], Callable[[Any], int]] = {
    ast.If: _one,
    ast.IfExp: _one,
    ast.For: _one,
    ast.AsyncFor: _one,
    ast.While: _one,
    ast.ExceptHandler: _one,
    ast.match_case: _case,
    ast.comprehension: _loop_and_filters,
    ast.BoolOp: _further_operands,
}
_LEAVES = frozenset({ast.Name, ast.Constant, ast.Load, ast.Store, ast.Del, ast.Pass, ast.alias})


def complexity(body: Iterable[ast.AST]) -> int:
    """Return McCabe's number of one component: the decision points in ``body``, outside of functions within it, + 1."""
    total = 1
    stack = list(body)
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind in _LEAVES:
            continue
        rule = _DECISION_POINTS.get(kind)
        if rule is not None:
            total += rule(node)
        if isinstance(node, _FUNCTIONS):
            stack += [*node.decorator_list, node.args]
        else:
            stack.extend(ast.iter_child_nodes(node))
    return total
