"""Running a fleet as a program of its own: signals, display, logs, systemd, and the request of others to end.

The first SIGINT or SIGTERM stops services in reverse order and lets tasks that run come to their end; the second ends
everything at once. SIGHUP, as ``poolkeeper reload``, has a new process of the same program take this one's place.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import click
from rich.console import Console

from . import logs
from .cancellation import CancellationToken
from .display import LineDisplay, LiveDisplay, summary
from .errors import PoolkeeperError, ReexecRefused
from .fleet import Fleet
from .interrupts import Interrupts
from .keeper_log import KeeperLog
from .logmirror import LogMirror
from .model import RunResult
from .pool import Keeper
from .reexec import PROCESS
from .run_outcome import RunOutcome, forget_outcome, leave_outcome
from .runner import run_fleet
from .sdnotify import Notifier
from .sources import Sources
from .summary import run_as_data
from .watching import SourceWatch

__all__ = ["INTERRUPTED", "run_program"]

INTERRUPTED = 130

_STOPPING = "services stop, tasks that run are finished, the rest is not started"


def run_program(
    fleet: Fleet, keeper: Keeper, *, run_id: str, mirror: bool, as_json: bool, sources: Sources | None = None
) -> int:
    """Run ``fleet`` on ``keeper``, show how it goes, and return the exit code of the process.

    Args:
        fleet: what to run.
        keeper: is entered, and has ended afterwards.
        run_id: the name of the run, for the report.
        mirror: whether what workers write is copied to standard output.
        as_json: whether the summary is JSON; what steps print goes to standard error then.
        sources: when these change, what SIGHUP does is done.
    """
    terminal = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        steps_stdout = stack.enter_context(contextlib.redirect_stdout(sys.stderr)) if as_json else sys.stdout
        program = _Program(keeper, terminal, steps_stdout)
        interrupts = stack.enter_context(Interrupts(program.stop, program.leave, program.reload))
        stack.enter_context(program.as_host())
        if mirror:
            program.mirror = stack.enter_context(LogMirror(keeper.home / "logs", click.echo))
        stack.enter_context(KeeperLog(keeper.home / "logs"))
        stack.enter_context(keeper)
        stack.enter_context(program.display)
        stack.enter_context(program.under_systemd())
        keeper.on_shutdown(program.token.cancel)
        keeper.publish(program.display.progress.as_data)
        forget_outcome(keeper.home)
        if sources is not None:
            stack.enter_context(SourceWatch(sources, program.reload_changed))
        result = run_fleet(fleet, keeper, run_id=run_id, observer=program.display, cancel=program.token)
        code = _exit_code(result, program, interrupts)
        leave_outcome(keeper.home, RunOutcome(os.getpid(), time.time(), code, run_as_data(result)))
    _report(result, as_json=as_json)
    return _exit_code(result, program, interrupts)


def _exit_code(result: RunResult, program: _Program, interrupts: Interrupts) -> int:
    if interrupts.received is not None:
        return INTERRUPTED if interrupts.received == signal.SIGINT else 0
    if program.asked_from_outside:
        return 0 if result.failure is None else 1
    return result.exit_code


class _Program:
    """What the process does besides running the fleet."""

    def __init__(self, keeper: Keeper, terminal: Console, steps_stdout: TextIO) -> None:
        self.token = CancellationToken()
        self.display: LineDisplay | LiveDisplay = (
            LiveDisplay(terminal, keeper.status, redirect=steps_stdout.isatty())
            if terminal.is_terminal
            else LineDisplay()
        )
        self.mirror: LogMirror | None = None
        self._keeper = keeper
        self._notifier: Notifier | None = None

    @property
    def asked_from_outside(self) -> bool:
        """Whether ``poolkeeper shutdown`` has ended the run."""
        return self.token.reason == "poolkeeper shutdown"

    def stop(self, number: int) -> None:
        """The first signal."""
        reason = f"{signal.Signals(number).name} received"
        if self._notifier is not None:
            self._notifier.stopping(reason)
        self.token.cancel(reason)
        if isinstance(self.display, LiveDisplay):
            self.display.notice(f"{reason}: {_STOPPING}; once more stops at once")
        else:
            logs.emit("WARNING", f"{reason}: {_STOPPING}")

    def leave(self, number: int) -> None:
        """The second signal."""
        if isinstance(self.display, LiveDisplay):
            self.display.hide()
        self._keeper.kill()
        os._exit(128 + number)

    def reload(self) -> None:
        """SIGHUP: do it in a thread of its own, for another signal may come meanwhile."""
        threading.Thread(target=self._reload, name="poolkeeper-reload", daemon=True).start()

    def _reload(self) -> None:
        try:
            self._keeper.reexec()
        except PoolkeeperError as error:
            logs.emit("ERROR", f"SIGHUP: {error}")

    def reload_changed(self, changed: list[str]) -> None:
        """Source files have changed: go on with them, or without where they do not load."""
        try:
            self._keeper.reexec()
        except (PoolkeeperError, RuntimeError) as error:
            logs.emit("ERROR", f"--watch: {error}")
            if isinstance(self.display, LiveDisplay):
                names = ", ".join(sorted({os.path.basename(path) for path in changed}))
                self.display.notice(f"{names} changed and cannot be loaded: what was loaded before goes on")

    @contextlib.contextmanager
    def as_host(self) -> Iterator[None]:
        """Be asked when this process is to be replaced."""
        PROCESS.host = self
        try:
            yield
        finally:
            PROCESS.host = None

    def leaving(self) -> None:
        """The process is about to be replaced."""
        if self.token.cancelled:
            raise ReexecRefused(f"the run is about to end ({self.token.reason})")
        if self._notifier is not None:
            self._notifier.reloading()
        if self.mirror is not None:
            self.mirror.copy()
        self.display.leave()

    def stayed(self) -> None:
        """The process has not been replaced."""
        self.display.stay()
        if self._notifier is not None:
            self._notifier.ready()

    @contextlib.contextmanager
    def under_systemd(self) -> Iterator[None]:
        """Tell systemd, if it has started us, that we are ready, that we live, and that we end."""
        self._warn()
        notifier = self._notifier = Notifier.take_from(os.environ)
        if notifier is None:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(
            target=self._show_life, args=(notifier, ended), name="poolkeeper-systemd", daemon=True
        )
        notifier.ready(f"{self._keeper.name} runs")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            notifier.stopping()
            thread.join()

    def _show_life(self, notifier: Notifier, ended: threading.Event) -> None:
        """Give systemd's watchdog a sign as long as the keeper answers."""
        interval = notifier.watchdog_interval
        while interval is not None and not ended.wait(interval):
            self._keeper.ping()
            notifier.watchdog()

    def _warn(self) -> None:
        from .hazards import hazards
        from .survey import survey

        for hazard in hazards(survey()):
            logs.emit("WARNING", hazard)


def _report(result: RunResult, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(run_as_data(result), indent=2))
        return
    # A terminal folds long lines; what goes into a file or pipe is searched line by line.
    seen = sys.stdout.isatty()
    Console(width=None if seen else 200).print(summary(result), soft_wrap=not seen)
