"""Why a process has ended: what the keeper did goes before what the process said, that before its status."""

from __future__ import annotations

import pytest

from poolkeeper.policy import WorkerPolicy
from poolkeeper.replica import EXITS_KEPT, Ending, Replica, Service
from poolkeeper.service_exits import LastWords, judge_exit
from poolkeeper.service_model import ExitReason, ServiceExit, ServiceState
from poolkeeper.service_spec import ServiceSpec

RAISED = LastWords(ExitReason.RAISED, "ValueError: no", "Traceback ...")
RETURNED = LastWords(ExitReason.RETURNED)


def replica(ready: str = "start", state: ServiceState = ServiceState.RUNNING, ending: Ending | None = None) -> Replica:
    limits = WorkerPolicy(hard_memory=1000)
    spec = ServiceSpec("web", print, ready=ready, watchdog=5, start_timeout=2.5, worker=limits)  # type: ignore[arg-type]
    one = Replica(1, Service(spec), 0)
    one.service.replicas.append(one)
    one.state, one.ending, one.attempt, one.launched, one.pid = state, ending, 3, 100.0, 77
    return one


@pytest.mark.parametrize(
    ("code", "words", "reason", "message"),
    [
        (0, RETURNED, ExitReason.RETURNED, ""),
        (0, None, ExitReason.RETURNED, ""),
        (None, RETURNED, ExitReason.RETURNED, ""),
        (None, None, ExitReason.UNKNOWN, "it disappeared, and its exit status is not known"),
        (3, None, ExitReason.EXIT_STATUS, "exited with status 3"),
        (3, RETURNED, ExitReason.EXIT_STATUS, "exited with status 3"),
        (-9, RETURNED, ExitReason.SIGNAL, "killed by signal 9 (SIGKILL)"),
        (1, RAISED, ExitReason.RAISED, "ValueError: no"),
        (None, RAISED, ExitReason.RAISED, "ValueError: no"),
    ],
)
def test_an_end_of_its_own(code: int | None, words: LastWords | None, reason: ExitReason, message: str) -> None:
    exit = judge_exit(replica(), 130.0, 5000.0, code=code, words=words)
    assert (exit.reason, exit.message, exit.exitcode) == (reason, message, code)
    assert (exit.pid, exit.attempt, exit.started, exit.ended, exit.seconds) == (77, 3, 5100.0, 5130.0, 30.0)
    assert exit.failure is (reason is not ExitReason.RETURNED)


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (Ending.STOP, "as told"),
        (Ending.RESTART, "as told"),
        (Ending.GROUP, "as told"),
        (Ending.RECYCLE, "as told"),
        (Ending.WATCHDOG, "no heartbeat within 5 s"),
        (Ending.START_TIMEOUT, "not ready within 2.5 s"),
        (Ending.MEMORY, "its memory exceeded hard_memory=1000"),
    ],
)
def test_whoever_was_ended_did_not_end_by_itself(ending: Ending, message: str) -> None:
    one = replica(state=ServiceState.STOPPING, ending=ending)
    one.why = "as told"
    one.detail = "what the service says of itself"
    exit = judge_exit(one, 130.0, 0.0, code=-9, words=RAISED)
    assert (exit.reason, exit.message) == (ending.value, message)
    assert exit.failure is (ending in (Ending.WATCHDOG, Ending.START_TIMEOUT, Ending.MEMORY))


def test_whoever_must_say_that_it_is_ready_may_not_just_return() -> None:
    early = replica("notify", ServiceState.STARTING)
    assert judge_exit(early, 130.0, 0.0, code=0, words=RETURNED).reason is ExitReason.BEFORE_READY
    assert judge_exit(early, 130.0, 0.0, code=2, words=None).reason is ExitReason.EXIT_STATUS
    early = replica("start", ServiceState.STARTING)
    assert judge_exit(early, 130.0, 0.0, code=0, words=RETURNED).reason is ExitReason.RETURNED


def test_stacks_tell_more_than_a_traceback() -> None:
    assert judge_exit(replica(), 130.0, 0.0, code=1, words=RAISED).detail == "Traceback ..."
    assert judge_exit(replica(), 130.0, 0.0, code=1, words=RAISED, stacks="File ...").detail == "File ..."


@pytest.mark.parametrize(
    ("exit", "text"),
    [
        (ServiceExit(ExitReason.RETURNED, 1, 1, 0, 1, 0), "returned"),
        (
            ServiceExit(ExitReason.SIGNAL, 1, 1, 0, 1, -9, "killed by signal 9 (SIGKILL)"),
            "killed by signal 9 (SIGKILL)",
        ),
        (ServiceExit(ExitReason.STOPPED, 1, 1, 0, 1, -15), "stopped (signal 15 (SIGTERM))"),
        (ServiceExit(ExitReason.RAISED, 1, 1, 0, 1, 1, "ValueError: no"), "ValueError: no (status 1)"),
        (
            ServiceExit(ExitReason.SIGNAL, 1, 1, 0, 1, -9, "killed", out_of_memory="likely"),
            "killed, out of memory: likely",
        ),
        (ServiceExit(ExitReason.UNKNOWN, 1, 1, 0, 1), "unknown"),
    ],
)
def test_a_short_text(exit: ServiceExit, text: str) -> None:
    assert exit.describe() == text


def test_exits_are_remembered_up_to_a_number() -> None:
    one = replica()
    for _ in range(EXITS_KEPT + 10):
        one.exits.append(judge_exit(one, 1.0, 0.0, code=1, words=None))
    assert len(one.exits) == EXITS_KEPT


def test_reasons_that_are_no_failures() -> None:
    asked = {ExitReason.STOPPED, ExitReason.RESTARTED, ExitReason.GROUP, ExitReason.RECYCLED, ExitReason.UPGRADED}
    assert {reason for reason in ExitReason if not reason.is_failure} == asked | {ExitReason.RETURNED}
