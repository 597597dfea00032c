"""Cancellation tokens: who is cancelled, why, and who is told, once."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from poolkeeper.cancellation import CancellationToken
from tests.helpers import PATIENCE, wait_until

FAR = 3600.0


def watching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "poolkeeper-deadlines"]


@pytest.fixture(autouse=True)
def _no_thread_watches_nothing() -> None:
    wait_until(lambda: not watching_threads(), "the end of the watching thread before the test")


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(n)`` in ``count`` threads that start together."""
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(PATIENCE)
        work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


# Cancelling ---------------------------------------------------------------------------------------------------------


def test_a_token_is_cancelled_once_for_one_reason() -> None:
    token = CancellationToken()
    assert (token.cancelled, token.reason) == (False, None)
    assert token.cancel("enough") is True
    assert token.cancel("again") is False
    assert (token.cancelled, token.reason) == (True, "enough")


def test_a_reason_is_not_needed_but_must_be_text() -> None:
    token = CancellationToken()
    with pytest.raises(TypeError, match="must be a string"):
        token.cancel(ValueError("why"))  # type: ignore[arg-type]
    assert not token.cancelled
    token.cancel()
    assert token.reason == "cancelled"


def test_of_many_threads_one_cancels() -> None:
    token = CancellationToken()
    answers: list[tuple[int, bool]] = []
    in_threads(8, lambda number: answers.append((number, token.cancel(str(number)))))
    (winner,) = [number for number, first in answers if first]
    assert token.reason == str(winner)


def test_a_child_is_cancelled_with_its_parent_and_not_the_other_way_round() -> None:
    parent = CancellationToken()
    first, second = parent.child(), parent.child()
    grandchild = first.child()
    first.cancel("first")
    assert [token.reason for token in (parent, first, second, grandchild)] == [None, "first", None, "first"]
    parent.cancel("all")
    assert [token.reason for token in (parent, first, second, grandchild)] == ["all", "first", "all", "first"]
    assert parent.child().reason == "all"


def test_a_child_cannot_be_cancelled_after_its_parent() -> None:
    parent = CancellationToken()
    child = parent.child()
    parent.cancel("parent")
    assert child.cancel("child") is False
    assert child.reason == "parent"


def test_a_parent_does_not_keep_its_children() -> None:
    parent = CancellationToken()
    child = parent.child()
    leave = child.on_cancel(list)
    reference = weakref.ref(child)
    leave()
    del child, leave
    gc.collect()
    assert reference() is None


def test_a_child_with_somebody_to_tell_is_kept() -> None:
    parent, told = CancellationToken(), threading.Event()
    parent.child().child().on_cancel(told.set)
    gc.collect()
    parent.cancel()
    assert told.is_set()


# Telling ------------------------------------------------------------------------------------------------------------


def test_callbacks_run_once_in_their_order_in_the_cancelling_thread() -> None:
    token, calls = CancellationToken(), []
    for number in range(3):
        token.on_cancel(lambda number=number: calls.append((number, threading.get_ident())))
    token.cancel()
    token.cancel()
    assert calls == [(number, threading.get_ident()) for number in range(3)]


def test_a_late_callback_runs_at_once() -> None:
    token, calls = CancellationToken(), []
    token.cancel()
    leave = token.on_cancel(lambda: calls.append("late"))
    assert calls == ["late"]
    leave()


def test_a_callback_can_be_taken_back() -> None:
    token, calls = CancellationToken(), []
    leave = token.on_cancel(lambda: calls.append("taken back"))
    token.on_cancel(lambda: calls.append("kept"))
    leave()
    leave()
    token.cancel()
    leave()
    assert calls == ["kept"]


def test_the_same_function_may_be_called_back_twice() -> None:
    token, calls = CancellationToken(), []

    def callback() -> None:
        calls.append(1)

    leave = token.on_cancel(callback)
    token.on_cancel(callback)
    leave()
    token.on_cancel(callback)
    token.cancel()
    assert len(calls) == 2


def test_what_a_callback_raises_is_logged_and_keeps_none_from_running(caplog: pytest.LogCaptureFixture) -> None:
    token, calls = CancellationToken(), []

    def broken() -> None:
        raise LookupError("broken callback")

    token.on_cancel(broken)
    token.on_cancel(lambda: calls.append("next"))
    assert token.cancel() is True
    assert calls == ["next"]
    assert "broken callback" in caplog.text


def test_a_callback_may_use_its_token() -> None:
    token, calls = CancellationToken(), []

    def callback() -> None:
        calls.append((token.cancelled, token.cancel("again"), token.wait(0)))
        token.on_cancel(lambda: calls.append("nested"))

    token.on_cancel(callback)
    token.cancel("first")
    assert calls == [(True, False, True), "nested"]
    assert token.reason == "first"


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="must be callable"):
        CancellationToken().on_cancel("stop")  # type: ignore[arg-type]


def test_every_callback_runs_once_whoever_comes_first() -> None:
    for _ in range(50):
        parent = CancellationToken()
        token = parent.child()
        calls: list[int] = []

        def work(number: int, parent: CancellationToken = parent, token: CancellationToken = token) -> None:
            if number == 0:
                parent.cancel("parent")
            elif number == 1:
                token.cancel("child")
            else:
                token.on_cancel(lambda: calls.append(number))  # noqa: B023  # joined before the next round

        in_threads(6, work)
        assert sorted(calls) == [2, 3, 4, 5]
        assert token.reason in {"parent", "child"}


# Waiting ------------------------------------------------------------------------------------------------------------


def test_waiting_ends_when_the_token_is_cancelled() -> None:
    parent = CancellationToken()
    tokens = [parent, parent.child(), parent.child().child(), parent.with_deadline(FAR)]
    answers: list[bool] = []

    def work(number: int) -> None:
        if number < len(tokens):
            answers.append(tokens[number].wait(PATIENCE))
        else:
            parent.cancel()

    in_threads(len(tokens) + 1, work)
    assert answers == [True] * len(tokens)


def test_waiting_gives_up() -> None:
    token = CancellationToken()
    for timeout in (-1, 0, 0.01):
        assert token.wait(timeout) is False
    with pytest.raises(ValueError, match="nan"):
        token.wait(float("nan"))
    token.cancel()
    for forever in (None, float("inf"), 0, -1):
        assert token.wait(forever) is True


def test_waiting_leaves_nothing_behind() -> None:
    parent = CancellationToken()
    child = parent.with_deadline(FAR)
    assert child.wait(0.001) is False
    reference = weakref.ref(child)
    del child
    gc.collect()
    assert reference() is None
    assert not watching_threads()


def test_a_signal_handler_may_cancel_what_the_thread_waits_for() -> None:
    token = CancellationToken()
    before = signal.signal(signal.SIGUSR1, lambda *_: token.cancel("signal"))
    try:
        sender = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
        sender.start()
        assert token.wait(PATIENCE) is True
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert token.reason == "signal"


# Deadlines ----------------------------------------------------------------------------------------------------------


def test_a_deadline_needs_no_thread_until_somebody_wants_to_be_told() -> None:
    token = CancellationToken().with_deadline(0.01)
    assert token.wait(PATIENCE) is True
    assert token.reason == "the deadline of 0.01 s has passed"
    assert not watching_threads()


def test_a_deadline_in_the_past_has_passed() -> None:
    parent = CancellationToken()
    assert parent.with_deadline(0).cancelled
    assert parent.with_deadline(-5).child().wait() is True
    assert not parent.cancelled


def test_the_earliest_deadline_counts() -> None:
    hasty = CancellationToken().with_deadline(0.0)
    assert hasty.with_deadline(FAR).reason == "the deadline of 0 s has passed"
    patient = CancellationToken().with_deadline(FAR)
    assert not patient.cancelled
    assert patient.with_deadline(0.0).cancelled
    assert not patient.cancelled


def test_no_deadline_is_far_away() -> None:
    assert not CancellationToken().with_deadline(float("inf")).cancelled
    with pytest.raises(ValueError, match="nan"):
        CancellationToken().with_deadline(float("nan"))


def test_who_is_first_gives_the_reason() -> None:
    token = CancellationToken().with_deadline(0.01)
    token.cancel("by hand")
    assert token.wait(PATIENCE)
    assert token.reason == "by hand"
    late = CancellationToken().with_deadline(0.0)
    assert late.cancel("by hand") is False
    assert late.reason == "the deadline of 0 s has passed"


def test_callbacks_of_a_deadline_run_in_one_thread_for_all_tokens_which_then_ends() -> None:
    root, done = CancellationToken(), threading.Event()
    names: list[str] = []

    def callback() -> None:
        names.append(threading.current_thread().name)
        if len(names) == 50:
            done.set()

    for number in range(50):
        root.with_deadline(0.05 - number / 1000).on_cancel(callback)
    assert done.wait(PATIENCE)
    assert set(names) <= {"poolkeeper-deadlines", threading.current_thread().name}
    wait_until(lambda: not watching_threads(), "the end of the watching thread")


def test_an_earlier_deadline_is_not_kept_waiting_by_a_later_one() -> None:
    told = threading.Event()
    leave = CancellationToken().with_deadline(FAR).on_cancel(list)
    CancellationToken().with_deadline(0.01).on_cancel(told.set)
    assert told.wait(PATIENCE)
    leave()


def test_the_watching_thread_ends_when_nobody_is_left() -> None:
    token = CancellationToken()
    leaves = [token.with_deadline(FAR + number).on_cancel(list) for number in range(20)]
    assert len(watching_threads()) == 1
    for leave in leaves:
        leave()
    wait_until(lambda: not watching_threads(), "the end of the watching thread after the last callback was taken back")
    told = [token.with_deadline(FAR) for _ in range(20)]
    for child in told:
        child.on_cancel(list)
    token.cancel()
    wait_until(lambda: not watching_threads(), "the end of the watching thread after the cancellation")


def test_a_callback_that_raises_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise SystemExit("broken callback")

    told = threading.Event()
    CancellationToken().with_deadline(0.01).on_cancel(broken)
    CancellationToken().with_deadline(0.02).on_cancel(told.set)
    assert told.wait(PATIENCE)
    assert "broken callback" in caplog.text


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_watch_of_its_own() -> None:
    leave = CancellationToken().with_deadline(FAR).on_cancel(list)
    pid = os.fork()
    if pid == 0:
        told = threading.Event()
        CancellationToken().with_deadline(0.01).on_cancel(told.set)
        os._exit(0 if told.wait(PATIENCE) else 1)
    leave()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Values -------------------------------------------------------------------------------------------------------------


def test_a_token_stays_in_its_process() -> None:
    for move in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="belongs to one process"):
            move(CancellationToken())


def test_a_token_tells_its_state() -> None:
    token = CancellationToken()
    assert repr(token) == "<CancellationToken active>"
    token.cancel("enough")
    assert repr(token) == "<CancellationToken cancelled: enough>"


class Families(RuleBasedStateMachine):
    """Trees of tokens beside a model that keeps everything explicitly."""

    tokens = Bundle("tokens")
    callbacks = Bundle("callbacks")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[CancellationToken] = []
        self.parents: dict[int, int | None] = {}
        self.reasons: dict[int, str] = {}
        self.waiting: dict[int, set[int]] = {}
        self.expected: list[int] = []
        self.called: list[int] = []
        self.count = 0

    def add(self, token: CancellationToken, parent: int | None) -> int:
        number = len(self.all)
        self.all.append(token)
        self.parents[number] = parent
        self.waiting[number] = set()
        if parent in self.reasons:
            self.reasons[number] = self.reasons[parent]
        return number

    def cancel_in_model(self, number: int, reason: str) -> None:
        if number in self.reasons:
            return
        self.reasons[number] = reason
        self.expected += self.waiting.pop(number)
        for child, parent in self.parents.items():
            if parent == number:
                self.cancel_in_model(child, reason)

    @rule(target=tokens)
    def root(self) -> int:
        return self.add(CancellationToken(), None)

    @rule(target=tokens, parent=tokens, deadline=st.sampled_from([None, FAR, 0.0]))
    def child(self, parent: int, deadline: float | None) -> int:
        token = self.all[parent]
        number = self.add(token.child() if deadline is None else token.with_deadline(deadline), parent)
        if deadline == 0.0:
            self.cancel_in_model(number, "the deadline of 0 s has passed")
        return number

    @rule(token=tokens, reason=st.text(max_size=3))
    def cancel(self, token: int, reason: str) -> None:
        assert self.all[token].cancel(reason) == (token not in self.reasons)
        self.cancel_in_model(token, reason)

    @rule(target=callbacks, token=tokens)
    def on_cancel(self, token: int) -> tuple[int, int, Callable[[], object]]:
        self.count += 1
        ticket = self.count
        leave = self.all[token].on_cancel(lambda: self.called.append(ticket))
        if token in self.reasons:
            self.expected.append(ticket)
        else:
            self.waiting[token].add(ticket)
        return token, ticket, leave

    @rule(callback=callbacks)
    def take_back(self, callback: tuple[int, int, Callable[[], object]]) -> None:
        token, ticket, leave = callback
        leave()
        self.waiting.get(token, set()).discard(ticket)

    @invariant()
    def tokens_and_model_agree(self) -> None:
        assert [token.reason for token in self.all] == [self.reasons.get(number) for number in range(len(self.all))]
        assert sorted(self.called) == sorted(self.expected)

    def teardown(self) -> None:
        for token in self.all:
            token.cancel()


TestFamilies = Families.TestCase
TestFamilies.settings = settings(max_examples=50, stateful_step_count=30)
