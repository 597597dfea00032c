"""Who is told what becomes of services: the log, the record of events, callbacks, and whoever waits for a state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from .delivery import Delivery
from .reporting import report

if TYPE_CHECKING:
    from .register import Register
    from .service_model import ServiceEvent

    Listener = Callable[[ServiceEvent], object]

__all__ = ["ServiceNews"]

_PHRASES = {"backoff": "has ended", "failed": "has failed", "completed": "has completed"}
_LEVELS = {"waiting": "DEBUG", "starting": "DEBUG", "stopping": "DEBUG", "backoff": "WARNING", "failed": "ERROR"}


class ServiceNews:
    """Spreads events; ``changed`` is notified after those of one turn have all been told."""

    def __init__(self, delivery: Delivery, register: Register | None) -> None:
        self.changed = threading.Condition()
        self._delivery = delivery
        self._register = register
        self._listeners: list[tuple[str, Listener]] = []
        self._fresh = False

    def listen(self, kind: str, listener: Listener) -> None:
        """Have ``listener`` called, on the delivery thread, with every event whose kind matches ``kind``."""
        if (kind, listener) not in self._listeners:  # the hooks of a fleet that runs again
            self._listeners.append((kind, listener))

    def tell(self, event: ServiceEvent) -> None:
        """Tell everybody of ``event``."""
        self._fresh = True
        report(_level(event), _sentence(event), service=event.name, attempt=event.attempt, state=event.state)
        if self._register is not None:
            self._register.tell(event)
        for kind, listener in self._listeners:
            if fnmatchcase(event.kind, kind):
                self._delivery.post(partial(_call, listener, event))

    def notify(self) -> None:
        """Wake those who wait for a state, if there was any event since the last time."""
        if self._fresh:
            self.notify_all()

    def notify_all(self) -> None:
        """Wake those who wait for a state."""
        self._fresh = False
        with self.changed:
            self.changed.notify_all()


def _call(listener: Listener, event: ServiceEvent) -> None:
    listener(event)


def _level(event: ServiceEvent) -> str:
    what = event.kind.partition(".")[2]
    if what == "backoff" and event.exitcode == 0:  # what comes of that is told next
        return "INFO"
    return _LEVELS.get(what, "INFO")


def _sentence(event: ServiceEvent) -> str:
    subject, _, what = event.kind.partition(".")
    said = _PHRASES.get(what, f"is {what}")
    pid = f" (pid {event.pid})" if event.pid is not None else ""
    reason = f": {event.reason}" if event.reason else ""
    return f"{' '.join(filter(None, (subject, event.name, said)))}{pid}{reason}"
