"""What tests run as services: importable by name, so that only the arguments travel."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn

from poolkeeper import Keeper, context
from tests.helpers import wait_until
from tests.tasks import note, notes, square

LAST_NOTE = "ended"


def look() -> None:
    """Look whether to stop: from now on the stop signal raises nothing here."""
    assert not context().stopping


def serve(folder: Path | None = None, name: str = "started") -> None:
    """Leave a note, and run until asked to stop."""
    if folder is not None:
        look()
        note(folder, name)
    while not context().wait(60):
        pass
    if folder is not None:
        note(folder, f"{name}-{LAST_NOTE}")


def serve_blindly(folder: Path) -> NoReturn:
    """Run without ever asking whether to stop."""
    try:
        note(folder, "started")
        while True:
            time.sleep(60)
    finally:
        note(folder, "cleaned up")


def serve_when_ready(folder: Path, name: str = "started") -> None:
    """Be ready as soon as the file ``ready`` exists."""
    note(folder, name)
    while not (folder / "ready").exists():
        if context().wait(0.002):
            return
    context().ready("all systems go")
    context().wait(600)


def never_ready(folder: Path) -> None:
    note(folder, "started")
    serve()


def fail(message: str = "no luck") -> NoReturn:
    raise ValueError(message)


def fail_unless(folder: Path, name: str = "mended") -> None:
    note(folder, "attempts")
    if not (folder / name).exists():
        raise ConnectionError("not yet")
    serve()


def exit_with(code: object) -> NoReturn:
    sys.exit(code)  # type: ignore[arg-type]


def exit_hard(code: int) -> NoReturn:
    os._exit(code)


def die(number: int = signal.SIGKILL) -> NoReturn:
    os.kill(os.getpid(), number)
    while True:
        signal.pause()


def note_attempt(folder: Path) -> None:
    note(folder, "attempts")


def crash() -> None:
    import ctypes

    ctypes.string_at(0)


def ignore_stop(folder: Path) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(folder, "started")
    while True:
        time.sleep(60)


def swallow_stop(folder: Path) -> NoReturn:
    """Catch the exception that the stop signal is, and go on."""
    note(folder, "started")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            note(folder, "swallowed")


def leave_descendants(folder: Path, then: Callable[[], None] | None = None) -> None:
    """Start a child, a daemon by double fork, and a process in a session of its own, all deaf to what is gentle."""
    for kind in ("child", "daemon", "session"):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if kind != "child":
                os.setsid()
            if kind == "daemon" and os.fork():
                os._exit(0)
            note(folder, "descendants")
            while True:
                time.sleep(60)
    wait_until(lambda: len(notes(folder, "descendants")) == 3)
    note(folder, "started")
    if then is not None:
        then()
    else:
        serve()


def close_everything(folder: Path) -> None:
    os.closerange(0, 4096)
    look()
    note(folder, "started")
    wait_until((folder / "go").exists)
    context().ready()
    context().wait(600)
    note(folder, "stopped in order")


def take_all_descriptors(folder: Path) -> None:
    """Close everything, and have files of one's own under every number."""
    os.closerange(3, 4096)
    files = [open(folder / f"file-{number}", "wb", buffering=0) for number in range(64)]  # noqa: SIM115
    look()
    context().ready()
    note(folder, "started")
    context().wait(600)
    gc.collect()  # what is left of our own side must not end now, and take a descriptor along
    for file in files:
        file.write(b"mine")
    note(folder, "stopped in order")


def change_user(folder: Path) -> None:
    folder.chmod(0o777)
    os.setuid(65534)
    look()
    note(folder, "started")
    context().wait(600)
    note(folder, "stopped in order")


def print_binary(folder: Path) -> None:
    os.write(1, bytes(range(256)) + b"\n")
    note(folder, "started")
    serve()


def flood(folder: Path, lines: int) -> None:
    for number in range(lines):
        print(f"line {number}", "x" * 100)
    note(folder, "started")
    serve()


def say(*words: str) -> None:
    print(*words, flush=True)
    serve()


def hang(folder: Path) -> None:
    """Give one heartbeat, and get stuck beside a thread that is stuck as well."""

    def stuck_thread() -> None:
        threading.Event().wait()

    threading.Thread(target=stuck_thread, daemon=True).start()
    context().ready()
    context().heartbeat()
    note(folder, "started")
    stuck_here()


def stuck_here() -> NoReturn:
    while True:
        time.sleep(60)


def beat(folder: Path) -> None:
    look()
    while not context().wait(0.01):
        context().heartbeat()
        note(folder, "beats")


def beat_then_stop_myself(folder: Path) -> None:
    note(folder, "started")
    context().heartbeat()
    if len(notes(folder, "started")) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    beat(folder)


def with_threads(folder: Path) -> None:
    """Return while a thread that is no daemon goes on until asked to stop."""

    def work() -> None:
        look()
        note(folder, "started")
        context().wait(600)
        note(folder, "thread ended")

    threading.Thread(target=work).start()


def fork_and_return(folder: Path) -> None:
    """Return twice: in the service, and in a child that has forked."""
    child = os.fork()
    note(folder, "child" if child == 0 else "parent")
    if child:
        os.waitpid(child, 0)
        serve(folder)


_struck = False


def _strike() -> None:
    if _struck:
        os.kill(os.getpid(), signal.SIGTERM)


os.register_at_fork(after_in_child=_strike)


def fork_under_fire(folder: Path) -> None:
    """Have a child that is asked to end before anything of it has run."""
    global _struck  # noqa: PLW0603
    look()
    _struck = True
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(1)
    _struck = False
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    note(folder, "started")


def terminate_pool(folder: Path) -> None:
    """Use a pool of multiprocessing, whose end is a SIGTERM to its workers."""
    import multiprocessing

    look()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, [1, 2, 3]) == [1, 4, 9]
    note(folder, "started")
    context().wait(600)


def nest(folder: Path) -> None:
    look()
    with Keeper(1) as keeper:
        assert keeper.submit(square, 3).result() == 9
        inner = keeper.service(serve, (folder, "inner"))
        inner.wait()
        wait_until(lambda: notes(folder, "inner"))
        note(folder, "started")
        context().wait(600)


def wait_with_asyncio(folder: Path) -> None:
    async def forever() -> None:
        note(folder, "started")
        await asyncio.sleep(600)

    asyncio.run(forever())


def makes_a_coroutine() -> object:
    return coroutine()


def generator() -> Iterator[None]:
    yield


async def asynchronous_generator() -> AsyncIterator[None]:
    yield


async def coroutine() -> None:
    pass


def start_program(folder: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        (folder / "program").write_text(f"{process.pid}\n")
        note(folder, "started")
        serve()


def grow(size: int, folder: Path) -> None:
    note(folder, "started")
    kept = bytearray(b"x") * size
    note(folder, "grown")
    serve()
    del kept


def burn_once(folder: Path) -> None:
    note(folder, "started")
    if len(notes(folder, "started")) == 1:
        while True:
            pass
    serve()


def slot(folder: Path) -> None:
    note(folder, f"slot-{context().slot}")
    serve()


def write_environment(folder: Path, *names: str) -> None:
    mask = os.umask(0)
    lines = [os.environ.get(name, "") for name in names]
    (folder / "seen").write_text("\n".join([*lines, os.getcwd(), f"{mask:o}", str(os.nice(0))]))
    os.umask(mask)
    note(folder, "started")
    serve()
