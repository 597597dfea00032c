"""What a named keeper writes down of itself: the pidfile, with every child, and the record of its events."""

from __future__ import annotations

import os
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from .event_log import EventLog
from .home import Home
from .logs import emit
from .pidfile import ChildRecord, PidfileDocument, PidfileError, PidfileWriter, read_pidfile, survivors
from .process_identity import ProcessIdentity, identify

if TYPE_CHECKING:
    from .service_handover import Handover
    from .service_model import ServiceEvent

__all__ = ["Register"]

PIDFILE = "keeper.pid"
PIDFILE_SECONDS = 0.01


class _Entry(NamedTuple):
    role: str
    name: str
    pid: int
    slot: int | None
    attempt: int | None


class Register:
    """Keeps the files of one keeper's home up to date, from threads of their own.

    ``inherited`` is what the pidfile of an earlier keeper says, None where there is none that makes sense;
    ``survivors`` are those of its children that are alive. They stay in the pidfile until ``born`` has taken them
    over or ``gone`` knows of their end, so that a keeper that dies early loses none. ``crashed`` is whether the earlier
    keeper has ended without a word: there may be children of which no pidfile tells.
    """

    def __init__(self, home: Home, name: str, run_id: str) -> None:
        self._home = home
        self._name = name
        self._run_id = run_id
        self._since = datetime.now(UTC)
        self._keeper = identify() or ProcessIdentity(os.getpid(), 0)
        self.crashed = home.lock is not None and home.lock.abandoned
        self.inherited = self._inherit()
        self.survivors = () if self.inherited is None else _living(self.inherited)
        self._left = {child.identity.pid: child for child in self.survivors}
        self._services = None if self.inherited is None else self.inherited.services
        self._entries: dict[str, _Entry] = {}
        self._identities: dict[str, ProcessIdentity | None] = {}
        self._looking = threading.Lock()
        self._pidfile = PidfileWriter(home.path / PIDFILE, interval=PIDFILE_SECONDS)
        self._events = EventLog(home.path)
        self._pidfile.update(self._document)

    def _inherit(self) -> PidfileDocument | None:
        """Return what an earlier keeper has left; whatever is there in its place is no reason to fail."""
        path = self._home.path / PIDFILE
        try:
            document = read_pidfile(path)
            if (document.name, document.run_id) != (self._name, self._run_id):
                raise PidfileError(f"{path} is of another keeper, {document.name}/{document.run_id}")
            if document.keeper != self._keeper and document.keeper.is_alive():  # the home was copied, as it seems
                raise PidfileError(f"{path} is of a keeper that lives, process {document.keeper.pid}")
        except FileNotFoundError:
            return None
        except (OSError, PidfileError) as error:
            emit("WARNING", f"what an earlier keeper has left is found by its calls alone: {error}")
            return None
        return document

    def born(
        self, tag: str, role: str, name: str, pid: int, slot: int | None = None, attempt: int | None = None
    ) -> None:
        """Take note of a new child, or of one that is taken over; ``tag`` is its own for good."""
        survivor = self._left.pop(pid, None)
        if survivor is not None:
            self._identities[tag] = survivor.identity
        self._entries[tag] = _Entry(role, name, pid, slot, attempt)
        self._pidfile.update(self._document)

    def gone(self, tag: str) -> None:
        """Take note that a child has ended."""
        if self._entries.pop(tag, None) is not None:
            self._pidfile.update(self._document)

    def lost(self, pid: int) -> None:
        """Take note that a child of an earlier keeper has ended that was not taken over."""
        if self._left.pop(pid, None) is not None:
            self._pidfile.update(self._document)

    @property
    def same_boot(self) -> bool:
        """Whether ``inherited`` was written since this machine has started."""
        boot = self._keeper.boot_id
        return bool(boot) and self.inherited is not None and self.inherited.keeper.boot_id == boot

    @property
    def has_services(self) -> bool:
        """Whether an earlier keeper has left services, or processes of them."""
        left = self.inherited
        roles = ("service", "program")
        return left is not None and (bool(left.service_records) or any(one.role in roles for one in left.children))

    def describe(self, services: Handover) -> None:
        """Take note of what is to be known of services besides their processes."""
        self._services = services
        self._pidfile.update(self._document)

    def tell(self, event: ServiceEvent) -> None:
        """Record an event."""
        self._events.write(event)

    def close(self, *, keep: bool = False) -> None:
        """Finish. Without ``keep`` no pidfile is left: there is no keeper any more, and no child of it.

        Args:
            keep: leave the pidfile, up to date, for a later keeper of this name and run.
        """
        if keep:
            self._pidfile.update(self._document)
        self._pidfile.close(remove=not keep)
        self._events.close()

    def renew(self) -> None:
        """This keeper's loop is rebuilt: what there is now counts as left by an earlier one."""
        self.inherited = self._document()
        self.survivors = _living(self.inherited)
        self._left = {child.identity.pid: child for child in self.survivors}
        self._entries.clear()

    def abandon_in_child(self) -> None:
        """In a fork of the application: the files are the parent's."""
        self._pidfile.abandon_in_child()

    def _document(self) -> PidfileDocument:
        """Return what is to be written; on the writer's thread, as a rule, which has the time to look at processes."""
        with self._looking:
            return self._describe_all()

    def _describe_all(self) -> PidfileDocument:
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
        children.extend(list(self._left.values()))
        return PidfileDocument(
            keeper=self._keeper,
            name=self._name,
            run_id=self._run_id,
            socket=self._home.socket,
            since=self._since,
            argv=tuple(sys.argv),
            children=tuple(children),
            services=self._services,
        )


def _living(document: PidfileDocument) -> tuple[ChildRecord, ...]:
    try:
        return survivors(document)
    except OSError as error:  # no descriptor to look with; those that live will call
        emit("WARNING", f"it cannot be seen which children of an earlier keeper are alive: {error}")
        return ()
