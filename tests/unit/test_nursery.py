"""Signals for processes that the fork server makes: too early, in time, too late."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from poolkeeper.children import Child

NOBODY: Any = None


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("watched", {False, hasattr(os, "pidfd_open")})
def test_what_is_sent_before_the_pid_is_known_arrives_once(process: subprocess.Popen[bytes], watched: bool) -> None:
    ended: list[int] = []
    child = Child(NOBODY)
    child.signal(signal.SIGTERM)
    with selectors.DefaultSelector() as selector:
        if watched:
            child.here(process.pid, selector, ended.append)
        else:
            child.exists(process.pid)
        assert process.wait(20) == -signal.SIGTERM
        assert child.watched is watched
        assert [key.data for key, _ in selector.select(20 if watched else 0)] == [ended.append] * watched
        child.unwatch(selector)
        assert not child.watched
        assert not selector.get_map()
    assert child._pending == []


def test_nothing_is_sent_to_who_is_gone(process: subprocess.Popen[bytes]) -> None:
    child = Child(NOBODY)
    child.signal(signal.SIGKILL)
    child.gone = True
    child.exists(process.pid)
    child.signal(signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
