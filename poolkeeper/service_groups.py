"""Groups of services: who is restarted along with whom, and when a group has failed. Pure.

Source: OTP's supervisors. A group that has had ``max_restarts`` within ``within`` seconds fails at the next one, and
its failure is to its parent what a service's is to the group. As there, services that are stopped, completed or failed
are not OTP's children any more: a restart leaves them as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .replica import Replica, Service
from .service_spec import DeclarationError, ServiceGroup

__all__ = ["Group", "GroupVerdict", "Groups"]


class Group:
    """A group and its children, services and groups, in the order of their declaration.

    ``leaving`` are the replicas that stop because the group restarts: none of its members starts before they are gone.
    """

    def __init__(self, spec: ServiceGroup, parent: Group | None) -> None:
        self.spec = spec
        self.name = spec.name
        self.parent = parent
        self.children: list[Service | Group] = []
        self.leaving: set[Replica] = set()
        self._restarts: deque[float] = deque()

    def services(self) -> Iterator[Service]:
        """Yield every service in this group and the groups within."""
        for child in self.children:
            yield from _services_of(child)

    @property
    def restarts(self) -> tuple[float, ...]:
        """When its members were restarted, as far as that counts."""
        return tuple(self._restarts)

    @restarts.setter
    def restarts(self, moments: Iterable[float]) -> None:
        self._restarts = deque(sorted(moments))

    def stands(self, now: float) -> bool:
        """Count a restart; return whether the group stands it. One that does not starts afresh, if it does."""
        allowed = self.spec.max_restarts
        if allowed is None:
            return True
        restarts = self._restarts
        restarts.append(now)
        while now - restarts[0] > self.spec.within:
            restarts.popleft()
        if len(restarts) <= allowed:
            return True
        restarts.clear()
        return False

    def along_with(self, child: Service | Group) -> list[Service]:
        """Return the services that are restarted when ``child`` is; all of ``child`` if it is a group."""
        strategy = self.spec.strategy
        if strategy == "one_for_all":
            children = self.children
        elif strategy == "rest_for_one":
            first = self.children.index(child)
            children = self.children[first if isinstance(child, Group) else first + 1 :]
        else:
            children = [child] if isinstance(child, Group) else []
        return [service for each in children for service in _services_of(each)]


@dataclass(slots=True)
class GroupVerdict:
    """What the restart of one service means to its groups.

    ``failed`` are the groups that do not stand it, and why; ``group`` is the one that does, None if none does and the
    outermost is to be given up. ``along`` are the services that restart too, or go down with it.
    """

    failed: list[tuple[Group, str]] = field(default_factory=list)
    group: Group | None = None
    along: list[Service] = field(default_factory=list)


class Groups:
    """All groups of a supervisor, which service is in which, and who leaves for a restart."""

    def __init__(self) -> None:
        self._by_name: dict[str, Group] = {}
        self._of: dict[Service, Group] = {}

    def join(self, service: Service) -> list[Service]:
        """Put a new service into its group, if it has one.

        Returns the services that it comes after by its place in groups that are ``rest_for_one``. Raises
        DeclarationError for two groups of one name; nothing has changed then.
        """
        spec = service.spec.group
        if spec is None:
            return []
        group = self._find(spec)
        group.children.append(service)
        self._of[service] = group
        before: list[Service] = []
        child: Service | Group = service
        for around in self.around(service):
            if around.spec.strategy == "rest_for_one":
                before.extend(_last_before(around, child))
            child = around
        return before

    def __iter__(self) -> Iterator[Group]:
        return iter(self._by_name.values())

    def of(self, service: Service) -> Group | None:
        """Return the innermost group that ``service`` is in."""
        return self._of.get(service)

    def around(self, service: Service) -> Iterator[Group]:
        """Yield the groups that ``service`` is in, the innermost first."""
        group = self._of.get(service)
        while group is not None:
            yield group
            group = group.parent

    def restart(self, service: Service, now: float) -> GroupVerdict:
        """Count the restart of one of ``service``'s replicas; return whom it takes along."""
        verdict = GroupVerdict()
        child: Service | Group = service
        for group in self.around(service):
            if group.stands(now):
                verdict.group = group
                verdict.along = group.along_with(child)
                return verdict
            spec = group.spec
            reason = f"group {group.name}: more than {spec.max_restarts} restarts within {spec.within:g} s"
            verdict.failed.append((group, reason))
            child = group
        if isinstance(child, Group):
            verdict.along = list(child.services())
        return verdict

    def obstacle(self, service: Service) -> str | None:
        """Return what keeps the members of ``service``'s groups from starting, None if nothing does."""
        for group in self.around(service):
            if group.leaving:
                return f"waits for group {group.name} to stop"
        return None

    def gone(self, replica: Replica) -> None:
        """A replica's process is gone."""
        for group in self.around(replica.service):
            group.leaving.discard(replica)

    def _find(self, spec: ServiceGroup) -> Group:
        known = self._by_name.get(spec.name)
        if known is not None:
            if known.spec != spec:
                raise DeclarationError(f"there are two different groups named {spec.name!r}")
            return known
        parent = None if spec.parent is None else self._find(spec.parent)
        group = self._by_name[spec.name] = Group(spec, parent)
        if parent is not None:
            parent.children.append(group)
        return group


def _services_of(child: Service | Group) -> Iterator[Service]:
    if isinstance(child, Group):
        yield from child.services()
    else:
        yield child


def _last_before(group: Group, child: Service | Group) -> list[Service]:
    """Return the services of the nearest child before ``child`` that has any."""
    for other in reversed(group.children[: group.children.index(child)]):
        services = list(_services_of(other))
        if services:
            return services
    return []
