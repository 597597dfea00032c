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
