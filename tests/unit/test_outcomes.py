"""Outcomes, packed and sealed: what goes in comes out, and nothing else does."""

from __future__ import annotations

import pickle
from itertools import count, pairwise, starmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.messages import Code
from poolkeeper.outcomes import Columns, Outcome, Torn, grouped, pack, seal, unpack_body, unpack_head, unseal, weight

KEY = bytes(32)

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
outcomes = st.builds(
    Outcome,
    batch=st.integers(1, 10),
    identity=st.text() | st.integers(0),
    arguments=st.none() | st.text(),
    code=st.sampled_from([int(Code.VALUE), int(Code.PICKLED), int(Code.EXCEPTION)]),
    attempts=st.integers(0, 9),
    deaths=st.integers(0, 9),
    seconds=st.none() | st.floats(0, 1e9),
    payload=plain,
)


@given(st.lists(outcomes, min_size=1))
def test_what_is_packed_can_be_unpacked(given: list[Outcome]) -> None:
    head, body = pack(Columns.of(given), KEY)
    payloads = unpack_body(body, KEY)
    restored = [
        outcome._replace(payload=payload) for outcome, payload in zip(unpack_head(head, KEY), payloads, strict=True)
    ]
    assert restored == given


@given(st.lists(outcomes, min_size=1, max_size=3), st.data())
def test_a_changed_byte_is_noticed(given: list[Outcome], data: st.DataObject) -> None:
    for blob, unpack in zip(pack(Columns.of(given), KEY), (unpack_head, unpack_body), strict=True):
        at = data.draw(st.integers(0, len(blob) - 1))
        torn = blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :]
        with pytest.raises(Torn):
            unpack(torn, KEY)


@given(st.binary(), st.data())
def test_so_is_a_missing_end(content: bytes, data: st.DataObject) -> None:
    blob = seal(content, KEY)
    assert unseal(blob, KEY) == content
    with pytest.raises(Torn):
        unseal(blob[: data.draw(st.integers(0, len(blob) - 1))], KEY)


@pytest.mark.parametrize("blob", [None, "text", 7, b"", b"short"])
def test_what_is_no_record_is_refused(blob: Any) -> None:
    with pytest.raises(Torn):
        unpack_head(blob, KEY)


def test_the_key_decides() -> None:
    with pytest.raises(Torn):
        unseal(seal(b"content", KEY), bytes([1]) * 32)


def test_what_is_sealed_and_makes_no_sense_is_refused() -> None:
    for content in (b"no pickle", pickle.dumps(7), pickle.dumps([7]), pickle.dumps([(1, 2)])):
        with pytest.raises(Torn):
            unpack_head(seal(content, KEY), KEY)


def test_an_arena_comes_back_writable() -> None:
    content = memoryview(b"abc")
    outcome = Outcome(1, 0, None, int(Code.ARENA), 1, 0, 0.5, (b"pickle", [content, memoryview(b"")]))
    _, body = pack(Columns.of([outcome]), KEY)
    ((pickled, parts),) = unpack_body(body, KEY)
    assert (pickled, [bytes(part) for part in parts]) == (b"pickle", [b"abc", b""])
    parts[0][0] = 0
    assert weight(outcome.payload) == 9


@given(st.lists(st.lists(st.integers(0, 50))), st.integers(1, 100))
def test_groups_are_cut_where_they_are_full(sizes: list[list[int]], limit: int) -> None:
    at = count()
    gathered = [[Outcome(1, next(at), None, 1, 1, 0, None, bytes(size)) for size in sizes] for sizes in sizes]
    columns = grouped(map(Columns.of, gathered), limit)
    groups = [list(starmap(Outcome, zip(*group, strict=True))) for group in columns]
    assert [outcome for group in groups for outcome in group] == [outcome for some in gathered for outcome in some]
    for group, following in pairwise(groups):
        held = sum(len(outcome.payload) for outcome in group)
        assert len(group) == 1 or held <= limit
        assert held + len(following[0].payload) > limit
