"""tenacity strategies as decisions: evaluated on a call state that we fill, never slept on.

A strategy is what tenacity takes: a callable of one ``RetryCallState``. ``decide`` asks them in tenacity's order
(retry, then wait, then stop, so that ``stop_before_delay`` sees the wait) and returns the delay as a number; the
caller turns that into a deadline. tenacity itself loads when the first strategy is asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .fields import Checked, positive_duration, whole_number

if TYPE_CHECKING:
    from tenacity import RetryCallState
    from tenacity.stop import stop_all, stop_any, stop_base
else:
    stop_base = object  # a real base class would import tenacity; tenacity itself takes any callable

__all__ = [
    "HISTORY",
    "NamedStrategy",
    "Outcome",
    "Retry",
    "Stop",
    "Wait",
    "callable_strategy",
    "decide",
    "is_known",
    "looks_back",
    "named",
    "stop_after_burst",
]

Stop = Callable[["RetryCallState"], bool]
Wait = Callable[["RetryCallState"], float]
Retry = Callable[["RetryCallState"], bool]

Strategy = TypeVar("Strategy", bound=Callable[..., Any])

HISTORY = 1000
"""How many times of earlier failures are remembered for ``stop_after_burst``."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended, as a strategy is shown it.

    ``attempt`` counts from 1. ``elapsed`` is in seconds from the start of the first attempt to this outcome, ``waited``
    how many of them were spent between attempts. ``error`` is None where the attempt ended without one.
    ``times`` are the moments of all remembered failures on the same clock as ``elapsed``, this one last; they may lie
    before the first attempt (and so be negative).
    """

    attempt: int
    elapsed: float
    error: BaseException | None
    waited: float = 0.0
    times: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedStrategy:
    """A tenacity strategy by name and arguments, made when it is first asked.

    It compares, hashes and pickles by what it says, which tenacity's own objects do not, and importing
    a module that holds one does not import tenacity.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(self, state: RetryCallState) -> Any:
        """Ask the strategy that this stands for."""
        return _make(self.name, self.arguments)(state)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"


def named(name: str, **arguments: Any) -> NamedStrategy:
    """Name the tenacity strategy ``name`` with keyword ``arguments``, without importing tenacity."""
    return NamedStrategy(name, tuple(arguments.items()))


@functools.cache
def _make(name: str, arguments: tuple[tuple[str, Any], ...]) -> Callable[[RetryCallState], Any]:
    import tenacity

    made: Callable[[RetryCallState], Any] = getattr(tenacity, name)(**dict(arguments))
    return made


@dataclass(frozen=True)
class stop_after_burst(stop_base):  # noqa: N801  # named as tenacity names its strategies
    """Stop at the failure that is the ``count``-th within the last ``within`` seconds.

    The sliding window of OTP's supervisors (their ``intensity`` is ``count - 1``) with the meaning of systemd's
    ``StartLimitBurst``: ``count`` starts in the window are allowed. Combines with tenacity's by ``|`` and ``&``.
    In a plain tenacity loop it sees the failures at which tenacity asks it.

    Args:
        count: how many failures make a burst, at most 1000.
        within: the length of the window in seconds.

    Raises:
        ValueError: for a count below 1 or above 1000, or a window that is not finite and positive.
    """

    count: Checked[int] = Checked(whole_number(1, HISTORY))
    within: Checked[float] = Checked(positive_duration)

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Answer whether the outcome in ``retry_state`` completes a burst."""
        now = retry_state.outcome_timestamp
        if now is None:
            raise RuntimeError("stop_after_burst is asked after an attempt has ended")
        # Kept on the state, which lives as long as one call: the strategy itself is shared and has no memory.
        times: list[float] = retry_state.__dict__.setdefault("failure_times", [])
        if retry_state.__dict__.get("failure_counted") != retry_state.attempt_number:  # else asked again, by | or &
            retry_state.__dict__["failure_counted"] = retry_state.attempt_number
            times.append(now)
            del times[:-HISTORY]
        return sum(now - moment <= self.within for moment in times) >= self.count

    def __or__(self, other: stop_base) -> stop_any:
        import tenacity

        return tenacity.stop_any(self, other)

    def __and__(self, other: stop_base) -> stop_all:
        import tenacity

        return tenacity.stop_all(self, other)


def is_known(strategy: object) -> bool:
    """Whether ``strategy`` runs nothing but code of tenacity and of this module, which ends in microseconds."""
    if strategy is None or isinstance(strategy, (NamedStrategy, stop_after_burst)):
        return True
    if type(strategy).__module__.partition(".")[0] != "tenacity":
        return False
    parts = [part for value in vars(strategy).values() for part in (value if isinstance(value, tuple) else (value,))]
    return all(is_known(part) for part in parts if callable(part) and not isinstance(part, type))


def looks_back(strategy: object) -> bool:
    """Whether ``strategy`` may ask when earlier failures were, as ``stop_after_burst`` does."""
    if strategy is None or isinstance(strategy, NamedStrategy):
        return False
    if type(strategy).__module__.partition(".")[0] != "tenacity":
        return True
    parts = [part for value in vars(strategy).values() for part in (value if isinstance(value, tuple) else (value,))]
    return any(looks_back(part) for part in parts if callable(part) and not isinstance(part, type))


def callable_strategy(value: Strategy) -> Strategy:
    """Check that ``value`` can be asked as a strategy: a callable, and not the class of one."""
    if isinstance(value, type):
        raise TypeError(f"is the class of a strategy; an instance of it is needed: {value.__name__}(...)")
    if not callable(value):
        raise TypeError("must be a tenacity strategy, or a function of a RetryCallState")
    return value


def decide(outcome: Outcome, *, stop: Stop | None, wait: Wait, retry: Retry | None) -> float | None:
    """Say how many seconds to wait before the next attempt, or None where this outcome is final.

    ``stop=None`` never stops; ``retry=None`` has no objection to a next attempt.
    A ``tenacity.TryAgain`` asks for one by itself, as in tenacity.

    Raises:
        ValueError: when ``wait`` answers with NaN or infinity. What a strategy itself raises passes through.
    """
    import tenacity

    state = _call_state(outcome, stop, wait, retry)
    if retry is not None and not isinstance(outcome.error, tenacity.TryAgain) and not retry(state):
        return None
    delay = float(wait(state))
    if not math.isfinite(delay):
        raise ValueError(f"{wait!r} asks to wait {delay} seconds before the next attempt")
    state.upcoming_sleep = max(0.0, delay)
    if stop is not None and stop(state):
        return None
    return state.upcoming_sleep


def _call_state(outcome: Outcome, stop: Stop | None, wait: Wait, retry: Retry | None) -> RetryCallState:
    import tenacity

    given: dict[str, Any] = {name: value for name, value in (("stop", stop), ("retry", retry)) if value is not None}
    state = tenacity.RetryCallState(tenacity.Retrying(wait=wait, **given), None, (), {})
    state.attempt_number = outcome.attempt
    state.start_time = 0.0  # seconds_since_start is then `elapsed` to the last bit
    state.outcome_timestamp = outcome.elapsed
    state.idle_for = outcome.waited
    state.outcome = tenacity.Future(outcome.attempt)
    if outcome.error is None:
        state.outcome.set_result(None)
    else:
        state.outcome.set_exception(outcome.error)
    state.__dict__["failure_times"] = list(outcome.times)
    if outcome.times and outcome.times[-1] == outcome.elapsed:
        state.__dict__["failure_counted"] = outcome.attempt
    return state
