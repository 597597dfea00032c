"""The thread on which a keeper runs what belongs to the user: callbacks of futures, strategies of retry policies."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

from .logs import emit

__all__ = ["Delivery"]


class Delivery:
    """A thread that runs jobs in order; one that raises is logged and forgotten. It starts when it is first needed."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def start(self) -> bool:
        """Have the thread run; return whether it does. From Python 3.12 on it cannot be started at interpreter exit."""
        with self._starting:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="poolkeeper-delivery", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
            return self._thread is not None

    def post(self, job: Callable[[], None]) -> None:
        """Run ``job`` soon; here and now where no thread can be started any more."""
        if self.start():
            self._jobs.put(job)
        else:
            job()

    @property
    def is_caller(self) -> bool:
        """Whether this is called on the thread itself."""
        return self._thread is threading.current_thread()

    def close(self) -> None:
        """Let the thread end when it has run what was posted; wait for it, unless it is the caller."""
        with self._starting:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException:
                emit("ERROR", f"a callback raised\n{traceback.format_exc()}")
            del job
