"""Plays the runtime to a supervisor: a clock that the test turns, and processes that do what the test says."""

from __future__ import annotations

from typing import Any

from poolkeeper.replica import Replica, Service
from poolkeeper.service_commands import Announce, Ask, Collapse, Consult, Destroy, Dump, Launch, Sample
from poolkeeper.service_exits import LastWords
from poolkeeper.service_model import ExitReason, ServiceState
from poolkeeper.service_spec import ServiceSpec
from poolkeeper.supervisor import Supervisor

RAISED = LastWords(ExitReason.RAISED, "ValueError: no")


class Heart:
    """The heartbeat that a process shares with the keeper."""

    def __init__(self) -> None:
        self.last = 0.0

    def beat(self) -> float:
        return self.last


class Driver:
    """A supervisor and its processes.

    ``log`` has a word for each command since it was last looked at: "+web" a launch, "?web" the stop signal, "#web" a
    dump of stacks, "!web" SIGKILL. Processes start at once and are ready at once, unless they are among ``slow``; they
    end when asked, unless they are among ``deaf``. Policies answer at once, unless ``pensive``.
    """

    def __init__(self, max_starting: int = 100) -> None:
        self.now = 0.0
        self.supervisor = Supervisor(max_starting)
        self.slow: set[str] = set()
        self.deaf: set[str] = set()
        self.pensive = False
        self.questions: list[Consult] = []
        self.memory: dict[str, int] = {}
        self.events: list[tuple[float, str, str]] = []
        self.collapsed: list[str] = []
        self.max_seen = 0
        self._log: list[str] = []

    def add(self, name: str, **declared: Any) -> Service:
        return self.supervisor.add(ServiceSpec(name, print, **declared))

    def start(self, *names: str) -> None:
        for name in names or tuple(self.supervisor.services):
            self.supervisor.start(self.supervisor.services[name], self.now)
        self.settle()

    def stop(self, *names: str) -> None:
        for name in names:
            self.supervisor.stop(self.supervisor.services[name], self.now)
        self.settle()

    def restart(self, name: str) -> None:
        self.supervisor.restart(self.supervisor.services[name], self.now)
        self.settle()

    def scale(self, name: str, number: int) -> None:
        self.supervisor.scale(self.supervisor.services[name], number, self.now)
        self.settle()

    def finish(self, *names: str) -> None:
        for name in names:
            self.supervisor.end(self.supervisor.services[name], self.now)
        self.settle()

    def stop_all(self) -> None:
        self.supervisor.stop_all(self.now, "the end")
        self.settle()

    def end(self, name: str, code: int | None = 1, words: LastWords | None = None) -> None:
        self.supervisor.ended(self[name], self[name].attempt, self.now, code=code, words=words)
        self.settle()

    def ready(self, name: str) -> None:
        self.supervisor.ready(self[name], self[name].attempt, self.now)
        self.settle()

    def answer(self) -> None:
        """Have the policies speak."""
        questions, self.questions = self.questions, []
        for question in questions:
            self._decide(question)
        self.settle()

    def wait(self, seconds: float) -> None:
        """Turn the clock, with a stop at every deadline."""
        until = self.now + seconds
        while (deadline := self.supervisor.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.settle()
        self.now = until

    def settle(self) -> None:
        """Carry out commands until there are none."""
        while (deadline := self.supervisor.next_deadline()) is not None and deadline <= self.now:
            for command in self.supervisor.decide(self.now):
                self._carry_out(command)
            self.max_seen = max(self.max_seen, self.supervisor.starting)

    @property
    def log(self) -> str:
        log, self._log = " ".join(self._log), []
        return log

    def __getitem__(self, name: str) -> Replica:
        for service in self.supervisor.services.values():
            for replica in service.replicas:
                if name in (service.name, f"{service.name}:{replica.number}"):
                    return replica
        raise KeyError(name)

    def state(self, name: str) -> ServiceState:
        return self[name].state

    def states(self) -> dict[str, str]:
        services = self.supervisor.services.values()
        return {replica.name: replica.state.value for service in services for replica in service.replicas}

    def _carry_out(self, command: Any) -> None:  # noqa: C901 - a case for each command
        supervisor = self.supervisor
        match command:
            case Launch(replica, attempt):
                self._log.append(f"+{replica.name}")
                replica.pulse = Heart()
                supervisor.spawned(replica, attempt, 1000 * replica.id + attempt)
                if replica.service.name not in self.slow:
                    supervisor.started(replica, attempt, self.now)
                    supervisor.ready(replica, attempt, self.now)
            case Ask(replica):
                self._log.append(f"?{replica.name}")
                if replica.service.name not in self.deaf:
                    supervisor.ended(replica, replica.attempt, self.now, code=0)
            case Dump(replica):
                self._log.append(f"#{replica.name}")
            case Destroy(replica):
                self._log.append(f"!{replica.name}")
                supervisor.ended(replica, replica.attempt, self.now, code=-9)
            case Consult():
                self.questions.append(command)
                if not self.pensive:
                    self.questions.remove(command)
                    self._decide(command)
            case Sample(replicas):
                for replica in replicas:
                    supervisor.sampled(replica, self.memory.get(replica.service.name, 1), self.now)
            case Announce(event):
                self.events.append((self.now, event.kind, event.name))
            case Collapse(reason):
                self.collapsed.append(reason)

    def _decide(self, question: Consult) -> None:
        replica = question.replica
        delay, record = replica.spec.restart.after_exit(
            replica.record,
            started=question.started,
            now=question.ended,
            error=None if question.error is None else RuntimeError(question.error),
            healthy=question.healthy,
        )
        self.supervisor.decided(question, delay, record, self.now)
