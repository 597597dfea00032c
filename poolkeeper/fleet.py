"""Fleets: named services, batches and steps, and in which order they run.

A fleet is declared with decorators, which leave the functions as they are. All that can be wrong with a declaration is
found before anything runs: at the decorator where the rest of the file does not matter, else in ``Fleet.plan``.

Rules:

- Whatever runs ``after`` another part gets that part's outcome: a batch's ``BatchResult``, what a step returned, or a
  service's ``ServiceHandle``. Steps get all of them, in order. A callable ``items`` gets them if it has as many
  required parameters. Services get nothing, and can only be after services.
- A part runs once all that it is after has come to its end, or is ready if it is a service. Failed tasks are outcomes;
  a batch that was cut short, a failed step or a service that is down keeps what comes after it from running.
- A fleet with batches or steps ends when they are done, and its services with it. One of services alone goes on until
  it is stopped, or until each of them has completed or failed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, Literal, TypeVar, overload

from .configuration import keeping_for
from .errors import PoolkeeperError
from .fields import part_name
from .policy import ExecutionPolicy, RestartPolicy, WorkerPolicy
from .service_model import ServiceEvent
from .service_spec import ServiceGroup, ServiceSpec, check_order

__all__ = ["BatchSpec", "Fleet", "FleetError", "Part", "StepSpec"]

Function = TypeVar("Function", bound=Callable[..., Any])
After = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]


class FleetError(PoolkeeperError, ValueError):
    """A fleet's declaration is wrong; nothing of it has run."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchSpec:
    """A batch as declared; ``after`` holds the names of what it waits for."""

    name: str
    function: Callable[..., Any]
    items: Iterable[Any] | Callable[..., Iterable[Any]]
    policy: ExecutionPolicy
    key: Callable[[Any], str] | None = None
    after: tuple[str, ...] = ()
    allow_failures: tuple[type[BaseException], ...] = ()

    def make_items(self, outcomes: Sequence[Any]) -> Iterable[Any]:
        """Return the items, made from the ``outcomes`` of what the batch is after where they are asked for."""
        if not callable(self.items):
            return self.items
        return self.items(*outcomes) if outcomes and _required_parameters(self.items) else self.items()

    def check(self) -> None:
        """Raise FleetError if the items cannot be called with what there will be."""
        if not callable(self.items):
            return
        required = _required_parameters(self.items)
        if required and required != len(self.after):
            raise FleetError(
                f"batch {self.name!r}: its items take {_count(required, 'argument')}, but it is after "
                f"{_count(len(self.after), 'part')} of the fleet; they must take none, or one for each"
            )


@dataclass(frozen=True, slots=True, eq=False)
class StepSpec:
    """A step as declared; ``after`` holds the names of what it waits for, in the order of its arguments."""

    name: str
    function: Callable[..., Any]
    after: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise FleetError if the function cannot be called with what there will be."""
        try:
            signature(self.function).bind(*self.after)
        except TypeError as error:
            raise FleetError(
                f"step {self.name!r} gets {_count(len(self.after), 'argument')}, one for each part of the fleet "
                f"that it is after, but {error}"
            ) from None
        except ValueError:  # a builtin without a signature: calling it will tell
            pass


Part = BatchSpec | StepSpec | ServiceSpec
Listener = TypeVar("Listener", bound=Callable[[ServiceEvent], object])


class Fleet:
    """A named set of services, batches and steps, declared in a file and run as one.

    Args:
        name: letters, digits, ``_``, ``.`` and ``-``; it names the fleet's folder.
        resources: counted tokens that the fleet's tasks share, such as ``{"gpu": 8}``.
        durability: for ``poolkeeper run``, as ``Keeper`` takes it; ``Keeper.run`` has the keeper's own.
        keep_runs: likewise.
        orphan_grace: likewise; in seconds.
        reconnect_grace: likewise; in seconds.

    Raises:
        FleetError: for a name that cannot be a folder's.
        ValueError, TypeError: for arguments that make no sense.
    """

    def __init__(
        self,
        name: str,
        *,
        resources: Mapping[str, int] | None = None,
        durability: Literal["process", "power"] = "process",
        keep_runs: int = 10,
        orphan_grace: float = 300.0,
        reconnect_grace: float = 60.0,
    ) -> None:
        self.name = _checked_name("a fleet", name)
        self.resources: Mapping[str, int] = MappingProxyType(dict(resources or {}))
        self.keeping = keeping_for(durability, keep_runs, orphan_grace, reconnect_grace)
        self.listeners: list[tuple[str, Callable[[ServiceEvent], object]]] = []
        self._parts: dict[str, Part] = {}

    def __repr__(self) -> str:
        return f"<Fleet {self.name!r}: {', '.join(self._parts) or 'empty'}>"

    @property
    def parts(self) -> Mapping[str, Part]:
        """The services, batches and steps by name, in the order of their declaration."""
        return MappingProxyType(self._parts)

    @property
    def services(self) -> Mapping[str, ServiceSpec]:
        """The services by name, each behind those that it is after; raises DeclarationError where that cannot be."""
        services = {name: spec for name, spec in self._parts.items() if isinstance(spec, ServiceSpec)}
        return {name: services[name] for name in check_order({name: spec.after for name, spec in services.items()})}

    def batch(
        self,
        *,
        items: Iterable[Any] | Callable[..., Iterable[Any]],
        policy: ExecutionPolicy | None = None,
        key: Callable[[Any], str] | None = None,
        after: After = (),
        name: str | None = None,
        allow_failures: type[BaseException] | tuple[type[BaseException], ...] = (),
    ) -> Callable[[Function], Function]:
        """Declare that the decorated function is to be called with each of ``items``.

        Args:
            items: an iterable, or a callable that returns one when the batch starts.
            policy: limits and retries; see ``ExecutionPolicy``.
            key: gives an item's key, a string that stays the same from run to run.
            after: the parts, or names of parts, that must come to their end first.
            name: how reports call the batch; None: the function's name.
            allow_failures: exceptions, as in an except clause, that are reported but do not fail the run.

        Raises:
            FleetError: for a bad or a second name, or an ``after`` that is no part of this fleet.
            TypeError: for an argument of the wrong type.
        """
        given: object = items
        if isinstance(given, (str, bytes)) or not (callable(given) or isinstance(given, Iterable)):
            raise TypeError(f"items={items!r}: must be an iterable of items, or a callable that returns one")
        if policy is not None and not isinstance(policy, ExecutionPolicy):
            raise TypeError(f"policy={policy!r}: must be an ExecutionPolicy")
        if key is not None and not callable(key):
            raise TypeError(f"key={key!r}: must be a callable that gives each item's key")

        allowed = allow_failures if isinstance(allow_failures, tuple) else (allow_failures,)
        if not all(_is_exception(kind) for kind in allowed):
            raise TypeError(f"allow_failures={allow_failures!r}: must be an exception class, or a tuple of them")

        def declare(function: Function) -> Function:
            spec = BatchSpec(
                self._new_name("batch", function, name),
                function,
                items,
                policy or ExecutionPolicy(),
                key,
                self._names_of(after),
                allowed,
            )
            self._parts[spec.name] = spec
            return function

        return declare

    def service(
        self,
        *,
        name: str | None = None,
        restart: RestartPolicy | Literal["always", "on-failure", "never"] = "always",
        replicas: int = 1,
        ready: Literal["start", "notify"] = "start",
        watchdog: float | None = None,
        start_timeout: float | None = 30.0,
        stop_timeout: float = 10.0,
        after: After = (),
        priority: int = 0,
        worker: WorkerPolicy | None = None,
        on_give_up: Literal["ignore", "stop-fleet"] = "ignore",
        stop_signal: int = signal.SIGTERM,
        group: ServiceGroup | None = None,
        overlap: bool = False,
    ) -> Callable[[Function], Function]:
        """Declare that the decorated function is a service; see ``Keeper.service`` for the arguments.

        What ``command`` returns can be declared too: ``fleet.service(name="web")(command("gunicorn", "app"))``.

        Raises:
            FleetError: for a bad or a second name, or an ``after`` that is no service of this fleet.
            ValueError, TypeError: for an argument that makes no sense.
        """

        def declare(function: Function) -> Function:
            spec = ServiceSpec(
                name=self._new_name("service", function, name),
                target=function,
                restart=restart,
                replicas=replicas,
                ready=ready,
                watchdog=watchdog,
                start_timeout=start_timeout,
                stop_timeout=stop_timeout,
                after=self._names_of(after),
                priority=priority,
                worker=WorkerPolicy() if worker is None else worker,
                on_give_up=on_give_up,
                stop_signal=int(stop_signal),
                group=group,
                overlap=overlap,
            )
            self._parts[spec.name] = spec
            return function

        return declare

    def on(self, kind: str) -> Callable[[Listener], Listener]:
        """Have the decorated function called with each event of a kind, in the process that runs the fleet.

        Args:
            kind: such as ``"service.failed"``; ``*`` stands for anything. See ``ServiceEvent.kind``.
        """
        if not isinstance(kind, str) or not kind:
            raise TypeError(f'on({kind!r}): must be a kind of event, such as "service.failed"')

        def declare(function: Listener) -> Listener:
            self.listeners.append((kind, function))
            return function

        return declare

    @overload
    def step(self, function: Function, /) -> Function: ...
    @overload
    def step(self, /, *, after: After = (), name: str | None = None) -> Callable[[Function], Function]: ...
    def step(
        self, function: Function | None = None, /, *, after: After = (), name: str | None = None
    ) -> Function | Callable[[Function], Function]:
        """Declare that the decorated function is to be called once, in the process that runs the fleet.

        Args:
            function: for use without parentheses.
            after: the parts, or names of parts, that must come to their end first; the function gets their outcomes.
            name: how reports call the step; None: the function's name.

        Raises:
            FleetError: for a bad or a second name, or an ``after`` that is no part of this fleet.
        """

        def declare(function: Function) -> Function:
            spec = StepSpec(self._new_name("step", function, name), function, self._names_of(after))
            self._parts[spec.name] = spec
            return function

        return declare if function is None else declare(function)

    def plan(self) -> TopologicalSorter[str]:
        """Return the order of the parts, as a prepared sorter that hands out names as they become ready.

        Raises:
            FleetError: for a fleet with nothing to run, unknown names, cycles, and parts that cannot take what they
                would get.
        """
        if not self._parts:
            raise FleetError(f"fleet {self.name!r} has no service, batch or step: there is nothing to run")
        services = {name for name, spec in self._parts.items() if isinstance(spec, ServiceSpec)}
        for spec in self._parts.values():
            unknown = [name for name in spec.after if name not in self._parts]
            if unknown:
                raise FleetError(
                    f"{spec.name!r} is after {unknown[0]!r}, which fleet {self.name!r} does not have "
                    f"(it has {', '.join(self._parts)})"
                )
            if not isinstance(spec, ServiceSpec):
                spec.check()
                continue
            other = next((name for name in spec.after if name not in services), None)
            if other is not None:
                raise FleetError(f"service {spec.name!r} is after {other!r}, which is no service: that cannot be")
        order = TopologicalSorter({name: spec.after for name, spec in self._parts.items()})
        try:
            order.prepare()
        except CycleError as error:
            raise FleetError(f"fleet {self.name!r} goes in a circle: {' before '.join(error.args[1])}") from None
        return order

    def _new_name(self, role: str, function: Callable[..., Any], name: str | None) -> str:
        if not callable(function):
            raise TypeError(f"a {role} of a fleet must be a function, not {function!r}")
        chosen = _checked_name(f"a {role}", getattr(function, "__name__", "") if name is None else name)
        if chosen in self._parts:
            raise FleetError(f"fleet {self.name!r} has a part named {chosen!r} already: give name=")
        return chosen

    def _names_of(self, after: After) -> tuple[str, ...]:
        parts = (after,) if isinstance(after, str) or callable(after) else tuple(after)
        names = tuple(part if isinstance(part, str) else self._name_of(part) for part in parts)
        if len(set(names)) < len(names):
            raise FleetError(f"after={list(names)}: a part is named twice")
        return names

    def _name_of(self, function: Callable[..., Any]) -> str:
        for spec in self._parts.values():
            if (spec.target if isinstance(spec, ServiceSpec) else spec.function) is function:
                return spec.name
        raise FleetError(f"after={function!r}: fleet {self.name!r} has no such part; declare it first, or name it")


def _checked_name(owner: str, name: object) -> str:
    try:
        return part_name(name)
    except ValueError as error:
        raise FleetError(f"{name!r} cannot name {owner}: {error}") from None


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _required_parameters(function: Callable[..., Any]) -> int:
    """Return how many positional arguments ``function`` cannot do without; 0 where it does not tell."""
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(each.kind in positional and each.default is Parameter.empty for each in parameters)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
