"""Looking on at a fleet from another terminal than its own, to its end.

The keeper is asked a few times a second, over its control socket: the answer is small, costs it less than a task does,
and nobody who looks on too slowly can ever hold it up. Where it does not answer it may be in the midst of a re-exec,
which its lock survives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .bars import draw, workers_line
from .control_client import ControlClient, KeeperUnreachable
from .homes import KeeperHome
from .instance import InstanceLock
from .process_identity import resident_bytes
from .progress import ProgressRow
from .run_outcome import RunOutcome, read_outcome
from .service_model import ServiceState, ServiceStatus

__all__ = ["Ended", "look_on", "picture"]

LOOK_SECONDS = 0.2
AWAY_SECONDS = 0.05


class Ended(NamedTuple):
    """A fleet that has ended: its outcome, None where it has written none, and whether it has ``left`` processes."""

    outcome: RunOutcome | None
    left: bool

    @property
    def exit_code(self) -> int:
        """That of the run; of a keeper that is no run, 0 if it has ended in good order."""
        return self.outcome.exit_code if self.outcome is not None else int(self.left)


def look_on(home: KeeperHome, show: Callable[[dict[str, Any]], None]) -> Ended:
    """Have ``show`` called with what a keeper says of itself, until it has ended; it may have by now.

    Raises:
        KeeperUnreachable: when none answers, from the beginning, and no run has ended there.
        ControlError: when it is too old to be asked.
    """
    pid, started = 0, 0.0
    while True:
        try:
            with ControlClient(home.path) as client:
                while True:
                    data = client.ask("progress")
                    pid, started = data["pid"], data["started"]
                    show(data)
                    time.sleep(LOOK_SECONDS)
        except KeeperUnreachable:
            gone = not _is_held(home)
            outcome = read_outcome(home.path)
            if not pid and (outcome is None or not gone):
                raise
        if outcome is not None and (not pid or (outcome.pid == pid and outcome.ended >= started)):
            return Ended(outcome, left=False)
        if gone:
            return Ended(None, left=(home.path / "keeper.pid").exists())
        time.sleep(AWAY_SECONDS)


def _is_held(home: KeeperHome) -> bool:
    return InstanceLock(home.name, home.run_id, home.path.parent.parent).is_locked()


def picture(data: dict[str, Any], now: float) -> Any:
    """Return what is to be drawn of the answer of a keeper."""
    run = data["run"]
    services = [ServiceStatus(**{**row, "state": ServiceState(row["state"])}) for row in data["services"]]
    memory = sum(resident_bytes(pid) or 0 for pid in data["workers"] if pid)
    workers = workers_line(len(data["workers"]), data["busy"], data["queued"], data["running"], memory)
    rows = [ProgressRow(**row) for row in run.get("rows", ())]
    return draw(rows, services, workers, run.get("notice", ""), now)
