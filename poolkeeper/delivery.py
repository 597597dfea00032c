"""The thread on which a keeper runs what belongs to the user: callbacks of futures, strategies of retry policies."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

from .logs import emit

__all__ = ["Delivery"]


class Delivery:
    """A thread that starts with its first job and runs jobs in order; one that raises is logged and forgotten."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def post(self, job: Callable[[], None]) -> None:
        """Run ``job`` soon. Called by the keeper's thread alone."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="poolkeeper-delivery", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is shutting down and starts no more threads
                self._thread = None
                job()
                return
        self._jobs.put(job)

    def close(self) -> None:
        """Let the thread end when it has run what was posted; wait for it, unless it is the caller."""
        if self._thread is not None:
            self._jobs.put(None)
            if self._thread is not threading.current_thread():
                self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException:
                emit("ERROR", f"a callback raised\n{traceback.format_exc()}")
            del job
