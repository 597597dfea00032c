"""Who keeps services running, each behind the same few verbs: start so many of them, wait, end.

All run ``bench.tasks.hold`` by this Python. What they import is imported before the clock starts, as it is for
poolkeeper: supervisord and circus run in a process that is forked with them loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

from bench import tasks
from bench.peers import Contender, Poolkeeper
from bench.procfs import descendants
from bench.rendezvous import Meeting

__all__ = ["SUPERVISORS", "PoolkeeperServices", "Supervisor"]

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0
FOR_EVER = 1_000_000  # restarts


class Supervisor(Contender):
    """Runs ``count`` services that ring the bell of ``meeting``, then wait at its gate; starts at once.

    ``period`` is how often, in seconds, it looks by itself for what has ended: kills must not march in step with it.
    Who is ``slow_to_stop`` takes many seconds to end 100 services.
    """

    period: ClassVar[float] = 0.0
    slow_to_stop: ClassVar[bool] = False

    def __init__(self, count: int, meeting: Meeting) -> None:
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until it knows by itself that all are ready, if it can tell."""

    def close(self) -> None:
        """End all services, then itself, as it does when it is asked to."""
        raise NotImplementedError

    def kill(self) -> None:
        """End all at once where only what came before was of interest."""
        self.close()


def program(meeting: Meeting) -> list[str]:
    """The service as a command, for those that know of nothing else."""
    return [sys.executable, "-c", f"from bench.tasks import hold; hold({meeting.bell.path!r}, {meeting.gate.path!r})"]


class PoolkeeperServices(Supervisor):
    """The supervisor whose benchmarks these are; ``home`` gives it a name, so that other programs can talk to it."""

    name, label, module, distribution = Poolkeeper.name, Poolkeeper.label, Poolkeeper.module, Poolkeeper.distribution
    entry = Poolkeeper.entry

    def __init__(self, count: int, meeting: Meeting, home: Path | None = None) -> None:
        from tenacity import wait_none

        from poolkeeper import RestartPolicy

        place = {} if home is None else {"name": "bench", "home": home}
        self.keeper = self.load()(preload=["bench.tasks"], **place)
        at_once = RestartPolicy(wait=wait_none())
        self._handles = [
            self.keeper.service(
                tasks.hold, (meeting.bell.path, meeting.gate.path), name=f"service-{number}", restart=at_once
            )
            for number in range(count)
        ]

    @classmethod
    def load(cls) -> Any:
        """Import what a service with a restart policy takes."""
        importlib.import_module("tenacity")
        return super().load()

    def wait(self) -> None:
        """Wait until the keeper says that all are ready."""
        for handle in self._handles:
            assert handle.wait(timeout=PATIENCE), handle

    def close(self) -> None:
        """Shut the keeper down."""
        self.keeper.shutdown()


class Forked(Supervisor):
    """Runs ``main(count, meeting)`` in a process of its own until it is asked to end by SIGTERM."""

    def __init__(self, count: int, meeting: Meeting) -> None:
        self.load()
        self._process = get_context("fork").Process(target=self.main, args=(count, meeting))
        self._process.start()

    def main(self, count: int, meeting: Meeting) -> None:
        """Start and look after the services."""
        raise NotImplementedError

    def close(self) -> None:
        self._process.terminate()
        self._process.join(PATIENCE)
        self._process.close()

    def kill(self) -> None:
        assert self._process.pid is not None
        services = descendants(self._process.pid)
        self._process.kill()  # first: it would start them again
        self._process.join()
        for pid in services:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Supervisord(Forked):
    """supervisord with a configuration file: a program for each service, and no delay that it can be talked out of."""

    name, label, module, distribution = "supervisord", "supervisord", "supervisor.supervisord", "supervisor"
    entry = "main"
    period = 1.0
    slow_to_stop = True

    def main(self, count: int, meeting: Meeting) -> None:
        path = meeting.folder / "supervisord.conf"
        lines = [
            "[supervisord]",
            "nodaemon=true",
            "silent=true",
            "logfile=/dev/null",
            "logfile_maxbytes=0",
            f"pidfile={meeting.folder / 'supervisord.pid'}",
            f"directory={ROOT}",
        ]
        for number in range(count):
            lines += [
                f"[program:service-{number}]",
                f"command={shlex.join(program(meeting))}",
                "startsecs=0",
                "autorestart=true",
                f"startretries={FOR_EVER}",
                "stdout_logfile=NONE",
                "stderr_logfile=NONE",
            ]
        path.write_text("\n".join(lines) + "\n")
        self.load()(["-c", str(path)])


class Circus(Forked):
    """circus as circusd sets it up by default: a watcher for each service."""

    name, label, module, distribution = "circus", "circus", "circus", "circus"
    entry = "get_arbiter"
    period = 5.0

    @classmethod
    def load(cls) -> Any:
        importlib.import_module("circus.arbiter")
        return super().load()

    def watchers(self, count: int) -> list[dict[str, Any]]:
        """The watchers by name and number of processes."""
        return [{"name": f"service-{number}", "numprocesses": 1} for number in range(count)]

    def main(self, count: int, meeting: Meeting) -> None:
        executable, *arguments = program(meeting)
        common = {"cmd": executable, "args": arguments, "working_dir": str(ROOT), "copy_env": True}
        arbiter = self.load()(
            [common | watcher for watcher in self.watchers(count)],
            controller=f"ipc://{meeting.folder}/controller",
            pubsub_endpoint=f"ipc://{meeting.folder}/events",
            check_delay=self.period,
        )
        arbiter.start()


class CircusFastest(Circus):
    """circus at its fastest: one watcher with many processes, looked after ten times a second."""

    name, label = "circus-fastest", "circus (one watcher, check_delay=0.1)"
    period = 0.1

    def watchers(self, count: int) -> list[dict[str, Any]]:
        return [{"name": "services", "numprocesses": count}]


class ShellLoop(Supervisor):
    """``while true; do python ...; done`` for each service, at its fastest: without site-packages."""

    name, label, module = "shell", "shell loop (python -S)", "subprocess"
    entry = "Popen"

    def __init__(self, count: int, meeting: Meeting) -> None:
        executable, *arguments = program(meeting)
        command = ["sh", "-c", 'while true; do "$@"; done', "loop", executable, "-S", *arguments]
        self._loops = [subprocess.Popen(command, cwd=ROOT, start_new_session=True) for _ in range(count)]

    @classmethod
    def version(cls) -> str | None:
        shell = shutil.which("sh")
        return None if shell is None else Path(shell).resolve().name

    def close(self) -> None:
        for loop in self._loops:
            os.killpg(loop.pid, signal.SIGKILL)
            loop.wait()


class BareFork(Forked):
    """``os.fork`` in a loop around ``os.wait``: what the machine can do at best, with nothing looked after."""

    name, label, module = "bare", "bare os.fork", "os"
    entry = "fork"

    def main(self, count: int, meeting: Meeting) -> None:
        os.setpgid(0, 0)
        for _ in range(count):
            self._fork(meeting)
        while True:
            os.wait()
            self._fork(meeting)

    def _fork(self, meeting: Meeting) -> None:
        if self.load()() == 0:
            tasks.hold(meeting.bell.path, meeting.gate.path)
            os._exit(0)

    def close(self) -> None:
        assert self._process.pid is not None
        os.killpg(self._process.pid, signal.SIGTERM)
        super().close()


SUPERVISORS: dict[str, type[Supervisor]] = {
    supervisor.name: supervisor
    for supervisor in (PoolkeeperServices, Supervisord, Circus, CircusFastest, ShellLoop, BareFork)
}
