"""What a worker leaves behind is found again, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from loguru import logger

from poolkeeper.holdings import Held
from poolkeeper.left_behind import Left, leave_results, left_in, left_results
from poolkeeper.messages import Code, Kind, pack
from poolkeeper.outcomes import Torn
from poolkeeper.sealed_file import PARTIAL, read_sealed, write_sealed
from poolkeeper.session import Outgoing

KEY = b"k" * 32
CLAIM = ("batch", "code", "key", "arguments")
LEFT = Left(CLAIM, 2, Code.PICKLED, b"pickle", 1.5)


def test_what_is_left_comes_back(tmp_path: Path) -> None:
    leave_results(tmp_path / "spool", KEY, "worker", [LEFT])
    ((path, left),) = left_results(tmp_path / "spool", KEY)
    assert left == [LEFT]
    assert [other for other in path.parent.iterdir() if other != path] == []


def test_who_has_another_key_finds_nothing_and_the_file_is_kept(tmp_path: Path) -> None:
    leave_results(tmp_path, KEY, "worker", [LEFT])
    assert list(left_results(tmp_path, b"x" * 32)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["left-worker.corrupt"]


def test_what_is_torn_is_said_once_and_set_aside(tmp_path: Path) -> None:
    leave_results(tmp_path, KEY, "one", [LEFT])
    leave_results(tmp_path, KEY, "two", [LEFT])
    path = tmp_path / "left-one"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    logger.enable("poolkeeper")
    try:
        for _ in range(2):
            assert [left for _, left in left_results(tmp_path, KEY)] == [[LEFT]]
    finally:
        logger.disable("poolkeeper")
        logger.remove(sink)
    (line,) = lines
    assert "left-one.corrupt are not used" in line
    assert (tmp_path / "left-one.corrupt").read_bytes() == content[:-1]


def test_of_an_outbox_the_answers_of_known_tasks_are_left() -> None:
    results = (Kind.RESULTS, 3, [Code.VALUE, Code.PICKLED, Code.SKIPPED], [7, b"pickle", None], 3.0)
    outbox = [Outgoing(1, pack([(Kind.RELEASE, [1])]), ()), Outgoing(2, pack([results, (Kind.RELEASE, [2])]), ())]
    held = [Held("work", 1, CLAIM), None, Held("work", 1, (*CLAIM[:2], "other", CLAIM[3]))]
    left = left_in(outbox, 3, held)
    assert [(one.claim[2], one.code, one.payload, one.seconds) for one in left] == [
        ("key", Code.VALUE, 7, 1.0),
        ("other", Code.SKIPPED, None, 1.0),
    ]


def test_what_is_acknowledged_is_not_left() -> None:
    outbox = [Outgoing(1, pack([(Kind.RESULTS, 1, None, [1, 2], 0.0)]), ())]
    (left,) = left_in(outbox, 2, [Held("work", 1, CLAIM)])
    assert left.payload == 2


@pytest.mark.parametrize("durable", [False, True])
def test_a_sealed_file_has_a_head_and_a_rest(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "file"
    write_sealed(path, b"a title 1", b"head", [b"one", memoryview(b"two")], durable=durable)
    head, rest = read_sealed(path, b"a title 1")
    assert (bytes(head), bytes(rest)) == (b"head", b"onetwo")
    with pytest.raises(Torn, match="is no 'a title 2' file"):
        read_sealed(path, b"a title 2")


def test_nothing_is_left_of_a_sealed_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_sealed(tmp_path / "file", b"title", b"head", ["text"], durable=False)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f"file{PARTIAL}").write_bytes(b"of one that was killed")
    write_sealed(tmp_path / "file", b"title", b"head", [], durable=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
