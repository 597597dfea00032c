"""The services of a fleet, from the start of a run to its end."""

from __future__ import annotations

import threading
from typing import Any

from .batch import Submitter
from .cancellation import CancellationToken
from .fleet import Fleet, FleetError
from .service_model import ServiceEvent, ServiceState

__all__ = ["FleetServices"]


class FleetServices:
    """The services of one run."""

    def __init__(self, fleet: Fleet, executor: Submitter, token: CancellationToken) -> None:
        self.handles: dict[str, Any] = {}
        self.collapse: str | None = None
        self.are_all = len(fleet.services) == len(fleet.parts)
        """Whether the fleet has nothing else, so that it goes on for as long as they do."""
        self._fleet = fleet
        self._keeper: Any = executor
        self._token = token
        self._changed = threading.Condition()
        self._group_failed = False  # which leaves its other members stopped
        self._over = False
        if not hasattr(executor, "declare_service"):
            raise FleetError(f"fleet {fleet.name!r} has services, which need a Keeper to run, not {executor!r}")

    def start(self) -> None:
        """Start them all."""
        self._keeper.on("*", self._hear)
        for kind, listener in self._fleet.listeners:
            self._keeper.on(kind, listener)
        for name, spec in self._fleet.services.items():
            earlier = self._keeper.services.get(name)
            if earlier is not None and earlier.is_declared_as(spec):  # an earlier run has had it
                earlier.start()
                self.handles[name] = earlier
            else:
                self.handles[name] = self._keeper.declare_service(spec)
        self._keeper.disown_services()
        self._token.on_cancel(self._wake)
        self._keeper.when_ended(self._keeper_has_ended)

    def _keeper_has_ended(self) -> None:
        if self._over:
            return
        if not self._token.cancelled:
            self.collapse = "the keeper has ended"  # which nobody has asked for
        self._token.cancel("the keeper has ended")

    def _hear(self, event: ServiceEvent) -> None:
        if event.kind == "fleet.failed":
            self.collapse = event.reason
            self._token.cancel(event.reason)
        self._group_failed = self._group_failed or event.kind == "group.failed"
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until the run is cancelled, or nothing is left to do; what is stopped by hand may be started again."""
        with self._changed:
            self._changed.wait_for(lambda: self._token.cancelled or self._is_over())

    def _is_over(self) -> bool:
        final = {ServiceState.COMPLETED, ServiceState.FAILED}
        if self._group_failed or any(handle.is_leaving for handle in self.handles.values()):
            final.add(ServiceState.STOPPED)
        return all(handle.state in final for handle in self.handles.values())

    def wait_for(self, name: str) -> bool:
        """Wait until a service is ready; return False if that will not be."""
        ready = (ServiceState.RUNNING, ServiceState.COMPLETED)
        handle = self.handles[name]
        with self._changed:
            self._changed.wait_for(lambda: self._token.cancelled or handle.state in ready or handle.state.at_rest)
        return handle.state in ready

    def stop(self) -> dict[str, ServiceState]:
        """Stop them in reverse order and wait for that; return the state of each before it was stopped."""
        self._over = True
        states = {name: handle.state for name, handle in self.handles.items()}
        for name in reversed(self.handles):
            self.handles[name].end_with_fleet()
        for handle in self.handles.values():
            handle.wait([state for state in ServiceState if state.at_rest])
        for handle in self.handles.values():
            handle.readmit()
        return states
