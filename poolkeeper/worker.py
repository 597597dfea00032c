"""The worker process: takes tasks from its link, runs them one at a time, sends results back.

It is single-threaded, so that user code may fork. Results are held back for at most ``FLUSH_SECONDS`` of run time,
and never behind a task that is expected to take longer; where that expectation fails the keeper nudges (SIGURG), and
the signal's handler sends what is held. The handler runs between two bytecodes of the main thread; see
``worker_line``.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from . import task_context
from .arena import Arena, identity
from .errors import PayloadError
from .holdings import Digests
from .messages import Code, Kind, Progress, pack
from .output import flush_c_output
from .page import CANCEL, FINISHED, ITEM, MARKS, STARTED, STARTED_AT, WorkerPage, new_page
from .payload import SCALARS, dumps_exception, dumps_in_band, loads
from .process_setup import handle, settle_in, unblock_signals
from .session import Session
from .sources import Sources, loaded_sources
from .task_context import NoService
from .timers import old_age
from .worker_call import Call
from .worker_config import WorkerConfig
from .worker_line import Retired
from .worker_results import encode, encode_items, without_frames_of
from .worker_session import Mapped, WorkerSession

if TYPE_CHECKING:
    from .resumption import Resumption

__all__ = ["leave", "main", "prepare", "rehearse"]

FLUSH_SECONDS = 0.0005
PROGRESS_SECONDS = 0.1
MEMORY_CHECK_SECONDS = 0.05
LOAD_SECONDS = 30.0
"""How much longer than its timeout the first task of a callable may take, while the callable is imported."""

_SIGURG = int(signal.SIGURG)


class _Worker(NoService):
    """One worker: the surroundings of its tasks, and the loop that runs them.

    It is nobody until ``be`` has told it who it is: a fork server makes one, which each of its children becomes.
    """

    page: WorkerPage

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.worker = ""
        self.birth = ""
        self.slot = 0
        self.name = ""
        self.attempt = 1
        self.key: str | None = None
        self.origin: str | None = None
        self.index = 0
        self.resumptions: list[Resumption] = []
        self._call: Call | None = None
        self._digests = Digests()
        self._items: tuple[str, int, list[Any]] | None = None
        self._page_fd = -1
        self._page_identity: tuple[int, int] | None = None
        self.out = WorkerSession(config)
        self.out.describe = self._describe
        self.out.begin_nothing = self._begin_nothing
        self._started = config.initializer is None
        self._sources: Sources = {}
        self.calls: dict[int, Call] = {}
        self._wake = -1
        self._progress_at = 0.0
        self._memory_at = 0.0
        self._recycling = False
        self._limited = config.max_memory is not None or config.max_age is not None
        self._old_at = math.inf

    def be(self, id: int, slot: int, birth: str, page_fd: int) -> None:
        """Be worker ``id`` of the keeper ``birth``; see ``main``."""
        config = self.config
        self.worker = str(id)
        self.birth = birth
        self.slot = slot
        self.page = WorkerPage(page_fd)
        self._page_fd = page_fd  # for a keeper that takes over
        self._page_identity = identity(page_fd)
        if config.orphan_grace is None:
            os.close(page_fd)
        self.out.be(id, birth)
        if config.max_age is not None:
            self._old_at = time.monotonic() + old_age(config.max_age, id)

    # -- what the context asks ----------------------------------------------------------------------------------

    def is_cancelled(self) -> bool:
        return self.index != 0 and self.page.words[CANCEL] == self.index

    def wait(self, seconds: float) -> bool:
        """Wait for the nudge that goes with a cancellation."""
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if hasattr(os, "eventfd") else -1
        deadline = time.monotonic() + seconds
        while not self.is_cancelled():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._wake < 0:
                time.sleep(min(left, 0.05))
            elif select.select([self._wake], [], [], left)[0]:
                os.eventfd_read(self._wake)
        return True

    def progress(self, done: float, total: float | None) -> None:
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_SECONDS or done == total:
            self._progress_at = now
            with contextlib.suppress(Retired):
                self.out.flush()
                self.out.remark((Kind.PROGRESS, self.index, done, total))

    def notice(self, text: str) -> None:
        """Say what the user should know, in the worker's own log and in the keeper's."""
        text = f"{self.name}: {text}"
        with contextlib.suppress(Exception):
            sys.stderr.write(f"poolkeeper: {text}\n")
        with contextlib.suppress(Retired):
            self.out.flush()
            self.out.remark((Kind.NOTICE, text))

    def resumption(self) -> Resumption:
        """Made when the running task first asks for it; that of an item of a map ends with the item."""
        identity = self._identity()
        if self.resumptions and self.resumptions[-1].identity == identity:
            return self.resumptions[-1]
        from .checkpoint import store_at  # most tasks never ask
        from .resumption import Resumption

        store = store_at(self.config.checkpoints, self.config.key) if self.index else None  # not for an initializer
        made = Resumption(store, identity, self.attempt, self.notice, self.progress)
        if self.index:
            self.resumptions.append(made)
        return made

    def _identity(self) -> str:
        """Return what stays the same for each attempt at the running task."""
        if self._items is not None:
            number, start, values = self._items
            return f"once\0map {number}\0{start + len(values)}"
        if self.key is not None:
            return f"task\0{self._call.module if self._call else ''}\0{self.name}\0{self.key}"
        return f"once\0{self.origin or f'{self.birth}.{self.worker}.{self.index}'}"

    def _has_succeeded(self) -> None:
        """What the task has saved is kept until its result is on its way."""
        self.out.flush()
        for resumption in self.resumptions:
            resumption.succeeded()
        self.resumptions.clear()

    def _has_failed(self) -> None:
        for resumption in self.resumptions:
            resumption.failed()
        self.resumptions.clear()

    def nudged(self, *_: object) -> None:
        """SIGURG: a task takes longer than expected, or is asked to stop; or another keeper has come."""
        with contextlib.suppress(Retired):
            self.out.flush()
            self.out.summoned()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self, first_link: int) -> None:
        """Work until the keeper retires this worker or is gone; ``first_link`` is a descriptor, -1 if there is none."""
        out = self.out
        out.begin(first_link)
        if self.config.initializer is not None:
            self._initialize(self.config.initializer)
        inbox = out.inbox
        while True:
            while inbox:  # a task may cost us the link, and the next one bring in more
                for message in inbox.popleft():
                    self._handle(message)
            out.flush()
            if self._limited and not self._recycling:
                self._look_after_itself()
            if not inbox:
                out.receive()

    def _initialize(self, blob: bytes) -> None:
        try:
            initializer, args = loads(blob)
            initializer(*args)
        except BaseException:
            self.out.send((Kind.START_FAILED, "the initializer raised\n" + traceback.format_exc()))
            raise Retired from None
        self._started = True
        self.out.send((Kind.STARTED,))

    def _describe(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return what a keeper must know that has not made this worker, and the descriptor of its page."""
        content = {
            "id": self.out.id,
            "slot": self.slot,
            "started": self._started,
            "recycling": self._recycling,
            "sources": self._sources,
        }
        return content, (self._page_fd,) if identity(self._page_fd) == self._page_identity else ()

    def _begin_nothing(self) -> Progress:
        """Skip every task that is not begun yet; return how far this worker is."""
        words, times, marks = self.page.words, self.page.times, self.page.marks
        marks[:] = bytes([1]) * MARKS  # before ``STARTED`` is read, as a keeper does
        return Progress(words[STARTED], words[FINISHED], words[ITEM], times[STARTED_AT])

    def _handle(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == Kind.TASKS:
            self._run_tasks(message[1], self.calls[message[2]], message[3], message[4])
        elif kind == Kind.CHUNK:
            self._run_chunk(message)
        elif kind == Kind.DEFINE:
            _, id, name, blob, path = message
            self.calls[id] = Call(name, blob)
            if path is not None:
                sys.path[:] = path
        elif kind == Kind.RELEASE:
            for arena in message[1]:
                self.out.arenas.released(arena)
        elif kind == Kind.RETIRE:
            self.out.retire()

    def _load_function(self, call: Call) -> Callable[..., Any]:
        """Return the callable; what it takes to import it the first time does not count against a task's timeout."""
        if call.function is None:
            times = self.page.times
            times[STARTED_AT] = time.monotonic() + LOAD_SECONDS
            try:
                return call.load()
            finally:
                if self.config.orphan_grace is not None:
                    loaded_sources(self._sources)
                times[STARTED_AT] = time.monotonic()
        return call.function

    def _load(self, payload: Any) -> Any:
        try:
            return payload.load() if type(payload) is Mapped else loads(payload)
        except PayloadError as error:
            raise PayloadError(f"an argument of {self.name} {error}") from error.__cause__

    def _run_tasks(  # noqa: C901, PLR0912, PLR0915 - the hot loop; a call less per task is worth the length
        self, first: int, call: Call, payloads: list[Any], infos: Any
    ) -> None:
        out, page = self.out, self.page
        words, times, marks = page.words, page.times, page.marks
        values = out.values
        clock = time.monotonic
        plain = SCALARS
        self.name = call.name
        self.attempt, self.key, self.origin = 1, None, None
        self._call = call
        resumptions = self.resumptions
        digest_of = self._digests.of
        if values and call.expected > FLUSH_SECONDS:
            out.flush()
        function = call.function
        now = clock()
        if not values:
            out.first = first
            out.began = out.flushed = now
        index = first
        started = now
        for payload in payloads:
            self.index = index
            if infos is not None:
                self.key, self.attempt, self.origin, claim = infos[index - first]
                if claim is not None:
                    page.claim(index, digest_of(claim))
            times[STARTED_AT] = now
            words[STARTED] = index
            if marks[index % MARKS]:
                self._skip(index, payload)
                index += 1
                continue
            try:
                if function is None:
                    function = self._load_function(call)
                if type(payload) is tuple:
                    value = function(*payload)
                else:
                    args, kwargs = self._load(payload)
                    value = function(*args, **kwargs)
                    args = kwargs = None  # views must not outlive the task
                if out.forked:
                    os._exit(0)  # the task has returned in a child that it forked, too
                if type(value) in plain:
                    words[FINISHED] = index
                    values.append(value)
                else:
                    encoded, code = encode(value, call.name, out.arenas)
                    value = None  # what its destruction does is still the task's
                    words[FINISHED] = index
                    out.hold(index, encoded, code)
            except BaseException as error:  # the task's, whatever it is
                if out.forked:
                    os._exit(1)
                self._hold_exception(index, error)
                self._has_failed()
            if resumptions:
                self._has_succeeded()
            index += 1
            now = clock()
            if now - out.flushed > FLUSH_SECONDS:
                now = out.flush_before_next(now)
        call.expected = (now - started) / len(payloads)
        self.index = 0

    def _skip(self, index: int, payload: Any) -> None:
        """The keeper has taken this task back."""
        self.page.marks[index % MARKS] = 0
        if type(payload) is Mapped:
            payload.drop()
        self.page.words[FINISHED] = index
        self.out.hold(index, None, Code.SKIPPED)

    def _hold_exception(self, index: int, error: BaseException) -> None:
        data = dumps_exception(without_frames_of(__file__, error), self.name)
        self.page.words[FINISHED] = index
        self.out.hold(index, data, Code.EXCEPTION)

    # -- chunks of a map ----------------------------------------------------------------------------------------

    def _run_chunk(self, message: tuple[Any, ...]) -> None:
        _, index, call_id, items, plain, starred, careful, attempt, (number, start) = message
        call = self.calls[call_id]
        words = self.page.words
        self.out.flush_before_next(0.0)
        self.out.first = index + 1
        self.name, self.attempt, self.key, self.index = call.name, attempt, None, index
        began = time.monotonic()
        words[ITEM] = 0
        self.page.times[STARTED_AT] = began
        words[STARTED] = index
        if self.page.marks[index % MARKS]:
            self.page.marks[index % MARKS] = 0
            words[FINISHED] = index
            self.out.send((Kind.RESULTS, index, [Code.SKIPPED], [None], 0.0))
            return
        arguments = iter(items) if plain else map(self._load, items)
        values: list[Any] = []
        failed: dict[int, bytes] = {}
        self._items = number, start, values
        self._run_items(call, arguments, len(items), starred, careful, values, failed)
        if self.out.forked:
            os._exit(0)
        if not failed and SCALARS.issuperset(map(type, values)):
            codes, sent = None, values
            beside: tuple[Arena, ...] = ()
        else:
            codes, sent, beside = encode_items(values, failed, call.name, self.out.arenas)
            values.clear()  # what their destruction does is still the chunk's
        words[FINISHED] = index
        self.index = 0
        self._items = None
        self.out.send((Kind.CHUNK_RESULT, index, codes, sent, time.monotonic() - began), beside)
        if self.resumptions:
            self._has_succeeded()

    def _run_items(
        self,
        call: Call,
        arguments: Iterator[Any],
        number: int,
        starred: bool,
        careful: bool,
        values: list[Any],
        failed: dict[int, bytes],
    ) -> None:
        """Run all items; an exception of one is its own affair, ``values`` holds a None in its place."""
        words = self.page.words
        try:
            function = self._load_function(call)
        except BaseException as error:
            failed.update(dict.fromkeys(range(number), dumps_exception(error, call.name)))
            values.extend([None] * number)
            return
        results = itertools.starmap(function, arguments) if starred else map(function, arguments)
        while len(values) < number:
            try:
                if careful:
                    words[ITEM] = len(values)
                    values.append(next(results))
                else:
                    values.extend(results)  # what it has appended when an item raises stays
                    if len(values) < number:
                        raise RuntimeError(f"{call.name} raised StopIteration")  # PEP 479: it must not end the map
            except BaseException as error:
                failed[len(values)] = dumps_exception(without_frames_of(__file__, error), call.name)
                values.append(None)

    # -- recycling ----------------------------------------------------------------------------------------------

    def _look_after_itself(self) -> None:
        """Ask to be replaced when this process has grown too large, or too old."""
        now = time.monotonic()
        if now >= self._old_at:
            self._recycle(f"it has reached max_age={self.config.max_age} s")
        elif self.config.max_memory is not None and now - self._memory_at >= MEMORY_CHECK_SECONDS:
            from .process_identity import resident_bytes  # few workers have a limit

            self._memory_at = now
            resident = resident_bytes(os.getpid())
            if resident is not None and resident > self.config.max_memory:
                self._recycle(f"memory of {resident} bytes exceeds max_memory={self.config.max_memory}")

    def _recycle(self, why: str) -> None:
        self._recycling = True
        self.out.send((Kind.RECYCLE, why))


def main(config: WorkerConfig, id: int, slot: int, birth: str, page: int | str, link: int) -> None:
    """Be worker ``id`` of the keeper ``birth``: the target of a multiprocessing process.

    ``page`` is the descriptor of the page, or a path that opens it in a process that did not inherit it. ``link`` is
    the descriptor of the first link, -1 where the worker has to call.
    """
    settle_in(f"worker-{id}", config.logs, config.limits, inherit_output=config.inherit_output)
    worker = _prepared.pop() if _prepared else _Worker(config)
    worker.be(id, slot, birth, os.open(page, os.O_RDWR) if isinstance(page, str) else page)
    handle(_SIGURG, worker.nudged)
    unblock_signals()
    os.register_at_fork(after_in_child=worker.out.line.leave_to_parent)
    task_context.enter(worker)
    with contextlib.suppress(Retired):
        worker.run(link)
    leave()


_prepared: list[_Worker] = []
"""One at most."""


def prepare(config: WorkerConfig) -> None:
    """In a fork server: make ahead what its children need not make each by itself."""
    _prepared[:] = [_Worker(config)]


def rehearse(config: WorkerConfig) -> None:
    """Take the first steps of a worker with nobody listening, so that their memory pages are this process' own."""
    ours, theirs = socket.socketpair()
    worker = _Worker(config._replace(orphan_grace=None))
    worker.be(0, 0, "", new_page())
    worker.out.begin(theirs.detach())
    tasks = (Kind.TASKS, 1, 0, [(1,), dumps_in_band(((1,), {}))], None)
    ours.sendall(Session().send(pack([(Kind.DEFINE, 0, "", dumps_in_band(abs), None), tasks])))
    worker.out.receive()
    for message in worker.out.inbox.popleft():
        worker._handle(message)  # noqa: SLF001
    worker.out.flush()
    if worker.out.line.link is not None:
        worker.out.line.link.close()
    worker.page.close()
    ours.close()


def leave(status: int = 0) -> NoReturn:
    """End without waiting for threads or children that a task has left behind; the fork server ends those."""
    import multiprocessing
    from multiprocessing.util import _run_finalizers  # type: ignore[attr-defined]

    for child in multiprocessing.active_children():
        child.kill()
    _run_finalizers()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    flush_c_output()
    os._exit(status)
