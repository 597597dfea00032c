"""Signal handlers wait where they must not run, and none is lost or left behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from poolkeeper.held_signals import HeldSignals
from tests.helpers import PATIENCE
from tests.interruption import interrupted

ALARM, FIRST, SECOND = signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2


class Raised(Exception):
    """What a handler raises; its argument is the signal's number."""


def raising(number: int, frame: FrameType | None) -> None:
    raise Raised(number)


@pytest.fixture
def handle() -> Iterator[Callable[[int, Any], None]]:
    """Sets a handler for the time of the test."""
    earlier: dict[int, Any] = {}

    def set_handler(number: int, handler: Any) -> None:
        earlier.setdefault(number, signal.getsignal(number))
        signal.signal(number, handler)

    yield set_handler
    for number, handler in earlier.items():
        signal.signal(number, handler)


def test_a_handler_runs_when_the_block_has_ended(handle: Callable[[int, Any], None]) -> None:
    heard: list[int] = []
    handle(FIRST, lambda number, frame: heard.append(number))
    handler = signal.getsignal(FIRST)
    with HeldSignals():
        signal.raise_signal(FIRST)
        signal.raise_signal(FIRST)
        assert heard == []
    assert heard == [FIRST]
    assert signal.getsignal(FIRST) is handler


def test_every_handler_runs_though_one_raises(handle: Callable[[int, Any], None]) -> None:
    heard: list[int] = []
    handle(FIRST, lambda number, frame: heard.append(number))
    handle(SECOND, lambda number, frame: heard.append(number))
    handle(ALARM, raising)
    with pytest.raises(Raised), HeldSignals():
        for number in (FIRST, ALARM, SECOND):
            signal.raise_signal(number)
    assert sorted(heard) == sorted([FIRST, SECOND])
    assert signal.getsignal(ALARM) is raising


def test_an_open_moment_lets_through_what_came_and_what_comes(handle: Callable[[int, Any], None]) -> None:
    heard: list[int] = []
    handle(FIRST, lambda number, frame: heard.append(number))
    with HeldSignals() as signals:
        signal.raise_signal(FIRST)
        signals.open()
        assert heard == [FIRST]
        signal.raise_signal(FIRST)
        assert heard == [FIRST] * 2
        signals.hold()
        signal.raise_signal(FIRST)
        assert heard == [FIRST] * 2
    assert heard == [FIRST] * 3


@pytest.mark.parametrize("before", [True, False])
def test_who_cleans_up_after_an_interruption_is_not_interrupted_again(
    handle: Callable[[int, Any], None], before: bool
) -> None:
    handle(FIRST, raising)
    cleaned_up = False
    with pytest.raises(Raised), HeldSignals() as signals:
        try:
            if before:
                signal.raise_signal(FIRST)
                signals.open()
            else:
                signals.open()
                signal.raise_signal(FIRST)
        finally:
            signal.raise_signal(FIRST)
            cleaned_up = True
    assert cleaned_up


def test_a_handler_that_is_set_meanwhile_stays(handle: Callable[[int, Any], None]) -> None:
    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)

    handle(FIRST, once)
    with HeldSignals() as signals:
        signal.raise_signal(FIRST)
        signals.open()
        assert signal.getsignal(FIRST) is signal.SIG_IGN
    assert signal.getsignal(FIRST) is signal.SIG_IGN


def test_who_listens_for_signals_hears_of_each_once(handle: Callable[[int, Any], None]) -> None:
    handle(FIRST, lambda *_: None)
    mine, other = socket.socketpair()
    with mine, other:
        other.setblocking(False)
        before = signal.set_wakeup_fd(other.fileno())
        try:
            with HeldSignals():
                os.kill(os.getpid(), FIRST)
        finally:
            signal.set_wakeup_fd(before)
        other.close()
        assert mine.recv(10) == bytes([FIRST])


def test_outside_the_main_thread_nothing_is_held(handle: Callable[[int, Any], None]) -> None:
    handle(FIRST, raising)
    held: list[object] = []

    def hold() -> None:
        with HeldSignals():
            held.append(signal.getsignal(FIRST))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join(PATIENCE)
    assert held == [raising]


def test_one_interruption_at_any_line_leaves_all_handlers_in_their_places(handle: Callable[[int, Any], None]) -> None:
    sent: list[int] = []
    heard: list[int] = []
    handle(SECOND, lambda number, frame: heard.append(number))
    handle(ALARM, raising)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def use() -> None:
        with HeldSignals() as signals:
            sent.append(SECOND)
            signal.raise_signal(SECOND)
            signals.open()
            signals.hold()

    line, cut = 0, True
    while cut:
        line += 1
        cut = interrupted(use, line, _counts, lambda: signal.raise_signal(ALARM), raises=Raised)
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before, line
        assert heard == sent, line
    assert line > 20


def _counts(frame: FrameType) -> bool:
    return frame.f_code.co_filename.endswith("held_signals.py") and frame.f_code.co_name != "use"
