"""How the keeper starts its fork server, and holds the one that an earlier keeper has started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from binascii import b2a_base64
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from .worker_config import WorkerConfig

if TYPE_CHECKING:
    import subprocess

__all__ = ["Inherited", "Launched", "ServerProcess", "Start", "interpreter", "launch"]

END_SECONDS = 5.0
GONE = "(gone)"
"""In place of a working directory that has been removed."""


# The application's path comes first, for it decides which poolkeeper is meant, also under python -I.
_BOOTSTRAP = (
    "import json, sys; content = json.load(sys.stdin); sys.path[:] = content['sys_path']; "
    "from poolkeeper.forkserver import main; main(content)"
)


class Start:
    """What a fork server is started with. Modules that only its other half needs load while that starts.

    Args:
        config: of the workers.
        preload: modules to import.
        start_method: "forkserver" or "loky".
        environment: set before the preload.
        inherit_output: leaves it the caller's stdout and stderr.
        remove: directories that it removes when it ends.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        preload: Iterable[str],
        start_method: str,
        environment: dict[str, str],
        inherit_output: bool,
        remove: Iterable[str] = (),
    ) -> None:
        plain = config._asdict()
        for name in ("key", "initializer"):
            if plain[name] is not None:
                plain[name] = _text(plain[name])
        self.environment = environment
        self.inherit_output = inherit_output
        self._content: dict[str, Any] = {
            "worker": plain,
            "preload": list(preload),
            "start_method": start_method,
            "sys_path": sys.path,
            "argv": getattr(sys, "argv", [""]),
            "remove": list(remove),
        }

    @cached_property
    def digest(self) -> str:
        """The same for two keepers that could have the same fork server."""
        import hashlib
        import json

        worker = {**self._content["worker"], "incarnation": ""}
        told = {**self._content, "worker": worker, "environment": self.environment}
        about = [json.dumps(told, sort_keys=True, default=str), sys.executable, sys.version, _working_directory()]
        return hashlib.sha256("\0".join(about).encode()).hexdigest()

    def content(self) -> bytes:
        """Return what it reads from its standard input, which is private."""
        import json
        import multiprocessing

        # for managers and listeners of the application that tasks connect to
        authkey = _text(multiprocessing.current_process().authkey)
        return json.dumps({**self._content, "digest": self.digest, "authkey": authkey}).encode()


def _text(secret: bytes) -> str:
    return b2a_base64(secret, newline=False).decode()


def interpreter() -> list[str]:
    """Return the command line of another interpreter like this one, without what it is to run."""
    import subprocess  # a keeper that takes over needs none

    # as multiprocessing does
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    if _working_directory() == GONE and "-P" not in flags:
        flags.append("-P")  # some of Python 3.13 look for the directory after -c, and fail where it is gone
    return [sys.executable, *flags]


def launch(start: Start) -> Launched:
    """Start a fork server; it will call the keeper."""
    import subprocess

    output = None if start.inherit_output else subprocess.DEVNULL
    process = subprocess.Popen(
        [*interpreter(), "-c", _BOOTSTRAP],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env={**os.environ, **start.environment},
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(start.content())
        process.stdin.close()
    return Launched(process)


class ServerProcess(Protocol):
    """The keeper's handle on a fork server; ``watch_fd`` becomes readable when it ends, None where there is none."""

    watch_fd: int | None

    @property
    def pid(self) -> int:
        """Its pid."""

    @property
    def exitcode(self) -> int | None:
        """How it ended, None while it lives, or where that is not known."""

    def kill(self) -> None:
        """End it at once; its workers live on."""

    def end(self) -> None:
        """Wait for it to end, having been told to; kill it if it does not."""

    def leave(self) -> None:
        """Let go of it; it lives on."""

    def dismiss(self) -> None:
        """Tell it to end, with all that it has made."""


class Launched:
    """A fork server that this keeper has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.watch_fd = _pidfd(process.pid)

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """How it ended, None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once; its workers live on."""
        self._process.kill()
        self.end()

    def end(self) -> None:
        """Wait for it to end, having been told to; kill it if it does not."""
        import subprocess

        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def leave(self) -> None:
        """Let go of it; it lives on."""
        self._process.returncode = 0  # or the module would warn that it still runs
        self._close()

    def dismiss(self) -> None:
        """Tell it to end, with all that it has made."""
        self._process.terminate()

    def _close(self) -> None:
        if self.watch_fd is not None:
            fd, self.watch_fd = self.watch_fd, None
            os.close(fd)


class Inherited:
    """A fork server that an earlier keeper has started; raises ProcessLookupError where it is gone."""

    exitcode: int | None = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        os.kill(pid, 0)
        self.watch_fd = _pidfd(pid)

    def kill(self) -> None:
        """End it at once; its workers live on."""
        self._signal(signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """Wait for it to end, having been told to; kill it if it does not."""
        if self.watch_fd is not None:
            if not select.select([self.watch_fd], [], [], END_SECONDS)[0]:
                self._signal(signal.SIGKILL)
                select.select([self.watch_fd], [], [], END_SECONDS)
            self.leave()
        with contextlib.suppress(ChildProcessError):  # it is ours where this keeper was re-exec'd
            os.waitpid(self.pid, os.WNOHANG)

    def leave(self) -> None:
        """Let go of it; it lives on."""
        if self.watch_fd is not None:
            fd, self.watch_fd = self.watch_fd, None
            os.close(fd)

    def dismiss(self) -> None:
        """Tell it to end, with all that it has made."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.watch_fd is not None:
                signal.pidfd_send_signal(self.watch_fd, number)
            else:
                os.kill(self.pid, number)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return GONE


def _pidfd(pid: int) -> int | None:
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None
