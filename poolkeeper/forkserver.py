"""The fork server: a small single-threaded process that imports once, forks workers, and reports how they end.

It is started as a plain subprocess in a session of its own. It is a child subreaper, so that what a dead worker
leaves behind comes to it and is reaped. With an ephemeral keeper it ends, and its workers with it. A durable keeper it
outlives, as containerd's shim outlives containerd: the workers go on, and the next keeper hears how they have ended.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import math
import multiprocessing
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, NamedTuple

from . import worker
from .belonging import grace_of, has_home
from .errors import ProtocolError
from .forking import Spare, start
from .keeper_line import KeeperLine
from .limits import Limits
from .messages import Kind
from .orphans import ORPHAN_SECONDS, Orphans
from .output import fill_standard_streams, redirect_output
from .process_setup import adopt_descendants, begin_session, child_pids, prepare_stacks
from .sources import Sources, loaded_sources
from .worker_config import WorkerConfig

if TYPE_CHECKING:
    from .logwriter import LogPipe, LogWriter
    from .stand_in import StandIn

__all__ = ["ForkServer", "main"]

LAST_WORDS_SECONDS = 2.0

STOP_SECONDS = 30.0
"""How long a service may take to stop that no keeper will ever look after again."""

SPARE_SECONDS = 0.005
"""How long after a death, or after the last one was taken, the next spare process is forked: work comes first."""

SWEEP_SECONDS = 0.005
"""How long after a death its orphans are looked for: whoever is to replace the dead comes first."""


class _Made(NamedTuple):
    """A process that was made: under which ticket, what for, and what of it is held here (``page`` -1: nothing)."""

    ticket: str
    tag: str
    role: str
    process: BaseProcess | None
    page: int
    output: LogPipe | None


class ForkServer:
    """Forks on request and reports exits."""

    def __init__(self, config: WorkerConfig, start_method: str, digest: str) -> None:
        self._config = config
        self._start_method = start_method
        self._digest = digest
        self._sources: Sources = {}
        self._line = KeeperLine(config, self._describe)
        self._workers: dict[int, _Made] = {}
        self._helpers: set[int] = set()
        self._orphans = Orphans()
        self._poll = select.poll()
        self._stand_in: StandIn | None = None
        self._roles: dict[str, _Role] = {}
        self._spare: Spare | None = None
        self._spare_at = math.inf
        self._sweep_at = math.inf
        self._ending = False
        self._homeless: signal.Signals | None = None  # what services were ended by, for there can be no keeper
        self._logs: LogWriter | None = None
        if not config.inherit_output and start_method == "forkserver":
            from .logwriter import LogWriter  # what is loaded here, each worker has to carry

            self._logs = LogWriter(config.logs)  # before the preload, so that it stays small
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        if config.orphan_grace is not None:
            from . import left_behind  # noqa: F401 - here, rather than in each worker

    def preload(self, modules: Collection[str]) -> None:
        """Import modules for all workers to share; say so where that fails or leaves threads running."""
        for name in modules:
            before = _threads()
            try:
                importlib.import_module(name)
            except BaseException:
                self._line.send(
                    (Kind.NOTICE, f"preload of {name!r} failed; workers import it themselves\n{traceback.format_exc()}")
                )
            after = _threads()
            if after > before and after > 1 and self._start_method == "forkserver":
                self._start_method = "loky"
                text = (
                    f"preload of {name!r} leaves {after - before} threads running: workers start by fork+exec instead"
                )
                self._line.send((Kind.NOTICE, text))
        if self._config.orphan_grace is not None or modules:
            loaded_sources(self._sources)
            self._line.send((Kind.LOADED, self._sources))

    def run(self) -> None:
        """Serve until the keeper has ended, or nobody needs this fork server any more."""
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._asked_to_end)
        signal.signal(signal.SIGURG, lambda *_: self._line.summoned())
        self._helpers.update(child_pids())  # what the preload has started
        self._prepare()
        self._take(self._line.early())
        poll = self._poll
        poll.register(self._wake.fileno(), select.POLLIN)
        if self._logs is not None:
            self._logs.watch(poll)
        linked: tuple[int, int] | None = None
        while not self._ending and not self._line.ended:
            self._clear_up()
            self._keep_spare()
            self._listen()
            if self._line.awaits is None:
                if self._is_forsaken():
                    return
                self._end_homeless()
            if self._line.call_if_due():
                self._take(self._line.early())
            linked = _watch_instead(poll, linked, self._line.awaits)
            ready = dict(poll.poll(self._timeout()))
            if self._wake.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
            events = 0 if linked is None else ready.get(linked[0], 0)
            if events & select.POLLOUT:
                self._line.flush()
            if events & ~select.POLLOUT:
                self._take(self._line.receive())

    def _prepare(self) -> None:
        """Make what each child would have to make, and leave as few pages as may be for them to copy."""
        if self._start_method == "forkserver":
            worker.prepare(self._config)
            prepare_stacks()
        gc.collect()
        gc.freeze()

    def _listen(self) -> None:
        """Hear what programs say that have lost their keeper, and tell the next one."""
        stand_in = self._stand_in
        if stand_in is None:
            return
        if self._line.awaits is None:
            stand_in.listen()
        stand_in.hear()
        if self._line.awaits is not None:
            for said in stand_in.take():
                self._line.send((Kind.SAID, *said))

    def _describe(self) -> dict[str, Any]:
        """Return what a keeper must know that has not started this fork server."""
        children = [(made.tag, made.role, pid, made.ticket) for pid, made in self._workers.items()]
        return {"children": children, "digest": self._digest, "sources": self._sources}

    def _is_forsaken(self) -> bool:
        """Whether no keeper has come for long, or has use for this one, and no process is left."""
        if self._workers:
            return False
        return self._line.refused or self._line.lost_for() >= grace_of(self._config)

    def _end_homeless(self) -> None:
        """Stop services where there can be no keeper any more: the home is gone. Workers leave by themselves."""
        services = [pid for pid, made in self._workers.items() if made.role != "worker"]
        if not services or has_home(self._config):
            return
        over = self._line.lost_for() - grace_of(self._config)
        if over >= 0 and self._homeless is None:
            self._homeless = signal.SIGTERM
        elif over >= STOP_SECONDS and self._homeless is signal.SIGTERM:
            self._homeless = signal.SIGKILL
        else:
            return
        for pid in services:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self._homeless)

    def _asked_to_end(self, *_: object) -> None:
        self._ending = True

    def end(self) -> None:
        """Kill and reap all workers, and what they leave behind."""
        self._spare_at = math.inf
        if self._spare is not None:
            self._spare.close()
            self._helpers.add(self._spare.pid)  # it ends by itself
            self._spare = None
        for pid in self._workers:
            _kill_group(pid)
        for pid in list(self._workers):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._workers.clear()
        self._orphans.sweep(self._known())
        deadline = time.monotonic() + 2 * ORPHAN_SECONDS
        while self._orphans and time.monotonic() < deadline:  # beyond that the kernel holds them
            self._reap()
            self._orphans.sweep(self._known())
            select.select([self._woken], [], [], min(0.05, self._orphans.timeout() or 0.05))
        if self._logs is not None:
            self._logs.finish(LAST_WORDS_SECONDS)

    def _take(self, messages: Iterable[tuple[tuple[Any, ...], list[int]]]) -> None:
        for message, fds in messages:
            if message[0] == Kind.SPAWN:
                _, ticket, tag, role, arguments = message
                self._spawn(ticket, tag, role, arguments, fds.pop(0), fds.pop(0))
            elif message[0] == Kind.ADOPT:
                multiprocessing.current_process().authkey = message[1]
            elif message[0] == Kind.UNPICKLE:
                with contextlib.suppress(Exception):  # whoever needs it says so better
                    importlib.import_module("cloudpickle")
            elif message[0] == Kind.LISTEN:
                if self._stand_in is None:
                    from .stand_in import StandIn  # most keepers have no programs that say anything

                    self._stand_in = StandIn(self._poll)
                self._stand_in.hold(fds.pop(0))

    def _spawn(self, ticket: str, tag: str, role: str, arguments: tuple[Any, ...], page: int, link: int) -> None:
        output: LogPipe | None = None
        try:
            self._roles[role] = _role(role)
            if self._start_method == "loky":
                pid, process = self._exec(tag, role, arguments, page)
            else:
                if self._logs is not None:
                    label, _, attempt = tag.partition("#")
                    output = self._logs.open(label, label.partition(":")[0], int(attempt or 1))
                pid, process = self._fork(tag, (role, arguments), page, link, output), None
        except Exception as error:
            os.close(page)
            os.close(link)
            if output is not None:
                output.close()
            self._line.send((Kind.SPAWN_FAILED, ticket, f"{tag} could not be started: {type(error).__name__}: {error}"))
            return
        linked = self._start_method != "loky"
        self._line.send((Kind.SPAWNED, ticket, pid, linked))  # first: it can be fed from now on
        os.close(link)
        if linked:
            os.close(page)
            page = -1
        if self._logs is not None and output is not None:
            self._logs.announce(output, pid)
        self._workers[pid] = _Made(ticket, tag, role, process, page, output)

    def _exec(self, tag: str, role: str, arguments: tuple[Any, ...], page: int) -> tuple[int, BaseProcess | None]:
        """Start a process that inherits nothing, through loky."""
        from loky.backend import get_context

        own = f"/proc/{os.getpid()}/fd/{page}"
        process = get_context("loky").Process(target=self._roles[role].main, args=(self._config, *arguments, own, -1))
        process.name = tag
        process.start()
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # noqa: SLF001 - see ``start``
        assert process.pid is not None
        self._helpers.update(set(child_pids()) - self._workers.keys() - {process.pid})  # its resource tracker
        return process.pid, process

    def _fork(self, tag: str, what: tuple[str, tuple[Any, ...]], page: int, link: int, output: LogPipe | None) -> int:
        """Take the spare process if there is one, else make one."""
        fds = [page, link] if output is None else [page, link, output.write_end]
        spare, self._spare = self._spare, None
        if spare is not None:
            self._spare_at = time.monotonic() + SPARE_SECONDS
            if spare.assign(tag, what, fds):
                return spare.pid
            self._helpers.add(spare.pid)  # it has died, and will be reaped
        return start(tag, self._begin, (output, *what, *fds))

    def _begin(self, output: LogPipe | None, *arguments: Any) -> None:
        self._leave()
        if output is not None:
            output.take()
        self._become(*arguments)

    def _leave(self) -> None:
        """In a new process: let go of what belongs to the fork server."""
        signal.set_wakeup_fd(-1)
        self._line.close()
        self._wake.close()
        self._woken.close()
        if self._stand_in is not None:
            self._stand_in.let_go()
        if self._spare is not None:
            self._spare.close()
        if self._logs is not None:
            self._logs.leave()

    def _rehearse(self) -> None:
        """In the spare process: do ahead what does not depend on what it will become."""
        self._leave()
        begin_session()
        for role in self._roles.values():
            role.rehearse(self._config)

    def _become(self, role: str, arguments: tuple[Any, ...], page: int, link: int, output: int | None = None) -> None:
        config = self._config
        if output is not None:
            redirect_output(output)
            config = config._replace(inherit_output=True)
        _role(role).main(
            config, *arguments, page, link
        )  # one that this process may not have heard of when it was forked

    def _keep_spare(self) -> None:
        """Fork a process ahead, once processes have begun to die: the next one will be missed, too."""
        if self._spare is None and time.monotonic() >= self._spare_at:
            self._spare_at = math.inf
            with contextlib.suppress(OSError):  # no memory or no process left: then not
                self._spare = Spare(self._rehearse, self._become)

    def _clear_up(self) -> None:
        """Report who has ended; somewhat later, look for what they have left."""
        if self._reap():
            self._sweep_at = min(self._sweep_at, time.monotonic() + SWEEP_SECONDS)
        if self._orphans or time.monotonic() >= self._sweep_at:
            self._sweep_at = math.inf
            self._orphans.sweep(self._known())

    def _reap(self) -> bool:
        """Report the processes that have ended; return whether there was any, or any other child."""
        reaped = False
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return reaped
            if ended is None:
                return reaped
            reaped = True
            self._bury(ended.si_pid)

    def _bury(self, pid: int) -> None:
        known = self._workers.pop(pid, None)
        if known is None:
            os.waitpid(pid, 0)
            self._helpers.discard(pid)  # whoever gets its pid may be an orphan
            if self._spare is not None and self._spare.pid == pid:
                self._spare.close()
                self._spare = None
            elif self._logs is not None:
                self._logs.reaped(pid)
            return
        _kill_group(pid)  # before its pid can be anybody else's
        _, status, usage = os.wait4(pid, 0)
        if known.page >= 0:
            os.close(known.page)
        code = os.waitstatus_to_exitcode(status)
        report = (Kind.EXITED, known.ticket, known.tag, pid, code, usage.ru_maxrss * 1024)
        if self._logs is not None and known.output is not None and known.role == "worker":
            self._logs.hold(known.output, report)  # until its last words can be read
        else:
            self._line.send(report)
        if self._spare is None and self._start_method == "forkserver":
            self._spare_at = min(self._spare_at, time.monotonic() + SPARE_SECONDS)

    def _known(self) -> set[int]:
        """Return the children that are no orphans."""
        known = self._helpers.union(self._workers)
        if self._spare is not None:
            known.add(self._spare.pid)
        if self._logs is not None and self._logs.pid is not None:
            known.add(self._logs.pid)
        return known

    def _timeout(self) -> float | None:
        """Send what the log writer has held back; return the milliseconds until there may be more to do."""
        waits = [self._orphans.timeout(), self._line.timeout()]
        if self._line.awaits is None and not self._workers:
            waits.append(max(0.0, ((self._config.orphan_grace or 0.0) - self._line.lost_for()) * 1000))
        due = min(self._spare_at, self._sweep_at)
        if due < math.inf:
            waits.append(max(0.0, (due - time.monotonic()) * 1000))
        if self._logs is not None:
            for report in self._logs.tend():
                self._line.send(report)
            waits.append(self._logs.timeout())
        return min((wait for wait in waits if wait is not None), default=None)


def _watch_instead(
    poll: select.poll, old: tuple[int, int] | None, new: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Have ``poll`` look at ``new``, a descriptor and events, in the place of ``old``; return it."""
    if new != old:
        if old is not None:
            poll.unregister(old[0])
        if new is not None:
            poll.register(*new)
    return new


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        import threading

        return threading.active_count()


class _Role(NamedTuple):
    """What a process can become, and how it practises that."""

    main: Callable[..., None]
    rehearse: Callable[[WorkerConfig], None]


def _role(name: str) -> _Role:
    """Return a role; asked for here first, so that no child has to import it."""
    if name == "worker":
        return _Role(worker.main, worker.rehearse)
    from . import service_worker

    return _Role(service_worker.main, service_worker.rehearse)


def main(content: dict[str, Any]) -> None:
    """Serve; ``content`` is what ``launch`` has written to standard input."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    fill_standard_streams()
    sys.argv = content["argv"]
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt_descendants()
    plain = content["worker"]
    for name in ("key", "initializer"):
        if plain[name] is not None:
            plain[name] = base64.b64decode(plain[name])
    plain["limits"] = Limits(*plain["limits"])
    multiprocessing.current_process().authkey = base64.b64decode(content["authkey"])
    try:
        server = ForkServer(WorkerConfig(**plain), content["start_method"], content["digest"])
    except (OSError, ProtocolError):
        os._exit(1)  # the keeper is gone already
    try:
        server.preload(content["preload"])
        server.run()
    finally:
        server.end()
        for path in content["remove"]:
            if os.path.lexists(path):  # the keeper was killed, or it would have done so
                import shutil

                shutil.rmtree(path, ignore_errors=True)
        os._exit(0)
