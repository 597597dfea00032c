"""The command line as its users meet it: in a process of its own, with real workers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import poolkeeper
from poolkeeper import InstanceLock
from tests.helpers import PATIENCE, wait_until

ROOT = Path(poolkeeper.__file__).parent.parent

SQUARES = """
from poolkeeper import BatchResult, Fleet

fleet = Fleet("squares")

@fleet.batch(items=range(20), key=str)
def square(number):
    return number * number

@fleet.step(after=square)
def add_up(squares: BatchResult):
    print("the sum is", sum(squares.values))
"""

BLOCKED = """
import os
from pathlib import Path
from poolkeeper import Fleet

HERE = Path(__file__).parent
fleet = Fleet("blocked")

@fleet.batch(items=range(1000))
def block(number):
    (HERE / f"started-{number}").touch()
    with open(HERE / "gate") as gate:  # until the test opens its end
        gate.read()

@fleet.step(after=block)
def never(blocked):
    print("this must not be seen")
"""


@dataclass
class CommandLine:
    """Runs ``poolkeeper`` on a fleet that is written into a folder of the test."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "POOLKEEPER_HOME": str(self.folder / "home"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }

    def write(self, text: str) -> Path:
        path = self.folder / f"fleet_{uuid4().hex[:8]}.py"
        path.write_text(text)
        return path

    def run(self, *arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "poolkeeper", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment,
            timeout=2 * PATIENCE,
        )

    def run_fleet(self, text: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        return self.run("run", self.write(text), "--workers", 2, *arguments)

    def start(self, text: str, **streams: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "poolkeeper", "run", str(self.write(text)), "--workers", "2"],
            cwd=self.folder,
            env=self.environment,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        )


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


class TestRun:
    def test_a_good_run_exits_0(self, command: CommandLine) -> None:
        done = command.run_fleet(SQUARES)
        assert done.returncode == 0, done.stderr
        assert "the sum is 2470" in done.stdout
        assert "squares · default" in done.stdout
        assert "add_up: done" in done.stdout
        assert "20 of 20 tasks succeeded" in done.stderr

    def test_a_fleet_says_how_durable_its_keeper_is(self, command: CommandLine) -> None:
        text = SQUARES.replace(
            'Fleet("squares")', 'Fleet("squares", durability="power", keep_runs=2, orphan_grace=7, reconnect_grace=9)'
        )
        assert text != SQUARES
        text += """
@fleet.step
def tell():
    from poolkeeper.living import KEEPERS
    (runtime,) = KEEPERS
    settings = runtime.settings
    print(f"kept: {settings.durability} {settings.keep_runs} {settings.orphan_grace} {settings.reconnect_grace}")
"""
        done = command.run_fleet(text)
        assert done.returncode == 0, done.stderr
        assert "kept: power 2 7.0 9.0" in done.stdout

    def test_failures_are_reported_and_exit_1(self, command: CommandLine) -> None:
        done = command.run_fleet(SQUARES.replace("number * number", "1 // (number % 5)"))
        assert done.returncode == 1
        assert "square: 4 × ZeroDivisionError" in done.stdout
        assert "    5: integer division or modulo by zero" in done.stdout
        assert "… and 1 more" in done.stdout
        assert "the sum is" in done.stdout

    def test_allowed_failures_exit_0(self, command: CommandLine) -> None:
        text = SQUARES.replace("number * number", "1 // (number % 5)")
        done = command.run_fleet(text.replace("key=str", "allow_failures=ZeroDivisionError"))
        assert done.returncode == 0
        assert "square: 4 × ZeroDivisionError" in done.stdout

    def test_a_failed_step_exits_1_with_its_traceback(self, command: CommandLine) -> None:
        done = command.run_fleet(SQUARES.replace("sum(squares.values)", "squares.no_such_thing"))
        assert done.returncode == 1
        assert "add_up: failed after" in done.stdout
        assert "AttributeError" in done.stdout
        assert "runner.py" not in done.stdout

    def test_arguments_reach_the_fleet_and_its_workers(self, command: CommandLine) -> None:
        text = SQUARES.replace("return number * number", "import sys; return len(sys.argv[1:])")
        done = command.run_fleet(text, "--", "a", "--b")
        assert "the sum is 40" in done.stdout, done.stderr

    def test_json_is_all_there_is_on_stdout(self, command: CommandLine) -> None:
        done = command.run_fleet(SQUARES, "--json", "--run-id", "nightly")
        data = json.loads(done.stdout)
        assert data["run_id"] == "nightly"
        assert data["batches"]["square"]["succeeded"] == 20
        assert data["exit_code"] == done.returncode == 0
        assert "the sum is 2470" in done.stderr

    def test_a_worker_that_dies_is_replaced(self, command: CommandLine) -> None:
        text = SQUARES.replace(
            "return number * number",
            "import os, pathlib\n"
            "    mark = pathlib.Path(__file__).with_name('died')\n"
            "    if number == 7 and not mark.exists():\n"
            "        mark.touch()\n"
            "        os.kill(os.getpid(), 9)\n"
            "    return number * number",
        )
        done = command.run_fleet(text, "--json")
        data = json.loads(done.stdout)
        assert data["ok"], done.stderr
        assert data["batches"]["square"]["deaths"] == 1
        assert data["batches"]["square"]["retried"] == 1

    def test_helpers_beside_the_file_can_be_imported(self, command: CommandLine) -> None:
        (command.folder / "helper_of_squares.py").write_text("def square(number): return number * number\n")
        text = SQUARES.replace("from poolkeeper", "import helper_of_squares\nfrom poolkeeper", 1)
        done = command.run_fleet(text.replace("number * number", "helper_of_squares.square(number)"))
        assert "the sum is 2470" in done.stdout, done.stderr

    def test_beside_another_keeper_of_the_same_fleet_it_exits_1_and_names_it(self, command: CommandLine) -> None:
        path = command.write(SQUARES)
        command.run("run", path, "--workers", 1)
        (folder,) = (command.folder / "home").iterdir()
        with InstanceLock(folder.name, home=command.folder / "home"):
            done = command.run("run", path, "--workers", 1)
            other = command.run("run", path, "--workers", 1, "--run-id", "other")
        assert (done.returncode, other.returncode) == (1, 0)
        for part in (f"process {os.getpid()} on {os.uname().nodename}", os.getcwd(), "since 20", "run_id"):
            assert part in done.stderr
        assert "Traceback" not in done.stderr

    def test_fresh_is_accepted(self, command: CommandLine) -> None:
        assert command.run_fleet(SQUARES, "--fresh").returncode == 0


class TestWorkerOutput:
    SHOUTING = SQUARES.replace("return number * number", "print('working on', number); return number * number")

    def test_it_is_in_the_log_files(self, command: CommandLine) -> None:
        done = command.run_fleet(self.SHOUTING)
        assert "working on" not in done.stdout + done.stderr
        logs = "".join(path.read_text() for path in (command.folder / "home").rglob("*.log"))
        assert "working on 19" in logs

    def test_it_is_mirrored_when_asked_for(self, command: CommandLine) -> None:
        done = command.run_fleet(self.SHOUTING, "--logs", "stdout")
        said = [line.partition(" | ")[2] for line in done.stdout.splitlines()]
        assert {f"working on {number}" for number in range(20)} <= set(said)


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["run"], "Missing argument 'FILE'"),
            (["run", "missing.py"], "'missing.py' does not exist"),
            (["run", "."], "is a directory"),
            (["run", __file__, "--workers", "0"], "'--workers'"),
            (["run", __file__, "--workers", "99999999"], "open files"),
            (["run", __file__, "--run-id", "a/b"], "'--run-id': it must be a non-empty string without '/'"),
            (["run", __file__, "--run-id", ""], "'--run-id': it must be a non-empty string"),
            (["run", __file__, "--run-id", "-x"], "'--run-id': it must not begin with '-'"),
            (["run", __file__, "--run-id", "x" * 300], "'--run-id': it is too long"),
            (["run", __file__, "--no-such-option"], "--no-such-option"),
            (["walk"], "No such command 'walk'"),
        ],
    )
    def test_wrong_words_exit_2(self, command: CommandLine, arguments: list[str], message: str) -> None:
        fleet = str(command.write(SQUARES))
        done = command.run(*[fleet if word == __file__ else word for word in arguments])
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "declares no fleet"),
            (SQUARES + "\nother = Fleet('other')", "declares 2 fleets ('squares', 'other')"),
            ("from poolkeeper import Fleet\nfleet = Fleet('empty')", "nothing to run"),
            (SQUARES.replace("after=square", "after='sqare'"), "'add_up' is after 'sqare'"),
            (SQUARES.replace("squares: BatchResult", ""), "step 'add_up' gets 1 argument"),
        ],
    )
    def test_a_wrong_fleet_exits_2(self, command: CommandLine, text: str, message: str) -> None:
        done = command.run_fleet(text)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_file_that_cannot_be_imported_exits_2_with_its_traceback(self, command: CommandLine) -> None:
        done = command.run_fleet("def helper():\n    return 1 / 0\nhelper()\n")
        assert done.returncode == 2
        assert "cannot be imported: ZeroDivisionError" in done.stderr
        assert "in helper" in done.stderr
        assert "importlib" not in done.stderr

    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
    def test_a_fleet_runs_without_standard_streams(self, command: CommandLine, closed: str) -> None:
        file = command.write(SQUARES + "    open('sum', 'w').write(str(sum(squares.values)))\n")
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "poolkeeper", "run", str(file)],
            check=False,
            capture_output=True,
            text=True,
            cwd=command.folder,
            env=command.environment,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert (command.folder / "sum").read_text() == "2470"

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    @pytest.mark.parametrize("words", [["--version"], ["--help"]])
    def test_what_cannot_be_written_is_said_in_one_line(self, command: CommandLine, words: list[str]) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "poolkeeper", *words],
                check=False,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=command.environment,
                timeout=PATIENCE,
            )
        assert done.returncode == 1
        assert done.stderr == "poolkeeper: cannot write to standard output: No space left on device\n"

    def test_version(self, command: CommandLine) -> None:
        done = command.run("--version")
        assert done.returncode == 0
        assert done.stdout.startswith("poolkeeper ")

    def test_help_names_the_commands(self, command: CommandLine) -> None:
        done = command.run("--help")
        assert done.returncode == 0
        assert "run " in done.stdout


class TestSignals:
    @pytest.fixture
    def blocked(self, command: CommandLine) -> Iterator[subprocess.Popen[str]]:
        """A run both of whose workers execute a task that waits for ``open_gate``."""
        os.mkfifo(command.folder / "gate")
        process = command.start(BLOCKED)
        try:
            self.wait_for_two_tasks(command, process)
            yield process
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE)

    @staticmethod
    def wait_for_two_tasks(command: CommandLine, process: subprocess.Popen[str]) -> None:
        def started() -> bool:
            assert process.poll() is None, process.communicate()
            return len(list(command.folder.glob("started-*"))) == 2

        wait_until(started, "two tasks that run")

    @staticmethod
    def open_gate(command: CommandLine, process: subprocess.Popen[str]) -> None:
        """Let the tasks go; also one that comes to the gate while the other has just left it."""

        def ended() -> bool:
            with suppress(OSError):  # no reader at this moment
                os.close(os.open(command.folder / "gate", os.O_WRONLY | os.O_NONBLOCK))
            return process.poll() is not None

        wait_until(ended, "the end of the run")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
    def test_one_lets_what_runs_finish(
        self, command: CommandLine, blocked: subprocess.Popen[str], number: signal.Signals, code: int
    ) -> None:
        blocked.send_signal(number)
        assert blocked.stderr is not None
        read_until(blocked.stderr.readline, f"{number.name} received")
        self.open_gate(command, blocked)
        output, _ = blocked.communicate(timeout=PATIENCE)
        assert blocked.returncode == code
        assert "this must not be seen" not in output
        assert f"stopped: {number.name} received" in output
        figures = next(line for line in output.splitlines() if line.startswith("block ")).split()
        assert figures[2:4] == ["2", "0"]  # done, failed

    def test_two_stop_at_once(self, blocked: subprocess.Popen[str]) -> None:
        blocked.send_signal(signal.SIGINT)
        assert blocked.stderr is not None
        read_until(blocked.stderr.readline, "SIGINT received")
        blocked.send_signal(signal.SIGINT)
        assert blocked.wait(PATIENCE) == 130


class TestTerminal:
    def test_progress_is_drawn_and_cleared(self, command: CommandLine) -> None:
        os.mkfifo(command.folder / "gate")
        terminal, far_end = pty.openpty()
        process = command.start(BLOCKED.replace("range(1000)", "range(2)"), stderr=far_end)
        os.close(far_end)
        try:
            TestSignals.wait_for_two_tasks(command, process)
            shown = read_until(lambda: os.read(terminal, 1024).decode(errors="replace"), "2 workers, 2 busy")
            assert "block" in shown
            assert "0/2" in shown
            TestSignals.open_gate(command, process)
            output, _ = process.communicate(timeout=PATIENCE)
            assert "this must not be seen" in output  # nothing is wrong here, so the step runs
            assert "block" in output
        finally:
            process.kill()
            process.communicate()
            os.close(terminal)
        assert process.returncode == 0


def read_until(read: Callable[[], str], text: str) -> str:
    """Read until ``text`` has come; the test's own timeout ends a wait in vain."""
    seen = ""
    while text not in seen:
        piece = read()
        assert piece, f"the end came before {text!r}; until then: {seen}"
        seen += piece
    return seen
