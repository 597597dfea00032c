"""Tasks that leave their process in a mess."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poolkeeper import context
from tests.tasks import note, notes


def close_all_descriptors() -> None:
    os.closerange(3, 4096)


def close_standard_streams() -> None:
    os.closerange(0, 3)


def close_everything() -> None:
    os.closerange(0, 4096)


def close_sockets_by_collector() -> None:
    import socket

    for thing in gc.get_objects():
        if isinstance(thing, socket.socket):
            thing.close()


def change_directory() -> None:
    os.chdir("/proc")


def remove_own_directory() -> None:
    import tempfile

    path = tempfile.mkdtemp()
    os.chdir(path)
    os.rmdir(path)


def replace_stdout() -> None:
    sys.stdout = None  # type: ignore[assignment]
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr.close()


def break_stdout() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    sys.stdout = sys.stderr = Broken()  # type: ignore[assignment]


def leave_threads() -> None:
    for _ in range(5):
        threading.Thread(target=threading.Event().wait).start()


def leave_zombies() -> None:
    for _ in range(5):
        if os.fork() == 0:
            os._exit(3)


def ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def change_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGURG}:
        signal.signal(number, signal.SIG_IGN)


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def steal_the_nudge() -> None:
    signal.signal(signal.SIGURG, signal.SIG_DFL)


def set_alarm() -> None:
    signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _raise(*_: object) -> None:
    raise KeyboardInterrupt


def interrupt_later() -> None:
    """An alarm that raises goes off in the worker's own code, or in a later task."""
    signal.signal(signal.SIGALRM, _only_between_tasks)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    time.sleep(0.0005)


def _only_between_tasks(*_: object) -> None:
    if not context().key:
        return
    raise KeyboardInterrupt


def trace_everything() -> None:
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)


def stop_collecting() -> None:
    gc.disable()
    gc.set_threshold(0)


def shadow_builtins() -> None:
    builtins.print = None  # type: ignore[assignment]
    builtins.open = None  # type: ignore[assignment]


def forget_modules() -> None:
    for name in ("pickle", "threading", "random", "poolkeeper.payload", "poolkeeper.worker"):
        sys.modules.pop(name, None)


def patch_clocks() -> None:
    time.sleep = lambda _: None  # type: ignore[assignment]
    time.time = lambda: 0.0


def clear_environment() -> None:
    os.environ.clear()


def register_exit_handlers() -> None:
    atexit.register(time.sleep, 60)
    atexit.register(os._exit, 3)


def set_umask_and_niceness() -> None:
    os.umask(0o777)
    os.nice(1)


def default_timeout() -> None:
    import socket

    socket.setdefaulttimeout(0.000001)


def lower_file_limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def leave_generator() -> None:
    def generator() -> Any:
        try:
            yield
        finally:
            time.sleep(0)
            raise RuntimeError("in a finalizer")

    started = generator()
    next(started)
    globals()["_generator"] = started


def change_session() -> None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)


ALL: list[Callable[[], None]] = [
    close_all_descriptors,
    close_standard_streams,
    close_everything,
    close_sockets_by_collector,
    change_directory,
    remove_own_directory,
    replace_stdout,
    break_stdout,
    leave_threads,
    leave_zombies,
    ignore_children,
    change_signals,
    block_signals,
    steal_the_nudge,
    set_alarm,
    interrupt_later,
    trace_everything,
    stop_collecting,
    shadow_builtins,
    forget_modules,
    patch_clocks,
    clear_environment,
    register_exit_handlers,
    set_umask_and_niceness,
    default_timeout,
    lower_file_limit,
    leave_generator,
    change_session,
]


def echo_or_close(value: Any) -> Any:
    """Return ``value``; for None, close all descriptors."""
    if value is None:
        close_all_descriptors()
    return value


def close_all_and_open(folder: Path, content: bytes = b"") -> None:
    """Take every number that the worker had."""
    close_all_descriptors()
    globals()["_files"] = files = [open(folder / str(number), "w+b", buffering=0) for number in range(64)]  # noqa: SIM115
    for file in files:
        file.write(content)


def leave_children(folder: Path) -> None:
    """Leave a child, a grandchild and a daemon behind."""
    for kind in ("child", "grandchild", "daemon"):
        if os.fork() == 0:
            if kind == "daemon":
                os.setsid()
            if kind != "child" and os.fork():
                os._exit(0)
            note(folder, kind)
            while True:
                signal.pause()
        while not notes(folder, kind):
            time.sleep(0.001)


def fork_and_return(folder: Path) -> int:
    os.fork()
    note(folder, "forked")
    return os.getpid()


def leave_busy_thread(folder: Path) -> None:
    def beat() -> None:
        while True:
            note(folder, "beats")
            time.sleep(0.01)

    threading.Thread(target=beat, daemon=True).start()


def progress_from_threads() -> int:
    mine = context()

    def report() -> None:
        for number in range(2000):
            mine.progress(number, 2000)

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(threads)


def shout(size: int) -> int:
    sys.stdout.write("x" * size)
    sys.stdout.flush()
    return size
