"""What a named keeper writes down of itself, and what it finds of an earlier one."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from poolkeeper.home import Home
from poolkeeper.pidfile import ChildRecord, PidfileDocument, read_pidfile, write_pidfile
from poolkeeper.process_identity import ProcessIdentity, identify
from poolkeeper.register import Register
from poolkeeper.service_handover import Handover, ServiceRecord
from tests.helpers import a_program, wait_until

HANDOVER = Handover((ServiceRecord("web", wanted=True, epoch=5.0),))


def a_home(path: Path) -> Home:
    path.mkdir(exist_ok=True)
    return Home(path, False, str(path / "keeper.sock"), b"", None)


def a_document(*children: ChildRecord, keeper: ProcessIdentity | None = None) -> PidfileDocument:
    me = identify()
    assert me is not None
    dead = me._replace(start_time=1)
    return PidfileDocument(keeper or dead, "etl", "1", "", datetime.now(UTC), children=children, services=HANDOVER)


def a_child(pid: int, tag: str = "web#1") -> ChildRecord:
    identity = identify(pid)
    assert identity is not None
    return ChildRecord(tag, "service", "web", identity, slot=0, attempt=1)


def test_survivors_stay_in_the_pidfile_until_somebody_cares_for_them(tmp_path: Path) -> None:
    path = tmp_path / "home" / "keeper.pid"
    home = a_home(path.parent)
    with a_program() as one, a_program() as other:
        write_pidfile(path, a_document(a_child(one.pid, "web#1"), a_child(other.pid, "web#2")))
        register = Register(home, "etl", "1")
        assert register.inherited is not None
        assert [child.id for child in register.survivors] == ["web#1", "web#2"]
        assert register.same_boot
        wait_until(lambda: read_pidfile(path).keeper == identify())
        assert {child.id for child in read_pidfile(path).children} == {"web#1", "web#2"}
        assert read_pidfile(path).services == HANDOVER
        register.born("web#1", "service", "web", one.pid, 0, 1)
        register.lost(other.pid)
        register.describe(Handover())
        wait_until(lambda: read_pidfile(path).services == Handover())
        assert [child.id for child in read_pidfile(path).children] == ["web#1"]
        register.close(keep=True)
        assert [child.id for child in read_pidfile(path).children] == ["web#1"]
    Register(home, "etl", "1").close()
    assert not path.exists()


def test_a_loop_that_is_rebuilt_finds_what_the_one_before_it_had(tmp_path: Path) -> None:
    home = a_home(tmp_path / "home")
    path = home.path / "keeper.pid"
    register = Register(home, "etl", "1")
    assert register.inherited is None
    with a_program() as lives:
        with a_program() as dead:
            register.born("worker-1", "worker", "worker 1", dead.pid, 0)
            register.born("web#1", "service", "web", lives.pid, 0, 1)
            register.describe(HANDOVER)
        register.renew()
        assert [child.id for child in register.survivors] == ["web#1"]
        assert register.inherited is not None
        assert register.inherited.services == HANDOVER
        assert register.has_services
        register.gone("web#1")  # it was let go of, and lives
        register.born("worker-2", "worker", "worker 2", os.getpid(), 0)
        wait_until(path.exists, "the writer has begun")
        wait_until(lambda: {child.id for child in read_pidfile(path).children} == {"web#1", "worker-2"})
        register.lost(lives.pid)
    register.close()


def test_the_dead_are_no_survivors(tmp_path: Path) -> None:
    home = a_home(tmp_path / "home")
    with a_program() as process:
        write_pidfile(home.path / "keeper.pid", a_document(a_child(process.pid)))
    register = Register(home, "etl", "1")
    assert register.inherited is not None
    assert register.inherited.services == HANDOVER
    assert register.survivors == ()
    register.close()


@pytest.mark.parametrize("kind", ["missing", "truncated", "foreign", "living", "directory", "symlink", "unreadable"])
def test_whatever_is_there_instead_is_no_reason_to_fail(tmp_path: Path, kind: str) -> None:
    home = a_home(tmp_path / "home")
    path = home.path / "keeper.pid"
    with a_program() as process:
        document = a_document(a_child(process.pid))
        if kind == "truncated":
            path.write_bytes(document.to_json()[:50])
        elif kind == "foreign":
            write_pidfile(path, document._replace(name="other"))
        elif kind == "living":
            write_pidfile(path, document._replace(keeper=a_child(process.pid).identity))
        elif kind == "directory":
            path.mkdir()
        elif kind == "symlink":
            path.symlink_to(tmp_path / "nowhere")
        elif kind == "unreadable":
            os.mkfifo(path)
        register = Register(home, "etl", "1")
        assert register.inherited is None
        assert register.survivors == ()
        register.close()
