"""A keeper that is killed at any moment has recorded every outcome that the application has seen."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import poolkeeper
from tests.helpers import PATIENCE
from tests.scripts import run_script

ROOT = Path(poolkeeper.__file__).parent.parent

SCRIPT = """
import sys
from concurrent.futures import as_completed
from poolkeeper import Keeper

def work(number):
    return bytes(number % 3000)

with Keeper(2, name="killed", home=sys.argv[1]) as keeper:
    view = keeper.options(key=str)
    futures = {view.submit(work, number): number for number in range(int(sys.argv[2]))}
    for future in as_completed(futures):
        assert len(future.result()) == futures[future] % 3000
        print(futures[future], int(future.reused), flush=True)
"""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 4))])
def test_what_was_seen_is_recorded(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    total = 6000

    def start() -> subprocess.Popen[str]:
        words = [sys.executable, str(script), str(tmp_path / "home"), str(total)]
        return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE)

    seen: set[int] = set()
    for _ in range(3):
        process = start()
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(chance.randrange(1, 1500))]
        process.kill()
        with process:
            lines.extend(process.stdout)
        answers = [line.split() for line in lines if line.endswith("\n")]
        again = {int(number) for number, reused in answers if reused == "1"}
        fresh = {int(number) for number, reused in answers if reused == "0"}
        assert not fresh & seen  # what was seen before is not run again
        assert again <= set(range(total))
        seen |= fresh | again
    process = start()
    output, _ = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0
    answers = [line.split() for line in output.splitlines()]
    assert {int(number) for number, _ in answers} == set(range(total))
    assert seen <= {int(number) for number, reused in answers if reused == "1"}


SALVAGE = """
    import os, shutil, signal, sqlite3, sys
    from contextlib import closing
    from pathlib import Path
    from poolkeeper import journal_file

    def make(path):
        with closing(journal_file.open_journal(path)) as connection:
            connection.execute("INSERT INTO runs (id, state, began) VALUES (1, 'running', 1.0)")
            connection.executemany(
                "INSERT INTO groups (run, recorded, count, head, body) VALUES (1, 2.0, 3, ?, ?)",
                [(b"head", bytes(100))] * 3,
            )
            (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'groups_of_run'").fetchone()
        with open(path, "r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(b"x" * 200)

    def open_and_die(path, number):
        calls = 0
        def count(frame, event, function):
            nonlocal calls
            if event == "c_call" and frame.f_code.co_filename == journal_file.__file__:
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        journal_file.open_journal(path).close()
        os._exit(0)

    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    make(folder / "damaged.db")
    number = 0
    status = None
    while status != 0:
        number += step
        home = folder / str(number)
        home.mkdir()
        path = home / "journal.db"
        shutil.copy(folder / "damaged.db", path)
        child = os.fork()
        if child == 0:
            open_and_die(path, number)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), (number, status)
        with closing(journal_file.open_journal(path)) as journal:
            found = journal.execute("SELECT (SELECT count(*) FROM runs), (SELECT sum(count) FROM groups)").fetchone()
        assert found == (1, 9), (number, found)
        assert list(home.glob("journal.db.corrupt-*[0-9]")), number
        shutil.rmtree(home)
    print("killed at", number // step - 1)
"""


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.soak)])
def test_what_could_be_salvaged_is_there_whenever_its_keeper_is_killed(tmp_path: Path, step: int) -> None:
    words = run_script(tmp_path, SALVAGE, tmp_path, step, timeout=PATIENCE).split()
    assert int(words[-1]) > 50 // step
