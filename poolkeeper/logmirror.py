"""The mirror of what workers write: their log files, copied to where the program's own output goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from .loglines import LogLine
from .logreader import LogFollower

__all__ = ["LogMirror"]


class LogMirror:
    """Copies what is appended to the log files in a folder, but the keeper's, in whole lines with the file's stem.

    What stands before the text of a line in the file is left out. Files are followed by descriptor, so that the last
    lines are had even from a folder that has been removed.

    Args:
        folder: where the files ``*.log`` are, or will be.
        write: is given one line, without its newline.
        interval: seconds between two looks.
    """

    def __init__(self, folder: Path, write: Callable[[str], object], *, interval: float = 0.2) -> None:
        self._follower = LogFollower(folder)
        self._write = write
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="poolkeeper-log-mirror", daemon=True)

    def __enter__(self) -> Self:
        self._follower.skip()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.copy()
        for line in self._follower.close():
            self._say(line)

    def copy(self) -> None:
        """Write the lines that have been appended since the last look."""
        for line in self._follower.read():
            self._say(line)

    def _follow(self) -> None:
        with suppress(BrokenPipeError):  # nobody reads any more
            while not self._stopping.wait(self._interval):
                self.copy()

    def _say(self, line: LogLine) -> None:
        if line.stem == "keeper":
            return
        self._write(f"{line.stem} | {line.words}")
