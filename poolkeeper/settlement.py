"""How futures and maps get their outcomes, and those who wait for them hear of it. It outlives a loop that fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol

from .delivery import Delivery
from .futures import TaskFuture, settle_quietly
from .ledger import Chunk, Segment, Task
from .spool import Stowage

__all__ = ["Job", "Settlement"]


class Job(Protocol):
    """Who gathers the pieces of a map."""

    withdrawn: bool

    def settle(self, chunk: Chunk, codes: Any, values: Any) -> bool:
        """Take a piece in, under the keeper's lock; return whether somebody waits for it."""

    def fail(self, piece: Chunk | Segment, error: BaseException) -> bool:
        """Take in that a piece has failed; as ``settle``."""

    def announce(self) -> None:
        """Wake who waits."""


class Settlement:
    """Settles what has ended and gives back what its arguments took up; under the keeper's lock, where not said."""

    def __init__(self, stowage: Stowage) -> None:
        self.delivery = Delivery()
        self._stowage = stowage
        self._jobs: list[Job] = []

    def deliver(self, futures: list[TaskFuture], values: Sequence[Any]) -> None:
        """Resolve futures; from any thread."""
        for future, value in settle_quietly(futures, values):
            self.tell(future, future.settle(value))

    def deliver_failure(self, future: TaskFuture, error: BaseException) -> None:
        """Resolve a future with an exception; from any thread."""
        self.tell(future, future.settle_exception(error))

    def settle_chunk(self, chunk: Chunk, codes: Any, values: Any) -> None:
        """Give a map the outcome of one piece."""
        job: Any = chunk.segment.job
        if job.settle(chunk, codes, values):
            self._jobs.append(job)
        self._drop_items(chunk)

    def fail_task(self, task: Task | Segment, error: BaseException) -> None:
        """Settle ``task`` with ``error``."""
        if isinstance(task, TaskFuture):
            self.tell(task, task.settle_exception(error))
            self.drop_payload(task)
            return
        job: Any = task.segment.job if isinstance(task, Chunk) else task.job  # type: ignore[union-attr]
        if job.fail(task, error):
            self._jobs.append(job)
        self._drop_items(task)

    def _drop_items(self, piece: Any) -> None:
        """Give back what the items of a chunk, or those left in a segment, take up."""
        if isinstance(piece, Chunk):
            items, plain = piece.payload, piece.segment.plain
        else:
            items, plain = piece.items[piece.position :], piece.plain
            piece.position = len(piece.items)
        if not plain:
            for item in items:
                self._stowage.drop(item)

    def forget(self, segments: Iterable[Segment]) -> None:
        """A map has ended early: what was not cut from these will not be run."""
        for segment in segments:
            self._drop_items(segment)

    def withdraw(self, task: Task | Segment) -> None:
        """Settle ``task`` as cancelled."""
        if isinstance(task, TaskFuture):
            task.withdrawn = True
            self.tell(task, task.settle_cancelled())
            self.drop_payload(task)
        else:
            self.fail_task(task, CancelledError())

    def drop_payload(self, task: Task) -> None:
        """Give back what the arguments of an ended task take up."""
        self._stowage.drop(task.payload)
        task.payload = None

    def tell(self, future: TaskFuture, has_callbacks: bool) -> None:
        """Have the callbacks of a settled future run, if it has any; from any thread."""
        if has_callbacks:
            self.delivery.post(future.run_callbacks)

    def announce(self) -> None:
        """Wake the readers of maps; not under the lock."""
        if self._jobs:
            jobs, self._jobs = self._jobs, []
            for job in jobs:
                job.announce()
