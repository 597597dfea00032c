"""What the loop of a keeper stands on: it is there before the first incarnation, and stays when one has failed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .home import Home
from .loop import Loop
from .reporting import at_any_rate
from .service_news import ServiceNews
from .settings import Settings
from .settlement import Settlement
from .spool import Stowage

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from typing import Protocol

    from .commands import Decide
    from .control import Controlled
    from .futures import Keeps
    from .recording import Recorder
    from .register import Register

    class Host(Keeps, Controlled, Protocol):
        """The keeper, as its loop knows it."""

        name: str | None
        run_id: str

        def call_soon(self, call: Callable[[], None]) -> None:
            """Have ``call`` run on the keeper's thread, under the lock."""

        def wake(self) -> None:
            """Have the loop look around; from any thread."""

        def wake_if_sleeping(self) -> None:
            """Have the loop look around if it would not by itself; from any thread."""

        def ask_policy(self, command: Decide) -> None:
            """Have a retry policy decide, and the core told."""


__all__ = ["Foundation"]


class Foundation:
    """The home of one keeper and what is open there, its futures' fate, and who is told of events.

    ``place`` tells this keeper from all others of its name. ``recorder`` and ``register`` are None without a name, and
    ``recorder`` where there can be no journal.

    Args:
        host: the keeper.
        settings: of the keeper.
        home: opened.
        loop: of the keeper.
        undo: gives back what is opened here, should what follows fail.

    Raises:
        OSError: when the home cannot be used.
    """

    def __init__(self, host: Host, settings: Settings, home: Home, loop: Loop, undo: contextlib.ExitStack) -> None:
        self.host = host
        self.settings = settings
        self.home = home
        self.loop = loop
        self.place = os.urandom(6).hex()
        self.stowage = Stowage(home.path, settings.queue_bytes)
        self.settlement = Settlement(self.stowage)
        from .postmortem import Postmortem  # slow to import; and when a worker dies there may be no descriptor left

        self.postmortem = Postmortem(home.logs)
        self.register: Register | None = None
        self.recorder: Recorder | None = None
        if not home.ephemeral:
            self._open_records(undo)
        self.news = ServiceNews(self.settlement.delivery, self.register)

    def _open_records(self, undo: contextlib.ExitStack) -> None:
        from .recording import open_recorder
        from .register import Register

        host, settings, home = self.host, self.settings, self.home
        self.register = Register(home, host.name or "", host.run_id)
        undo.callback(self.register.close, keep=bool(self.register.survivors))
        self.recorder = open_recorder(
            home.path,
            home.key,
            "interrupted" if home.inherited else settings.resume,  # a re-exec is no new run, whatever the options say
            settings.durability,
            settings.keep_runs,
            self.settlement.deliver,
            self.settlement.deliver_failure,
            host.wake,
            survivors=len(self.register.survivors),
        )
        if self.recorder is not None:
            undo.callback(self.recorder.close)

    def part(self) -> None:
        """Write down, for a later keeper, all that goes on; from now on nothing that is let go of counts as gone."""
        if self.register is not None:
            self.register.close(keep=True)
        if self.recorder is not None:
            self.recorder.close()  # before what is pending fails, for that is no outcome

    def close(self, *, leave: bool) -> None:
        """Give everything back. Unless ``leave``, no process is left: nor shall a file be that speaks of one."""
        at_any_rate(self.stowage.close)
        at_any_rate(self.loop.selector.close)
        if leave:
            at_any_rate(self.home.close_lock)
        else:
            if self.register is not None:
                at_any_rate(self.register.close)
            if self.recorder is not None:
                at_any_rate(self.recorder.close)
            at_any_rate(self.home.remove)
        at_any_rate(self.settlement.delivery.close)

    def abandon_in_child(self) -> None:
        """In a fork of the application: let go of what belongs to the parent's keeper."""
        self.home.close_lock()
        if self.register is not None:
            self.register.abandon_in_child()
        if self.recorder is not None:
            self.recorder.abandon_in_child()
        self.loop.abandon_in_child()
