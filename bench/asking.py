"""``python -m bench.asking HOME``: asks a keeper for its status until standard input ends, then prints how that went.

It stands for the person at another terminal.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Asker"]

PAUSE = 0.005  # seconds from each answer to the next question


def main(home: str) -> None:
    """Ask, each time as the command line does: by a new connection."""
    from poolkeeper.control_client import ControlClient

    worst, answers = 0.0, 0
    while True:
        asked = time.monotonic()
        with ControlClient(Path(home)) as client:
            client.ask("status")
        worst, answers = max(worst, time.monotonic() - asked), answers + 1
        if answers == 1:
            print("asking", flush=True)
        if select.select([sys.stdin], [], [], PAUSE)[0]:
            break
    print(json.dumps({"status": worst * 1e3, "answers": answers}))


class Asker:
    """That process; it has had its first answer when this is entered."""

    def __init__(self, home: Path) -> None:
        command = [sys.executable, "-m", "bench.asking", str(home)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "asking\n":
            raise RuntimeError("the keeper does not answer")
        return self

    def stop(self) -> dict[str, float]:
        """The figures ``status``, the slowest answer in milliseconds, and ``answers``, how many there were."""
        output, _ = self._process.communicate()
        figures: dict[str, float] = json.loads(output)
        return figures

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
