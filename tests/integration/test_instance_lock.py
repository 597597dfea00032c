"""The instance lock between real processes: forks, execs, keepers, races, stale files and full disks."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolkeeper import AlreadyRunning, HomeUnusable, InstanceLock, Keeper, LockHolder, file_locking
from poolkeeper.process_identity import identify
from tests import tasks
from tests.helpers import PATIENCE, a_program, wait_for_exit, wait_until
from tests.scripts import ROOT, run_script

HOLD = """
import os, sys
from poolkeeper import InstanceLock
lock = InstanceLock("etl", home=sys.argv[1])
print(lock.acquire(), os.getpid(), flush=True)
sys.stdin.read()
"""
"""Holds the lock until its input ends."""


@contextmanager
def another_process(home: Path, program: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Run ``program`` until it has said its first line."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", program, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("True")
            yield process
        finally:
            process.kill()


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[InstanceLock]:
    lock = InstanceLock("etl", home=tmp_path)
    yield lock
    lock.release()


# -- one process ------------------------------------------------------------------------------------------------------


def test_taken_and_given_up(tmp_path: Path, lock: InstanceLock) -> None:
    assert (lock.is_locked(), lock.holder(), lock.force_unlock()) == (False, None, True)
    assert os.listdir(tmp_path) == []  # asking creates nothing
    assert lock.acquire()
    assert lock.is_locked()
    holder = lock.holder()
    assert holder is not None
    assert (holder.pid, holder.host, holder.cwd) == (os.getpid(), socket.gethostname(), os.getcwd())
    assert holder.identity == identify()
    assert abs((datetime.now(UTC) - holder.since).total_seconds()) < 1000
    assert not lock.force_unlock()
    lock.release()
    lock.release()
    assert (lock.is_locked(), lock.holder()) == (False, None)


def test_taken_twice_given_up_once(lock: InstanceLock) -> None:
    assert lock.acquire()
    assert lock.acquire()
    lock.release()
    assert not lock.is_locked()


def test_two_objects_in_one_process(tmp_path: Path, lock: InstanceLock) -> None:
    other = InstanceLock("etl", home=tmp_path)
    assert lock.acquire()
    assert not other.acquire()
    assert other.is_locked()
    assert other.holder() == lock.holder()
    other.release()  # is not its own
    assert lock.is_locked()
    assert not other.force_unlock()
    for name, run_id in (("etl", "another"), ("another", "default")):
        with InstanceLock(name, run_id, tmp_path):
            pass
    lock.release()
    assert other.acquire()
    other.release()


def test_threads_race_with_objects_of_their_own(tmp_path: Path) -> None:
    for _ in range(20):
        locks = [InstanceLock("etl", home=tmp_path) for _ in range(8)]
        won: list[bool] = []
        barrier = threading.Barrier(len(locks))

        def race(lock: InstanceLock, won: list[bool] = won, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            won.append(lock.acquire())

        threads = [threading.Thread(target=race, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won) == 1
        for lock in locks:
            lock.release()


def test_with_names_the_holder(tmp_path: Path, lock: InstanceLock) -> None:
    with lock:
        with pytest.raises(AlreadyRunning) as caught, InstanceLock("etl", home=tmp_path):
            pass
        for part in (str(os.getpid()), socket.gethostname(), os.getcwd(), str(datetime.now(UTC).astimezone().year)):
            assert part in str(caught.value)
        assert str(tmp_path / "etl" / "default") in str(caught.value)
    assert not lock.is_locked()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError):
        InstanceLock(name, home=tmp_path)
    with pytest.raises(ValueError):
        InstanceLock("etl", name, home=tmp_path)


def test_a_home_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lock = InstanceLock("etl", home=tmp_path / "file")
    with pytest.raises(HomeUnusable, match=r"cannot use .*file as its home"):
        lock.acquire()
    assert not lock.is_locked()
    (tmp_path / "etl" / "default" / "keeper.lock").mkdir(parents=True)
    with pytest.raises(HomeUnusable):
        InstanceLock("etl", home=tmp_path).acquire()
    (tmp_path / "etl" / "link").mkdir()
    (tmp_path / "etl" / "link" / "keeper.lock").symlink_to(tmp_path / "file")
    with pytest.raises(HomeUnusable):
        InstanceLock("etl", "link", home=tmp_path).acquire()


def test_a_filesystem_without_locks(lock: InstanceLock, monkeypatch: pytest.MonkeyPatch) -> None:
    """None can be mounted here: the error is raised where the kernel would raise it."""
    import errno
    import fcntl

    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(HomeUnusable, match="cannot lock files.*local filesystem"):
        lock.acquire()


def test_no_descriptor_is_lost(tmp_path: Path, lock: InstanceLock) -> None:
    before = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    for _ in range(3):
        lock.acquire()
        InstanceLock("etl", home=tmp_path).acquire()
        lock.is_locked()
        lock.holder()
        lock.force_unlock()
        with suppress(AlreadyRunning), InstanceLock("etl", home=tmp_path):
            pass
        lock.release()
        lock.force_unlock()
    assert (os.listdir("/proc/self/fd") if sys.platform == "linux" else []) == before


def test_the_lock_outlives_an_object_that_is_dropped(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import gc
        from poolkeeper import InstanceLock

        assert InstanceLock("etl", home="homes").acquire()
        gc.collect()
        assert InstanceLock("etl", home="homes").is_locked()
        """,
    )
    assert not InstanceLock("etl", home=tmp_path / "homes").is_locked()


# -- what is in the file ----------------------------------------------------------------------------------------------

holders = st.builds(
    LockHolder,
    pid=st.integers(1, 2**31 - 1),
    start_time=st.integers(0, 2**63),
    host=st.text(max_size=9),
    cwd=st.text(max_size=9),
    since=st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2999, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    boot_id=st.text(max_size=9),
    pid_namespace=st.text(max_size=9),
)


@given(holders, st.data())
def test_content_round_trip_and_truncations(holder: LockHolder, draw: st.DataObject) -> None:
    content = holder.to_json()
    assert LockHolder.from_json(content) == holder
    assert str(holder.pid) in holder.describe()
    assert LockHolder.from_json(content[: draw.draw(st.integers(0, len(content) - 2))]) is None


@given(st.binary())
def test_garbage_names_nobody(content: bytes) -> None:
    assert LockHolder.from_json(content) is None


@given(
    st.dictionaries(
        st.sampled_from(["pid", "start_time", "host", "cwd", "since"]), st.none() | st.text() | st.integers()
    )
)
def test_values_of_the_wrong_kind(data: dict[str, Any]) -> None:
    holder = LockHolder.from_json(json.dumps(data).encode())
    assert holder is None or not holder.identity.is_alive()


@pytest.mark.parametrize("since", ["2026-01-01T00:00:00", "0001-01-01T00:00:00+23:00", "yesterday", None])
def test_times_that_are_none(since: str | None) -> None:
    assert LockHolder.from_json(json.dumps({"pid": 1, "start_time": 1, "since": since}).encode()) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.binary(max_size=200) | holders.map(LockHolder.to_json))
def test_whatever_is_in_a_free_file_does_not_matter(tmp_path: Path, content: bytes) -> None:
    lock = InstanceLock("etl", home=tmp_path)
    lock.folder.mkdir(parents=True, exist_ok=True)
    (lock.folder / "keeper.lock").write_bytes(content)
    assert (lock.is_locked(), lock.holder()) == (False, None)
    assert lock.acquire()
    holder = lock.holder()
    assert holder is not None
    assert holder.identity == identify()
    lock.release()


def test_on_a_full_disk_the_lock_works_and_the_holder_is_not_known(tmp_path: Path, lock: InstanceLock) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 10):  # nothing can be written, or not all
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            assert lock.acquire()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        other = InstanceLock("etl", home=tmp_path)
        assert other.is_locked()
        assert other.holder() is None
        assert not other.acquire()
        assert not other.force_unlock()
        with pytest.raises(AlreadyRunning, match="has not said who it is"), other:
            pass
        lock.release()


def test_a_file_that_is_removed_or_replaced_under_the_holder(tmp_path: Path, lock: InstanceLock) -> None:
    """The lock is then no longer one; the next taker gets one that is, and the earlier holder does no harm to it."""
    assert lock.acquire()
    (lock.folder / "keeper.lock").unlink()
    other = InstanceLock("etl", home=tmp_path)
    assert other.acquire()
    lock.release()
    assert other.is_locked()
    assert other.holder() is not None
    other.release()


def test_a_file_that_is_replaced_while_it_is_being_locked(
    tmp_path: Path, lock: InstanceLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a file that the path no longer names excludes nobody: it is not taken for one."""
    path = lock.folder / "keeper.lock"
    replaced: list[int] = []

    def replace_and_lock(descriptor: int) -> bool:
        if os.path.samestat(os.fstat(descriptor), lock.folder.stat()):
            return file_locking.try_lock(descriptor)  # the folder's lock
        if len(replaced) < 3:
            path.unlink()
            path.touch()
            replaced.append(descriptor)
        return file_locking.try_lock(descriptor)

    monkeypatch.setattr("poolkeeper.lock_file.try_lock", replace_and_lock)
    assert lock.acquire()
    assert len(replaced) == 3
    assert os.path.samestat(os.fstat(lock.fileno()), path.stat())
    assert not InstanceLock("etl", home=tmp_path).acquire()


# -- other processes --------------------------------------------------------------------------------------------------


def test_another_process_has_it(tmp_path: Path, lock: InstanceLock) -> None:
    with another_process(tmp_path) as process:
        assert lock.is_locked()
        assert not lock.acquire()
        assert not lock.force_unlock()
        holder = lock.holder()
        assert holder is not None
        assert (holder.pid, holder.cwd) == (process.pid, str(tmp_path))
        assert holder.identity.is_alive()
        process.communicate()
    assert not lock.is_locked()
    assert lock.holder() is None
    assert lock.acquire()


def test_a_killed_holder_frees_it_at_once(tmp_path: Path, lock: InstanceLock) -> None:
    with another_process(tmp_path) as process:
        process.kill()
        wait_for_exit(process.pid)
        assert not lock.is_locked()
        assert lock.holder() is None  # though the file still names the dead one
        assert str(process.pid) in (lock.folder / "keeper.lock").read_text()
        assert lock.force_unlock()
        assert lock.acquire()


def test_a_stopped_holder_keeps_it(tmp_path: Path, lock: InstanceLock) -> None:
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        assert not lock.acquire()
        assert not lock.force_unlock()


def test_forked_children_do_not_have_it(tmp_path: Path, lock: InstanceLock) -> None:
    with another_process(
        tmp_path,
        """
import multiprocessing, os, signal, sys
from poolkeeper import InstanceLock
lock = InstanceLock("etl", home=sys.argv[1])
assert lock.acquire()
child = os.fork()
if child == 0:
    os.close(1)
    lock.release()  # is not its own
    assert lock.is_locked() and not lock.acquire() and not InstanceLock("etl", home=sys.argv[1]).acquire()
    try:
        lock.fileno()
    except ValueError:
        signal.alarm(60)
        signal.pause()
def look(lock):
    lock.release()
    sys.exit(0 if lock.is_locked() and not lock.acquire() else 1)
process = multiprocessing.get_context("fork").Process(target=look, args=(lock,))
process.start()
process.join()
assert process.exitcode == 0
print(lock.is_locked(), child, flush=True)
sys.stdin.read()
print(child)
""",
    ) as process:
        assert lock.is_locked()
        holder = lock.holder()
        assert holder is not None
        assert holder.pid == process.pid
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        try:
            assert len(children) == 1
            process.kill()
            wait_for_exit(process.pid)
            assert lock.acquire()
            os.kill(int(children[0]), 0)
        finally:
            for pid in children:
                os.kill(int(pid), signal.SIGKILL)


def test_programs_that_are_started_do_not_have_it(tmp_path: Path, lock: InstanceLock) -> None:
    assert lock.acquire()
    with a_program(close_fds=False):
        lock.release()
        assert InstanceLock("etl", home=tmp_path).force_unlock()
        assert lock.acquire()


INHERITED = """
import os, signal, sys
from poolkeeper import InstanceLock
lock = InstanceLock("etl", home=sys.argv[1])
assert lock.acquire()
os.set_inheritable(lock.fileno(), True)  # by mistake; or forked by a library that knows nothing of Python
child = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {**os.environ})
os.set_inheritable(lock.fileno(), False)
print(True, child, flush=True)
sys.stdin.read()
"""


def test_a_lock_that_a_child_of_a_dead_holder_has_kept(tmp_path: Path, lock: InstanceLock) -> None:
    with another_process(tmp_path, INHERITED) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        try:
            assert not lock.force_unlock()  # the holder lives
            process.kill()
            wait_for_exit(process.pid)
            assert lock.is_locked()
            assert not lock.acquire()
            holder = lock.holder()
            assert holder is not None
            assert holder.pid == process.pid
            with (
                pytest.raises(AlreadyRunning, match=r"is gone and a child of it has kept the lock.*force_unlock"),
                lock,
            ):
                pass
            assert lock.force_unlock()
            assert not lock.is_locked()
            assert lock.acquire()
            assert not InstanceLock("etl", home=tmp_path).force_unlock()
            os.kill(int(children[0]), 0)
        finally:
            for pid in children:
                os.kill(int(pid), signal.SIGKILL)


def test_release_frees_it_though_a_child_has_the_file_open(tmp_path: Path, lock: InstanceLock) -> None:
    assert lock.acquire()
    with a_program(pass_fds=[lock.fileno()]):
        assert not InstanceLock("etl", home=tmp_path).acquire()
        lock.release()
        assert not lock.is_locked()


@pytest.mark.parametrize(
    ("difference", "unlocked"),
    [
        ({"start_time": 1}, True),  # its pid has been given to somebody else
        ({"boot_id": "an earlier boot"}, True),
        ({"pid_namespace": "pid:[1]"}, False),  # it cannot be seen from here
        ({}, False),
    ],
)
def test_a_holder_is_judged_by_who_it_is(
    tmp_path: Path, lock: InstanceLock, difference: dict[str, Any], unlocked: bool
) -> None:
    """What another process has locked names one that is dead, or that only looks alive."""
    assert lock.acquire()
    path = lock.folder / "keeper.lock"
    path.write_bytes(LockHolder.here()._replace(**difference).to_json())
    other = InstanceLock("etl", home=tmp_path)
    assert other.force_unlock() is unlocked
    assert other.is_locked() is not unlocked
    if unlocked:
        assert other.acquire()
        lock.release()  # of the file that was replaced
        assert other.is_locked()
        other.release()


def test_nobody_waits_for_ever_for_a_process_that_was_stopped_while_it_looked(
    tmp_path: Path, lock: InstanceLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkeeper.lock_file.GUARD_SECONDS", 0.01)
    lock.folder.mkdir(parents=True)
    program = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1] + '/etl/default', os.O_RDONLY), fcntl.LOCK_EX);"
        "print(True, flush=True); sys.stdin.read()"
    )
    with another_process(tmp_path, program):
        assert not lock.is_locked()
        assert lock.acquire()
        assert lock.is_locked()
        (lock.folder / "keeper.lock").write_bytes(LockHolder.here()._replace(start_time=1).to_json())
        assert not InstanceLock("etl", home=tmp_path).force_unlock()


def test_the_lock_passes_through_exec(tmp_path: Path, lock: InstanceLock) -> None:
    with another_process(
        tmp_path,
        """
import os, sys
from poolkeeper import InstanceLock
lock = InstanceLock("etl", home=sys.argv[1])
if len(sys.argv) == 2:
    assert lock.acquire()
    os.set_inheritable(lock.fileno(), True)
    os.execv(sys.executable, [*sys.orig_argv[:-1], sys.argv[1], str(lock.fileno())])
descriptor = int(sys.argv[2])
assert lock.is_locked() and not lock.acquire()
null = os.open(os.devnull, os.O_RDONLY)
print(not lock.adopt(null) and lock.adopt(descriptor) and not lock.adopt(descriptor), flush=True)
assert lock.acquire() and lock.fileno() == descriptor and not os.get_inheritable(descriptor)
sys.stdin.read()
lock.release()
print(lock.is_locked())
""",
    ) as process:
        holder = lock.holder()
        assert holder is not None
        assert holder.identity.is_alive()
        assert not lock.acquire()
        assert process.communicate()[0].strip() == "False"
    assert process.returncode == 0


RACE = """
import sys
from poolkeeper import AlreadyRunning, InstanceLock
lock = InstanceLock("etl", home=sys.argv[1])
print(True, flush=True)
for line in sys.stdin:
    try:
        with lock:
            print("won", flush=True)
            next(sys.stdin)
    except AlreadyRunning as error:
        print(error, flush=True)
        next(sys.stdin)
    print("ready", flush=True)
"""


def test_of_many_processes_exactly_one_gets_it_and_the_others_say_who(tmp_path: Path) -> None:
    probed = threading.Event()

    def probe() -> None:
        """Nobody who only looks, or forces what needs no force, is ever in the way of the racers."""
        lock = InstanceLock("etl", home=tmp_path)
        while not probed.is_set():
            lock.is_locked()
            lock.holder()
            lock.force_unlock()

    with ExitStack() as stack:
        racers = [stack.enter_context(another_process(tmp_path, RACE)) for _ in range(5)]
        prober = threading.Thread(target=probe)
        prober.start()
        stack.callback(prober.join)
        stack.callback(probed.set)
        for _ in range(20):
            for racer in racers:
                say(racer, "go")
            answers = {racer.pid: answer_of(racer) for racer in racers}
            winners = [pid for pid, answer in answers.items() if answer == "won"]
            assert len(winners) == 1, answers
            losers = [answer for answer in answers.values() if answer != "won"]
            assert all(f"process {winners[0]} on" in answer for answer in losers), answers
            for racer in racers:
                say(racer, "on")
                assert answer_of(racer) == "ready"
        for racer in racers:
            racer.communicate()
            assert racer.returncode == 0


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# -- keepers ----------------------------------------------------------------------------------------------------------


def test_a_keeper_is_a_holder(tmp_path: Path, lock: InstanceLock) -> None:
    with Keeper(1, name="etl", home=tmp_path, preload=["tests.tasks"]) as keeper:
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9  # a worker and a fork server run
        assert lock.is_locked()
        assert not lock.acquire()
        assert not lock.force_unlock()
        holder = lock.holder()
        assert holder is not None
        assert holder.identity == identify()
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} on "):
            Keeper(1, name="etl", home=tmp_path)
        if sys.platform == "linux":
            path = os.path.realpath(keeper.home / "keeper.lock")
            for pid in (row.pid for row in keeper.status().workers):
                links = [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
                assert path not in links
    assert not lock.is_locked()
    with lock, pytest.raises(AlreadyRunning, match=f"process {os.getpid()} on "):
        Keeper(1, name="etl", home=tmp_path)
    Keeper(1, name="etl", home=tmp_path).shutdown()


def test_a_keeper_that_cannot_start_frees_the_lock(tmp_path: Path, lock: InstanceLock) -> None:
    lock.folder.mkdir(parents=True)
    (lock.folder / "logs").touch()
    with pytest.raises(HomeUnusable):
        Keeper(1, name="etl", home=tmp_path)
    assert not lock.is_locked()


def test_importing_the_lock_is_cheap() -> None:
    program = (
        "import sys; from poolkeeper import InstanceLock, Keeper; print([n for n in sys.argv[1:] if n in sys.modules])"
    )
    heavy = ["loguru", "tenacity", "rich", "click", "psutil", "ctypes"]
    output = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_other_processes_see_the_end_of_a_holder(tmp_path: Path, lock: InstanceLock) -> None:
    with another_process(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        wait_until(lock.acquire)
