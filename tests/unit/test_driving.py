"""When the main thread may do the keeper's work, going by the handlers of signals, and what an interrupt meets then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from poolkeeper.driving import SignalGuard

Handler = Callable[[int, FrameType | None], object] | int


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_it_drives_where_no_python_code_would_be_interrupted_and_leaves_the_handler_as_it_was(handler: Handler) -> None:
    signal.signal(signal.SIGINT, handler)
    guard = SignalGuard()
    for _ in range(2):
        assert guard.enter()
        assert guard.critical
        guard.leave()
        assert not guard.critical
        assert signal.getsignal(signal.SIGINT) == handler


class _Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, number: int, frame: FrameType | None) -> None: ...


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", [lambda *_: None, _Unhashable()])
def test_it_does_not_where_the_application_has_a_handler(number: signal.Signals, handler: Handler) -> None:
    signal.signal(number, handler)
    guard = SignalGuard()
    assert not guard.enter()
    assert not guard.critical
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("begin", [SignalGuard.enter, SignalGuard.hold])
def test_an_interrupt_waits_for_the_end_of_what_is_critical(begin: Callable[[SignalGuard], bool]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    guard = SignalGuard()
    assert begin(guard)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        guard.leave()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_drives_holds_it_back_already() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    guard = SignalGuard()
    guard.enter()
    assert not guard.hold()
    guard.leave()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_application_is_not_held_back() -> None:
    signal.signal(signal.SIGINT, handler := lambda *_: None)
    guard = SignalGuard()
    assert not guard.hold()
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard = SignalGuard()
    guard.enter()
    os.kill(os.getpid(), signal.SIGINT)
    guard.open()
    guard.critical = True
    os.kill(os.getpid(), signal.SIGINT)
    guard.leave()
