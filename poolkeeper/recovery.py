"""What a durable keeper does first: look for what the one before it has left, and have it called."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .adoption import RECOVERY_SECONDS, Adoption
from .core import Core
from .futures import Keeps, TaskFuture
from .holdings import exactly
from .left_behind import Left, left_results
from .messages import Code
from .nursery import Nursery
from .pidfile import ChildRecord, PidfileDocument
from .recording import Recorder
from .recovered import Recovered
from .register import Register
from .roster import Worker
from .workforce import Workforce

__all__ = ["Recovery"]


class Recovery:
    """Takes over the workers of an earlier keeper, and knows what came of that.

    Args:
        register: what the earlier keeper has written down, and who of it lives.
        recorder: the journal, None where there is none: then no task is known across keepers.
        core: to be told of workers.
        nursery: hears of workers that the earlier keeper had no time to write down.
        workforce: looks after them.
        keeper: of the futures.
        deliver: settles futures with their results; from any thread.
    """

    def __init__(
        self,
        register: Register,
        recorder: Recorder,
        core: Core,
        nursery: Nursery,
        workforce: Workforce,
        keeper: Keeps,
        deliver: Callable[[list[TaskFuture], Sequence[object]], None],
    ) -> None:
        self._document = register.inherited
        self._survivors = register.survivors
        self._recorder = recorder
        self._core = core
        self._workforce = workforce
        self._left = 0
        self._spool: tuple[Path, bytes]
        self._settled: list[Path] = []
        workforce.collect = self._collect
        self.begun = False
        nursery.on_listed(self._listed)
        deadline = time.monotonic() + RECOVERY_SECONDS
        self.adoption = Adoption(
            core,
            recorder,
            keeper,
            deliver,
            deadline,
            workforce.summon,
            lambda: nursery.awaits,
            workforce.look_at,
        )

    def begin(self, spool: Path, key: bytes) -> None:
        """Take in what workers have left behind in ``spool``, and have those call that live."""
        self.begun = True
        adoption = self.adoption
        self._spool = spool, key
        for left in self._left_by("*"):
            adoption.inherit(left)
        self.tidy()
        for child in self._survivors:
            number = child.id.rpartition("-")[2]
            if child.role == "worker" and number.isdecimal():
                worker = self._workforce.expect(int(number), child.slot or 0, child.id, child.identity)
                if worker is not None:
                    adoption.expect(worker)
                    adoption.summon(worker)

    def move(self, core: Core, nursery: Nursery, workforce: Workforce) -> None:
        """Go on with these, for the keeper's loop is rebuilt."""
        self._core = core
        self._workforce = workforce
        workforce.collect = self._collect
        nursery.on_listed(self._listed)
        self.adoption.move(core, workforce.summon, lambda: nursery.awaits, workforce.look_at)

    def _left_by(self, name: str) -> Iterator[list[Left]]:
        for path, left in left_results(*self._spool, name):
            self._settled.append(path)
            self._left += len(left)
            yield left

    def tidy(self) -> None:
        """Remove the files of the spool whose outcomes have been settled, as soon as they are recorded."""
        settled, self._settled = self._settled, []
        for path in settled:
            self._recorder.when_recorded(partial(path.unlink, missing_ok=True))

    def _collect(self, worker: Worker, name: str) -> None:
        """A worker has gone: what it has left behind, under ``name``, answers what it was known to hold.

        The rest has been heard, unless the worker has never told what it holds.
        """
        for left in self._left_by(name):
            found = {exactly(one.claim): one for one in left}
            begun = [found.pop(self.adoption.runs_as(task), None) for task in worker.inflight]
            while begun and begun[-1] is None:
                begun.pop()  # it has died of it
            if begun:
                codes = [Code.SKIPPED if one is None else one.code for one in begun]
                values = [None if one is None else one.payload for one in begun]
                seconds = sum(one.seconds for one in begun if one is not None)
                self._core.results(worker, worker.base, codes, values, seconds)
            if worker.page is None:
                self.adoption.inherit(found.values())

    def _listed(self, _: int, children: list[tuple[str, str, int]]) -> None:
        for tag, role, pid in children:
            number = tag.rpartition("-")[2]
            if role == "worker" and number.isdecimal():
                self._workforce.found(int(number), tag, pid)

    def recovered(self) -> Recovered | None:
        """Return what was found so far; None for nothing, as where the keeper before has ended in good order."""
        document, adoption = self._document, self.adoption
        if document is None and not adoption.attached and not self._left:
            return None
        living = {child.id for child in self._survivors}
        return Recovered(
            workers=tuple(adoption.attached),
            silent=tuple(worker.pid for worker in adoption.awaited if worker.pid is not None),
            dead=tuple(child.id for child in _children(document) if child.id not in living),
            services=tuple(child.name for child in self._survivors if child.role in ("service", "program")),
            tasks=adoption.running,
            left=self._left,
            drained=tuple(self._workforce.drained),
        )


def _children(document: PidfileDocument | None) -> tuple[ChildRecord, ...]:
    return () if document is None else document.children
