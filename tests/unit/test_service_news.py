"""What the log says of services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger

from poolkeeper.delivery import Delivery
from poolkeeper.reporting import flush
from poolkeeper.service_model import ServiceEvent
from poolkeeper.service_news import ServiceNews
from tests.helpers import PATIENCE


@pytest.fixture
def lines() -> Iterator[list[str]]:
    said: list[str] = []
    logger.enable("poolkeeper")
    sink = logger.add(lambda message: said.append(str(message).rstrip()), format="{level} {message}", level="DEBUG")
    yield said
    logger.remove(sink)
    logger.disable("poolkeeper")


def test_an_end_is_no_restart_and_one_in_order_no_warning(lines: list[str]) -> None:
    news = ServiceNews(Delivery(), None)
    for what, reason, code in (
        ("backoff", "returned", 0),
        ("completed", "", None),
        ("backoff", "exited with status 1", 1),
        ("backoff", "it disappeared, and its exit status is not known", None),
        ("failed", "its policy is never to restart it", None),
    ):
        news.tell(ServiceEvent(0.0, f"service.{what}", "web", what, "running", reason, None, 1, code))
    flush(PATIENCE)
    assert lines == [
        "INFO service web has ended: returned",
        "INFO service web has completed",
        "WARNING service web has ended: exited with status 1",
        "WARNING service web has ended: it disappeared, and its exit status is not known",
        "ERROR service web has failed: its policy is never to restart it",
    ]
