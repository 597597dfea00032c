"""The pre-flight of a restart by hand: a child process loads the service's code before the old process is stopped."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from .errors import RestartRefused
from .launching import interpreter
from .payload import loads
from .preflight import written

__all__ = ["check_loadable", "main"]

_BOOTSTRAP = (
    "import json, sys; content = json.load(sys.stdin); sys.path[:] = content['sys_path']; "
    "from poolkeeper.service_preflight import main; main(content)"
)


def check_loadable(
    name: str, blob: bytes, preload: Sequence[str], environment: Mapping[str, str], seconds: float
) -> None:
    """Have a child process load a service's callable as its next process would.

    Args:
        name: of the service.
        blob: its pickled callable and arguments.
        preload: modules to import first.
        environment: variables to set before that.
        seconds: how long it may take.

    Raises:
        RestartRefused: if it cannot be loaded, or takes too long; with what the child has written.
    """
    content = {
        "sys_path": sys.path,
        "argv": getattr(sys, "argv", [""]),
        "preload": list(preload),
        "blob": base64.b64encode(blob).decode(),
    }
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(
                [*interpreter(), "-c", _BOOTSTRAP],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise RestartRefused(f"service {name} goes on: the interpreter cannot be started: {error}") from error
        try:
            child.communicate(json.dumps(content).encode(), seconds)
        except subprocess.TimeoutExpired:
            raise RestartRefused(
                f"service {name} goes on as it is: its code is not loaded after {seconds:g} s{written(output)}"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # with all that it has started
            child.wait()
        if child.returncode != 0:
            raise RestartRefused(
                f"service {name} goes on as it is: the code on disk cannot be loaded "
                f"(exit code {child.returncode}){written(output)}"
            )


def main(content: Mapping[str, object]) -> None:
    """Be the child; ``content`` is what ``check_loadable`` has written to standard input."""
    sys.argv = list(content["argv"])  # type: ignore[call-overload]
    for module in content["preload"]:  # type: ignore[attr-defined]
        importlib.import_module(module)
    loads(base64.b64decode(str(content["blob"])))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of what was imported are of no interest
