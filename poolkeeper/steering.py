"""What ``status``, ``stack`` and ``shutdown`` learn and do; where no keeper runs, from the pidfile."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from .control_client import ControlClient, KeeperUnreachable
from .errors import PoolkeeperError
from .homes import KeeperHome
from .instance import InstanceLock
from .pidfile import ChildRecord, PidfileDocument, PidfileError, read_pidfile, survivors
from .process_identity import cpu_seconds, process_state, resident_bytes
from .process_setup import DUMP_SIGNAL

__all__ = [
    "PREFLIGHT_SECONDS",
    "Reloaded",
    "Stack",
    "fleet_status",
    "kill_survivors",
    "known_names",
    "reload_keeper",
    "stacks",
]

FROZEN = {"T": "stopped", "t": "traced", "D": "uninterruptible"}
"""States of /proc in which a process cannot run, however healthy it is (see proc(5))."""

STACK_SECONDS = 2.0
STACK_PAUSE = 0.02
LEAVE_SECONDS = 10.0
PREFLIGHT_SECONDS = 90.0
"""How long a keeper may take to say that it refuses to be replaced, or to go: it has a limit of its own below that."""
RETURN_SECONDS = 30.0


def fleet_status(home: KeeperHome) -> dict[str, Any]:
    """Return what the fleet is doing, as plain data; ``keeper`` is "running", "orphaned" or "down"."""
    try:
        with ControlClient(home.path) as client:
            data: dict[str, Any] = {"keeper": "running", **client.ask("status")}
    except KeeperUnreachable:
        if home.running:
            raise
        data = _from_pidfile(home)
    for row in (*data["services"], *data["workers"]):
        pid = row["pid"]
        row["memory"] = resident_bytes(pid) if pid else None
        row["cpu_seconds"] = cpu_seconds(pid) if pid else None
        row["frozen"] = FROZEN.get(process_state(pid) or "") if pid else None
    return data


def known_names(home: KeeperHome) -> set[str]:
    """Return the names of all replicas of services and of workers, as far as the keeper answers, or has left any."""
    children = {child.name for child in survivors_of(home.path) if child.role in ("service", "program", "worker")}
    try:
        return children | {row["name"] for row in fleet_status(home)["services"]}
    except KeeperUnreachable:
        return children


class Reloaded(NamedTuple):
    """A keeper that was replaced: its pid, the seconds that it took in all, and those without a keeper."""

    pid: int
    seconds: float
    away: float


def reload_keeper(home: KeeperHome) -> Reloaded:
    """Have a keeper replaced by a new process of its program, and wait for that.

    Raises:
        KeeperUnreachable: when no keeper answers.
        ControlError: when it refuses; the message says why.
        PoolkeeperError: when it went and did not come back, or another process came.
    """
    began = time.monotonic()
    with ControlClient(home.path) as client:
        before = client.ask("status")
    with ControlClient(home.path, PREFLIGHT_SECONDS) as client, contextlib.suppress(KeeperUnreachable):
        client.ask("reload")  # it does not answer: it goes
    gone = time.monotonic()
    after = _status_of_next(home, before["started"], gone + RETURN_SECONDS)
    if after is None:
        raise PoolkeeperError(f"keeper {home.label} has gone, and not come back within {RETURN_SECONDS:g} s")
    if after["pid"] != before["pid"]:
        raise PoolkeeperError(
            f"process {after['pid']} runs {home.label} now, in the place of {before['pid']}, which has ended"
        )
    now = time.monotonic()
    return Reloaded(after["pid"], now - began, now - gone)


def _status_of_next(home: KeeperHome, started: float, deadline: float) -> dict[str, Any] | None:
    """Return the status of the keeper that has not been ``started`` then; it may have to start first.

    Raises PoolkeeperError when the one that was has ended in good order.
    """
    while True:
        try:
            with ControlClient(home.path) as client:
                status: dict[str, Any] = client.ask("status")
            if status["started"] != started:
                return status
        except KeeperUnreachable:
            if _has_ended(home):
                raise PoolkeeperError(f"{home.label} has ended before it was replaced") from None
        if time.monotonic() >= deadline:
            return None
        time.sleep(STACK_PAUSE)


def _has_ended(home: KeeperHome) -> bool:
    """Whether the last keeper has ended in good order: one that is replaced holds its lock, others leave a pidfile."""
    lock = InstanceLock(home.name, home.run_id, home.path.parent.parent)
    return not lock.is_locked() and not (home.path / "keeper.pid").exists()


def _from_pidfile(home: KeeperHome) -> dict[str, Any]:
    living = survivors_of(home.path)
    return {
        "keeper": "orphaned" if living else "down",
        "name": home.name,
        "run_id": home.run_id,
        "pid": None,
        "uptime": None,
        "queued": 0,
        "running": 0,
        "services": [_orphan(child) for child in living if child.role in ("service", "program")],
        "workers": [_orphan(child) for child in living if child.role == "worker"],
    }


def _orphan(child: ChildRecord) -> dict[str, Any]:
    return {
        "name": child.name,
        "id": child.id,
        "service": child.name.partition(":")[0],
        "replica": child.slot,
        "state": "orphaned",
        "wanted": True,
        "task": None,
        "pid": child.identity.pid,
        "attempt": child.attempt,
        "restarts": None,
        "last_exit": None,
        "uptime": None,
        "detail": "its keeper is gone",
        "exits": [],
    }


def survivors_of(home: Path) -> list[ChildRecord]:
    """Return the children of a keeper, running or gone, that live; none where there is no pidfile to be read."""
    document = _read(home)
    return [] if document is None else list(survivors(document))


def _read(home: Path) -> PidfileDocument | None:
    try:
        return read_pidfile(home / "keeper.pid")
    except (OSError, PidfileError):
        return None


def kill_survivors(home: Path) -> list[ChildRecord]:
    """Stop what a dead keeper has left, with SIGKILL what is still there then; return what there was.

    Services get their own signal and time, then the fork servers SIGTERM, for they end at once all that they have made.
    """
    document = _read(home)
    services = {} if document is None else {record.name: record for record in document.service_records}
    living = survivors_of(home)
    servers = [child for child in living if child.role == "forkserver"]
    others = [child for child in living if child.role != "forkserver"]
    patience = LEAVE_SECONDS
    for child in others:
        record = services.get(child.name.partition(":")[0]) if child.role in ("service", "program") else None
        child.identity.signal(signal.SIGTERM if record is None else record.stop_signal)
        patience = max(patience, 0.0 if record is None else record.stop_timeout)
    _end(others, patience)
    for child in servers:
        child.identity.signal(signal.SIGTERM)
    _end(servers, LEAVE_SECONDS)
    with contextlib.suppress(OSError):
        (home / "keeper.pid").unlink(missing_ok=True)
    return living


def _end(children: list[ChildRecord], seconds: float) -> None:
    """Wait until these are gone, and kill those that are not after ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(child.identity.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(STACK_PAUSE)
    for child in children:
        child.identity.signal(signal.SIGKILL)


class Stack(NamedTuple):
    """The stacks of one process' threads; ``problem`` says why there are none."""

    name: str
    pid: int
    text: str
    problem: str = ""


def stacks(home: Path) -> list[Stack]:
    """Have every worker and service write down its Python stacks, and return them."""
    asked: list[tuple[ChildRecord, Path, int]] = []
    answers: list[Stack] = []
    for child in survivors_of(home):
        pid = child.identity.pid
        if child.role == "program":
            answers.append(Stack(child.name, pid, "", "it is no Python of ours"))
        elif child.role in ("worker", "service"):
            path = home / "logs" / f"{child.id}.crash"
            size = path.stat().st_size if path.exists() else 0
            if process_state(pid) in ("T", "t"):
                answers.append(Stack(child.name, pid, "", "it is stopped (SIGSTOP); SIGCONT wakes it"))
            elif DUMP_SIGNAL is not None and child.identity.signal(DUMP_SIGNAL):
                asked.append((child, path, size))
    deadline = time.monotonic() + STACK_SECONDS
    answers += [_collect(child, path, size, deadline) for child, path, size in asked]
    return answers


def _collect(child: ChildRecord, path: Path, before: int, deadline: float) -> Stack:
    """Wait until the file has grown and grows no more."""
    size = before
    while time.monotonic() < deadline:
        time.sleep(STACK_PAUSE)
        now = path.stat().st_size if path.exists() else before
        if now == size and size > before:
            break
        size = now
    if size <= before:
        return Stack(child.name, child.identity.pid, "", "it does not answer")
    with open(path, "rb") as file:
        file.seek(before)
        return Stack(child.name, child.identity.pid, file.read().decode(errors="replace"))
