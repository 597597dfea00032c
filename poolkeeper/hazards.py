"""What would take the workers down together with the keeper, unawares: from facts about the surroundings to advice."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Facts", "hazards"]


@dataclass(frozen=True)
class Facts:
    """What is known of where this process runs; None for what could not be found out."""

    unit: str | None = None
    """The unit of systemd whose main process, or part of it, this is; empty if its name is not known."""
    kill_mode: str | None = None
    oom_policy: str | None = None
    ends_container: bool = False
    """This process, or its parent which ends with it, is pid 1 of a container."""
    oom_group: str | None = None
    """The control group, ours or one above it, that the kernel kills as a whole when it runs out of memory."""


def hazards(facts: Facts) -> list[str]:
    """Return one warning for each thing that would end workers which are meant to outlive the keeper.

    The rules are those of systemd.kill(5), systemd.service(5), pid_namespaces(7) and the kernel's cgroup-v2 guide.

    Args:
        facts: of the surroundings.

    Returns:
        Sentences that say what would happen and what to do about it; none where all is well.
    """
    found = []
    if facts.unit is not None:
        found += _of_systemd(facts, facts.unit)
    if facts.ends_container:
        found.append(
            "the container ends when this process does: workers do not outlive the keeper here, and what they run is "
            "done again. Put the keeper's home on a volume, so that a new container goes on where this one has stopped."
        )
    if facts.oom_group is not None and facts.oom_policy != "kill":
        found.append(
            f"memory.oom.group is set for the control group {facts.oom_group}: when its memory runs out, the kernel "
            "kills the keeper and all workers instead of one of them. Write 0 to that file; with Kubernetes, set the "
            "kubelet's singleProcessOOMKill to true."
        )
    return found


def _of_systemd(facts: Facts, unit: str) -> list[str]:
    name = unit or "this unit of systemd"
    found = []
    if facts.kill_mode is None:
        found.append(
            f"the KillMode of {name} is not known: with any but KillMode=process, systemd ends the workers together "
            f"with a keeper that has crashed. {_check(unit, 'KillMode')}"
        )
    elif facts.kill_mode not in ("process", "none"):
        found.append(
            f"{name} has KillMode={facts.kill_mode}: when the keeper crashes, or is killed, systemd ends the workers, "
            "too. Set KillMode=process in its [Service] section."
        )
    if facts.oom_policy is None:
        found.append(
            f"the OOMPolicy of {name} is not known: with any but OOMPolicy=continue, one worker that runs out of "
            f"memory ends the keeper and all others. {_check(unit, 'OOMPolicy')}"
        )
    elif facts.oom_policy != "continue":
        found.append(
            f"{name} has OOMPolicy={facts.oom_policy}: when one worker runs out of memory, systemd ends the keeper and "
            "all others. Set OOMPolicy=continue in its [Service] section."
        )
    return found


def _check(unit: str, setting: str) -> str:
    return f"See `systemctl show -p {setting} {unit or 'UNIT'}`."
