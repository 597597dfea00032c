"""How futures and maps get their outcomes, and those who wait for them hear of it. It outlives a loop that fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol, TypeVar

from .delivery import Delivery
from .futures import TaskFuture, settle_quietly
from .ledger import Chunk, Segment, Task
from .spool import Stowage

__all__ = ["Job", "Settlement"]

T = TypeVar("T")


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
        self._jobs: deque[Job] = deque()
        self._untold: deque[TaskFuture] = deque()

    def deliver(self, futures: list[TaskFuture], values: Sequence[Any]) -> None:
        """Resolve futures; from any thread. Where that fails, it may be called again with the same."""
        failure: Exception | None = None
        for future, value in settle_quietly(futures, values):
            try:
                self._conclude(future, future.settle, value)
            except Exception as error:  # the others have their outcomes all the same
                failure = error
        if failure is not None:
            raise failure

    def deliver_failure(self, future: TaskFuture, error: BaseException) -> None:
        """Resolve a future with an exception; as ``deliver``."""
        self._conclude(future, future.settle_exception, error)

    def _conclude(self, future: TaskFuture, settle: Callable[..., bool], *outcome: Any) -> None:
        """Settle a future and have its callbacks run; ``announce`` makes up for it should that fail half-way."""
        try:
            self._call_back(future, settle(*outcome))
        except BaseException:
            self._untold.append(future)
            raise

    def _call_back(self, future: TaskFuture, has_callbacks: bool) -> None:
        if has_callbacks:
            self.delivery.post(future.run_callbacks)

    def settle_chunk(self, chunk: Chunk, codes: Any, values: Any) -> None:
        """Give a map the outcome of one piece."""
        job: Any = chunk.segment.job
        if job.settle(chunk, codes, values):
            self._jobs.append(job)
        self._drop_items(chunk)

    def fail_task(self, task: Task | Segment, error: BaseException) -> None:
        """Settle ``task`` with ``error``."""
        if isinstance(task, TaskFuture):
            self.deliver_failure(task, error)
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
            self._conclude(task, task.settle_cancelled)
            self.drop_payload(task)
        else:
            self.fail_task(task, CancelledError())

    def drop_payload(self, task: Task) -> None:
        """Give back what the arguments of an ended task take up."""
        self._stowage.drop(task.payload)
        task.payload = None

    def announce(self) -> None:
        """Wake the readers of maps, and whoever should have been told before and was not; not under the lock."""
        if self._jobs:
            _each(self._jobs, lambda job: job.announce())
        if self._untold:
            _each(self._untold, lambda future: self._call_back(future, future.finish_telling()))


def _each(queue: deque[T], call: Callable[[T], None]) -> None:
    """Call for each entry of ``queue`` once; one that fails is left there."""
    while queue:
        try:
            entry = queue.popleft()
        except IndexError:  # another thread does the same
            return
        try:
            call(entry)
        except BaseException:
            queue.append(entry)
            raise
