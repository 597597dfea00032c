"""Declarations: what they leave alone, and what is wrong with them before anything runs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from poolkeeper.fleet import BatchSpec, Fleet, FleetError
from poolkeeper.policy import ExecutionPolicy


def order_of(fleet: Fleet) -> list[str]:
    order, names = fleet.plan(), []
    while order.is_active():
        ready = order.get_ready()
        names += ready
        order.done(*ready)
    return names


class TestDeclaration:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"durability": "disk"}, ValueError, "durability='disk' must be one of 'process', 'power'"),
            ({"keep_runs": 0}, ValueError, "keep_runs=0 must be at least 1"),
            ({"keep_runs": "3"}, TypeError, "keep_runs='3' must be a whole number"),
            ({"orphan_grace": -1}, ValueError, "orphan_grace=-1 must be a number of seconds"),
            ({"reconnect_grace": -1}, ValueError, "reconnect_grace=-1 must be a number of seconds"),
            ({"orphan_grace": None}, TypeError, "orphan_grace=None must be a number of seconds"),
        ],
    )
    def test_how_durable_it_is_is_checked_as_a_keeper_does(
        self, given: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=re.escape(message)):
            Fleet("census", **given)

    def test_functions_stay_what_they_are(self) -> None:
        fleet = Fleet("census")

        def parse(path: str) -> str:
            return path.upper()

        def report(parsed: Any) -> None: ...

        assert fleet.batch(items=[1])(parse) is parse
        assert fleet.step(after=parse)(report) is report
        assert parse("a") == "A"
        assert list(fleet.parts) == ["parse", "report"]

    def test_a_batch_remembers_what_it_was_told(self) -> None:
        fleet = Fleet("census")
        policy = ExecutionPolicy(concurrency=2)
        fleet.batch(items=[1, 2], policy=policy, key=str, name="other")(abs)
        spec = fleet.parts["other"]
        assert isinstance(spec, BatchSpec)
        assert (spec.function, spec.items, spec.policy, spec.key) == (abs, [1, 2], policy, str)

    def test_a_step_needs_no_parentheses(self) -> None:
        fleet = Fleet("census")

        @fleet.step
        def report() -> None: ...

        assert list(fleet.parts) == ["report"]

    @pytest.mark.parametrize("name", ["", "a b", "../x", ".hidden", "-x", "a/b", "x" * 101, None])
    def test_a_name_that_cannot_be_a_folder_is_refused(self, name: str) -> None:
        with pytest.raises(FleetError, match="cannot name a fleet"):
            Fleet(name)

    def test_a_lambda_needs_a_name(self) -> None:
        with pytest.raises(FleetError, match=re.escape("'<lambda>' cannot name a batch")):
            Fleet("census").batch(items=[])(lambda item: item)

    def test_names_are_used_once(self) -> None:
        fleet = Fleet("census")
        fleet.batch(items=[])(abs)
        with pytest.raises(FleetError, match="a part named 'abs' already"):
            fleet.step(abs)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"items": 3},
            {"items": "abc"},
            {"items": [], "policy": 1},
            {"items": [], "key": "id"},
            {"items": [], "allow_failures": OSError()},
        ],
    )
    def test_wrong_types_are_refused_at_the_decorator(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            Fleet("census").batch(**arguments)

    def test_only_functions_can_be_parts(self) -> None:
        with pytest.raises(TypeError, match="must be a function"):
            Fleet("census").step()(3)  # type: ignore[type-var]

    def test_after_something_that_is_no_part_is_refused(self) -> None:
        with pytest.raises(FleetError, match="no such part"):
            Fleet("census").step(after=abs)(max)


class TestPlan:
    def test_parts_come_after_what_they_are_after(self) -> None:
        fleet = Fleet("census")
        fleet.step(after=["second", "first"], name="third")(lambda second, first: None)
        fleet.batch(items=[], after="first", name="second")(abs)
        fleet.batch(items=[], name="first")(abs)
        assert order_of(fleet) == ["first", "second", "third"]

    def test_an_empty_fleet_has_nothing_to_run(self) -> None:
        with pytest.raises(FleetError, match="nothing to run"):
            Fleet("census").plan()

    def test_unknown_names_are_found(self) -> None:
        fleet = Fleet("census")
        fleet.step(after="parze", name="report")(lambda parsed: None)
        with pytest.raises(FleetError, match=r"'report' is after 'parze', .* \(it has report\)"):
            fleet.plan()

    def test_circles_are_found(self) -> None:
        fleet = Fleet("census")
        fleet.batch(items=[], after="b", name="a")(abs)
        fleet.batch(items=[], after="a", name="b")(abs)
        with pytest.raises(FleetError, match=r"in a circle: (a before b before a|b before a before b)"):
            fleet.plan()

    def test_a_part_cannot_be_named_twice(self) -> None:
        fleet = Fleet("census")
        fleet.batch(items=[])(abs)
        with pytest.raises(FleetError, match="named twice"):
            fleet.step(after=["abs", abs], name="report")(max)

    def test_a_step_must_take_what_it_gets(self) -> None:
        fleet = Fleet("census")
        fleet.batch(items=[])(abs)
        fleet.step(after=abs, name="report")(lambda: None)
        with pytest.raises(FleetError, match=r"step 'report' gets 1 argument, .* too many positional arguments"):
            fleet.plan()

    def test_items_must_take_what_they_get(self) -> None:
        fleet = Fleet("census")
        fleet.batch(items=lambda parsed: [])(abs)
        with pytest.raises(FleetError, match="its items take 1 argument, but it is after no parts"):
            fleet.plan()


class TestItems:
    @staticmethod
    def spec(items: Any, *after: str) -> BatchSpec:
        return BatchSpec("b", abs, items, ExecutionPolicy(), after=after)

    def test_an_iterable_is_used_as_it_is(self) -> None:
        items = [1]
        assert self.spec(items).make_items([]) is items

    def test_a_callable_is_called_when_the_batch_starts(self) -> None:
        assert self.spec(lambda: [1]).make_items([]) == [1]

    def test_a_callable_gets_the_outcomes_it_requires(self) -> None:
        assert self.spec(lambda one, two: [one, two], "a", "b").make_items(["x", "y"]) == ["x", "y"]

    def test_defaults_are_not_outcomes(self) -> None:
        assert self.spec(lambda root="here": [root], "a").make_items(["x"]) == ["here"]
