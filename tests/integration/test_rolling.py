"""Services are replaced one by one when their code has changed; workers finish what they run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from poolkeeper.control_client import ControlClient, KeeperUnreachable
from poolkeeper.homes import KeeperHome
from poolkeeper.steering import reload_keeper
from tests.helpers import PATIENCE, is_running, wait_until
from tests.keeper_program import end_all

SHOP = """
from pathlib import Path
from poolkeeper import Fleet, RestartPolicy, context

fleet = Fleet("shop")
HERE = Path(__file__).parent
VERSION = 1

def serve(name):
    with open(HERE / "notes", "a") as notes:
        notes.write(f"{name} {VERSION}\\n")
    if (HERE / f"bad-{name}").exists():
        raise OSError("no port")
    context().ready(f"version {VERSION}")
    while not context().wait(100):
        pass
    with open(HERE / "notes", "a") as notes:
        notes.write(f"{name} {VERSION} stops\\n")

@fleet.service(ready="notify", restart=RestartPolicy.on_failure(0))
def base():
    serve("base")

@fleet.service(ready="notify", after=base, overlap=True)
def web():
    serve("web")
"""


MILL = """
import time
from pathlib import Path
from poolkeeper import Fleet, context

fleet = Fleet("mill")
HERE = Path(__file__).parent
VERSION = 1

def note(line):
    with open(HERE / "notes", "a") as notes:
        notes.write(line + "\\n")

def items():
    for item in range(5):
        (HERE / f"asked-{VERSION}-{item}").touch()
        yield item

@fleet.batch(items=items(), key=str)
def grind(item):
    note(f"{item} by {VERSION} from {context().restore(default=0)}")
    context().checkpoint(VERSION)
    while not (HERE / f"gate-{item}").exists():
        time.sleep(0.01)
    note(f"{item} ends")
    return VERSION

@fleet.step(after=grind)
def tell(grind):
    note(f"{list(grind.values)}")
"""


class Shop:
    def __init__(self, folder: Path, fleet: str = SHOP, *options: str) -> None:
        self.folder = folder
        self.write(fleet)
        with open(folder / "errors", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "poolkeeper", "run", "shop.py", *options],
                env={**os.environ, "POOLKEEPER_HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def write(self, text: str) -> None:
        (self.folder / "shop.py").write_text(text)

    @property
    def home(self) -> KeeperHome:
        (path,) = (self.folder / "home").glob("*/default")
        return KeeperHome(path, path.parent.name, "default", True)

    def status(self) -> dict[str, Any]:
        with ControlClient(self.home.path) as client:
            return client.ask("status")

    def tasks(self) -> tuple[int, int]:
        """Return how many run, and how many wait."""
        status = self.status()
        return status["running"], status["queued"]

    def rows(self) -> dict[str, Any]:
        try:
            return {row["name"]: row for row in self.status()["services"]}
        except (KeeperUnreachable, ValueError):
            return {}

    def reach(self, **details: str) -> dict[str, Any]:
        """Wait until the services run and say so."""

        def there() -> dict[str, Any] | None:
            rows = self.rows()
            right = {name: rows[name]["detail"] for name in details if name in rows} == details
            return rows if right and all(row["state"] == "running" for row in rows.values()) else None

        found = wait_until(there, f"{details}: {self.rows()}")
        assert found is not None
        return found

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home.path / "events.jsonl").read_text().splitlines()]

    def upgrade(self) -> dict[str, Any]:
        """Wait for the end of an upgrade, and return what is said of it."""
        seen = wait_until(lambda: [one for one in self.events() if one["kind"].startswith("upgrade.")])
        return seen[-1]

    def notes(self) -> list[str]:
        notes = self.folder / "notes"
        return notes.read_text().splitlines() if notes.exists() else []

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        end_all()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with closing(Shop(tmp_path)) as shop:
        yield shop


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Shop]:
    with closing(Shop(tmp_path, MILL, "--workers", "2")) as mill:
        yield mill


def test_a_reload_replaces_what_has_changed_in_order(shop: Shop) -> None:
    before = shop.reach(base="version 1", web="version 1")
    shop.write(SHOP.replace("VERSION = 1", "VERSION = 2"))
    reload_keeper(shop.home)
    after = shop.reach(base="version 2", web="version 2")
    assert shop.upgrade()["kind"] == "upgrade.completed"
    assert shop.upgrade()["reason"] == "2 processes replaced"
    assert [after[name]["attempt"] for name in ("base", "web")] == [2, 2]
    assert [after[name]["restarts"] for name in ("base", "web")] == [0, 0]
    assert not any(is_running(row["pid"]) for row in before.values())
    assert shop.notes() == [
        "base 1", "web 1", "base 1 stops", "base 2", "web 2", "web 1 stops",
    ]  # fmt: skip
    reload_keeper(shop.home)
    assert {name: row["pid"] for name, row in shop.reach(web="version 2").items()} == {
        name: row["pid"] for name, row in after.items()
    }
    shop.process.terminate()
    assert shop.process.wait(PATIENCE) == 0


def test_one_that_does_not_get_ready_leaves_the_old_one_in_place(shop: Shop, tmp_path: Path) -> None:
    before = shop.reach(base="version 1", web="version 1")
    (tmp_path / "bad-web").touch()
    shop.write(SHOP.replace("VERSION = 1", "VERSION = 2"))
    reload_keeper(shop.home)
    failed = shop.upgrade()
    assert (failed["kind"], failed["name"]) == ("upgrade.failed", "web")
    assert "no port" in failed["reason"]
    web = shop.rows()["web"]
    assert (web["pid"], web["state"], web["attempt"]) == (before["web"]["pid"], "running", 1)
    assert "its new process has not become ready" in web["detail"]
    (tmp_path / "bad-web").unlink()
    reload_keeper(shop.home)
    shop.reach(base="version 2", web="version 2")


def test_an_upgrade_stops_at_the_first_that_fails(shop: Shop, tmp_path: Path) -> None:
    before = shop.reach(base="version 1", web="version 1")
    (tmp_path / "bad-base").touch()
    shop.write(SHOP.replace("VERSION = 1", "VERSION = 2"))
    reload_keeper(shop.home)
    assert (shop.upgrade()["kind"], shop.upgrade()["name"]) == ("upgrade.failed", "base")
    rows = shop.rows()
    assert (rows["web"]["pid"], rows["web"]["state"]) == (before["web"]["pid"], "running")
    assert rows["web"]["detail"] == "its code has changed, and the upgrade has stopped at base"


def test_what_runs_ends_on_its_code_and_what_waits_runs_on_the_new(mill: Shop) -> None:
    def gate(*items: int) -> None:
        for item in items:
            (mill.folder / f"gate-{item}").touch()

    gate(0)
    wait_until(lambda: len(mill.notes()) == 4, "one has ended, two run")
    mill.write(MILL.replace("VERSION = 1", "VERSION = 2"))
    reload_keeper(mill.home)
    wait_until((mill.folder / "asked-2-3").exists, "it asks for four")
    wait_until(lambda: mill.tasks() in ((2, 2), (2, 3)), "it knows who is at what; the fifth may be fed ahead")
    gate(1, 3, 4)
    wait_until(lambda: "4 ends" in mill.notes(), "what is not at work any more makes room")
    assert not [line for line in mill.notes() if line.startswith("2 by 2")]
    gate(2)
    assert mill.process.wait(PATIENCE) == 0
    *notes, values = mill.notes()
    assert sorted(line for line in notes if "by" in line) == [
        "0 by 1 from 0", "0 by 2 from 0", "1 by 1 from 0", "2 by 1 from 0", "3 by 2 from 0", "4 by 2 from 0",
    ]  # fmt: skip
    assert values == "[2, 1, 1, 2, 2]", "what had ended is not of this code"
    at_work = list(accumulate(1 if "by" in line else -1 for line in notes))
    assert max(at_work) == 2


def poolkeeper(shop: Shop, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poolkeeper", *words],
        env={**os.environ, "POOLKEEPER_HOME": str(shop.folder / "home")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_restart_by_hand_runs_the_code_on_disk_and_one_by_policy_that_which_is_loaded(shop: Shop) -> None:
    before = shop.reach(base="version 1", web="version 1")
    shop.write(SHOP.replace("VERSION = 1", "VERSION = 2").replace("on_failure(0)", "on_failure(5, delay=0.01)"))
    done = poolkeeper(shop, "restart", "web")
    assert done.returncode == 0
    assert done.stdout.startswith("web: running")  # what it says of itself may come later
    after = shop.reach(base="version 1", web="version 2")
    assert after["base"]["pid"] == before["base"]["pid"]
    os.kill(after["web"]["pid"], signal.SIGKILL)
    wait_until(lambda: shop.rows()["web"]["restarts"] == 1)
    shop.reach(web="version 2")
    shop.write(SHOP.replace("VERSION = 1", "VERSION = 3"))
    os.kill(shop.rows()["web"]["pid"], signal.SIGKILL)
    wait_until(lambda: shop.rows()["web"]["restarts"] == 2)
    assert shop.reach(base="version 1", web="version 2")["web"]["exits"][-1]["reason"] == "signal"
    poolkeeper(shop, "restart", "base")
    shop.reach(base="version 3", web="version 2")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        pytest.param(SHOP.replace("VERSION = 1", "VERSION = ("), "SyntaxError", marks=pytest.mark.soak),
        (SHOP.replace("def web()", "def shop_window()"), "web"),
    ],
)
def test_a_restart_by_hand_is_refused_where_the_code_on_disk_cannot_be_loaded(
    shop: Shop, broken: str, why: str
) -> None:
    before = shop.reach(base="version 1", web="version 1")
    shop.write(broken)
    done = poolkeeper(shop, "restart", "web")
    assert (done.returncode, done.stdout) == (1, "")
    assert "service web goes on as it is: the code on disk cannot be loaded" in done.stderr
    assert why in done.stderr
    after = shop.rows()
    assert [after[name]["pid"] for name in ("base", "web")] == [before[name]["pid"] for name in ("base", "web")]
    shop.write(SHOP.replace("VERSION = 1", "VERSION = 2"))
    assert poolkeeper(shop, "restart", "web").returncode == 0
    shop.reach(base="version 1", web="version 2")


@pytest.mark.soak
def test_what_was_restarted_by_hand_is_not_replaced_again_by_a_reload(shop: Shop) -> None:
    shop.reach(base="version 1", web="version 1")
    shop.write(SHOP.replace("VERSION = 1", "VERSION = 2"))
    assert poolkeeper(shop, "restart", "web").returncode == 0
    before = shop.reach(base="version 1", web="version 2")
    reload_keeper(shop.home)
    after = shop.reach(base="version 2", web="version 2")
    assert after["web"]["pid"] == before["web"]["pid"]
