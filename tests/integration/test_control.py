"""Fleets that are looked at and steered from another terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from poolkeeper import Keeper, ServiceState, cli_control
from poolkeeper.cli import app
from poolkeeper.control_client import ControlClient, ControlError, KeeperUnreachable
from poolkeeper.homes import KeeperHome, NoSuchFleet, choose_home
from poolkeeper.pidfile import read_pidfile, survivors
from tests import services, tasks
from tests.helpers import PATIENCE, is_running, wait_until

SHOP = """
import time
from poolkeeper import Fleet, RestartPolicy, context

fleet = Fleet("shop")

@fleet.service()
def base():
    print("base is up", flush=True)
    while not context().wait(100):
        pass
    print("base goes", flush=True)

# never ready, so that nobody who looks between its start and its end sees it running
@fleet.service(after=base, restart=RestartPolicy.on_failure(1, 0.01), ready="notify")
def broken():
    raise ConnectionError("there is no database")
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "POOLKEEPER_HOME": str(tmp_path / "home"), "COLUMNS": "200"}


@pytest.fixture
def cli(environment: dict[str, str]) -> Run:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "poolkeeper", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )

    return run


@pytest.fixture
def shop(tmp_path: Path, environment: dict[str, str], cli: Run) -> Iterator[subprocess.Popen[str]]:
    """A fleet that runs, with ``base`` up and ``broken`` given up."""
    file = tmp_path / "shop.py"
    file.write_text(SHOP)
    process = subprocess.Popen(
        [sys.executable, "-m", "poolkeeper", "run", str(file)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: states(cli) == {"base": "running", "broken": "failed"}, "the fleet to be up")
        yield process
    finally:
        process.kill()
        process.communicate()
        cli("shutdown")  # what survives it


def states(cli: Run) -> dict[str, str]:
    answer = cli("status", "--json")
    return {row["name"]: row["state"] for row in json.loads(answer.stdout)["services"]} if answer.stdout else {}


def services_of(cli: Run) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(cli("status", "--json").stdout)["services"]}


def test_status_shows_everything_and_its_exit_code_says_that_something_is_down(
    shop: subprocess.Popen[str], cli: Run
) -> None:
    answer = cli("status")
    assert answer.returncode == 3
    assert f"keeper {shop.pid}" in answer.stdout
    assert "there is no database" in answer.stdout
    broken = services_of(cli)["broken"]
    assert broken["restarts"] == 1
    assert [exit["reason"] for exit in broken["exits"]] == ["raised", "raised"]
    assert "ConnectionError" in broken["exits"][0]["detail"]
    base = services_of(cli)["base"]
    assert base["memory"] > 2**20
    assert is_running(base["pid"])


def test_services_are_stopped_started_restarted_and_scaled(shop: subprocess.Popen[str], cli: Run) -> None:
    first = services_of(cli)["base"]["pid"]
    assert cli("stop", "base").returncode == 0
    assert states(cli)["base"] == "stopped"
    assert not is_running(first)
    assert cli("start", "base").returncode == 0
    second = services_of(cli)["base"]["pid"]
    assert cli("restart", "base").stdout.startswith("base: running")
    assert services_of(cli)["base"]["pid"] not in (first, second)
    assert cli("scale", "base=3").returncode == 0
    wait_until(lambda: list(states(cli).values()).count("running") == 3, "three replicas")
    assert set(states(cli)) == {"base:0", "base:1", "base:2", "broken"}
    answer = cli("start", "broken")
    assert answer.returncode == 1, "it fails again"
    answer = cli("stop", "nobody")
    assert answer.returncode == 1
    assert "there is no service 'nobody' (there are: base, broken)" in answer.stderr


def test_logs_events_and_stacks(shop: subprocess.Popen[str], cli: Run) -> None:
    wait_until(lambda: "base is up" in cli("logs", "base").stdout, "the log")
    assert "ConnectionError: there is no database" in cli("logs", "broken", "--since", "1h").stdout
    assert cli("logs", "--since", "yesterday-ish").returncode == 2
    kinds = [json.loads(line)["kind"] for line in cli("events", "--json").stdout.splitlines()]
    assert "service.running" in kinds
    assert kinds[-1] == "service.failed"
    assert "restart policy is exhausted" in cli("events").stdout
    answer = cli("stack", "base")
    assert "in base" in answer.stdout
    assert "shop.py" in answer.stdout


def test_a_replica_can_be_named_and_a_name_that_nothing_has_is_refused(shop: subprocess.Popen[str], cli: Run) -> None:
    assert cli("scale", "base=2").returncode == 0
    wait_until(lambda: cli("logs", "base").stdout.count("base is up") == 2, "the logs")
    (line,) = cli("logs", "base:1").stdout.splitlines()
    assert "base:1[" in line
    wait_until(lambda: states(cli)["base:1"] == "running", "the second replica")
    stack = cli("stack", "base:1").stdout
    assert "base:1 (pid" in stack
    assert "base:0" not in stack
    for words in (["logs", "nope"], ["logs", "-f", "base", "nope"], ["logs", "base:2"], ["stack", "nope"]):
        answer = cli(*words)
        assert (answer.returncode, answer.stdout) == (1, ""), words
        assert f"there is no service or worker '{words[-1]}' (there are: base" in answer.stderr
        assert "broken" in answer.stderr


def test_who_follows_ends_with_the_reader_and_without_one_the_exit_code_is_the_answer(
    shop: subprocess.Popen[str], environment: dict[str, str]
) -> None:
    def start(words: list[str], *prefix: str) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-m", "poolkeeper", *words]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip

    for words in (["logs", "-f"], ["events", "-f"], ["top"]):
        process = start(words)
        assert process.stdout is not None
        assert "base" in process.stdout.readline() + process.stdout.readline() + process.stdout.readline(), words
        process.stdout.close()
        assert process.wait(PATIENCE) in (0, 1), "although nothing more happens"
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()
    for words, code in ((["status"], 3), (["status", "--json"], 3), (["events"], 0)):
        process = start(words, "sh", "-c", 'exec "$@" >&-', "sh")
        assert process.communicate(timeout=PATIENCE)[1] == ""
        assert process.returncode == code, words


def test_a_service_without_replicas_is_said_to_have_none(shop: subprocess.Popen[str], cli: Run) -> None:
    assert cli("scale", "base=0").returncode == 0
    wait_until(lambda: "base" not in states(cli), "it to go")
    for verb in ("start", "restart"):
        answer = cli(verb, "base")
        assert answer.returncode == 1
        assert answer.stderr == "poolkeeper: base has no replicas: `poolkeeper scale base=1` gives it one\n"
    assert cli("stop", "base").returncode == 0


def test_a_service_that_is_stopped_by_a_signal_is_shown_as_frozen(shop: subprocess.Popen[str], cli: Run) -> None:
    pid = services_of(cli)["base"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: services_of(cli)["base"]["frozen"] == "stopped", "the state of the process")
        assert "it is stopped" in cli("stack", "base").stdout
        assert states(cli)["base"] == "running", "silence alone kills nobody"
    finally:
        os.kill(pid, signal.SIGCONT)


def test_shutdown_ends_the_fleet_and_leaves_nothing(shop: subprocess.Popen[str], cli: Run, tmp_path: Path) -> None:
    pid = services_of(cli)["base"]["pid"]
    assert cli("shutdown").returncode == 0
    output, _ = shop.communicate(timeout=PATIENCE)
    assert shop.returncode == 1, "a service had failed"
    assert "broken failed" in output
    assert not is_running(pid)
    answer = cli("status")
    assert answer.returncode == 3
    assert "no keeper runs (down)" in answer.stdout
    (home,) = (tmp_path / "home").glob("*/default")
    assert {path.name for path in home.iterdir()} <= {
        "keeper.lock",
        "authkey",
        "logs",
        "events.jsonl",
        "journal.db",
        "outcome.json",
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_stop_services_in_order(shop: subprocess.Popen[str], cli: Run, number: int, code: int) -> None:
    shop.send_signal(number)
    output, _ = shop.communicate(timeout=PATIENCE)
    assert shop.returncode == code, output
    assert "base goes" in cli("logs", "base").stdout


def test_nothing_starts_in_a_fleet_that_stops(tmp_path: Path, environment: dict[str, str], cli: Run) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "import pathlib, time\n"
        "from poolkeeper import Fleet, context\n"
        "fleet = Fleet('slow')\n"
        "@fleet.service()\n"
        "def quick():\n"
        "    context().wait(1000)\n"
        "@fleet.service(stop_timeout=60)\n"
        "def slow():\n"
        "    context().wait(1000)\n"
        f"    while not pathlib.Path({str(tmp_path / 'enough')!r}).exists():\n"
        "        time.sleep(0.01)\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "poolkeeper", "run", str(file)], env=environment)
    try:
        wait_until(lambda: states(cli) == {"quick": "running", "slow": "running"}, "the fleet to be up")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: states(cli) == {"quick": "stopped", "slow": "stopping"}, "the fleet to stop")
        for words in (["start", "quick"], ["restart", "quick"], ["scale", "quick=2"], ["start", "slow"]):
            answer = cli(*words)
            assert (answer.returncode, answer.stdout) == (1, ""), words
            assert "the fleet is stopping" in answer.stderr
        (tmp_path / "enough").touch()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        cli("shutdown")


def test_a_second_keeper_is_refused_and_told_who_holds_the_lock(
    shop: subprocess.Popen[str], cli: Run, tmp_path: Path
) -> None:
    answer = cli("run", str(tmp_path / "shop.py"))
    assert answer.returncode == 1
    assert str(shop.pid) in answer.stderr


def test_what_a_killed_keeper_leaves_can_be_seen_and_is_gone_soon(shop: subprocess.Popen[str], cli: Run) -> None:
    pid = services_of(cli)["base"]["pid"]
    shop.kill()
    shop.wait()
    answer = cli("status")
    assert answer.returncode == 3
    assert "no keeper runs" in answer.stdout
    assert cli("shutdown").returncode == 0
    wait_until(lambda: not is_running(pid), "the end of the service")


def test_without_a_fleet_every_command_says_what_to_do(cli: Run) -> None:
    for command in (["status"], ["top"], ["stop", "x"], ["logs"], ["stack"], ["events"], ["shutdown"]):
        answer = cli(*command)
        assert answer.returncode == 2
        assert "there is no fleet yet" in answer.stderr


# -- in one process ---------------------------------------------------------------------------------------------------


def test_the_pidfile_names_every_child(tmp_path: Path) -> None:
    with Keeper(1, name="etl", home=tmp_path, preload=["tests.tasks"]) as keeper:
        worker = keeper.submit(tasks.pid).result(PATIENCE)
        service = keeper.service(tasks.wait_for_stop, name="wait")
        assert service.wait("running", PATIENCE)
        path = keeper.home / "keeper.pid"
        wanted = {"worker": worker, "service": service.pid}

        def written() -> bool:
            document = read_pidfile(path)
            found = {child.role: child.identity.pid for child in survivors(document)}
            return document.keeper.pid == os.getpid() and wanted.items() <= found.items() and "forkserver" in found

        wait_until(lambda: path.exists() and written(), "the pidfile")
        service.stop()
        assert service.wait("stopped", PATIENCE)
        wait_until(lambda: "service" not in {child.role for child in read_pidfile(path).children}, "the pidfile")
    assert not path.exists()


def test_an_embedded_keeper_is_steered_too(tmp_path: Path) -> None:
    with Keeper(1, name="etl", home=tmp_path, preload=["tests.tasks"]) as keeper:
        service = keeper.service(tasks.wait_for_stop, name="wait")
        assert service.wait("running", PATIENCE)
        with ControlClient(keeper.home) as client:
            assert client.ask("status")["services"][0]["state"] == "running"
            client.ask("stop", services=["wait"])
            assert service.wait("stopped", PATIENCE)
            with pytest.raises(ControlError, match="does not know 'dance'"):
                client.ask("dance")
            with pytest.raises(ControlError, match="no number of replicas"):
                client.ask("scale", replicas={"wait": -1})
            client.ask("shutdown", reason="the test says so")
        assert keeper._runtime.join(PATIENCE)
        with pytest.raises(RuntimeError, match="shut down from outside: the test says so"):
            keeper.submit(abs, 1)
    assert service.state is ServiceState.STOPPED


@pytest.mark.parametrize("step", [-1e6, 1e9])
def test_ages_do_not_follow_a_clock_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    before = time.monotonic()
    with Keeper(1, name="etl", home=tmp_path, preload=["tests.tasks"]) as keeper:
        service = keeper.service(tasks.wait_for_stop, name="wait")
        assert service.wait("running", PATIENCE)
        keeper.submit(tasks.pid).result(PATIENCE)
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + step)
        with ControlClient(keeper.home) as client:
            data = client.ask("status")
        status = keeper.status()
        ages = [data["uptime"], data["workers"][0]["uptime"], data["services"][0]["uptime"], status.uptime]
        ages += [row.uptime for row in status.services]
        assert all(0 <= age <= time.monotonic() - before for age in ages), ages


def test_what_does_not_stop_in_time_is_said_and_makes_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLKEEPER_HOME", str(tmp_path))
    with Keeper(1, name="etl", preload=["tests.services"]) as keeper:
        deaf = keeper.service(services.ignore_stop, (tmp_path,), name="deaf", stop_timeout=600)
        wait_until(lambda: tasks.notes(tmp_path, "started"))
        monkeypatch.setattr(cli_control, "SETTLE_SECONDS", -1000.0)
        answer = CliRunner().invoke(app, ["stop", "deaf"])
        assert answer.exit_code == 1, answer.output
        assert "deaf: stopping" in answer.output
        assert "not done yet for deaf" in answer.output
        answer = CliRunner().invoke(app, ["shutdown"])
        assert answer.exit_code == 1, answer.output
        assert "etl/default is still stopping: deaf is stopping" in answer.output
        pid = deaf.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert deaf.wait("stopped", PATIENCE)


def test_who_does_not_know_the_key_is_not_heard(tmp_path: Path) -> None:
    with Keeper(1, name="etl", home=tmp_path) as keeper:
        key = keeper.home / "authkey"
        right = key.read_bytes()
        key.write_bytes(bytes(32))
        with pytest.raises(KeeperUnreachable):
            ControlClient(keeper.home)
        key.write_bytes(right)
        with ControlClient(keeper.home) as client:
            assert client.ask("status")["name"] == "etl"


def home(label: str, *, running: bool = True) -> KeeperHome:
    name, _, run_id = label.partition("/")
    return KeeperHome(Path(label), name, run_id, running)


def test_the_only_fleet_needs_no_name() -> None:
    only = home("shop-0123abcd/default")
    assert choose_home(None, [only]) is only
    assert choose_home("shop", [only]) is only
    assert choose_home("shop-0123abcd/default", [only]) is only


def test_those_that_run_are_meant_first() -> None:
    old, new = home("shop-0123abcd/old", running=False), home("shop-0123abcd/new")
    assert choose_home("shop", [old, new]) is new
    assert choose_home("shop/old", [old, new]) is old


@pytest.mark.parametrize("wanted", [None, "shop"])
def test_several_that_fit_are_listed(wanted: str | None) -> None:
    with pytest.raises(NoSuchFleet, match="shop-0123abcd/a\n  shop-0123abcd/b"):
        choose_home(wanted, [home("shop-0123abcd/a"), home("shop-0123abcd/b")])


def test_one_that_is_not_there_is_said_so() -> None:
    with pytest.raises(NoSuchFleet, match="no fleet 'shoe'; there are:\n  shop-0123abcd/a"):
        choose_home("shoe", [home("shop-0123abcd/a")])
