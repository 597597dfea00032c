"""Where this process runs: a unit of systemd, a container, a control group. See ``hazards`` for what follows."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from .hazards import Facts

__all__ = ["survey"]

PATIENCE_SECONDS = 2.0


def survey(
    environ: Mapping[str, str] = os.environ,
    *,
    root: Path = Path("/"),
    systemctl: str | None = "systemctl",
) -> Facts:
    """Look around; takes as long as systemd needs to answer, two seconds at most, where it is asked.

    Args:
        environ: of this process, before anything is removed from it.
        root: where /proc, /sys and /run are looked for.
        systemctl: the program that knows the settings of units, None to do without.
    """
    groups = _groups(root)
    unit, of_user = _unit(groups)
    if unit is None and environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):  # systemd.exec(5): we are what it started
        unit = ""
    settings = _settings(systemctl, unit, of_user) if unit and systemctl else {}
    return Facts(
        unit=unit,
        kill_mode=settings.get("KillMode"),
        oom_policy=settings.get("OOMPolicy"),
        ends_container=os.getpid() == 1
        or (os.getppid() == 1 and (_same_program(root) or _in_container(environ, root))),
        oom_group=_oom_group(groups.get(""), root),
    )


def _groups(root: Path) -> dict[str, str]:
    """The control groups of this process by controllers, "" for cgroup v2; cgroups(7)."""
    groups: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            groups[parts[1]] = parts[2]
    return groups


def _unit(groups: Mapping[str, str]) -> tuple[str | None, bool]:
    """The service that the control group belongs to, and whether it is one of a user's own systemd.

    The innermost unit counts: a terminal is a scope within a service, and is not ended as the service is.
    """
    for controllers in ("name=systemd", ""):
        parts = groups.get(controllers, "").split("/")
        units = [part for part in parts if part.endswith((".service", ".scope"))]
        if units:
            of_user = any(part.startswith("user@") for part in units[:-1])
            return (units[-1] if units[-1].endswith(".service") else None), of_user
    return None, False


def _settings(systemctl: str, unit: str, of_user: bool) -> dict[str, str]:
    program = shutil.which(systemctl)
    if program is None:
        return {}
    command = [program, *(["--user"] if of_user else []), "show", "-p", "KillMode", "-p", "OOMPolicy", "--", unit]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = (line.partition("=") for line in answer.decode(errors="replace").splitlines())
    return {name: value.strip() for name, _, value in lines if value.strip()}


def _same_program(root: Path) -> bool:
    """Whether pid 1 is what this process was forked from (``init_process``)."""
    mine = _read(root / "proc/self/cmdline")
    return bool(mine) and mine == _read(root / "proc/1/cmdline")


def _in_container(environ: Mapping[str, str], root: Path) -> bool:
    """Whether Docker, Podman or Kubernetes runs this process; their pid 1 (tini, a shell) ends with its child."""
    marks = (root / ".dockerenv", root / "run/.containerenv")
    return "KUBERNETES_SERVICE_HOST" in environ or any(mark.exists() for mark in marks)


def _oom_group(group: str | None, root: Path) -> str | None:
    """The outermost control group above or at ``group`` that has memory.oom.group set."""
    if group is None:
        return None
    top = root / "sys/fs/cgroup"
    parts = [part for part in group.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        path = top.joinpath(*parts[:depth])
        if _read(path / "memory.oom.group").strip() == "1":
            return "/" + "/".join(parts[:depth])
    return None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
