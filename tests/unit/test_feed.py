"""What holds a batch back: the window and the gates of rate limits."""

from __future__ import annotations

import gc

import pytest

from poolkeeper.feed import Limits, Window
from poolkeeper.policy import ExecutionPolicy, RateLimit


class TestWindow:
    def test_it_doubles_while_tasks_are_quick(self) -> None:
        window = Window(4)
        sizes = []
        now = 0.0
        for _ in range(12):
            window.ended(window.size, now)
            now += Window.QUICK / 2
            sizes.append(window.size)
        assert sizes[:4] == [8, 16, 32, 64]
        assert sizes[-1] == Window.WIDEST

    def test_it_narrows_again_while_tasks_are_slow(self) -> None:
        window = Window(4)
        window.ended(4, 0.0)
        window.ended(8, 0.01)
        assert window.size == 16
        window.ended(16, 10.0)
        assert window.size == 8
        window.ended(8, 20.0)
        window.ended(4, 30.0)
        assert window.size == 4

    def test_it_stays_in_between(self) -> None:
        window = Window(4)
        window.ended(1, 0.0)
        window.ended(3, 0.5)
        assert window.size == 4

    def test_a_floor_above_the_ceiling_is_kept(self) -> None:
        window = Window(10_000)
        window.ended(10_000, 0.0)
        assert window.size == 10_000


class TestLimits:
    def test_concurrency_bounds_what_is_in_flight(self) -> None:
        limits = Limits.of(ExecutionPolicy(concurrency=3), workers=8)
        assert limits.allow(in_flight=2, unread=0)
        assert not limits.allow(in_flight=3, unread=0)

    def test_the_window_bounds_what_is_unread_too(self) -> None:
        limits = Limits.of(ExecutionPolicy(), workers=2)
        assert limits.allow(in_flight=1, unread=2)
        assert not limits.allow(in_flight=1, unread=3)
        assert not limits.allow(in_flight=4, unread=0)

    def test_limits_of_the_same_name_share_a_gate(self) -> None:
        policy = ExecutionPolicy(rate_limit=RateLimit(1, name="test-shared"))
        one, other = Limits.of(policy, 1).gate, Limits.of(policy, 1).gate
        assert one is other
        assert one is not None
        assert one.acquire(0.0) == 0.0
        assert one.acquire(0.0) > 0.0

    def test_limits_without_a_name_do_not(self) -> None:
        policy = ExecutionPolicy(rate_limit=RateLimit(1))
        assert Limits.of(policy, 1).gate is not Limits.of(policy, 1).gate

    def test_a_name_stands_for_one_limit_at_a_time(self) -> None:
        held = Limits.of(ExecutionPolicy(rate_limit=RateLimit(1, name="test-clash")), 1)
        other = ExecutionPolicy(rate_limit=RateLimit(2, name="test-clash"))
        with pytest.raises(ValueError, match="test-clash"):
            Limits.of(other, 1)
        del held
        gc.collect()
        assert Limits.of(other, 1).gate is not None
