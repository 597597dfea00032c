"""Fleets that run without a terminal, and those who look on."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolkeeper import InstanceLock, Keeper
from poolkeeper.attachment import look_on
from poolkeeper.control_client import ControlClient, KeeperUnreachable
from poolkeeper.homes import KeeperHome
from poolkeeper.pidfile import read_pidfile
from tests.helpers import PATIENCE, is_running, wait_for_exit, wait_until
from tests.keeper_program import end_all

WORK = """
import os, sys, time
from pathlib import Path
from poolkeeper import Fleet

fleet = Fleet("work")
HERE = Path(__file__).parent

@fleet.batch(items=range(4))
def load(item):
    while item > 1 and not (HERE / "gate").exists():
        time.sleep(0.005)
    if item == 3 and "fail" in sys.argv:
        raise ValueError("three")

@fleet.step(after=load)
def report(result):
    print("loaded", result.statistics.succeeded, sys.argv[1:], os.getsid(0) == os.getpid(), sys.stdin.read() == "")
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "POOLKEEPER_HOME": str(tmp_path / "home"), "COLUMNS": "150", "TERM": "xterm"}


@pytest.fixture
def cli(tmp_path: Path, environment: dict[str, str]) -> Iterator[Run]:
    (tmp_path / "work.py").write_text(WORK)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "poolkeeper", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )

    yield run
    for path in (tmp_path / "home").glob("*/*/keeper.pid"):
        keeper = read_pidfile(path).keeper
        keeper.signal(signal.SIGKILL)
        wait_for_exit(keeper.pid)
    end_all()


def home_in(folder: Path) -> KeeperHome:
    (path,) = (folder / "home").glob("*/default")
    return KeeperHome(path, path.parent.name, path.name, True)


def keeper_in(folder: Path) -> int:
    return read_pidfile(home_in(folder).path / "keeper.pid").keeper.pid


def test_a_fleet_runs_without_a_terminal_to_its_end(cli: Run, tmp_path: Path) -> None:
    done = cli("run", "--detach", "work.py", "--", "--detach", "fail")
    assert (done.returncode, done.stderr) == (0, "")
    home, pid = home_in(tmp_path), keeper_in(tmp_path)
    assert done.stdout.startswith(f"{home.label}: runs as process {pid}, and prints to {home.path}/logs/output.log\n")
    assert f"poolkeeper attach -F {home.label} " in done.stdout
    assert os.getsid(pid) == pid
    with ControlClient(home.path) as client:
        wait_until(lambda: [row["done"] for row in client.ask("progress")["run"].get("rows", ())][:1] == [2])
        data = client.ask("progress")
    assert data["run"]["fleet"] == "work"
    assert data["run"]["rows"][0] | {"rate": 0, "remaining": 0} == {
        "name": "load", "text": "", "total": 4, "done": 2, "failed": 0, "retried": 0, "rate": 0, "remaining": 0,
    }  # fmt: skip
    again = cli("run", "--detach", "work.py")
    assert again.returncode == 1
    assert f"process {pid}" in again.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "poolkeeper", "attach", "-F", "work"],
        env={**os.environ, "POOLKEEPER_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as attached:
        (tmp_path / "gate").touch()
        seen, _ = attached.communicate(timeout=PATIENCE)
    assert attached.returncode == 1
    assert "load: 3 of 4 tasks succeeded" in seen
    assert "report: succeeded" in seen
    wait_for_exit(pid)
    assert "loaded 3 ['--detach', 'fail'] True True" in (home.path / "logs" / "output.log").read_text()


def test_what_keeps_it_from_running_is_shown(cli: Run, tmp_path: Path) -> None:
    blocked = tmp_path / "home"
    blocked.write_text("")
    done = cli("run", "--detach", "work.py")
    assert done.returncode == 1
    assert "cannot use" in done.stderr
    blocked.unlink()
    (tmp_path / "broken.py").write_text("import nowhere\n")
    done = cli("run", "--detach", "broken.py")
    assert done.returncode == 2
    assert "No module named 'nowhere'" in done.stderr
    (tmp_path / "late.py").write_text(
        "import os\nfrom poolkeeper import Fleet\nfleet = Fleet('late')\nfleet.step(print)\n"
        "if os.getsid(0) == os.getpid():\n    raise OSError('not without a terminal')\n"
    )
    done = cli("run", "--detach", "late.py")
    assert done.returncode == 1
    assert "not without a terminal" in done.stderr


def test_where_it_cannot_write_why_it_does_not_run_that_is_said(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "mute.py").write_text(
        "import os\nfrom poolkeeper import Fleet\nfleet = Fleet('mute')\nfleet.step(print)\n"
        "if os.getsid(0) == os.getpid():\n    os._exit(3)\n"
    )
    done = cli("run", "--detach", "mute.py")
    assert done.returncode == 1
    assert "has ended with exit code 3, and could not write why to" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fleet_that_is_quick_may_have_ended(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "quick.py").write_text("from poolkeeper import Fleet\nfleet = Fleet('quick')\nfleet.step(print)\n")
    done = cli("run", "--detach", "quick.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "runs as process" in done.stdout or "print: done" in done.stdout
    wait_until(lambda: not InstanceLock(home_in(tmp_path).name, home=tmp_path / "home").is_locked())


class Screen:
    """A terminal in which somebody looks on."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.seen = ""
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "poolkeeper", "attach"],
            cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._fd = ours

    def shows(self, text: str) -> None:
        while text not in self.seen:
            assert select.select([self._fd], [], [], PATIENCE)[0], f"{text!r} is not in {self.seen}"
            self.seen += os.read(self._fd, 65536).decode()

    def close(self) -> None:
        os.close(self._fd)
        self.process.kill()
        self.process.wait()


def test_ctrl_c_leaves_the_fleet_running(cli: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    assert cli("run", "--detach", "work.py").returncode == 0
    screen = Screen(tmp_path, environment)
    try:
        screen.shows("2/4")
        screen.shows("2 running")
        screen.process.send_signal(signal.SIGINT)
        screen.shows("goes on; `poolkeeper attach` shows it again")
        screen.shows("\x1b[?25h")
        assert screen.process.wait(PATIENCE) == 130
    finally:
        screen.close()
    pid = keeper_in(tmp_path)
    assert is_running(pid)
    assert cli("reload").returncode == 0
    (tmp_path / "gate").touch()
    ended = cli("attach")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "all is done, after" in ended.stdout
    wait_for_exit(pid)


def test_who_looks_on_stays_through_a_reload(cli: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    assert cli("run", "--detach", "work.py").returncode == 0
    screen = Screen(tmp_path, environment)
    try:
        screen.shows("2/4")
        assert cli("reload").returncode == 0
        screen.seen = ""
        screen.shows("2/4")
        (tmp_path / "gate").touch()
        screen.shows("load: 4 of 4 tasks succeeded")
        assert screen.process.wait(PATIENCE) == 0
    finally:
        screen.close()


def test_a_keeper_that_is_killed_has_left_processes(cli: Run, tmp_path: Path) -> None:
    assert cli("run", "--detach", "work.py").returncode == 0
    home = home_in(tmp_path)
    killed: list[int] = []

    def show(data: dict[str, object]) -> None:
        if not killed:
            killed.append(int(str(data["pid"])))
            os.kill(killed[0], signal.SIGKILL)

    ended = look_on(home, show)
    assert (ended.outcome, ended.left, ended.exit_code) == (None, True, 1)
    with pytest.raises(KeeperUnreachable):
        look_on(home, show)


def test_a_keeper_of_no_run_can_be_looked_at(tmp_path: Path) -> None:
    shown = []
    with Keeper(1, name="etl", home=tmp_path) as keeper:

        def show(data: dict[str, object]) -> None:
            shown.append(data["run"])
            keeper.shutdown(wait=False)

        ended = look_on(KeeperHome(keeper.home, "etl", "default", True), show)
    assert shown[0] == {}
    assert ended.exit_code == 0
