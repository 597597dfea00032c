"""The hand-over between two programs in one process: written by one version, read by another, or by a stranger."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.handover import HandedKeeper, Handover, PastReexec, encode, parse

names = st.text(min_size=1).filter(lambda text: "\0" not in text and text.isprintable())
descriptors = st.integers(0, 2**20)
keepers = (
    st.tuples(names, names, names, descriptors) | st.tuples(names, names, names, descriptors, descriptors, names)
).map(lambda fields: HandedKeeper(*fields))
handovers = st.tuples(
    st.integers(1, 2**22),
    st.lists(keepers, max_size=3).map(tuple),
    st.lists(st.builds(PastReexec, st.floats(0, 1e9), st.booleans()), max_size=3).map(tuple),
    st.lists(st.integers(1, 64), max_size=3).map(tuple),
).map(lambda fields: Handover(*fields))

MINIMAL = {"pid": 7, "version": 1}
KEEPER = {"name": "etl", "run_id": "default", "folder": "/home/etl/default", "lock": 5}


@given(handovers)
def test_what_is_written_is_read(handover: Handover) -> None:
    assert parse(encode(handover)) == handover


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_garbage_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse(text)


def test_unknown_keys_are_ignored_and_missing_ones_have_defaults() -> None:
    later = {**MINIMAL, "version": 9, "mood": "good", "keepers": [{**KEEPER, "colour": "red"}]}
    assert parse(json.dumps(later)) == Handover(7, (HandedKeeper(*KEEPER.values()),), version=9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": 0},
        {"pid": True},
        {"pid": "7"},
        {"pid": 2**40},
        {"version": None},
        {"keepers": {}},
        {"keepers": [7]},
        {"keepers": [{**KEEPER, "lock": -1}]},
        {"keepers": [{**KEEPER, "name": ""}]},
        {"keepers": [{**KEEPER, "folder": "a\0b"}]},
        {"keepers": [{**KEEPER, "socket": 3}]},
        {"history": [1.0]},
    ],
)
def test_what_names_no_process_or_descriptor_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse(json.dumps({**MINIMAL, **wrong}))


def test_a_history_that_makes_no_sense_is_forgotten() -> None:
    read = parse(json.dumps({**MINIMAL, "history": [{"at": "noon"}, {"at": 5, "automatic": 1}], "held": [0, "x", 15]}))
    assert read.history == (PastReexec(5.0, False),)
    assert read.held == (15,)


def test_a_text_that_is_too_long_is_not_even_looked_at() -> None:
    with pytest.raises(ValueError, match="characters"):
        parse(" " * 100_000 + json.dumps(MINIMAL))
