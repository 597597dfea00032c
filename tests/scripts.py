"""Runs a script as a program of its own, as a user would: its output, its exit code, and that it ends at all."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start_script(folder: Path, source: str, *args: object) -> subprocess.Popen[str]:
    """Start ``source``, dedented, as ``folder/script.py``, in a process group of its own."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(source))
    return subprocess.Popen(
        # from 3.12 on, Python warns of every fork of a process with threads, as a keeper's always is
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(path), *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(_temporary(folder))},
        process_group=0,
    )


def run_script(folder: Path, source: str, *args: object, timeout: float = 30.0, leaves: bool = False) -> str:
    """Run ``source`` to its end and return what it printed.

    It must exit with 0, write nothing to its standard error, and leave no temporary file unless it ``leaves`` some.
    """
    with start_script(folder, source, *args) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            raise AssertionError(f"the script has not ended within {timeout:g} s\n{output}\n{errors}") from None
    assert (process.returncode, errors) == (0, ""), f"exit code {process.returncode}\n{output}\n{errors}"
    if not leaves:
        assert left_in(folder) == []
    return output


def left_in(folder: Path) -> list[str]:
    """Return the temporary files that a script in ``folder`` has left."""
    return sorted(os.listdir(_temporary(folder)))


def _temporary(folder: Path) -> Path:
    path = folder / "tmp"
    path.mkdir(exist_ok=True)
    return path
