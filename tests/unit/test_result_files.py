"""Heavy results in files of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolkeeper.outcomes import Torn
from poolkeeper.result_files import ResultFiles

KEY = bytes(32)


@pytest.mark.parametrize("durable", [False, True])
def test_bytes_come_back(tmp_path: Path, durable: bool) -> None:
    files = ResultFiles(tmp_path / "spool", KEY, durable=durable)
    name = files.write(3, b"content")
    assert files.read(name) == b"content"
    assert [path.name for path in (tmp_path / "spool").iterdir()] == [name]


def test_arenas_come_back_writable(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path / "spool", KEY)
    pickled, parts = files.read(files.write(3, (b"pickle", [memoryview(b"one"), memoryview(b""), memoryview(b"two")])))
    assert (pickled, list(map(bytes, parts))) == (b"pickle", [b"one", b"", b"two"])
    parts[2][0] = 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    files = ResultFiles(tmp_path / "spool", KEY)
    name = files.write(1, b"some content")
    path = tmp_path / "spool" / name
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    with pytest.raises(Torn):
        files.read(name)


def test_a_missing_one_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(Torn, match="cannot be read: No such file"):
        ResultFiles(tmp_path / "spool", KEY).read("run-1-abc")


def test_those_of_a_run_can_be_removed(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path / "spool", KEY)
    files.forget(1)
    names = [files.write(run, b"content") for run in (1, 1, 11)]
    files.forget(1)
    assert [path.name for path in (tmp_path / "spool").iterdir()] == names[2:]
