"""Ctrl-C at any moment: it reaches the user, and the keeper stays whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers import wait_until
from tests.scripts import left_in, run_script, start_script

PROLOGUE = """
import pathlib
import cloudpickle  # an interrupt in the midst of an import may end in one of Python's callbacks, which ignore it
from poolkeeper import Keeper

def work(n):
    with open(f"ran/{n}", "a") as file:
        file.write(".")
    return n

pathlib.Path("ran").mkdir()
keeper = Keeper(2)
assert keeper.submit(pow, 2, 3).result() == 8
collected = []
"""

LOOPS = {
    "result": """
        futures = [keeper.submit(work, n) for n in range(2000)]
        def collect():
            while len(collected) < 2000:
                collected.append(futures[len(collected)].result(30))
        """,
    "round trips": """
        pending = {}
        def collect():
            while len(collected) < 2000:
                n = len(collected)
                if n not in pending:
                    pending[n] = keeper.submit(work, n)
                collected.append(pending[n].result(30))
        """,
    "short timeouts": """
        futures = [keeper.submit(work, n) for n in range(2000)]
        def collect():
            while len(collected) < 2000:
                try:
                    collected.append(futures[len(collected)].result(0.0005))
                except TimeoutError:
                    pass
        """,
    # Not concurrent.futures.wait: interrupted, it may leave the standard library's own locks taken.
    "map": """
        def collect():
            while len(collected) < 2000:
                start = len(collected) // 100 * 100
                collected[start:] = list(keeper.map(work, range(start, start + 100)))
        """,
}

EPILOGUE = """
interrupts = 0
while interrupts < 40:
    try:
        print("ready", flush=True)  # for the next interrupt, which must not come where the one before is caught
        collect()
        while True:
            keeper.submit(pow, 2, 2).result(30)
    except KeyboardInterrupt:
        interrupts += 1
while len(collected) < 2000:
    collect()
assert collected == list(range(2000)), len(collected)
assert sum(keeper.map(abs, range(1000))) == 499500
keeper.shutdown()
print("well")
"""


def interrupt_whenever_ready(process: subprocess.Popen[str]) -> str:
    """Send SIGINT at a random moment each time the script is ready for it; return what it says at last."""
    randomness = random.Random(2)
    assert process.stdout is not None
    for said in process.stdout:
        if said != "ready\n":
            return said
        with suppress(subprocess.TimeoutExpired):
            process.wait(randomness.uniform(0.0, 0.004))
        process.send_signal(signal.SIGINT)
    return ""


@pytest.mark.parametrize("loop", LOOPS)
def test_interrupts_at_random_moments_lose_nothing(tmp_path: Path, loop: str) -> None:
    with start_script(tmp_path, PROLOGUE + textwrap.dedent(LOOPS[loop]) + EPILOGUE) as process:
        try:
            said = interrupt_whenever_ready(process)
            output, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, errors, said + output) == (0, "", "well\n")
    runs = {int(path.name): path.read_text() for path in (tmp_path / "ran").iterdir()}
    assert set(runs) == set(range(2000))
    if loop in ("result", "short timeouts"):  # the others submit again what they have not noted
        assert set(runs.values()) == {"."}
    assert left_in(tmp_path) == []


def test_an_interrupt_reaches_who_waits_for_a_result(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        import os, signal, threading, time
        from poolkeeper import Keeper

        keeper = Keeper(1)
        keeper.submit(pow, 2, 2).result()
        for _ in range(3):
            future = keeper.submit(time.sleep, 0.3)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                future.result()
            except KeyboardInterrupt:
                print("interrupted", future.done())
            assert future.result() is None
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        keeper.shutdown()
        """,
    )
    assert output == "interrupted False\n" * 3


def test_an_interrupt_does_not_reach_the_workers(tmp_path: Path) -> None:
    """Ctrl-C in a terminal goes to the whole process group."""
    source = """
        import os, pathlib, time
        from poolkeeper import Keeper

        with Keeper(2) as keeper:
            futures = [keeper.submit(time.sleep, 0.5) for _ in range(2)]
            pid = keeper.submit(os.getpid)
            try:
                pathlib.Path("ready").touch()
                time.sleep(30)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            assert [future.result(20) for future in futures] == [None, None]
            assert all(future.deaths == 0 for future in futures)
        print("well")
    """
    with start_script(tmp_path, source) as process:
        wait_until((tmp_path / "ready").exists)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors, output) == (0, "", "interrupted\nwell\n")
    assert left_in(tmp_path) == []


def test_an_interrupt_that_ends_the_program_leaves_nothing_behind(tmp_path: Path) -> None:
    source = """
        import pathlib, time
        from poolkeeper import Keeper

        with Keeper(2) as keeper:
            futures = [keeper.submit(time.sleep, 0.2) for _ in range(4)]
            pathlib.Path("ready").touch()
            futures[0].result()
            time.sleep(60)
    """
    with start_script(tmp_path, source) as process:
        wait_until((tmp_path / "ready").exists)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert left_in(tmp_path) == []


def test_handlers_of_the_application_are_left_alone(tmp_path: Path) -> None:
    output = run_script(
        tmp_path,
        """
        import os, signal, threading, time
        from poolkeeper import Keeper

        seen = []
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        def raising(number, frame):
            raise LookupError("by a handler")
        signal.signal(signal.SIGALRM, raising)
        with Keeper(1) as keeper:
            future = keeper.submit(time.sleep, 0.3)
            for number in (signal.SIGUSR1, signal.SIGINT):
                threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            future.result()
            assert sorted(seen) == [signal.SIGINT, signal.SIGUSR1], seen
            raised = 0
            for _ in range(30):
                futures = [keeper.submit(pow, n, 2) for n in range(200)]
                signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
                try:
                    while True:
                        [future.result() for future in futures]
                        keeper.submit(time.sleep, 0.001).result()
                except LookupError:
                    raised += 1
                finally:
                    while True:
                        try:
                            signal.setitimer(signal.ITIMER_REAL, 0)
                            break
                        except LookupError:
                            pass
                assert [future.result(20) for future in futures] == [n ** 2 for n in range(200)]
            print(raised)
        """,
    )
    assert output == "30\n"
