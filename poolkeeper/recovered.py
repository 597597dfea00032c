"""What came of taking over."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Recovered"]


class Recovered(NamedTuple):
    """What a durable keeper has found of the one before it, at one moment.

    Args:
        workers: pids of the workers that have called.
        silent: pids of those that live and have not called yet; they are frozen, or within a long call of C code.
        dead: the children that the earlier keeper has written down and that are gone, by id.
        services: names of the services whose processes live.
        tasks: how many tasks the workers held that can be asked for again.
        left: how many outcomes were found that workers have left behind before they went.
        drained: pids of workers whose versions differ from this keeper's; each finishes its task and leaves.
    """

    workers: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    dead: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    tasks: int = 0
    left: int = 0
    drained: tuple[int, ...] = ()
