"""The pre-flight of a re-exec: a child process loads the new code, so that this one is not given up for a broken one.

A command line of poolkeeper itself is run as it is, and stops when the fleet is loaded and checked. Of any other
program the script is compiled, not run, and the new poolkeeper is imported as the script would import it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .errors import ReexecRefused
from .invocation import Kind
from .preflight_answer import PREFLIGHT, read_answer
from .sdnotify import VARIABLES
from .startup import Startup

__all__ = ["run_preflight", "written"]

SHOWN = 8000
"""Bytes of what the child has written that are shown, from the end."""

_LOADER = """\
import json, sys
about = json.loads(sys.argv[1])
if about["path"] is not None:
    sys.path.insert(0, about["path"])
try:
    from poolkeeper.preflight_program import check_program
except ImportError:
    sys.path.append(about["package"])  # as the script itself may do it
    from poolkeeper.preflight_program import check_program
check_program(about["kind"], about["target"])
"""


def run_preflight(startup: Startup, *, by_itself: bool, seconds: float) -> Mapping[str, Any]:
    """Load the new code in a child process and return what it says of itself.

    Args:
        startup: how this process was started.
        by_itself: whether the program is poolkeeper's own, and knows what a pre-flight is.
        seconds: how long it may take.

    Raises:
        ReexecRefused: if the program cannot be loaded, or takes too long; with what the child has written.
    """
    command = startup.command_line if by_itself else _loader(startup)
    with tempfile.TemporaryFile() as output:
        reader, writer = os.pipe()
        try:
            try:
                child = _start(command, startup, writer, output)
            finally:
                os.close(writer)
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                raise ReexecRefused(
                    f"the new program is not loaded after {seconds:g} s: the pre-flight has been stopped, and the old "
                    f"program goes on{written(output)}"
                ) from None
            finally:
                _end(child)
            found = read_answer(_read(reader))
        finally:
            os.close(reader)
        if found is None or code != 0:
            raise ReexecRefused(
                f"the new program cannot be loaded (exit code {code}), and the old one goes on{written(output)}"
            )
    return found


def _loader(startup: Startup) -> list[str]:
    kind, target, options, _ = startup.invocation
    if kind is Kind.SCRIPT:
        target = startup.path_of(target)
        # A folder or archive is on the search path itself; a script has its folder there, with links resolved.
        path = os.path.dirname(os.path.realpath(target)) if os.path.isfile(target) else target
    else:
        path = startup.directory or ""
    about = {
        "kind": kind.name,
        "target": target,
        "path": None if sys.flags.safe_path else path,
        "package": str(Path(__file__).parents[1]),
    }
    # -P, for some of Python 3.13 look for the working directory after -c, and fail where that is gone
    return [startup.executable, *options, "-P", "-c", _LOADER, json.dumps(about)]


def _start(command: Sequence[str], startup: Startup, writer: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    # What is meant for the one process that systemd watches is not for its children.
    environment = {name: value for name, value in startup.environment.items() if name not in VARIABLES}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            cwd=startup.folder,
            env={**environment, PREFLIGHT: str(writer)},
            umask=-1 if startup.umask is None else startup.umask,
            start_new_session=True,
        )
    except OSError as error:
        raise ReexecRefused(f"the interpreter cannot be started, and the old program goes on: {error}") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child with all that it has started, as far as that is still in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read(reader: int) -> bytes:
    os.set_blocking(reader, False)  # who has escaped may keep the other end open
    with contextlib.suppress(BlockingIOError):
        return os.read(reader, 65536)
    return b""


def written(output: IO[bytes]) -> str:
    """Return the end of what a child has written, as the rest of a message."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - SHOWN))
    text = output.read().decode(errors="replace").strip()
    return f"\n{text}" if text else ""
