"""Fields that check themselves: what they accept, what they keep, and what they say."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.fields import (
    Checked,
    Converted,
    counts_by_name,
    duration,
    memory_size,
    optional,
    positive_duration,
    positive_number,
    whole_number,
)


@dataclass(frozen=True)
class Box:
    size: Converted[int | str, int] = Converted(memory_size)
    count: Checked[int] = Checked(whole_number(1, 9), 3)
    pause: Checked[float | None] = Checked(optional(duration), None)


def test_a_field_keeps_what_its_converter_makes() -> None:
    box = Box("2KiB", pause=1)
    assert (box.size, box.count, box.pause) == (2048, 3, 1.0)
    assert repr(box) == "Box(size=2048, count=3, pause=1.0)"
    assert box == Box(2048, 3, 1.0)
    assert hash(box) == hash(Box(2048, 3, 1.0))


def test_a_field_survives_pickle_and_replace() -> None:
    box = Box("1MB")
    assert pickle.loads(pickle.dumps(box)) == box
    assert replace(box, count=4) == Box(1_000_000, 4)
    with pytest.raises(ValueError, match="at most 9"):
        replace(box, count=10)


def test_a_field_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Box(1).count = 2  # type: ignore[misc]


def test_a_field_without_a_default_must_be_given() -> None:
    with pytest.raises(TypeError, match="size"):
        Box()


def test_none_is_allowed_where_the_field_is_optional() -> None:
    assert Box(1, pause=None).pause is None
    with pytest.raises(TypeError, match=r"Box\(count=None\): must be a whole number"):
        Box(1, count=None)  # type: ignore[arg-type]


def test_the_message_names_class_field_and_value() -> None:
    with pytest.raises(ValueError, match=r"^Box\(count=0\): must be at least 1$"):
        Box(1, count=0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("100b", 100),
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("2G", 2 * 2**30),
        ("2GB", 2 * 10**9),
        ("512 MB", 512 * 10**6),
        ("1.5k", 1536),
        (".5MiB", 2**19),
        (" 1TiB ", 2**40),
        ("0.1GB", 10**8),
        (4096, 4096),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e9", "2XB", "50%", "1 G iB", "nan", "inf", "1,5GB", "0", "0.1", 0, -5]
)
def test_impossible_sizes_are_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="must be"):
        memory_size(text)


@pytest.mark.parametrize("value", [1.5, 2e9, True, None, b"1G"])
def test_sizes_are_whole_numbers_or_text(value: object) -> None:
    with pytest.raises(TypeError):
        memory_size(value)  # type: ignore[arg-type]


@given(st.integers(1, 10**9), st.sampled_from(["k", "M", "G", "T"]))
def test_sizes_are_exact(number: int, prefix: str) -> None:
    power = "kMGT".index(prefix) + 1
    assert memory_size(f"{number}{prefix}iB") == number * 1024**power
    assert memory_size(f"{number} {prefix}B") == number * 1000**power


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -0.001])
def test_durations_are_finite_and_not_negative(value: float) -> None:
    for convert in (duration, positive_duration, positive_number):
        with pytest.raises(ValueError, match="must"):
            convert(value)


def test_zero_is_a_duration_but_not_a_positive_one() -> None:
    assert duration(0) == 0.0
    for convert in (positive_duration, positive_number):
        with pytest.raises(ValueError, match="more than 0"):
            convert(0)


@pytest.mark.parametrize("value", ["1", b"1", True, None, [1], 1j, 10**400])
def test_durations_are_numbers(value: object) -> None:
    with pytest.raises(TypeError, match="must be a number of seconds"):
        duration(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["1", 1.0, True, None, 1.5])
def test_whole_numbers_are_ints(value: object) -> None:
    with pytest.raises(TypeError, match="must be a whole number"):
        whole_number(0)(value)  # type: ignore[arg-type]


def test_numpy_integers_are_ints() -> None:
    numpy = pytest.importorskip("numpy")
    kept = whole_number(1)(numpy.int64(5))
    assert type(kept) is int
    assert kept == 5


def test_counts_are_copied() -> None:
    given_counts = {"gpu": 2}
    kept = counts_by_name(given_counts)
    given_counts["gpu"] = 99
    assert kept == {"gpu": 2}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"gpu": 0}, ValueError),
        ({"gpu": -1}, ValueError),
        ({"gpu": 0.5}, TypeError),
        ({"gpu": "1"}, TypeError),
        ({1: 1}, TypeError),
        ({"": 1}, TypeError),
        ([("gpu", 1)], TypeError),
        (None, TypeError),
    ],
)
def test_impossible_counts_are_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        counts_by_name(value)  # type: ignore[arg-type]
