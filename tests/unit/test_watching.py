"""When changed source files are acted on."""

from __future__ import annotations

import os
from pathlib import Path

from poolkeeper.sources import SourceCheck, changed_sources, current_sources
from poolkeeper.watching import Change
from tests.helpers import wait_until


def test_nothing_has_changed() -> None:
    change = Change()
    assert [change.settled({}) for _ in range(3)] == [False, False, False]


def test_what_still_changes_is_waited_for_and_acted_on_once() -> None:
    change = Change()
    looks = [{"a": (1, 1)}, {"a": (2, 5)}, {"a": (2, 5), "b": (2, 1)}, {"a": (2, 5), "b": (2, 1)}]
    assert [change.settled(look) for look in looks] == [False, False, False, True]
    assert [change.settled(looks[-1]) for _ in range(3)] == [False, False, False]


def test_after_a_refusal_only_another_change_counts() -> None:
    change = Change()
    broken, mended = {"a": (2, 5)}, {"a": (3, 5)}
    assert [change.settled(look) for look in (broken, broken, broken, mended, mended)] == [
        False, True, False, False, True,
    ]  # fmt: skip


def test_who_takes_back_a_change_and_makes_it_again_is_heard() -> None:
    change = Change()
    looks: list[dict[str, tuple[int, int]]] = [{"a": (2, 5)}, {"a": (2, 5)}, {}, {}, {"a": (2, 5)}, {"a": (2, 5)}]
    assert [change.settled(look) for look in looks] == [False, True, False, False, False, True]


def test_files_are_told_by_time_and_size(tmp_path: Path) -> None:
    one, other, gone = tmp_path / "one.py", tmp_path / "other.py", tmp_path / "gone.py"
    for path in (one, other, gone):
        path.write_text("pass")
    known = current_sources(map(str, (one, other, gone)))
    assert changed_sources(known) == []
    gone.unlink()
    os.utime(other, ns=(1, 1))
    assert changed_sources(known) == [str(other), str(gone)]
    assert current_sources([str(gone)]) == {str(gone): (-1, -1)}


def test_many_processes_may_ask_about_the_same_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    for path in (one, other):
        path.write_text("x = 1\n")
    check, known = SourceCheck(), current_sources([str(one)])
    assert check.changed(known) == []
    assert check.changed({**known, **current_sources([str(other)])}) == []
    one.write_text("x = 12\n")
    wait_until(lambda: check.changed(known) == [str(one)], "the next look")
