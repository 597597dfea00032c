"""Signals of this very process, caught."""

from __future__ import annotations

import signal
import threading

import pytest

from poolkeeper.interrupts import Interrupts

DEADLINE = 30.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_stops_and_the_second_leaves(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopped, left = threading.Event(), threading.Event()
    told: list[int] = []

    def stop(received: int) -> None:
        told.append(received)
        stopped.set()

    def leave(received: int) -> None:
        told.append(-received)
        left.set()

    with Interrupts(stop, leave) as interrupts:
        assert interrupts.received is None
        signal.raise_signal(number)
        assert stopped.wait(DEADLINE)
        assert interrupts.received == number
        signal.raise_signal(number)
        assert left.wait(DEADLINE)
    assert told == [number, -number]
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_happens() -> None:
    with Interrupts(pytest.fail, pytest.fail) as interrupts:
        pass
    assert interrupts.received is None


def test_a_signal_that_another_thread_receives_is_heard_while_the_main_thread_is_blocked() -> None:
    stopped = threading.Event()
    other = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    with Interrupts(lambda number: stopped.set(), pytest.fail):
        other.start()
        assert stopped.wait(DEADLINE)
    other.join()


def test_other_signals_are_none_of_its_business() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with Interrupts(pytest.fail, pytest.fail) as interrupts:
            signal.raise_signal(signal.SIGUSR1)
        assert interrupts.received is None
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_hangup_is_no_end() -> None:
    heard = threading.Event()
    before = signal.getsignal(signal.SIGHUP)
    with Interrupts(pytest.fail, pytest.fail, heard.set) as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert heard.wait(DEADLINE)
        assert interrupts.received is None
    assert signal.getsignal(signal.SIGHUP) is before


def test_a_hangup_that_was_to_be_ignored_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(pytest.fail, pytest.fail, pytest.fail):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
