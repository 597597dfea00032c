"""A restart by hand: the service's code on disk is tried first, and is what the new process runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .replica import Service
from .service_peer import is_program
from .service_preflight import check_loadable
from .settings import Settings

__all__ = ["Restarting", "restart_services"]

PREFLIGHT_SECONDS = 60.0


class Restarting(Protocol):
    """The keeper, as far as it is needed for that."""

    settings: Settings

    @property
    def supervision(self) -> Any:
        """What looks after its services."""

    def ask(self, call: Callable[[], None]) -> None:
        """Have ``call`` run on the keeper's thread."""


def restart_services(runtime: Restarting, services: Sequence[Service]) -> None:
    """Restart services, all of them or none; not on the keeper's thread, for it takes the time of an import.

    Raises:
        RestartRefused: if the code of one cannot be loaded; all go on as they are.
        RuntimeError: when the keeper has ended.
    """
    supervision, settings = runtime.supervision, runtime.settings
    for service in services:
        if not is_program(service.spec):
            blob, environment = supervision.definition_of(service)
            variables = {**settings.environment, **environment}
            check_loadable(service.name, blob, settings.preload, variables, PREFLIGHT_SECONDS)

    def restart() -> None:
        for service in services:
            supervision.restart(service)

    runtime.ask(restart)
