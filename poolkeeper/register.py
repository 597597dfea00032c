"""What a named keeper writes down of itself: the pidfile, with every child, and the record of its events."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import NamedTuple

from .event_log import EventLog
from .home import Home
from .pidfile import ChildRecord, PidfileDocument, PidfileWriter
from .process_identity import ProcessIdentity, identify
from .service_model import ServiceEvent

__all__ = ["Register"]

PIDFILE = "keeper.pid"


class _Entry(NamedTuple):
    role: str
    name: str
    pid: int
    slot: int | None
    attempt: int | None


class Register:
    """Keeps the files of one keeper's home up to date, from threads of their own."""

    def __init__(self, home: Home, name: str, run_id: str) -> None:
        self._home = home
        self._name = name
        self._run_id = run_id
        self._since = datetime.now(UTC)
        self._keeper = identify() or ProcessIdentity(os.getpid(), 0)
        self._entries: dict[str, _Entry] = {}
        self._identities: dict[str, ProcessIdentity | None] = {}
        self._pidfile = PidfileWriter(home.path / PIDFILE)
        self._events = EventLog(home.path)
        self._pidfile.update(self._document)

    def born(
        self, tag: str, role: str, name: str, pid: int, slot: int | None = None, attempt: int | None = None
    ) -> None:
        """Take note of a new child; ``tag`` is its own for good."""
        self._entries[tag] = _Entry(role, name, pid, slot, attempt)
        self._pidfile.update(self._document)

    def gone(self, tag: str) -> None:
        """Take note that a child has ended."""
        if self._entries.pop(tag, None) is not None:
            self._pidfile.update(self._document)

    def tell(self, event: ServiceEvent) -> None:
        """Record an event."""
        self._events.write(event)

    def close(self) -> None:
        """Finish, with no pidfile left: there is no keeper any more, and no child of it."""
        self._pidfile.close(remove=True)
        self._events.close()

    def leave(self) -> None:
        """Finish, with a pidfile that tells a successor which children there are."""
        self._pidfile.close(remove=False)
        self._events.close()

    def abandon_in_child(self) -> None:
        """In a fork of the application: the files are the parent's."""
        self._pidfile.abandon_in_child()

    def _document(self) -> PidfileDocument:
        """Return what is to be written; on the writer's thread, which has the time to look at each process."""
        entries = dict(self._entries)
        for tag in self._identities.keys() - entries.keys():
            del self._identities[tag]
        for tag, entry in entries.items():
            if tag not in self._identities:
                self._identities[tag] = identify(entry.pid)
        children = []
        for tag, entry in entries.items():
            identity = self._identities[tag]
            if identity is not None:
                children.append(
                    ChildRecord(tag, entry.role, entry.name, identity, slot=entry.slot, attempt=entry.attempt)
                )
        return PidfileDocument(
            keeper=self._keeper,
            name=self._name,
            run_id=self._run_id,
            socket=self._home.socket,
            since=self._since,
            argv=tuple(sys.argv),
            children=tuple(children),
        )
