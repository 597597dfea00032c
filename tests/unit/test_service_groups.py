"""Groups as OTP means them: whom a restart takes along, when a group fails, and what its failure is to its parent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.replica import Service
from poolkeeper.service_groups import Groups
from poolkeeper.service_spec import DeclarationError, ServiceGroup, ServiceSpec

ONE, ALL, REST = "one_for_one", "one_for_all", "rest_for_one"


def group(name: str, strategy: str = ONE, **more: Any) -> ServiceGroup:
    return ServiceGroup(name, strategy, **more)  # type: ignore[arg-type]


def joined(groups: Groups, *places: tuple[str, ServiceGroup | None]) -> dict[str, Service]:
    services = {name: Service(ServiceSpec(name, print, group=place)) for name, place in places}
    for service in services.values():
        service.after = groups.join(service)
    return services


def names(services: list[Service]) -> str:
    return "".join(service.name for service in services)


@pytest.mark.parametrize(("strategy", "along"), [(ONE, ""), (ALL, "abc"), (REST, "c")])
def test_whom_a_restart_takes_along(strategy: str, along: str) -> None:
    groups = Groups()
    web = group("web", strategy)
    services = joined(groups, ("a", web), ("b", web), ("c", web), ("x", None))
    verdict = groups.restart(services["b"], 0.0)
    assert (names(verdict.along), verdict.failed) == (along, [])
    assert verdict.group is groups.of(services["b"])


def test_without_a_group_nobody_comes_along_and_nothing_fails() -> None:
    groups = Groups()
    services = joined(groups, ("x", None))
    verdict = groups.restart(services["x"], 0.0)
    assert (verdict.along, verdict.failed, verdict.group) == ([], [], None)


def test_a_group_fails_at_one_restart_too_many_and_starts_afresh() -> None:
    groups = Groups()
    service = joined(groups, ("a", group("web", max_restarts=2, within=5)))["a"]
    assert [bool(groups.restart(service, now).failed) for now in (0, 1, 2, 3, 4, 5)] == [
        False, False, True, False, False, True,
    ]  # fmt: skip


def test_restarts_far_enough_apart_are_stood_for_ever() -> None:
    groups = Groups()
    service = joined(groups, ("a", group("web", max_restarts=1, within=5)))["a"]
    assert not any(groups.restart(service, 5.1 * n).failed for n in range(100))


def test_nobody_comes_back_where_no_restart_is_allowed() -> None:
    groups = Groups()
    services = joined(groups, ("a", group("web", max_restarts=0)), ("b", group("any", max_restarts=None)))
    verdict = groups.restart(services["a"], 0.0)
    assert verdict.group is None
    assert [(failed.name, reason) for failed, reason in verdict.failed] == [
        ("web", "group web: more than 0 restarts within 5 s")
    ]
    assert not any(groups.restart(services["b"], 0.0).failed for _ in range(1000))


@pytest.mark.parametrize(("strategy", "along"), [(ONE, "bc"), (ALL, "abcd"), (REST, "bcd")])
def test_a_failed_group_is_a_failed_child_of_its_parent(strategy: str, along: str) -> None:
    groups = Groups()
    outer = group("outer", strategy)
    inner = group("inner", max_restarts=0, parent=outer)
    services = joined(groups, ("a", outer), ("b", inner), ("c", inner), ("d", outer))
    verdict = groups.restart(services["b"], 0.0)
    assert [failed.name for failed, _ in verdict.failed] == ["inner"]
    assert verdict.group is not None
    assert (verdict.group.name, names(verdict.along)) == ("outer", along)


def test_the_failure_of_the_outermost_group_is_final_for_all_within() -> None:
    groups = Groups()
    outer = group("outer", max_restarts=0)
    inner = group("inner", max_restarts=0, parent=outer)
    services = joined(groups, ("a", outer), ("b", inner))
    verdict = groups.restart(services["b"], 0.0)
    assert [failed.name for failed, _ in verdict.failed] == ["inner", "outer"]
    assert (verdict.group, names(verdict.along)) == (None, "ab")


def test_rest_for_one_orders_its_children_groups_included() -> None:
    groups = Groups()
    line = group("line", REST)
    inner, inner_line = group("inner", parent=line), group("inner-line", REST, parent=line)
    places = [("a", line), ("b", inner), ("c", inner), ("d", line), ("e", inner_line), ("f", inner_line)]
    services = joined(groups, *places)
    after = {name: sorted(other.name for other in service.after) for name, service in services.items()}
    assert after == {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["d"], "f": ["d", "e"]}


def test_one_name_is_one_group() -> None:
    groups = Groups()
    services = joined(groups, ("a", group("web")), ("b", group("web")))
    assert groups.of(services["a"]) is groups.of(services["b"])
    with pytest.raises(DeclarationError, match="two different groups named 'web'"):
        joined(groups, ("c", group("web", ALL)))
    with pytest.raises(DeclarationError, match="two different groups named 'web'"):
        joined(groups, ("d", group("inner", parent=group("web", ALL))))
    assert groups.of(services["a"]).children == [services["a"], services["b"]]  # type: ignore[union-attr]


@given(st.lists(st.floats(0, 10), max_size=40), st.integers(0, 5), st.floats(0.5, 20))
def test_intensity_is_otps(pauses: list[float], allowed: int, within: float) -> None:
    """OTP's add_restart: put the moment in front, drop those older than the period, compare the length."""
    groups = Groups()
    service = joined(groups, ("a", group("web", max_restarts=allowed, within=within)))["a"]
    now, restarts = 0.0, list[float]()
    for pause in pauses:
        now += pause
        restarts = [moment for moment in [now, *restarts] if now - moment <= within]
        failed = len(restarts) > allowed
        assert bool(groups.restart(service, now).failed) is failed
        if failed:
            restarts = []
