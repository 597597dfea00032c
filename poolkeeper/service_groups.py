"""Groups of services at work: who is restarted along with whom, and when a group has failed. Pure.

Source: OTP's supervisors. A group that has had ``max_restarts`` within ``within`` seconds fails at the next one, and
its failure is to its parent what a service's is to the group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .replica import Replica, Service
from .service_spec import DeclarationError, ServiceGroup

__all__ = ["Group", "Groups"]


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
            if isinstance(child, Group):
                yield from child.services()
            else:
                yield child

    def stands(self, now: float) -> bool:
        """Count a restart; return whether the group stands it."""
        allowed = self.spec.max_restarts
        if allowed is None:
            return True
        restarts = self._restarts
        restarts.append(now)
        while now - restarts[0] > self.spec.within:
            restarts.popleft()
        return len(restarts) <= allowed

    def forget(self) -> None:
        """Forget all restarts, as a group that starts afresh does."""
        self._restarts.clear()

    def affected(self, child: Service | Group) -> list[Service]:
        """Return the services that are restarted when ``child`` is."""
        strategy = self.spec.strategy
        if strategy == "one_for_one":
            children = [child]
        elif strategy == "one_for_all":
            children = self.children
        else:
            children = self.children[self.children.index(child) :]
        return [service for each in children for service in (each.services() if isinstance(each, Group) else (each,))]


class Groups:
    """All groups of a supervisor, and which service is in which."""

    def __init__(self) -> None:
        self._by_name: dict[str, Group] = {}
        self._of: dict[Service, Group] = {}

    def join(self, service: Service) -> None:
        """Put a new service into its group, if it has one; raises DeclarationError for two groups of one name."""
        spec = service.spec.group
        if spec is not None:
            group = self._find(spec)
            group.children.append(service)
            self._of[service] = group

    def of(self, service: Service) -> Group | None:
        """Return the innermost group that ``service`` is in."""
        return self._of.get(service)

    def last_before(self, spec: ServiceGroup) -> Service | None:
        """Return the service that was declared last in a group."""
        group = self._find(spec)
        last = group.children[-1] if group.children else None
        return last if isinstance(last, Service) else None

    def around(self, service: Service) -> Iterator[Group]:
        """Yield the groups that ``service`` is in, the innermost first."""
        group = self._of.get(service)
        while group is not None:
            yield group
            group = group.parent

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
