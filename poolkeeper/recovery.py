"""What a durable keeper does first: look for what the one before it has left, and have it called."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .adoption import RECOVERY_SECONDS, Adoption
from .core import Core
from .futures import Keeps, TaskFuture
from .left_behind import left_results
from .model import Recovered
from .nursery import Nursery
from .pidfile import ChildRecord, PidfileDocument
from .recording import Recorder
from .register import Register
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
        self._workforce = workforce
        self._left = 0
        self.begun = False
        nursery.on_listed(self._listed)
        deadline = time.monotonic() + RECOVERY_SECONDS
        self.adoption = Adoption(core, recorder, keeper, deliver, deadline, lambda: nursery.awaits)

    def begin(self, spool: Path, key: bytes) -> None:
        """Take in what workers have left behind in ``spool``, and have those call that live."""
        self.begun = True
        adoption = self.adoption
        for path, left in left_results(spool, key):
            adoption.inherit(left)
            self._left += len(left)
            self._recorder.when_recorded(partial(path.unlink, missing_ok=True))
        for child in self._survivors:
            number = child.id.rpartition("-")[2]
            if child.role == "worker" and number.isdecimal():
                worker = self._workforce.expect(int(number), child.slot or 0, child.id, child.identity)
                if worker is not None:
                    adoption.expect(worker)

    def move(self, core: Core, nursery: Nursery, workforce: Workforce) -> None:
        """Go on with these, for the keeper's loop is rebuilt."""
        self._workforce = workforce
        nursery.on_listed(self._listed)
        self.adoption.move(core, lambda: nursery.awaits)

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
        )


def _children(document: PidfileDocument | None) -> tuple[ChildRecord, ...]:
    return () if document is None else document.children
