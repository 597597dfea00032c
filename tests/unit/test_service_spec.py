"""Declarations of services: what is refused, and in which order they are taken on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.policy import RestartPolicy, WorkerPolicy
from poolkeeper.service_spec import DeclarationError, ServiceGroup, ServiceSpec, check_order


async def coroutine() -> None:
    """A target that nobody would await."""


class AsyncCallable:
    async def __call__(self) -> None:
        """Likewise."""


def test_a_word_stands_for_a_policy() -> None:
    spec = ServiceSpec("web", print, restart="on-failure")
    assert spec.restart == RestartPolicy("on-failure")
    assert ServiceSpec("web", print).restart.when == "always"


def test_arguments_are_kept_as_given_once() -> None:
    spec = ServiceSpec("web", print, args=iter([1, 2]), after=["db", "cache"])
    assert (spec.args, spec.after) == ((1, 2), ("db", "cache"))


@pytest.mark.parametrize("name", ["keeper-2", "my-keeper", "worker", "worker-web", "worker-1.5", "outputs"])
def test_names_that_are_like_those_of_the_keepers_parts(name: str) -> None:
    assert ServiceSpec(name, print).name == name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "a/b"}, ValueError, "use letters"),
        ({"name": "keeper"}, ValueError, "a part of its own"),
        ({"name": "output"}, ValueError, "a part of its own"),
        ({"name": "worker-12"}, ValueError, "a part of its own"),
        ({"target": 5}, TypeError, "must be callable"),
        ({"target": coroutine}, TypeError, "asyncio.run"),
        ({"target": AsyncCallable()}, TypeError, "asyncio.run"),
        ({"restart": "sometimes"}, ValueError, "must be one of"),
        ({"restart": 3}, TypeError, "RestartPolicy"),
        ({"replicas": -1}, ValueError, "replicas=-1"),
        ({"ready": "soon"}, ValueError, "must be one of 'start', 'notify'"),
        ({"watchdog": 0}, ValueError, "watchdog=0"),
        ({"start_timeout": -1}, ValueError, "start_timeout"),
        ({"stop_timeout": None}, TypeError, "stop_timeout"),
        ({"after": "db"}, TypeError, r"as \['db'\]"),
        ({"after": ["db", "db"]}, ValueError, "twice"),
        ({"after": ["web"]}, DeclarationError, "is after itself"),
        ({"worker": {}}, TypeError, "must be a WorkerPolicy"),
        ({"worker": WorkerPolicy(max_tasks=3)}, ValueError, "a service has none"),
        ({"on_give_up": "panic"}, ValueError, "stop-fleet"),
        ({"stop_signal": 0}, ValueError, "stop_signal"),
        ({"stop_signal": 19}, ValueError, "asked to end"),
        ({"stop_signal": 32}, ValueError, "asked to end"),
        ({"group": "web"}, TypeError, "must be a ServiceGroup"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ServiceSpec(**{"name": "web", "target": print, **arguments})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ServiceGroup("a", strategy="one_for_two"), ValueError, "one_for_one"),  # type: ignore[arg-type]
        (lambda: ServiceGroup("a", max_restarts=-1), ValueError, "max_restarts"),
        (lambda: ServiceGroup("a", within=0), ValueError, "within"),
        (lambda: ServiceGroup("a", parent="b"), TypeError, "must be a ServiceGroup"),  # type: ignore[arg-type]
        (lambda: ServiceGroup("a", parent=ServiceGroup("a")), DeclarationError, "of the same name"),
    ],
)
def test_groups_that_make_no_sense_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_order_keeps_the_declared_one_as_far_as_it_can() -> None:
    assert check_order({"a": [], "b": ["a"], "c": []}) == ["a", "b", "c"]
    assert check_order({"a": ["c"], "b": [], "c": []}) == ["b", "c", "a"]


def test_unknown_names_are_named() -> None:
    with pytest.raises(DeclarationError, match=r"'web' is after 'db', which is no service \(there are: cache, web\)"):
        check_order({"web": ["db"], "cache": []})


def test_a_circle_is_shown() -> None:
    with pytest.raises(DeclarationError, match="a before b before a|b before a before b"):
        check_order({"a": ["b"], "b": ["a"], "c": []})


@given(st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=10), st.randoms())
def test_each_comes_behind_what_it_is_after(edges: list[set[int]], random: Any) -> None:
    after = {f"s{n}": [f"s{other}" for other in others if other < n] for n, others in enumerate(edges)}
    names = list(after)
    random.shuffle(names)
    shuffled = {name: iter(after[name]) for name in names}
    order = check_order(shuffled)
    assert sorted(order) == sorted(after)
    assert all(order.index(other) < order.index(name) for name, others in after.items() for other in others)
