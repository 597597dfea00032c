"""What must always hold of a keeper's services, whatever happens; the simulation checks it at every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from poolkeeper.replica import Ending, Replica, Service
from poolkeeper.service_commands import Consult
from poolkeeper.service_handover import ReplicaRecord, ServiceRecord
from poolkeeper.service_model import ServiceState
from poolkeeper.supervisor import Supervisor

if TYPE_CHECKING:
    from tests.service_simulation import Process

BUSY = (ServiceState.STARTING, ServiceState.RUNNING)

Tag = tuple[str, int, int]
"""Service, number and attempt of a process."""


class Violation(AssertionError):
    """Something happened that must never happen."""


class Promises:
    """The checks; the attributes are those of the simulation."""

    now: float
    woke: float
    found: int
    max_starting: int
    stopping_all: bool
    upgrade_failed: bool
    supervisor: Supervisor
    processes: dict[Replica, Process]
    all: dict[Tag, Process]
    not_before: dict[Replica, float]
    consulted: dict[Replica, Consult]
    again: set[Replica]
    restarts: dict[tuple[str, int], int]
    seen: set[str]

    def _hold(self, condition: bool, what: str) -> None:
        if not condition:
            raise Violation(what)

    def _check_restored(self, replica: Replica, record: ReplicaRecord, left: ServiceRecord, reboot: bool) -> None:
        hold, name, state = self._hold, replica.name, replica.state
        hold(replica.attempt >= record.attempt, f"{name} counts its processes anew")
        hold(replica.restarts == record.restarts, f"{name} has forgotten {record.restarts} restarts")
        if replica.attempt > record.attempt or replica.removed or record.removed:
            return
        if record.state.at_rest:
            waits = record.up or (left.wanted and not left.replicas)
            hold(
                waits or state is record.state or replica.number not in {one.number for one in left.replicas},
                f"{name} was {record.state} and is {state}",
            )
        else:
            hold(state is record.state, f"{name} was {record.state} and is {state}")
        if record.due is not None and state is ServiceState.BACKOFF:
            assert replica.due is not None
            assert left.epoch is not None
            hold(self.now <= replica.due <= self.now + record.due_in, f"{name} waits for {replica.due - self.now} s")
            if not reboot:
                due = max(self.now, record.due - left.epoch)
                hold(abs(replica.due - due) < 1e-4, f"{name} has forgotten its deadline: {due}, {replica.due}")
            self.not_before[replica] = replica.due

    def _check_alone(self, replica: Replica, attempt: int) -> None:
        """A replica has one process, and a second one while that is replaced and may overlap."""
        tag = replica.service.name, replica.number, attempt
        others = {one: process for one, process in self.all.items() if one[:2] == tag[:2] and not process.ended}
        self._hold(tag not in others, f"there are two processes {tag}")
        known = [process for process in others.values() if process in self.processes.values()]
        if replica.incumbent is not None:
            self._hold(replica.spec.overlap, f"a second process for {replica.name}")
        leaving = [process for process in known if process.replica in replica.service.extras]
        allowed = replica.incumbent is not None or known == leaving
        self._hold(allowed and len(known) <= 1, f"{len(known) + 1} processes for {replica.name}")

    def _check_obstacles(self, replica: Replica) -> None:
        for other in replica.service.after:
            self._hold(other.satisfied, f"{replica.name} starts before {other.name} is ready")
        for group in self.supervisor._groups.around(replica.service):
            self._hold(not group.leaving, f"{replica.name} starts before {group.name} has stopped")

    def _check_order(self, replica: Replica) -> None:
        """Of those that are to end, who is after others goes first."""
        if replica.ending in (Ending.START_TIMEOUT, Ending.WATCHDOG, Ending.MEMORY) or replica in self.again:
            return
        requested = self.supervisor._stopping.requested
        for other in transitive(replica.service, "dependents", far=False):
            ends = [
                one for one in (*other.replicas, *other.extras) if one.state is ServiceState.STOPPING or requested(one)
            ]
            self._hold(not ends, f"{replica.name} is asked to end before {ends}")
        if self.stopping_all:
            for other in transitive(replica.service, "dependents"):
                for one in other.replicas:
                    self._hold(not one.state.has_process, f"{replica.name} is asked to end before {one.name}")

    def _look_around(self) -> None:
        """After every decision."""
        supervisor, hold = self.supervisor, self._hold
        services = supervisor.services.values()
        replicas = [replica for service in services for replica in (*service.replicas, *service.extras)]
        starting = sum(replica.state is ServiceState.STARTING for replica in replicas)
        hold(supervisor.starting == starting, f"{starting} start, {supervisor.starting} are counted")
        hold(starting <= self.max_starting + self.found, f"{starting} start at once")
        free = starting < self.max_starting and self.now >= supervisor._queue._opens
        for replica in replicas:
            self._check_state(replica)
            self._check_progress(replica, free=free)
            self._check_watch(replica)
            for group in supervisor._groups.around(replica.service):
                hold(all(one.state.has_process for one in group.leaving), f"{group.name} waits for nobody to leave")
        self._check_upgrade()
        self._check_counts(replicas)

    def _check_state(self, replica: Replica) -> None:
        hold, state, request = self._hold, replica.state, self.supervisor._stopping.requested(replica)
        if state.at_rest:
            hold(not replica.up, f"{replica.name} is {state.value} and to be up")
            hold(not replica.removed, f"{replica.name} is still here")
        elif not state.has_process:
            hold(replica.up, f"{replica.name} is {state.value} and not to be up")
        elif state is not ServiceState.STOPPING:
            hold(replica.up or request is not None, f"{replica.name} is not to be up, and nobody ends it")
        hold(request is None or state in BUSY, f"{replica.name} is {state.value} and to be asked to end")

    def _check_progress(self, replica: Replica, *, free: bool) -> None:
        """Who waits, waits for something; ``free`` is whether anybody may start now."""
        hold, state = self._hold, replica.state
        if state is ServiceState.WAITING:
            hold(bool(replica.detail), f"{replica.name} waits, and nobody knows for what")
            blocked = self.supervisor._obstacle(replica) is not None
            hold(blocked or not free, f"{replica.name} waits for nothing: {replica.detail}")
        elif state is ServiceState.BACKOFF and replica.due is None:
            asked = self.consulted[replica].attempt == replica.attempt
            hold(asked, f"{replica.name} waits for an answer to no question")
        elif state is ServiceState.BACKOFF and replica.due is not None:
            hold(replica.due > self.now, f"{replica.name} should have started {self.now - replica.due} s ago")
        elif state is ServiceState.STOPPING:
            hold(replica.force_at is not None and replica.force_at > self.now, f"{replica.name} may stop for ever")

    def _check_counts(self, replicas: list[Replica]) -> None:
        for replica in replicas:
            key = replica.service.name, replica.number
            if replica.incumbent is None and replica not in replica.service.extras:
                lost = self.restarts.get(key, 0) - replica.restarts
                self._hold(lost <= 0, f"{replica.name} has forgotten {lost} restarts")
                self.restarts[key] = replica.restarts

    def _check_upgrade(self) -> None:
        """What runs old code is replaced as soon as it can be, unless one before it has not become ready."""
        supervisor = self.supervisor
        rolling = supervisor._rolling
        if self.upgrade_failed or rolling._turn is not None or not supervisor._queue.is_open(self.now):
            return
        for service in supervisor.services.values():
            for replica in service.replicas:
                outdated = replica.mute or (replica.code and replica.code != service.code)
                replaceable = (ServiceState.RUNNING, *([ServiceState.STARTING] if replica.mute else []))
                free = replica.state in replaceable and replica.up and not replica.removed
                if not outdated or not free or supervisor._stopping.requested(replica):
                    continue
                obstacle = supervisor._obstacle(replica)
                self._hold(obstacle is not None, f"{replica.name} runs old code, and nobody replaces it")

    def _check_watch(self, replica: Replica) -> None:
        spec, now = replica.spec, self.now
        if replica in self.supervisor._adoption._unseen:  # it may be gone, and somebody will say so
            return
        if replica.state is ServiceState.STARTING and spec.start_timeout is not None:
            late = now - max(replica.launched, self.woke) - spec.start_timeout
            self._hold(late < spec.start_timeout + 2.0, f"{replica.name} starts for ever")
        if replica.state is ServiceState.RUNNING and spec.watchdog is not None and not replica.mute:
            process, ready_at = self.processes[replica], replica.ready_at
            assert ready_at is not None
            late = now - max(process.silent_from, ready_at, self.woke) - spec.watchdog
            self._hold(late < 2 * spec.watchdog + 2.0, f"{replica.name} is silent for {late} s")
        if replica.ending is Ending.WATCHDOG and replica in self.processes:
            assert spec.watchdog is not None
            self._hold(now - self.processes[replica].beat() >= spec.watchdog, f"{replica.name} was not silent")

    def _look_back(self) -> None:
        """At the end."""
        supervisor, hold = self.supervisor, self._hold
        hold(all(process.ended for process in self.all.values()), "a process is left")
        supervisor.decide(self.now + 10.0)
        hold(not len(supervisor._timers), f"timers are left: {supervisor._timers._due}")
        hold(len(supervisor._timers._heap) < 40, "timers pile up")
        hold(not len(supervisor._queue), "somebody is left in the queue")
        hold(not supervisor._stopping._requests, "somebody is still to stop")
        hold(supervisor.next_deadline() is None, "there is a deadline, and nothing to do")
        known = {replica for service in supervisor.services.values() for replica in service.replicas}
        hold(not any(service.extras for service in supervisor.services.values()), "somebody is still to be replaced")
        for replica in supervisor._replicas.all():
            self.seen.update(f"exit: {exit.reason.value}" for exit in replica.exits)
        hold(set(supervisor._replicas.all()) == known, "a replica of no service is left")
        for group in supervisor._groups._by_name.values():
            hold(not group.leaving, "somebody is still leaving")


def staying(service: Service) -> Iterator[Replica]:
    return (replica for replica in service.replicas if not replica.removed)


def transitive(service: Service, relation: str, *, far: bool = True) -> list[Service]:
    found: dict[Service, None] = {}
    todo: list[Service] = list(getattr(service, relation))
    while todo:
        other = todo.pop()
        if other not in found:
            found[other] = None
            todo.extend(getattr(other, relation) if far else ())
    return list(found)
