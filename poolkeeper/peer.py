"""The keeper's end of a session with one process, and who hears what comes over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .session import Session

if TYPE_CHECKING:
    from .link import Link

__all__ = ["Heir", "Listener", "Peer"]


class Listener(Protocol):
    """Who hears what a peer says, and of its links."""

    def connected(self, peer: Any, hello: dict[str, Any]) -> None:
        """A link to ``peer`` is up again."""

    def message(self, peer: Any, message: tuple[Any, ...], fds: list[int]) -> None:
        """``peer`` has sent a message; its descriptors are the first of ``fds``, to be taken out."""

    def disconnected(self, peer: Any) -> None:
        """The link to ``peer`` is gone."""


class Heir(Listener, Protocol):
    """Who also looks after processes that an earlier keeper has made."""

    def attached(self, peer: Any, content: dict[str, Any], fds: list[int]) -> None:
        """``peer`` has said what it is and holds; the descriptors beside are the first of ``fds``, to be taken out."""

    def turned_away(self, peer: Any, hello: dict[str, Any], why: str) -> None:
        """``peer`` has called, and its versions differ; ``why`` is a predicate of it. It will not be heard."""

    def leaving(self, peer: Any, content: dict[str, Any]) -> None:
        """``peer``, who was refused, has said what it has begun and leaves to be found."""


class Peer:
    """The keeper's end of the session with one process, across all its links.

    ``attached`` is False for a process that an earlier keeper has made, until it has said what it is. ``refusal`` is
    why it cannot be heard: its versions differ.
    """

    name = "a peer"
    attached = True
    refusal = ""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.session = Session()
        self.link: Link | None = None
        self.outgoing: list[tuple[Any, ...]] = []
        self.fds: list[int] = []
        self.wants_write = False
        self.told = 0
        self.due = False

    def releases(self) -> list[int]:
        """Return the numbers of arenas to give back with the next message."""
        return []
