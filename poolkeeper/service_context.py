"""A service's process as its callable sees it: the context behind ``context()``, and the voice towards the keeper.

Nothing is read from the keeper but acknowledgements: a signal asks the service to stop, and the heartbeat is a number
in the shared page. So there is no thread here that the user's code would have to live with.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .arena import identity
from .limits import Limits
from .messages import Kind
from .page import BEAT, WorkerPage, new_page
from .service_line import ServiceLine
from .sources import Sources, loaded_sources
from .worker_config import WorkerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from .resumption import Resumption

__all__ = ["Asked", "ServiceContext", "ServiceDefinition"]

LOOK_SECONDS = 1.0
"""How often a heartbeat looks whether there is another keeper."""
IDLE_SECONDS = 10.0
"""The same for a service that waits."""
PROGRESS_SECONDS = 0.1


class ServiceDefinition(NamedTuple):
    """What a process needs to know to be a service; travels to it through the fork server.

    ``birth`` is the incarnation of the keeper that has it made, ``blob`` the pickled ``(target, args, kwargs)``.
    ``program`` says that the target replaces the process; it gets ``variables`` in its environment.
    """

    tag: str
    birth: str
    service: str
    name: str
    replica: int
    attempt: int
    blob: bytes
    path: tuple[str, ...]
    limits: Limits
    environment: dict[str, str]
    stop_signal: int
    program: bool
    variables: dict[str, str]


class Asked(SystemExit):
    """Raised by the stop signal's handler where the service does not look for it."""


class ServiceContext:
    """The surroundings of the callable, and its voice towards the keeper."""

    key: str | None = None

    def __init__(self, config: WorkerConfig, definition: ServiceDefinition, page: int, link: int) -> None:
        self.name = definition.service
        self.worker = definition.tag
        self.slot = definition.replica
        self.attempt = definition.attempt
        self._config = config
        self._definition = definition
        self._page = WorkerPage(page)
        self._pages: list[WorkerPage] = []
        os.close(page)
        self._lock = threading.Lock()
        self._stopping = False
        self._looks = False
        self._stage = "starting"
        self._status: str | None = None
        self._sources: Sources = {}
        self._look_at = 0.0
        self._summoned = False
        self._progress_at = 0.0
        self._stop_signal = definition.stop_signal
        self._speaker = 0
        self.forked = False
        self._fork = threading.local()
        self._pipe = os.pipe()
        self._pipe_identity = identity(self._pipe[0])
        self.resumed: Resumption | None = None
        introduction = {
            "role": "service", "id": self.worker, "birth": definition.birth, "pid": os.getpid(),
            "cloudpickle": config.cloudpickle,
        }  # fmt: skip
        self._line = ServiceLine(config, introduction, link, self._describe)
        if not self.say((Kind.HERE, os.getpid())) and self._line.is_unwanted():
            os._exit(1)

    # -- to the keeper --------------------------------------------------------------------------------------------

    def say(self, message: tuple[Any, ...], *, last: bool = False) -> bool:
        """Tell the keeper, if it is there, and return whether it is; any thread may."""
        if self.forked:
            return False
        with self._lock:
            told = self._undisturbed(lambda: self._line.say(message, last=last))
        if self._summoned:  # meanwhile
            self._look_for_keeper()
        return told

    def _undisturbed(self, act: Callable[[], bool]) -> bool:
        """Speak to the keeper, under the lock.

        A stop signal that comes meanwhile takes effect afterwards, for half a frame would be worse than none.
        """
        self._speaker = threading.get_ident()
        try:
            return act()
        finally:
            self._speaker = 0
            if self._stopping and not self._looks and threading.current_thread() is threading.main_thread():
                self._looks = True  # asked once, as by the signal itself
                raise Asked(0)

    def summoned(self, *_: object) -> None:
        """SIGURG: another keeper may be there."""
        self._line.summoned()
        self._summoned = True
        self._look_for_keeper()

    def _look_for_keeper(self) -> None:
        """Call the keeper that has come to the place of ours, unless somebody speaks, who will find out."""
        if self.forked or not self._lock.acquire(blocking=False):
            return
        self._summoned = False
        try:
            self._undisturbed(self._line.look)
        finally:
            self._lock.release()

    def _look_now_and_then(self, now: float) -> None:
        if now >= self._look_at and self._config.orphan_grace is not None:
            self._look_at = now + LOOK_SECONDS
            self._look_for_keeper()

    def _describe(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return what a keeper must know that has not made this process, and a page to share with it.

        The page is a new one: of the first no descriptor is left that the callable could close.
        """
        definition = self._definition
        content = {
            "tag": self.worker,
            "birth": definition.birth,
            "service": self.name,
            "replica": self.slot,
            "attempt": self.attempt,
            "stage": self._stage,
            "status": self._status,
            "sources": loaded_sources(self._sources),
        }
        fd = new_page()
        try:
            page, before = WorkerPage(fd), self._page
            self._page = page
            self._pages.append(before)  # for good: its end would close a descriptor that may be the callable's by now
            page.times[BEAT] = max(page.times[BEAT], before.times[BEAT])
        except BaseException:
            os.close(fd)
            raise
        return content, (fd,)

    def close(self) -> None:
        """Close what it has opened."""
        self._line.close()
        self._page.close()
        for end in self._pipe:
            os.close(end)

    def about_to_fork(self) -> None:
        """Hold the stop signal back: one that is meant for the child would be lost, for Python forgets it there."""
        self._fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [self._stop_signal])

    def has_forked(self) -> None:
        """In the parent: let the stop signal through; from here nothing can be raised."""
        speaker, self._speaker = self._speaker, threading.get_ident()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._fork.mask)
        self._speaker = speaker

    def leave_to_parent(self) -> None:
        """In a fork of the service: its link and its stop signal are the parent's."""
        self.forked = True
        self._lock = threading.Lock()  # another thread may have held it
        if self._stop_signal != signal.SIGKILL:
            signal.signal(self._stop_signal, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._fork.mask)
        self._line.close()
        self._new_pipe()

    # -- what the context asks ------------------------------------------------------------------------------------

    def asked_to_stop(self, number: int, frame: object) -> None:
        """The stop signal has come."""
        first, self._stopping = not self._stopping, True
        if first:
            if identity(self._pipe[0]) == self._pipe_identity:
                with contextlib.suppress(OSError):
                    os.write(self._pipe[1], b"!")  # never read, so that every thread that waits sees it
            if not self._looks and self._speaker != threading.get_ident():
                self._looks = True
                raise Asked(0)

    def is_stopping(self) -> bool:
        """Whether it has been asked to end; whoever looks is not interrupted."""
        self._looks = True
        return self._stopping

    def is_cancelled(self) -> bool:
        """The same, for code that knows tasks alone."""
        return self.is_stopping()

    def wait(self, seconds: float) -> bool:
        """Wait, no longer than until it is asked to end; return whether it is."""
        self._looks = True
        deadline = time.monotonic() + seconds
        while not self._stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if identity(self._pipe[0]) != self._pipe_identity:
                self._new_pipe()  # the callable has closed it
                continue
            poll = select.poll()
            poll.register(self._pipe[0], select.POLLIN)
            if self._config.orphan_grace is None:
                poll.poll(min(left, 86400.0) * 1000)
            else:
                poll.poll(min(left, IDLE_SECONDS) * 1000)
                self._look_now_and_then(time.monotonic())
        return True

    def _new_pipe(self) -> None:
        self._pipe = os.pipe()
        self._pipe_identity = identity(self._pipe[0])

    def started(self) -> None:
        """The callable is about to be called."""
        self._stage = "started"
        if self._config.orphan_grace is not None:
            loaded_sources(self._sources)  # as they were when they were loaded
        self.say((Kind.STARTED,))

    def ready(self, status: str) -> None:
        """The callable says that it is ready."""
        self._stage = "ready"
        self.say((Kind.READY,))
        if status:  # afterwards, for a change of state has words of its own
            self._status = status
            self.say((Kind.STATUS, status))

    def heartbeat(self) -> None:
        """The callable gives a sign of life."""
        now = time.monotonic()
        self._page.times[BEAT] = now
        self._look_now_and_then(now)

    def progress(self, done: float, total: float | None) -> None:
        """The callable says how far it has come; not all of that travels."""
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_SECONDS or done == total:
            self._progress_at = now
            self.say((Kind.PROGRESS, 0, done, total))

    def notice(self, text: str) -> None:
        """Say what the user should know, in the service's own log and in the keeper's."""
        with contextlib.suppress(Exception):
            sys.stderr.write(f"poolkeeper: {self.name}: {text}\n")
        self.say((Kind.NOTICE, f"service {self.name}: {text}"))

    def resumption(self) -> Resumption:
        """Return its checkpoints."""
        if self.resumed is None:
            from .checkpoint import store_at  # most services never ask
            from .resumption import Resumption

            store = store_at(self._config.checkpoints, self._config.key)
            identity = f"service\0{self.name}\0{self.slot}"
            if store is not None:
                store.tidy(identity)
            self.resumed = Resumption(store, identity, self.attempt, self.notice, self.progress)
        return self.resumed
