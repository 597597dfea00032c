"""Starting a fleet in a process of its own, without a terminal: ``poolkeeper run --detach``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

from .control_client import ControlClient, ControlError, KeeperUnreachable
from .instance import InstanceLock
from .places import base_folder, home_unusable, make_folders
from .startup import Startup

__all__ = ["Background", "start_in_background", "without_word"]

LOOK_SECONDS = 0.05
OUTPUT = "output.log"
"""What a fleet without a terminal prints; that of the start before is kept beside it."""


class Background(NamedTuple):
    """A fleet that was started.

    ``exit_code`` is None if it runs; ``output`` is where it prints, ``text`` what it has printed so far.
    """

    pid: int
    exit_code: int | None
    output: Path
    text: str


def without_word(argv: list[str], word: str) -> list[str]:
    """Return a command line without the first option ``word``; what is behind ``--`` is none."""
    end = argv.index("--") if "--" in argv else len(argv)
    if word in argv[:end]:
        place = argv.index(word)
        return argv[:place] + argv[place + 1 :]
    return argv


def start_in_background(startup: Startup, word: str, name: str, run_id: str) -> Background:
    """Start this program once more, without the option ``word``, and wait until its keeper answers, or it has ended.

    Args:
        startup: how this process was started.
        word: what has told it to do this.
        name: the keeper's.
        run_id: likewise.

    Raises:
        HomeUnusable: where its output cannot be written.
        KeyboardInterrupt: when this process is interrupted; the other one has ended, too.
    """
    folder = InstanceLock(name, run_id).folder
    output = folder / "logs" / OUTPUT
    try:
        make_folders(base_folder(None), output.parent)
        if not _is_held(name, run_id):  # who runs there writes there
            with contextlib.suppress(FileNotFoundError):
                output.replace(output.with_name(f"{OUTPUT}.1"))
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise home_unusable(output.parent, error) from error
    try:
        before = os.fstat(file).st_size
        process = subprocess.Popen(
            without_word(startup.command_line, word),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=dict(startup.environment),
            start_new_session=True,
        )
    finally:
        os.close(file)
    try:
        while not _answers(folder, process.pid):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
                break
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    code = process.poll()
    if code is None:
        process.returncode = 0  # it is not waited for, or the module would warn
    with open(output, "rb") as written:
        written.seek(before)
        return Background(process.pid, code, output, written.read().decode(errors="replace"))


def _answers(folder: Path, pid: int) -> bool:
    try:
        with ControlClient(folder) as client:
            return bool(client.ask("progress")["pid"] == pid)
    except (KeeperUnreachable, ControlError):
        return False


def _is_held(name: str, run_id: str) -> bool:
    return InstanceLock(name, run_id).is_locked()
