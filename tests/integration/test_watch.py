"""``poolkeeper run --watch``: changed source files take effect, broken ones do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from poolkeeper.control_client import ControlClient, KeeperUnreachable
from tests.helpers import PATIENCE, wait_until
from tests.keeper_program import end_all

SHOP = """
import sys
from poolkeeper import Fleet, context
import wares

fleet = Fleet("shop")
print("sells", wares.WARES, file=sys.stderr, flush=True)

@fleet.service()
def base():
    while not context().wait(100):
        pass
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "wares.py").write_text("WARES = 'apples'\n")
    with open(tmp_path / "errors", "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "poolkeeper", "run", "--watch", "shop.py"],
            env={**os.environ, "POOLKEEPER_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        end_all()


def test_what_is_changed_is_loaded(shop: subprocess.Popen[bytes], tmp_path: Path) -> None:
    def says(text: str) -> None:
        wait_until(lambda: text in (tmp_path / "errors").read_text(), text)

    says("service base is running")
    (tmp_path / "wares.py").write_text("WARES = 'oranges'\n")
    says("sells oranges")
    says("upgrade has completed")
    shop.send_signal(signal.SIGTERM)
    assert shop.wait(PATIENCE) == 0


@pytest.mark.soak
def test_what_is_changed_is_loaded_and_what_is_broken_is_refused(shop: subprocess.Popen[bytes], tmp_path: Path) -> None:
    started: set[float] = set()

    def says(text: str) -> None:
        wait_until(lambda: text in (tmp_path / "errors").read_text(), text)

    def is_up() -> bool:
        with suppress(KeeperUnreachable, ValueError):
            (path,) = (tmp_path / "home").glob("*/default")
            with ControlClient(path) as client:
                data = client.ask("progress")
            if data["run"].get("fleet") and data["started"] not in started:
                started.add(data["started"])
                return True
        return False

    wares = tmp_path / "wares.py"
    says("sells apples")
    wait_until(is_up)
    wares.write_text("WARES = 'oranges'\n")
    says("sells oranges")
    wait_until(is_up)
    wares.write_text("WARES = \n")
    says("SyntaxError")
    says("--watch: ")
    assert shop.poll() is None
    wares.write_text("WARES = 'pears, and apples'\n")
    says("sells pears, and apples")
    shop.send_signal(signal.SIGTERM)
    assert shop.wait(PATIENCE) == 0
