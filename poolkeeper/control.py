"""What other programs may ask of a keeper, over its socket: how it is, to start, stop and scale services, to reload.

Who asks has proved that it knows the key of the home, as workers do. Requests are ``(REQUEST, number, verb,
arguments)`` and answers ``(REPLY, number, error or None, value)``; values are plain data.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from .errors import PoolkeeperError
from .messages import Kind
from .peer import Peer
from .replica import Service
from .service_restart import Restarting, restart_services
from .status import keeper_as_data, keeper_in_short
from .supervisor import Supervisor
from .switchboard import Switchboard

__all__ = ["Control"]


class Controlled(Restarting, Protocol):
    """The keeper, as far as others may steer it."""

    @property
    def has_services(self) -> bool:
        """Whether there are any."""

    def progress(self) -> dict[str, Any]:
        """Return how far its run has come, as plain data."""

    def request_shutdown(self, reason: str) -> None:
        """End, as somebody else asks."""

    def request_reexec(self, answer: Callable[[str], None]) -> None:
        """Be replaced by a new program, as somebody else asks; ``answer`` is called only if that is refused."""


class _Refused(PoolkeeperError):
    """What was asked for cannot be done; the message goes to who asked."""


class Control:
    """Answers requests; runs on the keeper's thread, under its lock."""

    def __init__(self, runtime: Controlled, board: Switchboard) -> None:
        self._runtime = runtime
        self._board = board
        self._peers: set[Peer] = set()
        self._verbs: dict[str, Callable[..., Any]] = {
            "status": self._status,
            "progress": self._progress,
            "start": partial(self._each, Supervisor.start),
            "stop": partial(self._each, Supervisor.stop),
            "scale": self._scale,
            "shutdown": self._shutdown,
        }

    def introduce(self) -> Peer:
        """Return the session of a new client."""
        peer = Peer(self)
        peer.name = "a control client"
        self._peers.add(peer)
        return peer

    def close(self) -> None:
        """Hang up on all clients."""
        for peer in self._peers:
            self._board.detach(peer)
        self._peers.clear()

    def connected(self, peer: Peer, hello: dict[str, Any]) -> None:
        """A client has called."""

    def disconnected(self, peer: Peer) -> None:
        """A client has left."""
        self._peers.discard(peer)

    def message(self, peer: Peer, message: tuple[Any, ...], fds: list[int]) -> None:
        """A client asks for something."""
        if message[0] != Kind.REQUEST:
            return
        _, number, verb, arguments = message
        if verb == "reload":
            self._runtime.request_reexec(partial(self._refuse, peer, number))
            return
        error, value = None, None
        try:
            if verb == "restart":
                self._restart(self._named(**arguments), partial(self._reply, peer, number))
                return
            method = self._verbs.get(verb)
            if method is None:
                raise _Refused(f"this keeper does not know {verb!r}")
            value = method(**arguments)
        except (PoolkeeperError, TypeError, ValueError) as problem:
            error = str(problem)
        self._board.post(peer, (Kind.REPLY, number, error, value))

    def _refuse(self, peer: Peer, number: int, why: str) -> None:
        self._reply(peer, number, why)

    def _reply(self, peer: Peer, number: int, error: str | None) -> None:
        if peer in self._peers:
            self._board.post(peer, (Kind.REPLY, number, error, None))

    def _restart(self, services: list[Service], reply: Callable[[str | None], None]) -> None:
        """Restart services, and ``reply`` with why that is refused; their code is tried in the background."""
        runtime = self._runtime

        def restart() -> None:
            error = None
            try:
                restart_services(runtime, services)
            except (PoolkeeperError, RuntimeError, OSError) as problem:
                error = str(problem)
            with contextlib.suppress(RuntimeError):  # the keeper has ended
                runtime.ask(partial(reply, error))

        threading.Thread(target=restart, name="poolkeeper-restart", daemon=True).start()

    def _status(self) -> dict[str, Any]:
        return keeper_as_data(self._runtime)

    def _progress(self) -> dict[str, Any]:
        return {**keeper_in_short(self._runtime), "run": self._runtime.progress()}

    def _scale(self, replicas: dict[str, int]) -> None:
        for number in replicas.values():
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise _Refused(f"{number!r} is no number of replicas")
        self._each(lambda supervisor, each, now: supervisor.scale(each, replicas[each.name], now), list(replicas))

    def _each(self, act: Callable[[Supervisor, Service, float], None], /, services: list[str]) -> None:
        """Do something with services, once all of them are known to exist."""
        for service in self._named(services):
            act(self._runtime.supervision.supervisor, service, time.monotonic())

    def _named(self, services: list[str]) -> list[Service]:
        known = self._runtime.supervision.supervisor.services if self._runtime.has_services else {}
        unknown = [name for name in services if name not in known]
        if unknown:
            raise _Refused(f"there is no service {unknown[0]!r} (there are: {', '.join(known) or 'none'})")
        return [known[name] for name in services]

    def _shutdown(self, reason: str) -> None:
        self._runtime.request_shutdown(reason)
