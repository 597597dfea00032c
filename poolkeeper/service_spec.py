"""What a service and a group of services are declared to be; checked once, when declared. Pure."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from inspect import iscoroutinefunction
from typing import Any, Literal

from .errors import PoolkeeperError
from .fields import Checked, Converted, optional, part_name, positive_duration, whole_number
from .policy import RestartPolicy, WorkerPolicy

__all__ = ["DeclarationError", "ServiceGroup", "ServiceSpec", "Strategy", "check_order"]

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
OnGiveUp = Literal["ignore", "stop-fleet"]

SIGTERM = 15

_OURS = re.compile(r"keeper|output|worker-\d+")
"""Names of the logs of a keeper, of a fleet without a terminal, and of workers."""

_CANNOT_ASK = frozenset({19, 32, 33})
"""SIGSTOP, and what the C library keeps to itself; the numbers of Linux."""


class DeclarationError(PoolkeeperError, ValueError):
    """Services are declared in a way that cannot work; nothing has started."""


def _one_of(*words: str) -> Callable[[Any], Any]:
    def converter(value: Any) -> Any:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(map(repr, words))}")
        return value

    return converter


def service_name(value: Any) -> str:
    """Check the name of a service: its log, its process's entry in the pidfile and ``poolkeeper stack`` go by it."""
    name = part_name(value)
    if _OURS.fullmatch(name):
        raise ValueError("is what the keeper calls a part of its own, whose log it would share")
    return name


def _target(value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError("must be callable")
    if iscoroutinefunction(value) or iscoroutinefunction(getattr(value, "__call__", None)):  # noqa: B004 - its code is asked
        raise TypeError("is a coroutine function; give a plain one that calls asyncio.run")
    return value  # type: ignore[no-any-return]


def _stop_signal(value: Any) -> int:
    number = whole_number(1, 64)(value)
    if number in _CANNOT_ASK:
        raise ValueError("is no signal by which a process can be asked to end")
    return number


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"must be a list of names, as [{value!r}]")
    names = tuple(value)
    if len(set(names)) < len(names):
        raise ValueError("names a service twice")
    return names


def _count(value: Any) -> int:
    return whole_number(0)(value)


@dataclass(frozen=True)
class ServiceGroup:
    """Services that share their fate, as under a supervisor of OTP.

    Args:
        name: letters, digits, ``_``, ``.`` and ``-``.
        strategy: whom the restart of one takes along: nobody (``one_for_one``), all (``one_for_all``), or those that
            were declared after it (``rest_for_one``; there each starts after the one before it).
        max_restarts: how many restarts within ``within`` seconds the group stands; one more and it has failed. None:
            any number.
        within: seconds.
        parent: the group that this one belongs to. A failed group is restarted as a whole by its parent's strategy, and
            counts there as one restart; without a parent it has failed for good.
        on_give_up: what happens then: nothing else ("ignore"), or the whole fleet stops ("stop-fleet").

    Raises:
        ValueError, TypeError: for an argument that makes no sense.

    Source: OTP's supervisor behaviour (intensity and period, its three static strategies).
    """

    name: Checked[str] = Checked(part_name)
    strategy: Checked[Strategy] = Checked(_one_of("one_for_one", "one_for_all", "rest_for_one"), "one_for_one")
    max_restarts: Checked[int | None] = Checked(optional(_count), 3)
    within: Checked[float] = Checked(positive_duration, 5.0)
    parent: ServiceGroup | None = None
    on_give_up: Checked[OnGiveUp] = Checked(_one_of("ignore", "stop-fleet"), "stop-fleet")

    def __post_init__(self) -> None:
        if self.parent is not None and not isinstance(self.parent, ServiceGroup):
            raise TypeError(f"ServiceGroup(parent={self.parent!r}): must be a ServiceGroup")
        around = self.parent
        while around is not None:
            if around.name == self.name:
                raise DeclarationError(f"group {self.name!r} is within a group of the same name")
            around = around.parent


@dataclass(frozen=True, eq=False)
class ServiceSpec:
    """A service as declared.

    Args:
        name: letters, digits, ``_``, ``.`` and ``-``.
        target: what runs; it is called with ``args`` and ``kwargs`` in a process of its own.
        restart: a RestartPolicy, or its ``when``.
        replicas: how many processes run it.
        ready: "start": as soon as it is called; "notify": when it says so by ``context().ready()``.
        watchdog: seconds within which each ``context().heartbeat()`` must follow the one before; None: no need to.
        start_timeout: seconds until it must be ready.
        stop_timeout: seconds from the stop signal until it is killed with all its descendants.
        after: the names of the services that must be ready before it starts.
        priority: when many are to start, higher goes first.
        worker: limits of its process.
        on_give_up: once the restart policy is exhausted: "ignore", or "stop-fleet".
        stop_signal: the number of the signal that asks it to end.
        group: the group that it belongs to.
        overlap: whether, in an upgrade, the new process gets ready before the old one is stopped.

    Raises:
        ValueError, TypeError: for an argument that makes no sense.
    """

    name: Checked[str] = Checked(service_name)
    target: Checked[Callable[..., Any]] = Checked(_target)
    args: Converted[Iterable[Any], tuple[Any, ...]] = Converted(tuple, ())
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    restart: Converted[RestartPolicy | str, RestartPolicy] = Converted(RestartPolicy.of, "always")
    replicas: Checked[int] = Checked(_count, 1)
    ready: Checked[Literal["start", "notify"]] = Checked(_one_of("start", "notify"), "start")
    watchdog: Checked[float | None] = Checked(optional(positive_duration), None)
    start_timeout: Checked[float | None] = Checked(optional(positive_duration), 30.0)
    stop_timeout: Checked[float] = Checked(positive_duration, 10.0)
    after: Converted[Iterable[str], tuple[str, ...]] = Converted(_names, ())
    priority: Checked[int] = Checked(whole_number(), 0)
    worker: WorkerPolicy = field(default_factory=WorkerPolicy)
    on_give_up: Checked[OnGiveUp] = Checked(_one_of("ignore", "stop-fleet"), "ignore")
    stop_signal: Checked[int] = Checked(_stop_signal, SIGTERM)
    group: ServiceGroup | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.overlap, bool):
            raise TypeError(f"ServiceSpec(overlap={self.overlap!r}): must be True or False")
        if not isinstance(self.worker, WorkerPolicy):
            raise TypeError(f"ServiceSpec(worker={self.worker!r}): must be a WorkerPolicy")
        if self.worker.max_tasks is not None:
            raise ValueError("WorkerPolicy(max_tasks=...) is for tasks: a service has none")
        if self.group is not None and not isinstance(self.group, ServiceGroup):
            raise TypeError(f"ServiceSpec(group={self.group!r}): must be a ServiceGroup")
        if self.name in self.after:
            raise DeclarationError(f"service {self.name!r} is after itself")


def check_order(after: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the names of ``after``, each behind those that it is after, and otherwise in the order they have there.

    Raises:
        DeclarationError: for names that are not there, and for a circle.
    """
    before = {name: tuple(others) for name, others in after.items()}
    for name, others in before.items():
        for other in others:
            if other not in before:
                known = ", ".join(sorted(before)) or "none"
                raise DeclarationError(f"service {name!r} is after {other!r}, which is no service (there are: {known})")
    sorter = TopologicalSorter(before)
    try:
        sorter.prepare()
    except CycleError as error:
        raise DeclarationError(f"services go in a circle: {' before '.join(error.args[1])}") from None
    place = {name: number for number, name in enumerate(before)}
    names = list(before)
    free: list[int] = []
    order: list[str] = []
    while len(order) < len(names):
        for name in sorter.get_ready():
            heapq.heappush(free, place[name])
        order.append(names[heapq.heappop(free)])
        sorter.done(order[-1])
    return order
