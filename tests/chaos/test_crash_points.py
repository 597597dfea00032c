"""A keeper is killed at each point where that could hurt; the next one has every outcome once, and runs nothing twice.

The script puts a SIGKILL before or after the n-th call of one function of the keeper's own process, and runs until that
comes; then it runs without. At the points of a re-exec it replaces itself half-way, and the SIGKILL may also be for
those whom the keeper has made.
"""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers import PATIENCE
from tests.scripts import start_script
from tests.survivors import end_survivors

SCRIPT = """
    import importlib, os, signal, sys
    import psutil
    from poolkeeper import Keeper
    from poolkeeper.inheritance import INHERITANCE
    from tests import tasks

    def kill():
        if victims == "keeper":
            os.kill(os.getpid(), signal.SIGKILL)
        servers = psutil.Process().children()
        workers = [worker for server in servers for worker in server.children()]
        assert servers and workers
        for victim in {"workers": workers, "server": servers, "all": servers + workers}[victims]:
            victim.kill()

    def crash(module, path, when, number):
        owner = importlib.import_module(f"poolkeeper.{module}")
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        function, calls = getattr(owner, name), 0
        def crashing(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number and when == "before":
                kill()
            result = function(*args, **kwargs)
            if calls == number and when == "after":
                kill()
            return result
        setattr(owner, name, crashing)

    folder, module, path, when, number, replace, victims = sys.argv[1:]
    first = not INHERITANCE.history
    if number != "0" and replace in ("never", "old" if first else "new"):
        crash(module, path, when, int(number))
    with Keeper(2, name="crash", home=folder + "/home") as keeper:
        view = keeper.options(key=lambda folder, item: str(item))
        futures = [view.submit(tasks.note_and_return, folder, item) for item in range(60)]
        if replace != "never" and first:
            futures[20].result()
            keeper.reexec()
        results = [future.result() for future in futures]
        assert results == list(range(60)), results
    print("done")
"""

POINTS = {
    "journal write": ("journal", "Journal._commit"),
    "send": ("link", "Link.send"),
    "receive": ("link", "Link.receive"),
    "acknowledgement": ("session", "Session.release"),
    "fork server": ("nursery", "launch"),
    "fork": ("nursery", "Nursery._order"),
    "pidfile": ("pidfile", "write_pidfile"),
    "delivery": ("settlement", "Settlement.deliver"),
    "take-over": ("adoption", "Adoption.take_in"),
    "claim": ("adoption", "Adoption.sift"),
    "lock": ("instance", "InstanceLock.acquire"),
    "end": ("nursery", "Nursery.close"),
    "execv": ("reexec", "os.execve"),
    "inheritance": ("inheritance", "Inheritance.claim"),
}

REPLACED = {"execv": "old", "inheritance": "new"}
"""Points of a re-exec, and the program that passes them."""


def run(folder: Path, point: str, when: str, number: int, victims: str = "keeper") -> int:
    """Run the script; return its exit code."""
    module, path = POINTS[point]
    words = (folder, module, path, when, number, REPLACED.get(point, "never"), victims)
    with start_script(folder, SCRIPT, *words) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL or (process.returncode, output, errors) == (0, "done\n", ""), errors
    return process.returncode


def run_to_the_end(folder: Path, point: str, when: str, numbers: tuple[int, ...]) -> None:
    """Have one keeper after the other killed, until one is not."""
    if point in SECOND:
        assert run(folder, "delivery", "before", 1) != 0
    ends = [run(folder, point, when, numbers[0])]
    assert ends[0] != 0, "this point was not passed"
    for number in (*numbers[1:], 0):
        if ends[-1] != 0:
            ends.append(run(folder, point, when, number))
    assert ends[-1] == 0


def check(folder: Path, *, workers_died: bool = False) -> None:
    """Each outcome is recorded once, and each task was executed once."""
    ran = Counter(word for path in folder.glob("ran-*") for word in path.read_text().split())
    assert set(ran) == {str(item) for item in range(60)}
    if not workers_died:
        assert set(ran.values()) == {1}, ran
    with closing(sqlite3.connect(folder / "home" / "crash" / "default" / "journal.db")) as journal:
        (recorded,) = journal.execute("SELECT sum(count) FROM groups").fetchone()
    assert recorded == 60


SECOND = {"take-over", "claim"}
"""Points that only a keeper passes that is not the first."""

NUMBERS = {"fork server": (1,), "lock": (1,), "end": (1,), "fork": (1, 2), "execv": (1,), "inheritance": (1,)}

PASSED = [(point, when) for point in POINTS for when in ("before", "after") if (point, when) != ("execv", "after")]
"""After execv there is nothing: that is before the inheritance."""


@pytest.mark.parametrize(
    ("point", "when"),
    [pytest.param(*case, marks=[pytest.mark.soak] if case[1] == "after" else []) for case in PASSED],
)
def test_the_next_keeper_has_every_outcome_once(tmp_path: Path, point: str, when: str) -> None:
    try:
        run_to_the_end(tmp_path, point, when, NUMBERS.get(point, (1, 3)))
        check(tmp_path)
    finally:
        end_survivors(tmp_path / "home" / "crash" / "default")


@pytest.mark.soak
@pytest.mark.parametrize(("point", "when"), PASSED)
def test_keepers_that_die_again_and_again(tmp_path: Path, point: str, when: str) -> None:
    try:
        run_to_the_end(tmp_path, point, when, (1, 2, 3, 5, 8, 13, 21, 34))
        check(tmp_path)
    finally:
        end_survivors(tmp_path / "home" / "crash" / "default")


@pytest.mark.parametrize(
    ("point", "victims"),
    [
        ("execv", "all"),
        *(
            pytest.param(point, victims, marks=pytest.mark.soak)
            for point in REPLACED
            for victims in ("workers", "server", "all")
            if (point, victims) != ("execv", "all")
        ),
    ],
)
def test_what_a_keeper_has_made_is_killed_while_it_replaces_itself(tmp_path: Path, point: str, victims: str) -> None:
    try:
        assert run(tmp_path, point, "before", 1, victims) == 0
        check(tmp_path, workers_died=True)
    finally:
        end_survivors(tmp_path / "home" / "crash" / "default")
