"""What tests have workers say, in every way that there is."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from tests.tasks import note, wait_for_file


def say(text: str) -> int:
    print(text)
    return os.getpid()


def say_in_every_way() -> int:
    print("by print")
    print("by print to stderr", file=sys.stderr)
    os.write(2, b"by descriptor\n")
    subprocess.run([sys.executable, "-S", "-c", "print('by a child')"], check=True)
    ctypes.CDLL(None).puts(b"by C")
    return os.getpid()


def say_bytes(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def flood(name: str, number: int) -> int:
    """Write ``number`` numbered lines in large pieces."""
    say_bytes(b"".join(b"%s %06d\n" % (name.encode(), position) for position in range(number)))
    return number


def count_aloud(folder: Path) -> int:
    """Print numbers until the file ``go`` is there; leave a note after the first."""
    number = 0
    while not (folder / "go").exists():
        print("number", number, flush=True)
        number += 1
        if number == 1:
            note(folder, "started")
        time.sleep(0.001)  # or the log grows faster than a busy machine reads it
    print("enough", flush=True)
    return number


def say_and_die(text: str) -> NoReturn:
    print(text)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def say_and_hold(folder: Path, text: str) -> None:
    print(text)
    note(folder, "started")
    wait_for_file(folder / "go")
    print("then", text)
