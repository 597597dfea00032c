"""Arguments of ``Keeper`` without sense, and surroundings without room: a clear error each."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import psutil
import pytest

from poolkeeper import Keeper, PoolkeeperError, RetryPolicy, WorkerPolicy
from poolkeeper.errors import HomeUnusable, PayloadError, UnsupportedPlatform
from poolkeeper.losses import WorkerStartFailed
from tests import tasks
from tests.helpers import PATIENCE, wait_until
from tests.scripts import run_script


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0, not 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0, not -1"),
        ({"max_workers": "4"}, TypeError, "max_workers='4' must be an integer"),
        ({"max_workers": 2.0}, TypeError, "max_workers=2.0 must be an integer"),
        ({"max_workers": True}, TypeError, "max_workers=True must be an integer"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child=0"),
        ({"max_tasks_per_child": "1"}, TypeError, "max_tasks_per_child='1'"),
        ({"max_tasks_per_child": True}, TypeError, "max_tasks_per_child=True"),
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker=0"),
        ({"threads_per_worker": "1"}, TypeError, "threads_per_worker='1'"),
        ({"start_method": "threads"}, ValueError, "start_method='threads' must be one of"),
        ({"mp_context": "fork"}, TypeError, "mp_context='fork'"),
        ({"initializer": 5}, TypeError, "initializer=5 must be a callable"),
        ({"preload": "numpy"}, TypeError, r"preload='numpy' must be a list of module names, as \['numpy'\]"),
        ({"preload": [5]}, TypeError, r"preload=\[5\] must be a list of module names"),
        ({"preload": ["no_such_module"]}, ModuleNotFoundError, "there is no module named 'no_such_module'"),
        ({"preload": ["json.no_such_module"]}, ModuleNotFoundError, r"no module named 'json\.no_such_module'"),
        ({"queue_memory": -1}, ValueError, "queue_memory"),
        ({"queue_memory": "much"}, ValueError, "queue_memory"),
        ({"resources": {"gpu": 1}}, PoolkeeperError, "resources"),
        ({"name": ""}, ValueError, "name=''"),
        ({"name": "a/b"}, ValueError, "name='a/b'"),
        ({"name": ".."}, ValueError, r"name='\.\.'"),
        ({"name": 5}, (TypeError, ValueError), "name=5"),
        ({"name": "x", "run_id": "a/b"}, ValueError, "run_id='a/b'"),
        ({"name": "x", "run_id": ""}, ValueError, "run_id=''"),
        ({"initargs": 5, "initializer": print}, TypeError, "initargs"),
        ({"worker": "2GiB"}, TypeError, "worker"),
    ],
)
def test_an_argument_without_sense_is_named(
    arguments: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    before = set(os.listdir(tmp_path))
    with pytest.raises(error, match=message):
        Keeper(**{"home": tmp_path, **arguments})  # type: ignore[arg-type]
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "limits",
    [
        {"hard_memory": "1GiB"},
        {"cpu_seconds": 5},
        {"open_files": 100},
        {"nice": 5},
        {"affinity": [0]},
        {"cwd": "/"},
        {"umask": 0o077},
    ],
)
def test_a_limit_is_kept(limits: dict[str, object]) -> None:
    (limit,) = limits
    with Keeper(1, worker=WorkerPolicy(**limits)) as keeper:  # type: ignore[arg-type]
        assert keeper.submit(tasks.limits).result(PATIENCE)[limit]


def test_worker_environment_is_set() -> None:
    with Keeper(1, worker=WorkerPolicy(env={"POOLKEEPER_TEST_VARIABLE": "here"})) as keeper:
        assert keeper.submit(tasks.environment, "POOLKEEPER_TEST_VARIABLE").result(PATIENCE) == "here"


def test_threads_per_worker_sets_what_numeric_libraries_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    with Keeper(1, threads_per_worker=3) as keeper:
        assert keeper.submit(tasks.environment, "OMP_NUM_THREADS").result(PATIENCE) == "3"
        assert keeper.submit(tasks.environment, "MKL_NUM_THREADS").result(PATIENCE) == "7"  # the user's own choice


def test_twice_as_many_services_start_at_once_as_there_are_cpus() -> None:
    import loky

    (cpu, *_) = allowed = os.sched_getaffinity(0)
    with Keeper(7) as keeper:
        assert keeper._runtime.settings.max_starting == 2 * len(allowed)
    with Keeper() as keeper:
        assert keeper._runtime.settings.max_starting == 2 * loky.cpu_count()
    os.sched_setaffinity(0, {cpu})
    try:
        with Keeper(7) as keeper:
            assert keeper._runtime.settings.max_starting == 2
    finally:
        os.sched_setaffinity(0, allowed)


def test_ten_thousand_workers_are_possible_or_refused_with_the_number_that_is(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import resource
        from poolkeeper import Keeper

        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
        try:
            Keeper(10_000)
        except ValueError as error:
            assert "max_workers=10000 needs about" in str(error) and "(ulimit -Hn)" in str(error), error
            most = int(str(error).rsplit("at most ", 1)[1].split()[0])
        with Keeper(most) as keeper:
            assert sum(keeper.map(abs, range(100))) == 4950
        """,
    )


def test_a_keeper_of_many_workers_costs_nothing_until_they_are_needed() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(10_000, (hard - 100) // 4)
    with Keeper(number) as keeper:
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        assert len(keeper.status().workers) == 1


# -- homes ------------------------------------------------------------------------------------------------------------


def test_a_home_that_cannot_be_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for name in (None, "etl"):
        with pytest.raises(
            HomeUnusable, match=r"^the keeper cannot use .*file as its home.*pass home=\.\.\. or set POOLKEEPER_HOME"
        ):
            Keeper(1, home=file, name=name)
    with pytest.raises(HomeUnusable):
        Keeper(1, home="/proc/self/fdinfo", name="etl")
    with pytest.raises(HomeUnusable, match="/proc/none"):
        Keeper(1, home="/proc/none")


def test_a_home_that_is_not_writable(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    output = run_script(
        tmp_path,
        """
        import os, sys
        from poolkeeper import HomeUnusable, Keeper

        Keeper(1).shutdown()  # everything is imported
        if os.geteuid() == 0:
            os.seteuid(65534)
        for name in (None, "etl"):
            try:
                Keeper(1, home=sys.argv[1], name=name)
            except HomeUnusable as error:
                print(error)
        if os.getuid() == 0:
            os.seteuid(0)
        """,
        home,
    )
    assert output.count("Permission denied") == 2


def test_the_default_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLKEEPER_HOME", str(tmp_path / "own"))
    with Keeper(1, name="etl") as keeper:
        assert keeper.home == tmp_path / "own" / "etl" / "default"
        assert stat.S_IMODE(keeper.home.stat().st_mode) == 0o700
        assert stat.S_IMODE((keeper.home / "authkey").stat().st_mode) == 0o600
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
    monkeypatch.delenv("POOLKEEPER_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Keeper(1, name="etl", run_id="nightly") as keeper:
        assert keeper.home == tmp_path / "state" / "poolkeeper" / "etl" / "nightly"


def test_a_home_with_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with Keeper(1, home=tmp_path / ("deep" * 40), name="etl") as keeper:
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        places = {connection.laddr for connection in psutil.Process().net_connections("unix")} - {""}
        (socket,) = {place for place in places if place.endswith("keeper.sock")}
        assert os.path.exists(socket)
    assert not os.path.exists(os.path.dirname(socket))


def test_a_relative_home_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (None, "etl"):
        with Keeper(1, home="relative", name=name) as keeper:
            assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
            os.chdir("/")
            keeper.submit(os.chdir, "/").result(PATIENCE)
            keeper.submit(tasks.close_descriptors).result(PATIENCE)  # makes the worker connect anew
            assert keeper.submit(tasks.square, 4).result(PATIENCE) == 16
            assert keeper.submit(tasks.die).exception(PATIENCE) is not None
            assert keeper.submit(tasks.square, 5).result(PATIENCE) == 25
        os.chdir(tmp_path)
    assert [entry for entry in os.listdir(tmp_path / "relative") if entry.startswith("poolkeeper-")] == []


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with Keeper(1) as keeper:
        assert keeper.submit(pow, 2, 3).result(PATIENCE) == 8


def test_a_home_with_blanks_and_umlauts(tmp_path: Path) -> None:
    with Keeper(1, home=tmp_path / "Ein Ort, größer", name="näme {} %s") as keeper:
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9
        assert keeper.submit(tasks.die).exception(PATIENCE) is not None


def test_two_keepers_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Until the instance lock refuses the second, both must work or the second be refused."""
    with Keeper(1, home=tmp_path, name="twice") as first:
        assert first.submit(tasks.square, 2).result(PATIENCE) == 4
        try:
            second = Keeper(1, home=tmp_path, name="twice")
        except PoolkeeperError:
            return
        with second:
            assert second.submit(tasks.square, 3).result(PATIENCE) == 9
        assert first.submit(tasks.die).exception(PATIENCE) is not None
        assert first.submit(tasks.square, 4).result(PATIENCE) == 16


# -- what fails at the start ------------------------------------------------------------------------------------------


def test_windows_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UnsupportedPlatform, match="Keeper needs fork and AF_UNIX sockets, which Windows does not have"):
        Keeper(1)
    with pytest.raises(NotImplementedError):
        Keeper(1)
    with Keeper(1, start_method="inline") as keeper:
        assert keeper.submit(tasks.square, 3).result() == 9


def test_an_initializer_that_raises_fails_what_is_queued_and_says_why() -> None:
    with Keeper(2, initializer=tasks.fail, initargs=("no licence",)) as keeper:
        futures = [keeper.submit(tasks.square, number) for number in range(20)]
        results = keeper.map(tasks.square, range(100))
        for future in futures:
            with pytest.raises(WorkerStartFailed, match=r"(?s)square cannot run.*initializer raised.*no licence"):
                future.result(PATIENCE)
        with pytest.raises(WorkerStartFailed, match="no licence"):
            list(results)
        assert isinstance(keeper.submit(tasks.square, 1).exception(PATIENCE), WorkerStartFailed)


def test_an_initializer_that_kills_the_worker() -> None:
    with Keeper(1, initializer=tasks.exit_hard, initargs=(3,)) as keeper:
        error = keeper.submit(tasks.square, 1).exception(PATIENCE)
        assert isinstance(error, WorkerStartFailed)
        assert "before they take their first task" in str(error) or "status 3" in str(error)


def test_an_initializer_that_recovers(tmp_path: Path) -> None:
    with Keeper(1, initializer=tasks.fail_first_times, initargs=(tmp_path, 2)) as keeper:
        assert keeper.submit(tasks.square, 3).result(PATIENCE) == 9


def test_an_initializer_that_cannot_be_pickled() -> None:
    import threading

    with pytest.raises(PayloadError, match="the initializer .* or its arguments cannot be pickled"):
        Keeper(1, initializer=print, initargs=(threading.Lock(),))


def test_an_initializer_that_workers_cannot_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "initializer_only_here.py"
    path.write_text("def start():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import initializer_only_here  # type: ignore[import-not-found]

    path.unlink()
    with Keeper(1, initializer=initializer_only_here.start) as keeper:
        error = keeper.submit(tasks.square, 1).exception(PATIENCE)
    assert isinstance(error, WorkerStartFailed)
    assert "No module named 'initializer_only_here'" in str(error)


def test_a_keeper_that_is_closed_at_once_does_not_linger() -> None:
    """The fork server is still starting, has just connected, or is about to fork."""
    import time

    from poolkeeper.launching import END_SECONDS

    for wait in (0.0, 0.02, 0.05, 0.1, 0.2):
        with Keeper(2):
            began = time.monotonic() + wait
            wait_until(lambda began=began: time.monotonic() >= began)  # type: ignore[misc]
            closing = time.monotonic()
        assert time.monotonic() - closing < END_SECONDS - 0.5


def test_a_python_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises((PoolkeeperError, OSError), match="no-python"):
        Keeper(1).submit(tasks.square, 1).result(PATIENCE)


def test_retry_as_int_means_attempts() -> None:
    with Keeper(1) as keeper:
        assert keeper.options(retry=3)._options.retry == RetryPolicy(attempts=3)
