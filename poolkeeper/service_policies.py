"""Asks the services' restart policies: here if they are known to be quick, else away from the keeper's thread."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from functools import partial

from .delivery import Delivery
from .errors import ServiceFailed
from .policy import RestartRecord
from .reporting import report
from .service_commands import Consult
from .supervisor import Supervisor

__all__ = ["Policies"]


class Policies:
    """Consults policies, and tells the supervisor what they say; ``call_soon`` is the way to the keeper's thread."""

    def __init__(
        self, supervisor: Supervisor, delivery: Delivery, call_soon: Callable[[Callable[[], None]], None]
    ) -> None:
        self._supervisor = supervisor
        self._delivery = delivery
        self._call_soon = call_soon
        delivery.post(_warm_up)

    def consult(self, command: Consult) -> None:
        """Ask a policy what is to become of a replica."""
        if command.replica.spec.restart.is_known and "tenacity" in sys.modules:
            self._decided(command, *self._consult_now(command))
        else:
            self._delivery.post(partial(self._consult_later, command))

    def _consult_later(self, command: Consult) -> None:
        """On the delivery thread, for the strategies of this policy are user code."""
        self._call_soon(partial(self._decided, command, *self._consult_now(command)))

    @staticmethod
    def _consult_now(command: Consult) -> tuple[float | None, RestartRecord, str]:
        """Return the policy's delay, its new record, and what went wrong with it."""
        replica = command.replica
        error = None if command.error is None else ServiceFailed(command.error)
        try:
            delay, record = replica.spec.restart.after_exit(
                replica.record, started=command.started, now=command.ended, error=error, healthy=command.healthy
            )
        except Exception as problem:
            why = f"its restart policy raised {type(problem).__name__}: {problem}"
            report("ERROR", f"service {replica.name}: {why}\n{traceback.format_exc()}", service=replica.name)
            return None, replica.record, why
        return delay, record, ""

    def _decided(self, command: Consult, delay: float | None, record: RestartRecord, why: str) -> None:
        self._supervisor.decided(command, delay, record, time.monotonic(), why)


def _warm_up() -> None:
    """Import what the first restart needs, before it happens."""
    import tenacity  # noqa: F401
