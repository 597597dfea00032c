"""A keeper in a process of its own, which a test may kill: ``python -m tests.keeper_program HOME NAME``.

It carries out the lines of Python that come over standard input, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.helpers import MARK, PATIENCE, is_running, standing_still, wait_until

NAME = "etl"
ROOT = Path(__file__).parents[1]


class KeeperProgram:
    """The test's end of it."""

    def __init__(self, home: Path, *, options: str = "", version: Path = ROOT) -> None:
        """``version`` is the folder of the package poolkeeper that it is to use."""
        self.home = home
        self.folder = home / NAME / "default"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.keeper_program", str(home), options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=version,
            env={**os.environ, "PYTHONPATH": f"{version}:{ROOT}"},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def __call__(self, code: str) -> Any:
        """Have it evaluate ``code``, and return what comes of that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise AssertionError(f"no answer: {code}")
        answer = self.process.stdout.readline()
        assert answer, f"it has died of {code}"
        kind, value = json.loads(answer)
        assert kind == "ok", value
        return value

    def service(self, target: str, *args: Any, name: str = "web", **options: Any) -> None:
        """Declare a service of ``tests.services``; options that are text are Python."""
        words = [f"services.{target}, ({''.join(f'{arg!r}, ' for arg in args)})", f"name={name!r}"]
        words += [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in options.items()]
        self(f"(keeper.service({', '.join(words)}), None)[1]")

    def row(self, name: str = "web") -> dict[str, Any]:
        """Return what it says of one replica."""
        rows: list[dict[str, Any]] = self("rows()")
        return next((row for row in rows if row["name"] == name), {})

    def reach(self, state: str, name: str = "web", *, but: int | None = None) -> dict[str, Any]:
        """Wait until a replica is in ``state``, with another pid than ``but``; return what is said of it."""

        def there() -> dict[str, Any] | None:
            row = self.row(name)
            settled = row and row["state"] == state and (row["pid"] or state not in ("starting", "running"))
            return row if settled and (but is None or row["pid"] != but) else None

        try:
            found = wait_until(there)
        except AssertionError as error:
            raise AssertionError(f"{name} is not {state}, and no process but {but}: {self('rows()')}") from error
        assert found is not None
        return found

    def kill(self) -> None:
        """Kill it, and what it has made lives on."""
        self.process.kill()
        self.process.wait()
        self._close()

    def end(self) -> None:
        """Have it end in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0
        self._close()

    def _close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def keepers(home: Path) -> Iterator[Callable[..., KeeperProgram]]:
    """Yield what starts one keeper after the other; at the end all that they have left is killed."""
    started: list[KeeperProgram] = []

    def start(**options: Any) -> KeeperProgram:
        started.append(KeeperProgram(home, **options))
        started[-1]("None")
        return started[-1]

    try:
        yield start
    finally:
        for keeper in started:
            if keeper.process.poll() is None:
                keeper.kill()
        end_all()


def end_all() -> None:
    """Have all fork servers of this test end with what they have made, which may have lower pids than their maker."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found: dict[int, int] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            ours = mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if ours and any("poolkeeper.forkserver" in word for word in process.cmdline()):
                found[process.pid] = process.ppid()
    for pid in [pid for pid, parent in found.items() if parent not in found]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not is_running(pid))


def main() -> None:
    """Be the keeper."""
    from poolkeeper import Keeper, RestartPolicy, command
    from poolkeeper.service_spec import ServiceGroup
    from tests import services, tasks

    home, options = sys.argv[1:3]
    with Keeper(**{"max_workers": 2, "name": NAME, "home": home, **eval(f"dict({options})")}) as keeper:

        def rows() -> list[dict[str, Any]]:
            return [
                {
                    "name": row.name,
                    "state": row.state.value,
                    "pid": row.pid,
                    "restarts": row.restarts,
                    "attempt": row.attempt,
                    "detail": row.detail,
                    "wanted": row.wanted,
                    "exits": [[exit.reason.value, exit.exitcode, exit.message] for exit in row.exits],
                }
                for row in keeper.status().services
            ]

        def at_once(submit: Callable[[], Any]) -> None:
            with standing_still(keeper):
                submit()

        names = {
            "keeper": keeper,
            "at_once": at_once,
            "futures": [],
            "services": services,
            "tasks": tasks,
            "rows": rows,
            "RestartPolicy": RestartPolicy,
            "ServiceGroup": ServiceGroup,
            "command": command,
            "PosixPath": Path,
            "os": os,
        }
        for line in sys.stdin:
            try:
                answer = ["ok", eval(json.loads(line), names)]
            except Exception:
                answer = ["error", traceback.format_exc()]
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
