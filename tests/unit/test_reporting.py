"""The keeper's loop speaks without waiting for whoever listens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from poolkeeper.keeper_log import KeeperLog
from poolkeeper.loglines import parse
from poolkeeper.reporting import QUEUE_LIMIT, flush, report
from tests.helpers import PATIENCE


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    logger.enable("poolkeeper")
    yield
    flush(PATIENCE)
    logger.disable("poolkeeper")


def test_what_is_reported_is_logged_as_by_who_reports_it() -> None:
    records = []
    sink = logger.add(lambda message: records.append(message.record))
    try:
        report("WARNING", "the {braces} stay", worker=3)
        flush(PATIENCE)
    finally:
        logger.remove(sink)
    (record,) = records
    assert record["message"] == "the {braces} stay"
    assert record["level"].name == "WARNING"
    assert record["extra"]["worker"] == 3
    assert record["function"] == "test_what_is_reported_is_logged_as_by_who_reports_it"
    assert record["name"] == __name__


def test_a_sink_that_raises_costs_its_lines_alone() -> None:
    lines: list[str] = []

    def sink(message: str) -> None:
        lines.append(str(message).strip())
        raise OSError("the log is gone")

    handle = logger.add(sink, format="{message}", catch=False)
    try:
        report("INFO", "first")
        report("INFO", "second")
        flush(PATIENCE)
    finally:
        logger.remove(handle)
    assert lines == ["first", "second"]


def test_a_sink_that_blocks_costs_lines_which_are_counted_and_holds_nobody_up() -> None:
    gate, blocked = threading.Event(), threading.Event()
    lines: list[str] = []

    def sink(message: str) -> None:
        blocked.set()
        assert gate.wait(PATIENCE)
        lines.append(str(message))

    handle = logger.add(sink, format="{message}")
    try:
        report("INFO", "first")
        assert blocked.wait(PATIENCE)
        for number in range(QUEUE_LIMIT + 5):
            report("INFO", f"line {number}")
        gate.set()
        flush(PATIENCE)
    finally:
        gate.set()
        logger.remove(handle)
    assert lines[0] == "first\n"
    assert "5 lines were lost: the log was too slow\n" in lines
    assert lines[-1] == f"line {QUEUE_LIMIT - 1}\n"


def test_the_keepers_log_has_lines_that_can_be_read_like_all_others(tmp_path: Path) -> None:
    with KeeperLog(tmp_path):
        report("ERROR", "first\nsecond")
    lines = [parse(line) for line in (tmp_path / "keeper.log").read_bytes().splitlines()]
    assert [line.text for line in lines if line is not None] == [b"ERROR   first", b"second"]
    assert {line.label for line in lines if line is not None} == {"keeper"}
