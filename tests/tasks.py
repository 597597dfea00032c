"""What tests have workers do: importable by name, so that only the arguments travel."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from poolkeeper import Context, Keeper, RetryPolicy, context

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: a preload of this module must leave no threads


def square(number: int) -> int:
    return number * number


def add(first: int, second: int) -> int:
    return first + second


def echo(value: Any) -> Any:
    return value


def echo_all(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def pid(_: object = None) -> int:
    return os.getpid()


def is_worker() -> bool:
    """Whether this process belongs to a keeper; for objects that must do harm in no other."""
    return context().slot >= 0 and os.getpid() != os.getsid(0)


def environment(name: str) -> str | None:
    return os.environ.get(name)


# -- what fails -------------------------------------------------------------------------------------------------------


def fail(message: str) -> NoReturn:
    raise ValueError(message)


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise ValueError(f"item {number}")
    return number


def fail_before(attempt: int) -> int:
    if context().attempt < attempt:
        raise ConnectionError(f"attempt {context().attempt}")
    return context().attempt


def leave(code: object) -> NoReturn:
    sys.exit(code)  # type: ignore[arg-type]


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1)


# -- what can be seen and steered from outside ------------------------------------------------------------------------


def note(folder: Path, name: str) -> None:
    """Leave a line in ``folder/name``; appending is atomic."""
    fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{os.getpid()}\n".encode())
    os.close(fd)


def notes(folder: Path, name: str) -> list[int]:
    """Return the pids that have left a line in ``folder/name``."""
    try:
        return [int(line) for line in (folder / name).read_text().splitlines()]
    except FileNotFoundError:
        return []


def wait_for_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.002)


def hold(folder: Path, value: Any = None) -> Any:
    """Leave a note in ``started``, wait for the file ``go``, return ``value``."""
    note(folder, "started")
    wait_for_file(folder / "go")
    return value


def make_bytes_behind(folder: Path, number: int, size: int, gate: str | None = None) -> bytes:
    """Leave a note in ``begun-NUMBER``, wait for the file ``gate`` if there is one, return so many bytes."""
    note(folder, f"begun-{number}")
    if gate is not None:
        wait_for_file(folder / gate)
    return bytes(size)


def hold_until_cancelled(folder: Path) -> str:
    note(folder, "started")
    if not context().wait(60):
        return "never cancelled"
    note(folder, "cancelled")
    return "cancelled"


def hold_until_cancelled_if(folder: Path | None, _: bytes) -> str:
    return "ran" if folder is None else hold_until_cancelled(folder)


def poll_until_cancelled(folder: Path) -> str:
    note(folder, "started")
    deadline = time.monotonic() + 60
    while not context().cancelled:
        if time.monotonic() > deadline:
            return "never cancelled"
    note(folder, "cancelled")
    return "cancelled"


def sleep_forever(folder: Path | None = None) -> NoReturn:
    if folder is not None:
        note(folder, "started")
    while True:
        time.sleep(60)


def spin(seconds: float) -> int:
    """Be busy, as a task of this length."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return os.getpid()


def nap(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


# -- what dies --------------------------------------------------------------------------------------------------------


def die(number: int = signal.SIGKILL) -> NoReturn:
    os.kill(os.getpid(), number)
    while True:
        signal.pause()


def die_once(folder: Path, value: Any = None) -> Any:
    """Kill the worker at the first attempt; note every attempt."""
    first = not notes(folder, "attempts")
    note(folder, "attempts")
    if first:
        die()
    return value


def die_at(number: int, bad: int) -> int:
    if number == bad:
        die()
    return number


def note_and_die(folder: Path) -> NoReturn:
    note(folder, "attempts")
    die()


def segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def exit_hard(code: int) -> NoReturn:
    os._exit(code)


# -- what sees its context --------------------------------------------------------------------------------------------


def describe_context() -> tuple[str, int, str | None, int, bool]:
    mine = context()
    return mine.name, mine.attempt, mine.key, mine.slot, mine.cancelled


def with_context(mine: Context, number: int) -> tuple[str, int]:
    return mine.name, number


def report_progress(total: int) -> int:
    for done in range(total + 1):
        context().progress(done, total)
    return total


# -- large data -------------------------------------------------------------------------------------------------------


def total(array: np.ndarray) -> float:
    return float(array.sum())


def scale(array: np.ndarray, factor: float) -> np.ndarray:
    array *= factor  # in place: what arrives is writable
    return array


def filled(size: int, value: int) -> np.ndarray:
    import numpy as np

    return np.full(size, value, dtype=np.uint8)


def make_bytes(size: int) -> bytes:
    return b"x" * size


# -- nesting ----------------------------------------------------------------------------------------------------------


def nested(numbers: list[int]) -> list[int]:
    with Keeper(2) as keeper:
        return list(keeper.map(square, numbers))


_left_open: list[Keeper] = []


def nested_left_open(number: int) -> int:
    keeper = Keeper(1)
    _left_open.append(keeper)
    return keeper.submit(square, number).result()


# -- what makes a mess ------------------------------------------------------------------------------------------------


def close_descriptors() -> int:
    os.closerange(3, 4096)
    return os.getpid()


def start_thread() -> int:
    threading.Thread(target=threading.Event().wait, name="left behind").start()
    return os.getpid()


def set_global(value: object) -> None:
    globals()["_global"] = value


def get_global() -> object:
    return globals().get("_global")


def get_global_of(_: object) -> object:
    return get_global()


# -- of retries and timeouts ------------------------------------------------------------------------------------------


def note_and_fail(folder: Path) -> None:
    note(folder, "attempts")
    raise ConnectionError


def deaf() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def slow_at_first(folder: Path) -> int:
    note(folder, "attempts")
    number = len(notes(folder, "attempts"))
    if number == 1:
        sleep_forever()
    return number


def hang_if(number: int, hang: bool) -> int:
    if hang:
        sleep_forever()
    return number


def note_number(folder: Path, number: int) -> int:
    note(folder, str(number))
    return number


def die_die_fail_succeed(folder: Path) -> int:
    note(folder, "attempts")
    number = len(notes(folder, "attempts"))
    if number < 3:
        die()
    if number == 3:
        raise ConnectionError
    return number


def last_words() -> None:
    print("these are my last words", flush=True)
    die()


def hold_if(folder: Path | None) -> str:
    if folder is not None:
        hold(folder)
    return "ran"


def start_child(folder: Path) -> None:
    import subprocess

    with subprocess.Popen(["sleep", "600"]) as process:
        (folder / "child").write_text(f"{process.pid}\n")
        sleep_forever(folder)


def make_zeros(size: int) -> np.ndarray:
    import numpy as np

    return np.zeros(size, dtype=np.uint8)


# -- of contexts ------------------------------------------------------------------------------------------------------


def key_of(_: object) -> str | None:
    return context().key


def hold_slot(folder: Path) -> int:
    hold(folder)
    return context().slot


def die_once_and_tell_attempt(folder: Path) -> int:
    die_once(folder)
    return context().attempt


def log_something() -> str:
    context().log.info("something")
    return "logged"


def wait_in_context(seconds: float) -> tuple[bool, float]:
    began = time.monotonic()
    return context().wait(seconds), time.monotonic() - began


def inline_within(_: object) -> tuple[str, str]:
    """Run a task inline within a task; the context speaks of this one before and after."""
    before = context().name
    with Keeper(1, start_method="inline") as keeper:
        keeper.submit(square, 2).result()
    return before, context().name


# -- of configuration -------------------------------------------------------------------------------------------------


def limits() -> dict[str, object]:
    """Tell for each limit of these tests whether it is in force here."""
    import resource

    mask = os.umask(0)
    os.umask(mask)
    return {
        "hard_memory": any(resource.getrlimit(kind)[1] == 2**30 for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)),
        "cpu_seconds": resource.getrlimit(resource.RLIMIT_CPU)[0] != resource.RLIM_INFINITY,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 100,
        "nice": os.nice(0) == 5,
        "affinity": os.sched_getaffinity(0) == {0},
        "cwd": os.getcwd() == "/",
        "umask": mask == 0o077,
    }


def fail_first_times(folder: Path, times: int) -> None:
    note(folder, "attempts")
    if len(notes(folder, "attempts")) <= times:
        raise ConnectionError("not yet")


# -- of recycling -----------------------------------------------------------------------------------------------------

_kept: list[bytearray] = []


def grow(size: int) -> int:
    _kept.append(bytearray(b"x") * size)
    return os.getpid()


def grow_slowly(number: int, size: int) -> int:
    grow(size)
    return number


def kept_bytes() -> int:
    return sum(map(len, _kept))


# -- of the fork server -----------------------------------------------------------------------------------------------


def is_loaded(module: str) -> bool:
    return module in sys.modules


def orphan_then_die(folder: Path) -> NoReturn:
    """Leave a child behind and die."""
    child = os.fork()
    if child == 0:
        note(folder, "orphans")
        while True:
            signal.pause()
    while child not in notes(folder, "orphans"):
        time.sleep(0.001)
    die()


# -- of chaos ---------------------------------------------------------------------------------------------------------


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def exhaust_memory(headroom: int) -> None:
    """Limit this process to ``headroom`` bytes more than it has, and ask for more."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, resource.RLIM_INFINITY))
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def return_more_than_fits(headroom: int) -> bytes:
    """Leave no room for the result to be sent."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, resource.RLIM_INFINITY))
    return bytes(headroom * 3 // 4)


def fill_memory_in(cgroup: Path, size: int) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    kept = []
    for _ in range(size >> 20):
        kept.append(bytearray(b"x") * (1 << 20))


def overflow_stack() -> None:
    import ctypes

    callback_type = ctypes.CFUNCTYPE(None)

    def again() -> None:
        callback()

    sys.setrecursionlimit(10**6)
    callback = callback_type(again)
    callback()


def wait_for_stop() -> None:
    """As a service: run until asked to stop."""
    while not context().wait(60.0):
        pass


# -- of checkpoints ---------------------------------------------------------------------------------------------------


def count_in_steps(folder: Path, steps: int, die_at: int) -> int:
    """Save the position after each step, note each step, and die once in the midst of one."""
    mine = context()
    start = mine.restore(0)
    for step in range(start, steps):
        note(folder, f"step {step}")
        if step == die_at and not (folder / "died").exists():
            note(folder, "died")
            die()
        mine.checkpoint(step + 1)
    return int(start)


def track_and_die(folder: Path, items: list[int], die_at: int, iterator: bool = False) -> list[int]:
    """Track ``items`` and die once; return what this attempt has done."""
    done = []
    for item in context().track(iter(items) if iterator else items, every=0):
        note(folder, f"item {item}")
        if item == die_at and not (folder / f"died at {item}").exists():
            note(folder, f"died at {item}")
            die()
        done.append(item)
    return done


def track_item_and_die(folder: str, number: int) -> tuple[int, int]:
    """As an item of a map: save its own number, die once at the third, return what was found."""
    path = Path(folder)
    found = context().restore(-1)
    assert found in (-1, number)
    context().checkpoint(number)
    if number == 3 and not (path / "died").exists():
        note(path, "died")
        die()
    return number, found


def track_and_fail(folder: Path, items: list[int], fail_at: int) -> list[int]:
    """As ``track_and_die``, but raise; the position is saved then however seldom it is otherwise."""
    done = []
    for item in context().track(items, every=1000):
        note(folder, f"item {item}")
        if item == fail_at and context().attempt == 1:
            raise ConnectionError
        done.append(item)
    return done


def checkpoint_and_hold(folder: Path, state: Any) -> Any:
    """Return what was found if anything was; else save ``state`` and wait for the end."""
    found = context().restore()
    if found is not None:
        return found
    assert context().checkpoint(state)
    return hold(folder, "fresh")


def fill_checkpoint(size: int) -> bool:
    return context().checkpoint(os.urandom(size))


def checkpoint_without_home(home: Path) -> bool:
    import shutil

    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    home.rename(home.with_name("gone"))
    try:
        return context().checkpoint(1)
    finally:
        home.with_name("gone").rename(home)


def checkpoint_and_return(value: Any) -> Any:
    context().checkpoint(value)
    return value


def counting_service(folder: Path) -> None:
    """Count the processes of this service in its state."""
    mine = context()
    count = mine.restore(0) + 1
    mine.checkpoint(count)
    note(folder, f"process {count}")
    mine.ready()
    while not mine.wait(60):
        pass


def save_and_fail(states: list[Any] | None) -> Any:
    """Save one after the other and fail; given None, return what is found, None where it cannot be read."""
    if states is None:
        return context().restore(on_error="default")
    context().restore()
    for state in states:
        context().checkpoint(state)
    raise ConnectionError


def count_attempts_in_state() -> int:
    count = int(context().restore(0)) + 1
    context().checkpoint(count)
    if count < 3:
        raise ConnectionError
    return count


def checkpoint_in_steps(folder: Path) -> None:
    """Save one state after the other, a note for each, until the file ``go`` is there."""
    for step in range(1_000_000):
        assert context().checkpoint(step)
        note(folder, "steps")
        if (folder / "go").exists():
            return
        context().wait(0.001)


def note_and_pass_gate(where: str, item: object) -> object:
    """Write down that ``item`` is executed, and return it when its gate is open."""
    folder = Path(where)  # as an argument it would count with the time of its last change
    with open(folder / f"ran-{os.getpid()}", "a") as ran:
        ran.write(f"{item}\n")
    while not (folder / f"gate-{item}").exists():
        time.sleep(0.005)
    (folder / f"passed-{item}").touch()
    return item


def note_and_pass_gate_in_silence(where: str, item: object) -> object:
    """As ``note_and_pass_gate``; no signal reaches the worker meanwhile, as if it were within a long call of C code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    try:
        return note_and_pass_gate(where, item)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})


def note_and_pass_gate_without_descriptors(where: str, item: object) -> object:
    """As ``note_and_pass_gate``, but close all that the worker has open first."""
    os.closerange(3, 4096)
    return note_and_pass_gate(where, item)


def note_and_return_bytes(where: str, item: int) -> bytes:
    """As ``note_and_pass_gate``, but return so many bytes."""
    note_and_pass_gate(where, item)
    return bytes(item)


def no_deaths() -> RetryPolicy:
    """A policy by which the first death of a worker is final."""
    return RetryPolicy(deaths=1)


def cut_off(where: str, item: object, *, for_good: bool) -> object:
    """Write down that ``item`` is executed; the first time lose the link, and the keeper's socket as well."""
    folder = Path(where)
    first = not list(folder.glob("ran-*"))
    with open(folder / f"ran-{os.getpid()}", "a") as ran:
        ran.write(f"{item}\n")
    if first:
        (path,) = folder.glob("home/*/*/keeper.sock")
        path.unlink()
        if for_good:
            path.mkdir()  # none can be made in its place
        os.closerange(3, 4096)
    return item


def note_and_return(where: str, item: object) -> object:
    """Write down that ``item`` is executed, and return it after a while."""
    with open(Path(where) / f"ran-{os.getpid()}", "a") as ran:
        ran.write(f"{item}\n")
    time.sleep(0.002)
    return item
