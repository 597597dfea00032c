"""The document by which services go from one keeper to the next: whole where it makes sense, never a reason to fail."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.policy import RestartRecord
from poolkeeper.replica import Ending
from poolkeeper.service_handover import EXITS_LEFT, GroupRecord, Handover, ReplicaRecord, ServiceRecord
from poolkeeper.service_model import ExitReason, ServiceExit, ServiceState

moments = st.floats(-1e12, 1e12)
seconds = st.floats(0, 1e9)
counts = st.integers(0, 2**40)
texts = st.text(max_size=9)
exits = st.builds(
    ServiceExit,
    reason=st.sampled_from(ExitReason),
    pid=st.none() | st.integers(1, 2**22),
    attempt=counts,
    started=moments,
    ended=moments,
    exitcode=st.none() | st.integers(-64, 255),
    message=texts,
    detail=texts,
    out_of_memory=st.sampled_from(["yes", "likely", "no"]),
)
restart_records = st.just(RestartRecord()) | st.builds(
    RestartRecord, exits=st.integers(1, 100), since=moments, waited=seconds, times=st.lists(moments).map(tuple)
)
replicas = st.builds(
    ReplicaRecord,
    number=st.integers(0, 1000),
    state=st.sampled_from(ServiceState),
    up=st.booleans(),
    removed=st.booleans(),
    attempt=counts,
    restarts=counts,
    detail=texts,
    launched=st.none() | moments,
    ready_at=st.none() | moments,
    healthy=seconds,
    due=st.none() | moments,
    due_in=seconds,
    hold=st.none() | moments,
    hold_in=seconds,
    ending=st.none() | st.sampled_from(Ending),
    forced=st.booleans(),
    why=texts,
    leaving=texts,
    record=restart_records,
    exits=st.lists(exits, max_size=EXITS_LEFT).map(tuple),
)
services = st.builds(
    ServiceRecord,
    name=st.text(min_size=1, max_size=9),
    wanted=st.booleans(),
    declared=st.integers(0, 1000),
    count=st.integers(0, 1000),
    stop_signal=st.integers(1, 64),
    stop_timeout=st.floats(0, 1000),
    epoch=st.none() | moments,
    replicas=st.lists(replicas, max_size=3, unique_by=lambda replica: replica.number).map(
        lambda several: tuple(sorted(several, key=lambda replica: replica.number))
    ),
)
groups = st.builds(
    GroupRecord,
    name=st.text(min_size=1, max_size=9),
    epoch=st.none() | moments,
    restarts=st.lists(moments, max_size=3).map(tuple),
)
handovers = st.builds(
    Handover,
    services=st.lists(services, max_size=3, unique_by=lambda service: service.name).map(tuple),
    groups=st.lists(groups, max_size=3).map(tuple),
)
anything: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def reread(data: Any) -> Handover:
    return Handover.from_data(json.loads(json.dumps(data)))


def records_in(data: Any) -> list[dict[str, Any]]:
    """Return the document and every record in it."""
    found = []
    todo = [data]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            found.append(one)
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
    return found


@given(handovers)
def test_round_trip(handover: Handover) -> None:
    assert reread(handover.to_data()) == handover


@given(handovers, st.text(), anything)
def test_unknown_keys_are_ignored(handover: Handover, key: str, value: Any) -> None:
    data = handover.to_data()
    for record in records_in(data):
        record["x" + key] = value
    assert reread(data) == handover


@given(handovers, anything, st.data())
def test_no_value_is_a_reason_to_fail_or_to_believe_what_cannot_be(
    handover: Handover, value: Any, draw: st.DataObject
) -> None:
    data = handover.to_data()
    record = draw.draw(st.sampled_from(records_in(data)))
    key = draw.draw(st.sampled_from(sorted(record)))
    if draw.draw(st.booleans()):
        record[key] = value
    else:
        del record[key]
    for service in reread(data).services:
        for replica in service.replicas:
            assert replica.attempt >= 0
            assert replica.restarts >= 0
            assert 0 <= replica.due_in < math.inf
            assert all(exit.seconds >= 0 for exit in replica.exits)
            assert (replica.record.since is None) == (not replica.record.exits)


@given(handovers, anything)
def test_garbage_among_services_costs_no_other(handover: Handover, garbage: Any) -> None:
    data = handover.to_data()
    if isinstance(garbage, dict):
        garbage.pop("name", None)
    data["services"].insert(0, garbage)
    for service in data["services"][1:]:
        service["replicas"].append(garbage)
    found = reread(data)
    assert [service.name for service in found.services] == [service.name for service in handover.services]
    assert found == handover


@given(anything)
def test_no_document_is_an_empty_one(garbage: Any) -> None:
    assert Handover.from_data(garbage).to_data()["version"] == 1


def test_it_is_small() -> None:
    """A hundred services are written down whenever one of them changes."""
    exit = ServiceExit(ExitReason.RAISED, 1234, 5, 1.7e9, 1.7e9, 1, "ValueError: no", "x" * 100_000)
    replica = ReplicaRecord(0, ServiceState.RUNNING, exits=(exit,))
    assert len(json.dumps(Handover((ServiceRecord("web", replicas=(replica,)),)).to_data())) < 4000
