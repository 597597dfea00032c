"""The public names: promised to users, so a change of them is a decision, not an accident."""

from __future__ import annotations

import subprocess
import sys

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


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    program = "import sys, poolkeeper; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["loguru", "tenacity", "rich", "click", "loky", "cloudpickle", "psutil", "ctypes", "concurrent.futures"]
    output = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
