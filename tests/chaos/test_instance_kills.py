"""Lock and pidfile while their holders and writers are killed: never two, never nobody for long, always whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from poolkeeper import InstanceLock
from poolkeeper.pidfile import ChildRecord, PidfileDocument, PidfileWriter, read_pidfile, write_pidfile
from poolkeeper.process_identity import ProcessIdentity, identify
from tests.disks import small_disk
from tests.helpers import wait_for_exit, wait_until
from tests.scripts import ROOT

CONTENDER = """
import json, os, sys
from pathlib import Path
from poolkeeper import InstanceLock
from poolkeeper.process_identity import ProcessIdentity, identify
lock, inside, log = InstanceLock("etl", home=sys.argv[1]), Path(sys.argv[1], "inside"), Path(sys.argv[1], "log")
me = json.dumps(identify().to_dict())
def say(line):
    with log.open("a") as file:
        file.write(line + "\\n")
while True:
    lock.is_locked()
    if not lock.acquire():
        holder = lock.holder()
        if holder is not None and holder.pid == os.getpid():
            say("WRONG: I am said to have it")
        continue
    if inside.exists():  # whoever was here has been killed over it
        text = inside.read_text()
        if text and ProcessIdentity.from_dict(json.loads(text)).is_alive():
            say(f"WRONG: {text} is inside as well")
    inside.write_text(me)
    say(str(os.getpid()))
    if lock.force_unlock() or not lock.is_locked():
        say("WRONG: it is not locked")
    inside.unlink()
    lock.release()
"""

FORCER = """
import sys
from poolkeeper import InstanceLock
while True:
    InstanceLock("etl", home=sys.argv[1]).force_unlock()
"""


@contextmanager
def running(program: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_never_two_while_holders_are_killed(tmp_path: Path) -> None:
    """Several take the lock by turns, one forces it all the time, and whoever has it is killed again and again."""
    draw = random.Random(7)
    log = tmp_path / "log"
    log.touch()

    def lines() -> list[str]:
        return log.read_text().splitlines()

    with ExitStack() as stack:
        stack.enter_context(running(FORCER, tmp_path))
        contenders = [stack.enter_context(running(CONTENDER, tmp_path)) for _ in range(3)]
        for _ in range(15):
            seen = len(lines())
            wait_until(lambda seen=seen: len(lines()) > seen + 3)  # type: ignore[misc]
            victim = contenders.pop(draw.randrange(len(contenders)))
            victim.kill()
            victim.wait()
            contenders.append(stack.enter_context(running(CONTENDER, tmp_path)))
        for contender in contenders:
            contender.kill()
            wait_for_exit(contender.pid)
    assert not [line for line in lines() if "WRONG" in line]
    assert len(set(lines())) > 3
    assert InstanceLock("etl", home=tmp_path).acquire()
    InstanceLock("etl", home=tmp_path).release()


WRITER = """
import sys
from pathlib import Path
from poolkeeper.pidfile import PidfileWriter, read_pidfile
path = Path(sys.argv[1])
document = read_pidfile(path)
writer, number = PidfileWriter(path, interval=0), 0
while True:
    number += 1
    writer.update(document._replace(name=str(number), children=document.children * (number % 50)))
"""


def a_document() -> PidfileDocument:
    me = identify()
    assert me is not None
    worker = ChildRecord("1", "worker", "parse", ProcessIdentity(1, 2, "boot", "pid:[1]"), slot=1, fingerprint="f" * 64)
    return PidfileDocument(me, "first", "default", "/x/keeper.sock", datetime.now(UTC), children=(worker,) * 20)


def test_a_reader_always_sees_a_whole_document(tmp_path: Path) -> None:
    path = tmp_path / "keeper.pid"
    for _ in range(3):
        write_pidfile(path, a_document())
        with running(WRITER, path) as writer:
            names = {"first"}
            while len(names) < 5:  # raises if it is ever not there or not whole
                names.add(read_pidfile(path).name)
            writer.kill()
            wait_for_exit(writer.pid)
        read_pidfile(path)
    last = PidfileWriter(path)
    last.update(a_document()._replace(name="last"))
    last.close(remove=False)
    wait_until(lambda: os.listdir(tmp_path) == ["keeper.pid"])  # what the killed ones have left is gone
    assert read_pidfile(path).name == "last"


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        path = disk / "keeper.pid"
        lock, other = InstanceLock("etl", home=disk), InstanceLock("etl", home=disk)
        assert lock.acquire()
        lock.release()
        write_pidfile(path, a_document())
        writer = PidfileWriter(path, interval=0.001)
        with (disk / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        writer.update(a_document()._replace(name="second"))
        wait_until(lambda: writer._failing)
        assert read_pidfile(path).name == "first"
        assert lock.acquire()
        assert other.is_locked()
        assert not other.acquire()
        assert not other.force_unlock()
        lock.release()
        (disk / "filler").unlink()
        wait_until(lambda: read_pidfile(path).name == "second")
        writer.close(remove=True)
        assert lock.acquire()
        assert other.holder() is not None
        lock.release()
        assert sorted(os.listdir(disk)) == ["etl"]
