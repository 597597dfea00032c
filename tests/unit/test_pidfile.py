"""The pidfile: whole or not at all, whatever is in its place."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.pidfile import (
    SIZE_LIMIT,
    ChildRecord,
    PidfileDocument,
    PidfileError,
    PidfileWriter,
    read_pidfile,
    survivors,
    write_pidfile,
)
from poolkeeper.process_identity import ProcessIdentity, identify
from tests.helpers import PATIENCE, a_program, wait_for_exit, wait_until

identities = st.builds(
    ProcessIdentity, st.integers(1, 2**31 - 1), st.integers(0, 2**63), st.text(max_size=9), st.text(max_size=9)
)
optional_text = st.none() | st.text(min_size=1, max_size=9)
children = st.builds(
    ChildRecord,
    id=st.text(max_size=9),
    role=st.sampled_from(["forkserver", "worker", "service", "logwriter", "a later role"]),
    name=st.text(max_size=9),
    identity=identities,
    slot=st.none() | st.integers(),
    fingerprint=optional_text,
    attempt=st.none() | st.integers(),
)
documents = st.builds(
    PidfileDocument,
    keeper=identities,
    name=st.text(max_size=9),
    run_id=st.text(max_size=9),
    socket=st.text(max_size=9),
    since=st.datetimes(timezones=st.just(UTC)),
    fleet=optional_text,
    argv=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    children=st.lists(children, max_size=3).map(tuple),
)


def a_document(name: str = "etl", **changes: Any) -> PidfileDocument:
    me = ProcessIdentity(4711, 90, "boot", "pid:[1]")
    worker = ChildRecord("3", "worker", "", me._replace(pid=4712), slot=1)
    document = PidfileDocument(me, name, "default", "/x/keeper.sock", datetime.now(UTC), children=(worker,))
    return document._replace(**changes)


# -- the document -----------------------------------------------------------------------------------------------------


@given(documents)
def test_round_trip(document: PidfileDocument) -> None:
    assert PidfileDocument.from_json(document.to_json()) == document


@given(documents, st.text(max_size=5), st.integers())
def test_unknown_keys_are_ignored(document: PidfileDocument, key: str, value: int) -> None:
    data = json.loads(document.to_json())
    for record in (data, data["keeper"], *data["children"]):
        record.setdefault("x" + key, value)
    assert PidfileDocument.from_json(json.dumps(data).encode()) == document


@given(documents, st.data())
def test_missing_keys_are_defaulted(document: PidfileDocument, draw: st.DataObject) -> None:
    data = json.loads(document.to_json())
    missing = draw.draw(st.sets(st.sampled_from([key for key in data if key != "format"])))
    for key in missing:
        del data[key]
    for child in data.get("children", []):
        del child[draw.draw(st.sampled_from(sorted(child)))]
    found = PidfileDocument.from_json(json.dumps(data).encode())
    assert found.since.tzinfo is not None
    assert len(found.children) == (0 if "children" in missing else len(document.children))


@given(documents, st.data())
def test_every_truncation_is_detected(document: PidfileDocument, draw: st.DataObject) -> None:
    content = document.to_json()
    length = draw.draw(st.integers(0, len(content) - 2))  # the last byte is but a newline
    with pytest.raises(PidfileError):
        PidfileDocument.from_json(content[:length])


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(PidfileError):
        PidfileDocument.from_json(content)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["version", "keeper", "since", "argv", "children", "name", "fleet", "services"]), anything
    )
)
def test_values_of_the_wrong_kind(data: dict[str, Any]) -> None:
    """They are refused or defaulted, and nothing of them is ever taken for alive."""
    try:
        document = PidfileDocument.from_json(json.dumps({"format": "poolkeeper-pidfile", **data}).encode())
    except PidfileError:
        return
    assert survivors(document) == ()
    assert not document.keeper.is_alive()


def test_deeply_nested_garbage() -> None:
    with pytest.raises(PidfileError):
        PidfileDocument.from_json(b"[" * 1_000_000)


def test_a_later_format_is_refused() -> None:
    data = json.loads(a_document().to_json())
    with pytest.raises(PidfileError, match="later poolkeeper.*format is 2"):
        PidfileDocument.from_json(json.dumps({**data, "version": 2}).encode())


def test_survivors_are_those_that_are_who_they_were() -> None:
    with a_program() as one, a_program() as other:
        found = [identify(process.pid) for process in (one, other)]
        assert found[0] is not None
        assert found[1] is not None
        alive = ChildRecord("1", "worker", "", found[0])
        killed = ChildRecord("2", "service", "web", found[1])
        recycled = ChildRecord("3", "worker", "", found[0]._replace(start_time=found[0].start_time - 1))
        document = a_document(children=(alive, killed, recycled))
        assert survivors(document) == (alive, killed)
        other.kill()
        wait_for_exit(other.pid)
        assert survivors(document) == (alive,)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "keeper.pid"
    with pytest.raises(FileNotFoundError):
        read_pidfile(path)
    for name in ("etl", "much longer than that", "x"):
        write_pidfile(path, a_document(name))
        assert read_pidfile(path).name == name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["keeper.pid"]


def test_what_is_no_pidfile_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "keeper.pid"
    path.mkdir()
    with pytest.raises(PidfileError, match=rf"{path} is not a usable pidfile: it is a directory"):
        read_pidfile(path)
    with pytest.raises(IsADirectoryError):
        write_pidfile(path, a_document())
    assert os.listdir(tmp_path) == ["keeper.pid"]
    path.rmdir()

    os.mkfifo(path)
    with pytest.raises(PidfileError, match="not a regular file"):
        read_pidfile(path)
    path.unlink()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(PidfileError, match="socket"):
            read_pidfile(path)
    path.unlink()

    with path.open("wb") as file:
        file.truncate(SIZE_LIMIT + 1)
    with pytest.raises(PidfileError, match="bytes"):
        read_pidfile(path)
    path.write_bytes(b"")
    with pytest.raises(PidfileError, match="no whole JSON"):
        read_pidfile(path)
    write_pidfile(path, a_document())  # whatever it was
    assert read_pidfile(path).name == "etl"


def test_a_link_is_followed_if_it_is_ours_and_replaced_in_any_case(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "keeper.pid", tmp_path / "elsewhere"
    write_pidfile(elsewhere, a_document("elsewhere"))
    path.symlink_to(elsewhere)
    assert read_pidfile(path).name == "elsewhere"
    if os.geteuid() == 0:
        os.lchown(path, 65534, 65534)
        with pytest.raises(PidfileError, match="link of another user"):
            read_pidfile(path)
    write_pidfile(path, a_document("here"))
    assert not path.is_symlink()
    assert (read_pidfile(path).name, read_pidfile(elsewhere).name) == ("here", "elsewhere")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError):
        read_pidfile(path)


@contextmanager
def no_room() -> Iterator[None]:
    """No file may grow past 10 bytes: a disk that fills up in the midst of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_the_old_document_stays(tmp_path: Path) -> None:
    path = tmp_path / "keeper.pid"
    write_pidfile(path, a_document("old"))
    with no_room(), pytest.raises(OSError):
        write_pidfile(path, a_document("new"))
    assert read_pidfile(path).name == "old"
    assert os.listdir(tmp_path) == ["keeper.pid"]


# -- the writer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[PidfileWriter]:
    writer = PidfileWriter(tmp_path / "keeper.pid", interval=0.01)
    yield writer
    writer.close(remove=True)
    assert os.listdir(tmp_path) == []


def written_name(folder: Path) -> str | None:
    try:
        return read_pidfile(folder / "keeper.pid").name
    except FileNotFoundError:
        return None


def test_updates_are_written_by_a_thread_and_the_last_one_wins(tmp_path: Path, writer: PidfileWriter) -> None:
    assert writer._thread is None
    for number in range(200):
        writer.update(a_document(str(number)))
    wait_until(lambda: written_name(tmp_path) == "199")
    assert writer._thread is not None
    assert writer._thread.daemon


def test_updates_are_written_together(tmp_path: Path, writer: PidfileWriter) -> None:
    """Those that come while one is being written are one."""
    started, go_on = threading.Event(), threading.Event()
    made: list[str] = []

    def blocking() -> PidfileDocument:
        made.append("first")
        started.set()
        assert go_on.wait(PATIENCE)
        return a_document("first")

    def document(name: str) -> PidfileDocument:
        made.append(name)
        return a_document(name)

    writer.update(blocking)
    assert started.wait(PATIENCE)
    for number in range(100):  # the caller is never stopped
        writer.update(lambda number=number: document(str(number)))  # type: ignore[misc]
    go_on.set()
    wait_until(lambda: written_name(tmp_path) == "99")
    assert made == ["first", "99"]


def test_one_write_that_waits_does_not_hold_up_the_next(tmp_path: Path, writer: PidfileWriter) -> None:
    """A busy disk or machine must not make the file a stale one for many times as long."""
    began, go_on = threading.Event(), threading.Event()

    def document() -> PidfileDocument:
        began.set()
        go_on.wait(1.5)
        return a_document("slow")

    writer.update(document)
    assert began.wait(PATIENCE)
    writer.update(a_document("next"))
    wait_until(lambda: written_name(tmp_path) == "next")


def test_a_failed_write_is_tried_again(tmp_path: Path, writer: PidfileWriter) -> None:
    (tmp_path / "keeper.pid").mkdir()  # nothing can replace a directory
    tried = threading.Semaphore(0)

    def document() -> PidfileDocument:
        tried.release()
        return a_document("new")

    writer.update(document)
    for _ in range(3):
        assert tried.acquire(timeout=PATIENCE)
    (tmp_path / "keeper.pid").rmdir()
    wait_until(lambda: written_name(tmp_path) == "new")


def test_failures_are_logged_once(tmp_path: Path) -> None:
    program = """
import sys, threading
from pathlib import Path
from loguru import logger
from poolkeeper.pidfile import PidfileWriter
logger.remove()
logger.add(lambda line: print(line, end=""), format="{level} {message}")
logger.enable("poolkeeper")
path = Path(sys.argv[1]) / "keeper.pid"
path.mkdir()
writer, tried = PidfileWriter(path, interval=0.001), threading.Semaphore(0)
def document():
    tried.release()
    raise OSError("no document") if sys.argv[2] == "raise" else None
writer.update(document)
for _ in range(5):
    tried.acquire(timeout=20)
writer.close(remove=False)
"""
    for what in ("raise", "return nonsense"):
        folder = tmp_path / what
        folder.mkdir()
        output = subprocess.run(
            [sys.executable, "-c", program, str(folder), what], capture_output=True, text=True, check=True
        )
        assert output.stdout.count("WARNING") == 1, output
        assert "cannot be brought up to date for now" in output.stdout
        assert output.stderr == ""


def test_close_writes_what_is_due(tmp_path: Path) -> None:
    writer = PidfileWriter(tmp_path / "keeper.pid", interval=1000.0)
    for name in ("one", "two"):
        writer.update(a_document(name))
    writer.close(remove=False)
    assert written_name(tmp_path) == "two"
    writer.update(a_document("three"))
    writer.close(remove=False)
    assert written_name(tmp_path) == "two"
    assert writer._thread is not None
    assert not writer._thread.is_alive()


def test_close_without_an_update(tmp_path: Path) -> None:
    writer = PidfileWriter(tmp_path / "keeper.pid")
    writer.close(remove=True)
    writer.close(remove=True)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_has_left_is_removed(tmp_path: Path, writer: PidfileWriter) -> None:
    (tmp_path / ".keeper.pid-abc").touch()
    writer.update(a_document())
    wait_until(lambda: os.listdir(tmp_path) == ["keeper.pid"])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_leaves_the_file_alone(tmp_path: Path, writer: PidfileWriter) -> None:
    writer.update(a_document("parent"))
    wait_until(lambda: written_name(tmp_path) == "parent")
    for abandon in (True, False):
        with writer._changed:  # as if the thread were at work
            pid = os.fork()
            if pid == 0:
                signal.alarm(int(PATIENCE))
                if abandon:
                    writer.abandon_in_child()
                writer.update(a_document("child"))
                writer.close(remove=True)
                os._exit(0)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert written_name(tmp_path) == "parent"


def test_no_thread_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = PidfileWriter(tmp_path / "keeper.pid")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        writer.update(a_document("one"))
    assert written_name(tmp_path) is None
    writer.close(remove=False)
    assert written_name(tmp_path) == "one"
