"""Keyed tasks of 5 ms of processor time on two workers while everything is SIGKILLed, the keeper included.

A kill every 50 ms on average, at random moments, of the two workers, the keeper or the fork server, 8 : 8 : 1 : 1; who
starts the program starts it again at once. 20,000 tasks (2,000 in quick runs). Every outcome must come once.
"""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from bench.model import OURS, Case, Measured, Metric, benchmark
from bench.peers import Peer
from poolkeeper.pidfile import PidfileError, read_pidfile

QUICK_TASKS, FULL_TASKS = 2_000, 20_000
MEAN_SECONDS = 0.05
CALM, KILLS = "no kills", "a kill every 50 ms"
VICTIMS, WEIGHTS = ("first worker", "second worker", "keeper", "fork server"), (8, 8, 1, 1)


@benchmark(
    metrics=[
        Metric("rate", "tasks/s", "higher", "tasks/s"),
        Metric("wrong", "tasks", "lower", "lost, wrong or recorded twice"),
        Metric("again", "tasks", "lower", "executed again"),
        Metric("kills", "", "higher", "kills"),
        Metric("keepers", "", "higher", "keepers killed"),
    ],
    cases=[Case(CALM, peers=(OURS,)), Case(KILLS, peers=(OURS,))],
    references=(),
    deadline=600,  # the 20,000 take minutes
)
def keeper_chaos(peer: type[Peer], case: str, full: bool) -> Measured:
    """Tasks of 5 ms while keeper, workers and fork server are killed."""
    count = FULL_TASKS if full else QUICK_TASKS
    with tempfile.TemporaryDirectory(prefix="bench-chaos-") as home:
        started = time.monotonic()
        said, kills = _run(home, count, random.Random(count) if case == KILLS else None)
        seconds = time.monotonic() - started
        executed = Counter(Path(home, "ledger").read_text().split())
        with closing(sqlite3.connect(Path(home, "chaos", "default", "journal.db"))) as journal:
            (recorded,) = journal.execute("SELECT sum(count) FROM groups").fetchone()
        wrong = (0 if said["right"] else count) + abs(recorded - count) + count - len(executed)
        return Measured(
            {
                "rate": count / seconds,
                "wrong": wrong,
                "again": executed.total() - len(executed),
                "kills": kills.total(),
                "keepers": kills["keeper"],
            }
        )


def _run(home: str, count: int, draw: random.Random | None) -> tuple[dict[str, object], Counter[str]]:
    """Run the program to its end; return what it has said, and who was killed."""
    kills: Counter[str] = Counter()
    pidfile = Path(home, "chaos", "default", "keeper.pid")
    program = _start(home, count)
    due = time.monotonic() + (draw.expovariate(1 / MEAN_SECONDS) if draw else 3600.0)
    while True:
        with suppress(subprocess.TimeoutExpired):
            program.wait(max(0.0, due - time.monotonic()))
        if program.returncode == 0:
            assert program.stdout is not None
            return json.loads(program.stdout.read()), kills
        if program.returncode is not None:
            program = _start(home, count)
        elif draw is not None:
            victim = draw.choices(VICTIMS, WEIGHTS)[0]
            if victim == "keeper":
                program.kill()
                program.wait()
                program = _start(home, count)
                kills[victim] += 1
            else:
                kills[victim] += _kill(pidfile, victim)
            due = time.monotonic() + draw.expovariate(1 / MEAN_SECONDS)


def _kill(pidfile: Path, victim: str) -> bool:
    """Kill a worker or the fork server; return whether there was one."""
    try:
        children = read_pidfile(pidfile).children
    except (OSError, PidfileError):
        return False
    role = "forkserver" if victim == "fork server" else "worker"
    found = [child.identity for child in children if child.role == role]
    position = 1 if victim == "second worker" else 0
    return len(found) > position and found[position].signal(9)


def _start(home: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.keeper_program", "chaos", home, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
