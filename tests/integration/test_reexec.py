"""A program that replaces itself in place: what stays, what is refused, and that the old one goes on when it is."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import pytest

import poolkeeper
from poolkeeper import InstanceLock, Keeper, NotReexecable
from poolkeeper.control_client import ControlClient
from poolkeeper.handover import VARIABLE
from poolkeeper.homes import KeeperHome
from poolkeeper.steering import reload_keeper
from tests.helpers import PATIENCE, wait_for_exit, wait_until
from tests.keeper_program import end_all

ROOT = Path(poolkeeper.__file__).parent.parent

PRELUDE = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
from poolkeeper import Keeper, NotReexecable, ReexecRefused
from poolkeeper.inheritance import INHERITANCE

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
AGAIN = len(INHERITANCE.history)

def tell(**facts):
    print(json.dumps(facts), flush=True)

def ask():
    return sys.stdin.readline().strip()
"""


class Program:
    """A script that runs, says what it finds in lines of JSON, and reads what it shall do from its standard input."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.noise: list[str] = []
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def hear(self) -> Any:
        """Return the next thing that it says."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except Empty:
                raise AssertionError(f"it says nothing\n{self.noise}") from None
            assert line is not None, f"it has ended\n{''.join(self.noise)}"
            if line.startswith("{"):
                return json.loads(line)
            self.noise.append(line)

    def do(self, word: str) -> Any:
        """Have it do something, and return what it says next."""
        self.say(word)
        return self.hear()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Let it come to its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def _what_survives_ends(tmp_path: Path) -> Iterator[None]:
    """Kill what a program leaves for another one, which these tests do not start."""
    yield
    end_all()  # the pidfile may not tell of all of them yet


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "POOLKEEPER_HOME": str(tmp_path / "home"),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[Program]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    with process:
        try:
            yield Program(process)
        finally:
            process.kill()


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Any]:
    def run(source: str, *words: str, options: tuple[str, ...] = (), **others: Any) -> Any:
        script = tmp_path / "script.py"
        script.write_text(PRELUDE + textwrap.dedent(source))
        command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", *options, str(script), *words]
        return running(command, **{"cwd": tmp_path, "env": environment, **others})

    return run


CIRCUMSTANCES = """
    os.umask(0o22) if AGAIN else None
    with Keeper(1, name="etl") as keeper:
        status = Path("/proc/self/status").read_text()
        tell(
            again=AGAIN,
            pid=os.getpid(),
            argv=sys.argv[1:],
            flags=[sys.flags.dont_write_bytecode, sys.flags.utf8_mode],
            cwd=os.getcwd(),
            environment=[os.environ.get("COLOUR"), os.environ.get("POOLKEEPER_HANDOVER")],
            in_children=subprocess.run([sys.executable, "-c", "import os; print(sorted(os.environ))"],
                                       capture_output=True, text=True).stdout,
            descriptors=[name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")
                         and int(name) > 2 and os.get_inheritable(int(name))],
            streams=[os.fstat(fd).st_ino for fd in (0, 1, 2)],
            blocked=[line for line in status.splitlines() if line.startswith("SigBlk")],
            socket=os.stat(keeper.home / "keeper.sock").st_ino,
            home=str(keeper.home),
            result=keeper.submit(pow, 2, 10).result(),
        )
        if ask() == "replace":
            os.environ["COLOUR"] = "red"
            os.chdir("/")
            thread = threading.Thread(target=keeper.reexec)  # any thread may do it
            thread.start()
            thread.join()
"""


def test_everything_around_the_program_stays(start: Start, tmp_path: Path) -> None:
    with start(CIRCUMSTANCES, "a b", "--", "c", options=("-B", "-X", "utf8")) as program:
        first = program.hear()
        assert first["argv"] == ["a b", "--", "c"]
        assert first["cwd"] == str(tmp_path)
        second = program.do("replace")
        third = program.do("replace")
        assert program.end() == 0
    assert [each.pop("again") for each in (first, second, third)] == [0, 1, 2]
    assert VARIABLE not in second["in_children"]
    assert second == first
    assert third == first


def test_the_lock_is_held_all_the_time_and_callers_wait_at_the_socket(start: Start, tmp_path: Path) -> None:
    with start(CIRCUMSTANCES) as program:
        home = Path(program.hear()["home"])
        lock = InstanceLock("etl", home=tmp_path / "home")
        free: list[bool] = []
        starts: set[float] = set()
        failures: list[Exception] = []
        done = False

        def probe() -> None:
            while not done:
                free.append(not lock.is_locked())

        def call() -> None:
            while not done:
                try:
                    with ControlClient(home, PATIENCE) as client:
                        starts.add(client.ask("status")["started"])
                except Exception as error:
                    failures.append(error)

        threads = [Thread(target=probe), Thread(target=call)]
        for thread in threads:
            thread.start()
        for again in range(1, 4):
            wait_until(lambda again=again: len(starts) == again, "a call that is answered by this program")
            assert program.do("replace")["again"] == again
        wait_until(lambda: len(starts) == 4, "a call that is answered by the last program")
        done = True
        for thread in threads:
            thread.join()
        assert program.end() == 0
    assert len(free) > 10
    assert not any(free)
    assert len(failures) <= 3, "only who was connected is cut off"


def test_the_run_goes_on_even_if_the_program_says_never(start: Start) -> None:
    source = """
        def work(number):
            with open(HERE / "ran", "a") as ran:
                print(number, file=ran)
            return number * 2

        with Keeper(1, name="etl", resume="never") as keeper:
            batch = keeper.batch(work, range(5 if AGAIN == 0 else 10), name="work", key=str).result()
            tell(values=batch.values, reused=batch.statistics.reused)
            if AGAIN == 0:
                keeper.reexec()
    """
    with start(source) as program:
        assert program.hear() == {"values": [0, 2, 4, 6, 8], "reused": 0}
        assert program.hear() == {"values": list(range(0, 20, 2)), "reused": 5}
        assert program.end() == 0
    assert sorted((ROOT / program.process.args[-1]).parent.joinpath("ran").read_text().split()) == list("0123456789")  # type: ignore[index]


def test_all_named_keepers_are_handed_over_and_the_others_leave_nothing(start: Start, tmp_path: Path) -> None:
    source = """
        with Keeper(1, name="one") as one, Keeper(1, name="two", run_id="x") as two, Keeper(1) as other:
            tell(
                worker=other.submit(os.getpid).result(),
                home=str(other.home),
                inherited=[keeper._runtime._home.inherited for keeper in (one, two, other)],
            )
            if AGAIN == 0:
                two.reexec()
    """
    with start(source) as program:
        first, second = program.hear(), program.hear()
        assert program.end() == 0
    assert first["inherited"] == [False, False, False]
    assert second["inherited"] == [True, True, False]
    assert not Path(first["home"]).exists()


def test_a_program_that_does_not_open_the_keeper_again_leaks_nothing_to_children(start: Start) -> None:
    source = """
        if AGAIN == 0:
            with Keeper(1, name="etl") as keeper:
                keeper.reexec()
        inheritable = [fd for fd in range(3, 1000) if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]
        child = os.fork()
        if child == 0:
            time.sleep(1000)
        tell(inheritable=inheritable, child=child)
        ask()
    """
    with start(source) as program:
        heard = program.hear()
        try:
            assert heard["inheritable"] == []
            home = ROOT / program.process.args[-1]  # type: ignore[index]
            lock = InstanceLock("etl", home=home.parent / "home")
            assert lock.is_locked()
            program.say("")
            assert program.process.wait(PATIENCE) == 0
            assert not lock.is_locked(), "though its child lives"
        finally:
            os.kill(heard["child"], signal.SIGKILL)


def test_a_working_directory_that_is_gone_keeps_nobody_from_it(
    start: Start, tmp_path: Path, environment: dict[str, str]
) -> None:
    source = """
        with Keeper(1, name="etl") as keeper:
            tell(again=AGAIN)
            if AGAIN == 0:
                (HERE / "here").rmdir()
                keeper.reexec()
    """
    (tmp_path / "here").mkdir()
    with start(source, cwd=tmp_path / "here") as program:
        assert program.hear() == {"again": 0}
        assert program.hear() == {"again": 1}
        assert program.end() == 0


def test_a_link_to_the_newest_release_is_followed_anew(
    start: Start, tmp_path: Path, environment: dict[str, str]
) -> None:
    source = """
        with Keeper(1, name="etl") as keeper:
            tell(cwd=os.getcwd())
            if AGAIN == 0:
                (HERE / "current").unlink()
                (HERE / "current").symlink_to(HERE / "two")
                keeper.reexec()
    """
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "one")
    current = tmp_path / "current"
    with start(source, cwd=current, env={**environment, "PWD": str(current)}) as program:
        assert program.hear() == {"cwd": str(tmp_path / "one")}
        assert program.hear() == {"cwd": str(tmp_path / "two")}
        assert program.end() == 0


# -- what is refused --------------------------------------------------------------------------------------------------

TRIES = """
    def attempt(keeper, **options):
        try:
            keeper.reexec(**options)
        except Exception as error:
            return {"error": type(error).__name__, "message": str(error)}

    with Keeper(1, name="etl") as keeper:
        keeper.submit(pow, 2, 10).result()  # there is a worker, with the code of now
        tell(again=AGAIN)
        while word := ask():
            tell(**attempt(keeper, **json.loads(word)), result=keeper.submit(pow, 2, 10).result(), pid=os.getpid())
"""


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda script: script.write_text("def broken(:\n"), "ReexecRefused", "def broken(:\n"),
        (lambda script: script.unlink(), "NotReexecable", "script.py is gone"),
    ],
)
def test_broken_code_is_refused_and_the_old_goes_on(
    start: Start, tmp_path: Path, spoil: Callable[[Path], object], error: str, message: str
) -> None:
    script = tmp_path / "script.py"
    with start(TRIES) as program:
        assert program.hear() == {"again": 0}
        good = script.read_text()
        spoil(script)
        heard = program.do("{}")
        assert (heard["error"], heard["result"], heard["pid"]) == (error, 1024, program.process.pid)
        assert message in heard["message"]
        script.write_text(good)
        assert program.do("{}") == {"again": 1}
        assert program.end() == 0


def test_a_poolkeeper_that_cannot_be_imported_is_refused(
    start: Start, tmp_path: Path, environment: dict[str, str]
) -> None:
    with start(TRIES, env={**environment, "PYTHONPATH": f"{tmp_path / 'new'}:{ROOT}"}) as program:
        assert program.hear() == {"again": 0}
        package = tmp_path / "new" / "poolkeeper"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise OSError('this is a bad release')")
        heard = program.do("{}")
        assert heard["error"] == "ReexecRefused"
        assert "this is a bad release" in heard["message"]
        (package / "__init__.py").unlink()
        shutil.rmtree(package)  # bytecode may be there
        assert program.do("{}") == {"again": 1}
        assert program.end() == 0


def test_code_that_is_slow_to_import_is_refused(start: Start, tmp_path: Path, environment: dict[str, str]) -> None:
    with start(TRIES, env={**environment, "PYTHONPATH": f"{tmp_path / 'new'}:{ROOT}"}) as program:
        assert program.hear() == {"again": 0}
        (tmp_path / "new" / "poolkeeper").mkdir(parents=True)
        init = tmp_path / "new" / "poolkeeper" / "__init__.py"
        init.write_text("print('importing', flush=True)\nimport time\ntime.sleep(1000)")
        heard = program.do('{"timeout": 3}')
        assert heard["error"] == "ReexecRefused"
        assert "not loaded after 3 s" in heard["message"]
        assert heard["result"] == 1024
        assert program.end() == 0


def test_without_a_name_there_is_nothing_to_hand_over(tmp_path: Path) -> None:
    for options in ({}, {"name": "etl", "home": tmp_path, "start_method": "inline"}):
        with Keeper(1, **options) as keeper, pytest.raises(NotReexecable, match="nothing to"):
            keeper.reexec()


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        (["-c", "SOURCE"], "", "its program was the text after -c"),
        (["-"], "SOURCE", "its program was standard input"),
        (["-i", "-c", "SOURCE"], "", "an interactive session"),
        (["-c", "import IPython, code; code\nSOURCE"], "", "an interactive session"),
    ],
)
def test_a_program_that_cannot_be_started_again_says_so(
    tmp_path: Path, environment: dict[str, str], words: list[str], given: str, message: str
) -> None:
    source = textwrap.dedent("""
        from poolkeeper import Keeper
        with Keeper(1, name="etl") as keeper:
            try:
                keeper.reexec()
            except Exception as error:
                print(type(error).__name__, error)
    """)
    (tmp_path / "IPython.py").write_text("def get_ipython():\n    return object()")
    done = subprocess.run(
        [sys.executable, *(word.replace("SOURCE", source) for word in words)],
        input=given.replace("SOURCE", source),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
        cwd=tmp_path,
        env=environment,
    )
    assert done.stdout.startswith("NotReexecable")
    assert message in done.stdout


def test_a_fork_of_a_program_is_not_the_program(start: Start) -> None:
    source = """
        child = os.fork()
        if child == 0:
            with Keeper(1, name="etl") as keeper:
                try:
                    keeper.reexec()
                except NotReexecable as error:
                    tell(message=str(error))
            os._exit(0)
        os.waitpid(child, 0)
    """
    with start(source) as program:
        assert "was forked by process" in program.hear()["message"]
        assert program.end() == 0


def test_if_the_system_refuses_at_the_end_nothing_hangs(start: Start, tmp_path: Path) -> None:
    source = """
        def refuse(*words):
            raise OSError(12, "Cannot allocate memory")

        os.execve = refuse
        keeper = Keeper(1, name="etl")
        future = keeper.submit(time.sleep, 1000)
        umask = os.umask(0o27)
        try:
            keeper.reexec()
        except Exception as error:
            tell(
                error=type(error).__name__,
                message=str(error),
                task=type(future.exception(20)).__name__,
                ended=keeper._runtime.join(20),
                umask=os.umask(0o22),
                left=sorted(path.name for path in keeper.home.iterdir()),
            )
    """
    with start(source) as program:
        heard = program.hear()
        assert program.end() == 0
    assert "could not be replaced, and its keepers have ended" in heard["message"]
    assert "Cannot allocate memory" in heard["message"]
    assert (heard["error"], heard["task"], heard["ended"]) == ("PoolkeeperError", "PoolkeeperError", True)
    assert heard["umask"] == 0o27
    assert not {"keeper.pid", "keeper.sock"} & set(heard["left"])
    assert not InstanceLock("etl", home=tmp_path / "home").is_locked()


# -- the command line -------------------------------------------------------------------------------------------------

SHOP = """
import os, signal, sys, time
from pathlib import Path
from poolkeeper import Fleet, context

fleet = Fleet("shop")
HERE = Path(__file__).parent
print("version 1", sys.argv[1:], file=sys.stderr, flush=True)

@fleet.service(restart="always")
def base():
    while not context().wait(100):
        pass
"""


class Shop:
    """A fleet that runs, and the commands about it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.file = folder / "shop.py"
        self.file.write_text(SHOP)
        with open(folder / "errors", "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "poolkeeper", "run", "shop.py", "--fresh", "--", "left", "--right"],
                env=environment,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "poolkeeper", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )

    @property
    def home(self) -> KeeperHome:
        (path,) = (self.file.parent / "home").glob("*/default")
        return KeeperHome(path, path.parent.name, "default", True)

    @property
    def errors(self) -> str:
        return (self.file.parent / "errors").read_text()

    def is_up(self, versions: int) -> bool:
        """Whether the program has been started so often, and its service runs."""
        with suppress(Exception):
            with ControlClient(self.home.path) as client:
                services = client.ask("status")["services"]
            started = self.errors.count("['left', '--right']")
            return started >= versions and [row["state"] for row in services] == ["running"]
        return False

    def started(self) -> float:
        with ControlClient(self.home.path) as client:
            return float(client.ask("status")["started"])


@pytest.fixture
def shop(tmp_path: Path, environment: dict[str, str]) -> Iterator[Shop]:
    shop = Shop(tmp_path, environment)
    try:
        wait_until(lambda: shop.is_up(1), "the fleet to be up")
        yield shop
    finally:
        shop.process.kill()
        shop.process.wait()


def test_reload_uses_the_code_on_disk(shop: Shop) -> None:
    before = shop.started()
    # longer, too: Python takes a file of the same second and size for the one that it has compiled
    shop.file.write_text(SHOP.replace("version 1", "version two"))
    done = shop.command("reload")
    assert done.returncode == 0, done.stderr
    assert "/default: replaced in " in done.stdout
    assert shop.started() > before
    assert "version two ['left', '--right']" in shop.errors
    wait_until(lambda: shop.is_up(2), "the service to be up again")
    assert reload_keeper(shop.home).pid == shop.process.pid
    wait_until(lambda: shop.is_up(3), "the service to be up again")
    assert shop.command("shutdown").returncode == 0
    assert shop.process.wait(PATIENCE) == 0


def test_a_reload_of_a_fleet_that_ends_meanwhile_says_so(shop: Shop, tmp_path: Path) -> None:
    loading, loaded = tmp_path / "loading", tmp_path / "loaded"
    slow = f"""
        import os, time
        open({str(loading)!r}, "w").close()
        while not os.path.exists({str(loaded)!r}):
            time.sleep(0.01)
    """
    shop.file.write_text(textwrap.dedent(slow) + SHOP)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(shop.command, "reload")
        try:
            wait_until(loading.exists, "the new code is loaded")
            assert shop.command("shutdown").returncode == 0
            assert shop.process.wait(PATIENCE) == 0
            assert done.result(PATIENCE).returncode == 1
        finally:
            loaded.touch()
    assert "/default has ended before it was replaced" in done.result().stderr


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import nowhere\n", "No module named 'nowhere'"),
        (None, "shop.py"),
        pytest.param("fleet = None\n", "declares no fleet", marks=pytest.mark.soak),
        pytest.param(SHOP.replace('Fleet("shop")', 'Fleet("inn")'), "is another fleet, 'inn-", marks=pytest.mark.soak),
        pytest.param(SHOP.replace("restart=", "after='nobody', restart="), "nobody", marks=pytest.mark.soak),
        (SHOP.replace("import os", "import os; os._exit(0); import sys"), "cannot be loaded (exit code 0)"),
    ],
)
def test_reload_refuses_what_does_not_load(shop: Shop, new: str | None, why: str) -> None:
    before = shop.started()
    if new is None:
        shop.file.unlink()
    else:
        shop.file.write_text(new)
    done = shop.command("reload")
    assert done.returncode == 1
    assert why in done.stderr
    assert shop.started() == before
    assert shop.is_up(1)


def test_what_refused_code_has_started_ends_with_its_trial(shop: Shop, tmp_path: Path) -> None:
    shop.file.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "raise RuntimeError('not like this')\n"
    )
    done = shop.command("reload")
    assert done.returncode == 1
    assert "not like this" in done.stdout + done.stderr
    wait_for_exit(int((tmp_path / "pid").read_text()))
    assert shop.is_up(1)


def test_sighup_reloads_and_sigterm_ends_as_ever(shop: Shop) -> None:
    before = shop.started()
    shop.process.send_signal(signal.SIGHUP)
    wait_until(lambda: shop.is_up(2), "the fleet to be up again")
    assert shop.started() > before
    shop.file.write_text("def broken(:\n")
    shop.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP: the new program cannot be loaded" in log_of(shop), "the refusal")
    assert shop.is_up(2)
    shop.process.send_signal(signal.SIGTERM)
    assert shop.process.wait(PATIENCE) == 0


def log_of(shop: Shop) -> str:
    return (shop.home.path / "logs" / "keeper.log").read_text()


def test_a_signal_that_comes_in_between_is_heard_by_the_new_program(shop: Shop) -> None:
    shop.file.write_text(
        SHOP + "if 'POOLKEEPER_PREFLIGHT' not in os.environ:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    shop.process.send_signal(signal.SIGHUP)
    assert shop.process.wait(PATIENCE) == 0, "it has ended in good order"


BREAKS = """
import threading
def later():
    import time
    from poolkeeper.living import KEEPERS
    while True:
        for runtime in list(KEEPERS):
            if runtime.incarnation.control is not None:
                runtime.call_soon(lambda: 1 / 0)
                return
        time.sleep(0.01)
if "POOLKEEPER_PREFLIGHT" not in os.environ:
    threading.Thread(target=later, daemon=True).start()
"""


def test_a_loop_that_fails_is_replaced_by_a_program_that_goes_on(shop: Shop) -> None:
    once = BREAKS.replace("not in os.environ:", "not in os.environ and not os.path.exists('broken'):")
    shop.file.write_text(SHOP + once + "    open('broken', 'w').close()\n")
    shop.process.send_signal(signal.SIGHUP)
    wait_until(lambda: shop.is_up(3), "the program that has taken the place of the one that failed")
    assert log_of(shop).count("and is replaced; this is a defect") == 1
    shop.process.send_signal(signal.SIGTERM)
    assert shop.process.wait(PATIENCE) == 0


@pytest.mark.soak
def test_a_loop_that_fails_is_replaced_but_not_for_ever(shop: Shop) -> None:
    shop.file.write_text(SHOP + BREAKS)
    shop.process.send_signal(signal.SIGHUP)
    wait_until(lambda: shop.errors.count("version 1") == 2, "the new program")
    starts: set[float] = set()

    def ended() -> bool:
        with suppress(Exception):
            starts.add(shop.started())  # the call makes it fail
        return shop.process.poll() is not None

    wait_until(ended, "the end", 2 * PATIENCE)
    assert shop.process.returncode == 1
    assert "it has been tried too often" in log_of(shop)
    assert log_of(shop).count("and is replaced; this is a defect") == 6


def test_systemd_hears_of_it(tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        shop = Shop(tmp_path, {**environment, "NOTIFY_SOCKET": str(tmp_path / "notify")})
        try:
            assert manager.recv(4096).startswith(b"READY=1")
            wait_until(lambda: shop.is_up(1), "the fleet to be up")
            shop.process.send_signal(signal.SIGHUP)
            assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(4096).startswith(b"READY=1")
            shop.process.send_signal(signal.SIGTERM)
            assert manager.recv(4096).startswith(b"STOPPING=1")
            assert shop.process.wait(PATIENCE) == 0
        finally:
            shop.process.kill()
            shop.process.wait()


def test_the_terminal_is_left_in_order(tmp_path: Path, environment: dict[str, str]) -> None:
    fleet = """
        import os
        from pathlib import Path
        from poolkeeper import Fleet

        fleet = Fleet("shown")
        HERE = Path(__file__).parent

        @fleet.batch(items=["gate"])
        def wait(name):
            (HERE / "started").touch()
            with open(HERE / name) as gate:
                gate.read()
    """
    file = tmp_path / "shown.py"
    file.write_text(textwrap.dedent(fleet))
    os.mkfifo(tmp_path / "gate")
    ours, theirs = pty.openpty()
    shown = bytearray()
    hung_up = Event()

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while not hung_up.is_set():
                if select.select([ours], [], [], 0.05)[0]:
                    shown.extend(os.read(ours, 65536))
        os.close(ours)

    process = subprocess.Popen(
        [sys.executable, "-m", "poolkeeper", "run", str(file)],
        env={**environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    reader = Thread(target=read)
    reader.start()
    try:
        wait_until((tmp_path / "started").exists, "the task")
        wait_until(lambda: b"\x1b[?25l" in shown, "the display")
        (path,) = (tmp_path / "home").glob("*/default")
        assert reload_keeper(KeeperHome(path, path.parent.name, "default", True)).pid == process.pid
        wait_until(lambda: shown.count(b"\x1b[?25l") == 2, "the display of the new program")
        assert b"\x1b[?25h" in shown[: shown.rindex(b"\x1b[?25l")], "the cursor was shown before"
        hung_up.set()
        reader.join(PATIENCE)
        with suppress(subprocess.TimeoutExpired):
            process.send_signal(signal.SIGHUP)  # the terminal is gone: this is no reload, and what runs is finished
            process.wait(0.1)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
        hung_up.set()
        reader.join(PATIENCE)
