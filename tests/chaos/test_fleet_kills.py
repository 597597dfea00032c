"""A fleet of services, batches and steps, of which random processes are killed or stopped: each outcome is there once.

Whoever kills the keeper starts it again, as a user would.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers import PATIENCE, wait_until

ITEMS = 200
EVENTS = 30

SEEDS = [
    pytest.param(0, id="0"),
    *(pytest.param(seed, id=str(seed), marks=pytest.mark.soak) for seed in range(1, 30)),
]

FLEET = f"""
import json, sys, time
from pathlib import Path
from poolkeeper import BatchResult, ExecutionPolicy, Fleet, RestartPolicy, RetryPolicy, context

fleet = Fleet("attacked")
folder = Path(sys.argv[1])
patient = ExecutionPolicy(retry=RetryPolicy(attempts=2, deaths=1000))

@fleet.service(ready="notify")
def counter() -> None:
    me = context()
    number = me.restore(default=0)
    me.ready()
    while not me.wait(0.02):
        number += 1
        me.checkpoint(number)
        print(number, flush=True)

@fleet.service(replicas=2, after=counter, restart=RestartPolicy.on_failure(1000, delay=0.05))
def failing() -> None:
    if not context().wait(0.3):
        raise ValueError("as ever")

@fleet.batch(items=lambda: range({ITEMS}), key=str, policy=patient)
def first(item: int):
    time.sleep(0.002 * (item % 5))
    if item % 50 == 7:
        raise ValueError(item)
    return bytes(300_000) if item % 40 == 0 else item

@fleet.step(after=first)
def middle(done: BatchResult) -> int:
    return len(done.values)

@fleet.batch(items=lambda number: range(number // 4), key=str, policy=patient, after=middle)
def second(item: int) -> int:
    for _ in context().track(range(10), every=0.0):
        time.sleep(0.002)
    return item

@fleet.step(after=[first, second])
def last(one: BatchResult, two: BatchResult) -> None:
    outcome = [[task.index for task in batch if task.ok == ok] for batch in (one, two) for ok in (True, False)]
    (folder / "outcome").write_text(json.dumps(outcome))
"""


class Attacked:
    """A run that is started as often as it takes, and whoever belongs to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"POOLKEEPER_HOME": str(folder / "home"), "NO_COLOR": "1"}
        (folder / "fleet.py").write_text(FLEET)
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "poolkeeper", "run", "fleet.py", "--workers", "2", "--", str(self.folder)]
        with open(self.folder / "said", "a") as said:
            self.run = subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=said, stderr=said)

    @property
    def has_ended(self) -> bool:
        """Whether the run has come to its end; started again where it was killed."""
        if self.run.poll() is None:
            return False
        if (self.folder / "outcome").exists() and self.run.returncode >= 0:
            return True
        self.start()
        return False

    def processes(self) -> list[int]:
        """Return the pids of all that belongs to it but the keeper."""
        home, found = self.environment["POOLKEEPER_HOME"], []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid not in (os.getpid(), self.run.pid) and (
                    process.environ().get("POOLKEEPER_HOME") == home and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process.pid)
        return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_fleet_comes_to_its_end_whatever_is_killed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    attacked = Attacked(tmp_path)
    stopped: list[int] = []
    pause = threading.Event()
    said = tmp_path / "said"
    try:
        for _ in range(EVENTS):
            if attacked.has_ended:
                break
            pause.wait(chance.uniform(0.0, 0.3))
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            stopped.clear()
            victims = attacked.processes()
            pid = chance.choice(victims) if victims and chance.random() < 0.85 else attacked.run.pid
            stop = chance.random() < 0.3
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if stop else signal.SIGKILL)
                stopped += [pid] if stop else []
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    wait_until(lambda: attacked.has_ended, "the end of the run", 3 * PATIENCE)
    first, failed, second, none = json.loads((tmp_path / "outcome").read_text())
    expected = [item for item in range(ITEMS) if item % 50 == 7]
    assert Counter(first) == Counter(set(range(ITEMS)) - set(expected)), said.read_text()
    assert (failed, none) == (expected, []), said.read_text()
    assert Counter(second) == Counter(range(len(first) // 4)), said.read_text()
    assert "Traceback" not in said.read_text()
    wait_until(lambda: not attacked.processes(), "the end of all its processes")
    left = {path.name for path in (tmp_path / "home").rglob("*") if path.is_socket() or path.suffix == ".pid"}
    assert not left
