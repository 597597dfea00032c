"""What services that start or run are watched for: readiness, heartbeats, age and memory. Pure.

A timer that is far too late says that this process, or the whole machine, has slept: who is late then gets another
period.
"""

from __future__ import annotations

from collections.abc import Iterable

from .policy import WorkerPolicy
from .replica import Ending, Replica
from .service_changes import Changes
from .service_commands import Dump, Sample
from .service_model import ServiceState
from .service_stopping import Stopping
from .timers import Timers, old_age

__all__ = ["LATE_SECONDS", "SAMPLING", "Watch"]

SAMPLING = 0
"""The number of the timer for memory; replicas count from 1."""

SAMPLE_SECONDS = 1.0
"""Seconds between two looks at the memory of services that have a limit."""

LATE_SECONDS = 1.0
"""A timer that is later than this, or half its period, says nothing about the service."""


class Watch:
    """Ends whoever is too slow, too silent, too old or too large."""

    def __init__(self, changes: Changes, timers: Timers, stopping: Stopping) -> None:
        self._changes = changes
        self._timers = timers
        self._stopping = stopping

    def launched(self, replica: Replica, now: float) -> None:
        """Watch a process that is asked for."""
        replica.launched = now
        replica.told_ready = replica.presumed = replica.mute = replica.listened = False
        self._watch_start(replica, now)

    def ready(self, replica: Replica, now: float) -> None:
        """Watch a service that runs from now on."""
        replica.ready_at = replica.watched_from = now
        self._timers.cancel(replica.id)
        self._set(replica)

    def resumed(self, replica: Replica, now: float) -> None:
        """Watch a process that was launched by an earlier keeper; it has as much time as if that were now."""
        replica.listened = False
        self._watch_start(replica, now)
        if replica.state is ServiceState.RUNNING:
            self._timers.cancel(replica.id)
            self._set(replica)

    def look(self, replica: Replica, now: float) -> bool:
        """A timer of a replica that starts or runs is due; return whether it is to be taken for ready."""
        if replica.state is ServiceState.STARTING:
            return self._look_at_start(replica, now)
        self._look_at_run(replica, now)
        return False

    def _look_at_run(self, replica: Replica, now: float) -> None:
        if self._is_silent(replica, now):
            self._stopping.put_down(replica, Ending.WATCHDOG, now)
            return
        max_age = replica.spec.worker.max_age
        if max_age is not None and now >= _old_at(replica, max_age):
            self._stopping.request(replica, Ending.RECYCLE, f"it has reached max_age={max_age:g} s")
        self._set(replica)

    def sample(self, replicas: Iterable[Replica], now: float) -> None:
        """Ask for the memory of all that have a limit."""
        limited = [replica for replica in replicas if replica.state.has_process and _limits_memory(replica.spec.worker)]
        if limited:
            self._changes.command(Sample(limited))
            self._timers.set(SAMPLING, now + SAMPLE_SECONDS)

    def sampled(self, replica: Replica, memory: int, now: float) -> None:
        """Act on a process that has ``memory`` bytes resident."""
        limits = replica.spec.worker
        if limits.hard_memory is not None and memory > limits.hard_memory:
            self._stopping.kill(replica, Ending.MEMORY, now)
        elif replica.state is ServiceState.STOPPING or limits.max_memory is None or memory <= limits.max_memory:
            return
        else:
            reason = f"memory of {memory} bytes exceeds max_memory={limits.max_memory}"
            self._stopping.request(replica, Ending.RECYCLE, reason)

    def _watch_start(self, replica: Replica, now: float) -> None:
        replica.watched_from = now
        if replica.spec.start_timeout is not None:
            self._timers.set(replica.id, now + replica.spec.start_timeout)
        if _limits_memory(replica.spec.worker):
            self._timers.set(SAMPLING, now + SAMPLE_SECONDS)

    def _look_at_start(self, replica: Replica, now: float) -> bool:
        timeout = replica.spec.start_timeout
        assert timeout is not None
        late = now - (replica.watched_from + timeout)
        if late < 0 or _slept(late, timeout):
            replica.watched_from = replica.watched_from if late < 0 else now
            self._timers.set(replica.id, replica.watched_from + timeout)
        elif replica.presumed:
            return True
        else:
            self._changes.command(Dump(replica))
            self._stopping.ask(replica, Ending.START_TIMEOUT, now)
        return False

    def _is_silent(self, replica: Replica, now: float) -> bool:
        watchdog = _watchdog(replica)
        if watchdog is None:
            return False
        late = now - (_last_sign(replica) + watchdog)
        if _slept(late, watchdog):
            replica.watched_from = now
            return False
        if late >= 0 and replica.pulse is None and not replica.listened:
            # It has not called yet; to a keeper that has slept, it may have been calling all the time.
            replica.listened = True
            replica.watched_from = now - watchdog + LATE_SECONDS
            return False
        return late >= 0

    def _set(self, replica: Replica) -> None:
        """Set the timer of a replica that runs."""
        spec, watchdog = replica.spec, _watchdog(replica)
        if watchdog is not None:
            self._timers.set(replica.id, _last_sign(replica) + watchdog)
        if spec.worker.max_age is not None and self._stopping.requested(replica) is None:
            self._timers.set(replica.id, _old_at(replica, spec.worker.max_age))


def _watchdog(replica: Replica) -> float | None:
    return None if replica.mute else replica.spec.watchdog


def _limits_memory(limits: WorkerPolicy) -> bool:
    return limits.max_memory is not None or limits.hard_memory is not None


def _last_sign(replica: Replica) -> float:
    beat = replica.pulse.beat() if replica.pulse is not None else 0.0
    return max(beat, replica.watched_from)


def _slept(late: float, period: float) -> bool:
    return late > max(LATE_SECONDS, period / 2)


def _old_at(replica: Replica, max_age: float) -> float:
    """Return when a replica has reached its own share of ``max_age``."""
    assert replica.ready_at is not None
    return replica.ready_at + old_age(max_age, replica.id)
