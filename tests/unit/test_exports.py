"""The public names: promised to users, so a change of them is a decision, not an accident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import poolkeeper

PUBLIC = {
    "AlreadyRunning",
    "Batch",
    "BatchResult",
    "CancellationToken",
    "CheckpointUnreadable",
    "CommandFailed",
    "Context",
    "DeathReport",
    "ExecutionPolicy",
    "ExitReason",
    "Fleet",
    "HomeUnusable",
    "InstanceLock",
    "Keeper",
    "LockHolder",
    "NotReexecable",
    "PayloadError",
    "PoolkeeperError",
    "ProtocolError",
    "RateLimit",
    "Recovered",
    "ReexecRefused",
    "RestartRefused",
    "RemoteError",
    "RemoteTraceback",
    "RestartPolicy",
    "RetryPolicy",
    "RunResult",
    "RunStatistics",
    "ServiceEvent",
    "ServiceExit",
    "ServiceFailed",
    "ServiceGroup",
    "ServiceHandle",
    "ServiceState",
    "TaskExited",
    "TaskFuture",
    "TaskQuarantined",
    "TaskResult",
    "TaskStatus",
    "TaskTimeout",
    "UnsupportedPlatform",
    "WorkerLost",
    "WorkerPolicy",
    "WorkerStartFailed",
    "command",
    "context",
    "stop_after_burst",
}


def test_exactly_the_promised_names_are_exported() -> None:
    assert set(poolkeeper.__all__) == PUBLIC
    assert dir(poolkeeper) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_can_be_imported(name: str) -> None:
    assert getattr(poolkeeper, name) is not None


def test_what_is_not_promised_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Kepeer'"):
        poolkeeper.Kepeer  # noqa: B018


def test_except_clauses_of_the_standard_executor_hold() -> None:
    from concurrent.futures.process import BrokenProcessPool

    assert issubclass(poolkeeper.WorkerLost, BrokenProcessPool)
    assert issubclass(poolkeeper.TaskQuarantined, poolkeeper.WorkerLost)
    assert issubclass(poolkeeper.TaskTimeout, TimeoutError)


DEPENDENCIES = ["loguru", "tenacity", "rich", "click", "loky", "cloudpickle", "psutil", "ctypes"]

FEATURES = {
    f"poolkeeper.{module}"
    for module in (
        "adoption", "batch", "cancellation", "control", "event_log", "feed", "fleet", "inline", "invocation", "journal",
        "losses", "model", "pidfile", "policy", "postmortem", "preflight", "recording", "recovery", "reexec",
        "register", "retrying", "service_model", "service_spec", "strategies", "supervision", "supervisor", "worker",
        "worker_session",
    )
}  # fmt: skip
"""What a keeper may do without, or needs only when it is made."""

SLOW = {
    "asyncio", "concurrent.futures.process", "dataclasses", "datetime", "hashlib", "hmac", "inspect", "json",
    "multiprocessing", "shutil", "sqlite3", "subprocess", "sysconfig", "tempfile",
}  # fmt: skip
"""Modules of the standard library that take longer to import than most of ours."""


def loaded(program: str, names: list[str]) -> list[str]:
    """Return which of ``names`` are loaded by ``program``, and not by what some Python itself needs for a traceback."""
    program = (
        f"import sys, traceback; known = set(sys.modules); {program}; "
        "print(*[name for name in sys.argv[1:] if name in sys.modules and name not in known])"
    )
    result = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    assert loaded("import poolkeeper", [*DEPENDENCIES, "concurrent.futures"]) == []


def test_importing_the_keeper_loads_nothing_that_it_may_not_need() -> None:
    assert loaded("from poolkeeper import Keeper", [*DEPENDENCIES, *FEATURES, *SLOW]) == []


def test_a_durable_keeper_loads_nothing_of_services(tmp_path: Path) -> None:
    program = f"from poolkeeper import Keeper; Keeper(1, name='etl', home={str(tmp_path)!r}).shutdown()"
    features = ["model", "policy", "service_handover", "service_model", "service_spec", "supervision", "supervisor"]
    assert loaded(program, ["dataclasses", *(f"poolkeeper.{name}" for name in features)]) == []
