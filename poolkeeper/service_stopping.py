"""How processes of services end: in order, when asked; by force, when they do not. Pure."""

from __future__ import annotations

from .replica import Ending, Force, Replica, Service
from .service_changes import Changes
from .service_commands import Ask, Destroy, Dump
from .service_model import ServiceState
from .service_states import Step
from .timers import Timers

__all__ = ["Stopping"]

DUMP_SECONDS = 1.0
"""How long a hanging process gets to write down its stacks, where the machine is busy; it is killed once it has."""

KILL_AGAIN_SECONDS = 5.0
"""After this a process that was killed and is still there is killed once more."""


class Stopping:
    """Who is to end, and how far each has been pushed.

    A replica is first requested to end: it goes on until all that is after it, and is to end too, has ended. Then it is
    asked (its state is STOPPING), and later forced.
    """

    def __init__(self, changes: Changes, timers: Timers) -> None:
        self._changes = changes
        self._timers = timers
        self._requests: dict[Replica, Ending] = {}
        self._fresh = False

    @property
    def due(self) -> bool:
        """Whether ``ask_in_order`` has not been called since somebody was to stop."""
        return self._fresh

    def recheck(self) -> None:
        """One that is stopping anyway is not to go on afterwards."""
        self._fresh = True

    def requested(self, replica: Replica) -> Ending | None:
        """Return why a replica is to end that has not been asked yet."""
        return self._requests.get(replica)

    def request(self, replica: Replica, ending: Ending, reason: str) -> None:
        """Have a process end in its turn. Of two reasons to end it the one that people gave is kept."""
        known = self._requests.get(replica)
        if known is None or ending in (Ending.STOP, Ending.RESTART):
            self._requests[replica] = ending
            self._fresh = True
            replica.why = reason

    def withdraw(self, replica: Replica) -> None:
        """Let a replica go on that was to end and has not been asked yet."""
        if self._requests.pop(replica, None) is not None:
            replica.why = ""

    def ask_in_order(self, now: float) -> None:
        """Ask all whose turn it is."""
        self._fresh = False
        for replica, ending in list(self._requests.items()):
            if not self._held(replica):
                self.ask(replica, ending, now)

    def ask_all(self, now: float) -> None:
        """Ask all, in no order."""
        for replica, ending in list(self._requests.items()):
            self.ask(replica, ending, now)

    def ask(self, replica: Replica, ending: Ending, now: float) -> None:
        """Ask a process to end, whoever else runs."""
        self._end(replica, ending, now, replica.spec.stop_timeout, Force.ASKED)
        self._changes.command(Ask(replica))

    def put_down(self, replica: Replica, ending: Ending, now: float) -> None:
        """End a process that hangs: have it write down its stacks, then kill it."""
        self._end(replica, ending, now, DUMP_SECONDS, Force.DUMPED)
        self._changes.command(Dump(replica))

    def kill(self, replica: Replica, ending: Ending, now: float) -> None:
        """End a process at once; one that is ending anyway keeps its reason."""
        if replica.state is not ServiceState.STOPPING:
            self._end(replica, ending, now, KILL_AGAIN_SECONDS, Force.KILLED)
        else:
            self._push(replica, now, KILL_AGAIN_SECONDS, Force.KILLED)
        self._changes.command(Destroy(replica))

    def resume(self, replica: Replica, ending: Ending, now: float, *, forced: bool) -> None:
        """Go on with the end of a process, which an earlier keeper may have asked for, or only have meant to."""
        replica.ending = ending
        if forced:
            self._push(replica, now, KILL_AGAIN_SECONDS, Force.KILLED)
            self._changes.command(Destroy(replica))
        else:
            self._push(replica, now, replica.spec.stop_timeout, Force.ASKED)
            self._changes.command(Ask(replica))

    def look(self, replica: Replica, now: float) -> None:
        """The time of a process that is STOPPING may be over: first its stacks are written down, then it is killed."""
        if replica.force_at is None or now < replica.force_at:
            return
        if replica.force is Force.ASKED:
            self._push(replica, now, DUMP_SECONDS, Force.DUMPED)
            self._changes.command(Dump(replica))
        else:
            self._push(replica, now, KILL_AGAIN_SECONDS, Force.KILLED)
            self._changes.command(Destroy(replica))

    def dumped(self, replica: Replica, now: float) -> None:
        """The stacks of a process are written down, or never will be: it need not live for them any longer."""
        if replica.state is ServiceState.STOPPING and replica.force is Force.DUMPED:
            self._push(replica, now, KILL_AGAIN_SECONDS, Force.KILLED)
            self._changes.command(Destroy(replica))

    def gone(self, replica: Replica) -> None:
        """Forget about a process that is gone."""
        self._requests.pop(replica, None)
        self._timers.cancel(replica.id)
        replica.ending = None
        replica.why = ""
        replica.force, replica.force_at = Force.ASKED, None

    def _end(self, replica: Replica, ending: Ending, now: float, patience: float, force: Force) -> None:
        self._requests.pop(replica, None)
        replica.ending = ending
        self._changes.move(replica, Step.STOP, now, replica.why or ending.value.value)
        self._push(replica, now, patience, force)

    def _push(self, replica: Replica, now: float, patience: float, force: Force) -> None:
        replica.force, replica.force_at = force, now + patience
        self._timers.cancel(replica.id)
        self._timers.set(replica.id, replica.force_at)

    def _held(self, replica: Replica) -> bool:
        """Whether somebody ends that is after this one, be it by way of services that do not run."""
        seen: set[Service] = set()
        services = list(replica.service.dependents)
        while services:
            service = services.pop()
            if service in seen:
                continue
            seen.add(service)
            processes = (*service.replicas, *service.extras)
            for other in processes:
                if other.state is ServiceState.STOPPING or other in self._requests:
                    return True
            if not any(other.state.has_process for other in processes):
                services.extend(service.dependents)
        return False
