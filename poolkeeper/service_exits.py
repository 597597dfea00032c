"""Why a service's process has ended, from what is known of it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from .errors import signal_name
from .replica import Ending, Replica
from .service_model import ExitReason, ServiceExit, ServiceState

__all__ = ["LastWords", "judge_exit"]


class LastWords(NamedTuple):
    """What a process has said of its own end: the reason, a sentence, and a traceback where it raised."""

    reason: ExitReason
    message: str = ""
    detail: str = ""


def judge_exit(
    replica: Replica,
    now: float,
    epoch: float,
    *,
    code: int | None,
    words: LastWords | None,
    stacks: str = "",
    out_of_memory: str = "no",
) -> ServiceExit:
    """Return the record of an end of ``replica``'s process.

    ``code`` is its exit status, negative for a signal, None if unknown; ``epoch`` is what makes seconds of the
    monotonic clock seconds since the epoch.
    """
    reason, message = _reason(replica, code, words)
    return ServiceExit(
        reason=reason,
        pid=replica.pid,
        attempt=replica.attempt,
        started=replica.launched + epoch,
        ended=now + epoch,
        exitcode=code,
        message=message,
        detail=stacks or (words.detail if words is not None else ""),
        out_of_memory=out_of_memory,
    )


def _reason(replica: Replica, code: int | None, words: LastWords | None) -> tuple[ExitReason, str]:
    if replica.ending is not None:
        return replica.ending.value, _forced(replica)
    if words is not None and words.reason is not ExitReason.RETURNED:
        return words.reason, words.message
    if code is None and words is None:
        return ExitReason.UNKNOWN, "it disappeared, and its exit status is not known"
    if code:
        return _by_status(code)
    if replica.state is ServiceState.STARTING and replica.spec.ready == "notify":
        return ExitReason.BEFORE_READY, "it ended before it was ready"
    return ExitReason.RETURNED, ""


def _by_status(code: int) -> tuple[ExitReason, str]:
    if code < 0:
        return ExitReason.SIGNAL, f"killed by signal {-code} ({signal_name(-code)})"
    return ExitReason.EXIT_STATUS, f"exited with status {code}"


def _forced(replica: Replica) -> str:
    spec = replica.spec
    if replica.ending is Ending.WATCHDOG:
        return f"no heartbeat within {spec.watchdog:g} s"
    if replica.ending is Ending.START_TIMEOUT:
        return f"not ready within {spec.start_timeout:g} s"
    if replica.ending is Ending.MEMORY:
        return f"its memory exceeded hard_memory={spec.worker.hard_memory}"
    return replica.why
