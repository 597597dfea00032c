"""Command lines of Python, read as Python reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from poolkeeper.invocation import Invocation, Kind, read_invocation

SCRIPT, MODULE, COMMAND, STDIN = Kind.SCRIPT, Kind.MODULE, Kind.COMMAND, Kind.STDIN


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("job.py", Invocation(SCRIPT, "job.py")),
        ("job.py -c x", Invocation(SCRIPT, "job.py", (), ("-c", "x"))),
        ("-u -W error job.py a", Invocation(SCRIPT, "job.py", ("-u", "-W", "error"), ("a",))),
        ("-Werror -Xdev job.py", Invocation(SCRIPT, "job.py", ("-Werror", "-Xdev"))),
        ("-uW error job.py", Invocation(SCRIPT, "job.py", ("-uW", "error"))),
        ("-X dev -m shop run f.py -- x", Invocation(MODULE, "shop", ("-X", "dev"), ("run", "f.py", "--", "x"))),
        ("-Im shop", Invocation(MODULE, "shop", ("-I",))),
        ("-mshop", Invocation(MODULE, "shop")),
        ("-c pass a", Invocation(COMMAND, "pass", (), ("a",))),
        ("-uc pass", Invocation(COMMAND, "pass", ("-u",))),
        ("--check-hash-based-pycs never job.py", Invocation(SCRIPT, "job.py", ("--check-hash-based-pycs", "never"))),
        ("", Invocation(STDIN, "-")),
        ("-u", Invocation(STDIN, "-", ("-u",))),
        ("- a b", Invocation(STDIN, "-", (), ("a", "b"))),
        ("-m", Invocation(MODULE, "")),
    ],
)  # fmt: skip
def test_a_command_line_is_taken_apart(words: str, meant: Invocation) -> None:
    assert read_invocation(["python", *words.split()]) == meant


@pytest.mark.parametrize("options", [[], ["-B"], ["-Bs"], ["-W", "ignore"], ["-BWignore"], ["-X", "utf8", "-s"]])
def test_the_interpreter_agrees(tmp_path: Path, options: list[str]) -> None:
    script = tmp_path / "show.py"
    script.write_text("import json, sys\nprint(json.dumps([sys.orig_argv, sys.argv]))")
    command = [sys.executable, *options, str(script), "-c", "a", "--", "b"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    original, arguments = json.loads(shown.stdout)
    found = read_invocation(original)
    assert found == Invocation(SCRIPT, str(script), tuple(options), tuple(arguments[1:]))
