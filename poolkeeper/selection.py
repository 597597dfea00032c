"""Which services, replicas and workers people mean by the names that they give. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .errors import PoolkeeperError

__all__ = ["NoSuchName", "check_names", "is_meant"]


class NoSuchName(PoolkeeperError):
    """A name that nothing has; the message lists those that there are."""


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raise NoSuchName for the first of ``names`` that means none of the ``known`` services, replicas and workers."""
    for name in names:
        if not any(is_meant(one, [name]) for one in known):
            listed = ", ".join(sorted(known)) or "none"
            raise NoSuchName(f"there is no service or worker {name!r} (there are: {listed})")


def is_meant(one: str, names: Collection[str]) -> bool:
    """Whether ``one`` is among ``names``, where a service's name means each of its replicas.

    Of a service with one replica that replica is called as the service is, or by its number, 0.
    """
    return not names or one in names or one.partition(":")[0] in names or f"{one}:0" in names
