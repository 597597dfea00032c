"""``ServiceHandle``: how an application sees and steers a service."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import PayloadError
from .fingerprint import fingerprint_of_arguments, fingerprint_of_code
from .payload import dumps_in_band
from .program import Program
from .service_model import ServiceExit, ServiceState, ServiceStatus
from .service_spec import ServiceSpec
from .supervisor import Supervisor

if TYPE_CHECKING:
    from .keeper import KeeperRuntime
    from .replica import Service

__all__ = ["ServiceHandle", "declare"]

States = ServiceState | str | Iterable[ServiceState | str]


class ServiceHandle:
    """A service of a keeper; what it tells is as of the moment of asking.

    ``start``, ``stop``, ``restart`` and ``scale`` ask for something and return; ``wait`` waits until it is so.
    """

    def __init__(self, runtime: KeeperRuntime, service: Service) -> None:
        self._runtime = runtime
        self._name = service.name

    @property
    def _service(self) -> Service:
        """What it is now: another one where the keeper's loop was rebuilt."""
        return self._runtime.supervision.supervisor.services[self._name]

    @property
    def name(self) -> str:
        """The service's name."""
        return self._name

    @property
    def state(self) -> ServiceState:
        """Its state; of several replicas the state that says most (failed before starting before running)."""
        return self._service.state

    @property
    def is_leaving(self) -> bool:
        """Whether its keeper ends, or has ended: what is at rest stays at rest."""
        return self._runtime.refusal is not None

    def is_declared_as(self, spec: ServiceSpec) -> bool:
        """Whether it was made from this very declaration."""
        return self._service.spec is spec

    @property
    def pid(self) -> int | None:
        """The pid of its process, of the first replica that has one; None if there is none."""
        return next((replica.pid for replica in self._service.replicas if replica.pid is not None), None)

    @property
    def restarts(self) -> int:
        """How often its restart policy has started it again, all replicas together."""
        return sum(replica.restarts for replica in self._service.replicas)

    @property
    def exits(self) -> tuple[ServiceExit, ...]:
        """The last ends of its processes, oldest first."""
        exits = [exit for replica in list(self._service.replicas) for exit in list(replica.exits)]
        return tuple(sorted(exits, key=lambda exit: exit.ended))

    @property
    def replicas(self) -> tuple[ServiceStatus, ...]:
        """What each of its replicas is doing."""
        from .status import replica_status

        now = time.monotonic()
        return tuple(replica_status(replica, now) for replica in list(self._service.replicas))

    def wait(self, state: States = ServiceState.RUNNING, timeout: float | None = None) -> bool:
        """Wait until the service is in ``state``, or in one of several.

        Args:
            state: a ServiceState or its value, or several.
            timeout: seconds after which to give up; None: never.

        Returns:
            Whether it is; False after ``timeout``, and when the keeper has ended.
        """
        wanted = _states(state)
        return self._wait(lambda: self.state in wanted, timeout)

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        changed = self._runtime.news.changed
        with changed:
            while not condition():
                if self._runtime.join(0):
                    return condition()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                changed.wait(left)
            return True

    def start(self) -> None:
        """Start it, and what it is after, if it is at rest; raises RuntimeError when the keeper has ended."""
        self._ask(Supervisor.start)

    def stop(self) -> None:
        """Stop it: its stop signal, and SIGKILL after its ``stop_timeout``. It stays down until it is started."""
        self._ask(Supervisor.stop)

    def stop_unless_at_rest(self) -> None:
        """Stop it, but leave it as it is if it has completed or failed, and to its keeper if that ends."""
        if not self.state.at_rest and not self.is_leaving:
            with contextlib.suppress(RuntimeError):  # the keeper has begun to end
                self._ask(partial(Supervisor.stop, for_good=False))

    def restart(self) -> None:
        """Stop its process and start another, with the code on disk; start it if it is at rest.

        Waits until that code has been tried, in a process of its own. Raises RestartRefused if it cannot be loaded:
        the service goes on as it is then.
        """
        from .service_restart import restart_services

        restart_services(self._runtime, [self._service])

    def scale(self, replicas: int) -> None:
        """Run it in ``replicas`` processes from now on; raises ValueError for a negative number."""
        if isinstance(replicas, bool) or not isinstance(replicas, int):
            raise TypeError(f"scale({replicas!r}): must be an int")
        if replicas < 0:
            raise ValueError(f"scale({replicas}): must not be negative")
        self._ask(lambda supervisor, service, now: supervisor.scale(service, replicas, now))

    def _ask(self, method: Callable[[Supervisor, Service, float], None]) -> None:
        def call() -> None:
            method(self._runtime.supervision.supervisor, self._service, time.monotonic())

        self._runtime.ask(call)

    def __repr__(self) -> str:
        return f"<ServiceHandle {self.name}: {self.state.value}>"


def declare(runtime: KeeperRuntime, spec: ServiceSpec) -> ServiceHandle:
    """Take on a service and start it; raises DeclarationError, PayloadError, RuntimeError after the keeper's end."""
    try:
        blob = dumps_in_band((spec.target, spec.args, dict(spec.kwargs)))
    except PayloadError as error:
        raise PayloadError(f"service {spec.name!r}: its target or its arguments {error}") from error.__cause__
    code = _fingerprint(spec)
    return ServiceHandle(runtime, runtime.ask(lambda: runtime.supervision.take_on(spec, blob, code)))


def _fingerprint(spec: ServiceSpec) -> str:
    """Return what tells whether a process was made from this declaration, "" where nothing does."""
    options = repr((spec.ready, spec.watchdog, spec.stop_signal, spec.worker))
    if isinstance(spec.target, Program):
        return sha256(repr((spec.target, options)).encode()).hexdigest()
    try:
        code, _ = fingerprint_of_code(spec.target)
        arguments, _ = fingerprint_of_arguments(spec.args, dict(spec.kwargs), look=_not_looked_at)
    except Exception:  # whatever the objects of others do when they are looked at
        return ""
    return "" if code is None or arguments is None else sha256(f"{code} {arguments} {options}".encode()).hexdigest()


def _not_looked_at(path: Path) -> NoReturn:
    """What is in a file or directory may change while a service works with it."""
    raise FileNotFoundError(path)


def _states(state: States) -> frozenset[ServiceState]:
    several = (state,) if isinstance(state, (ServiceState, str)) else tuple(state)
    return frozenset(ServiceState(each) for each in several)
