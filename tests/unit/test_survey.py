"""Looking around: on this machine, and in folders made to look like others."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from poolkeeper.hazards import Facts, hazards
from poolkeeper.survey import survey


def machine(root: Path, cgroup: str, *, oom_group: str | None = None, answer: str | None = None) -> Facts:
    """What is found on a machine with this /proc/self/cgroup, and a systemctl that says ``answer``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    if oom_group is not None:
        folder = root / "sys/fs/cgroup" / oom_group
        folder.mkdir(parents=True)
        (folder / "memory.oom.group").write_text("1\n")
    systemctl = root / "systemctl"
    said = shlex.quote(answer) if answer is not None else ""
    systemctl.write_text(f'#!/bin/sh\necho "$@" > {shlex.quote(str(root / "asked"))}\nprintf %s {said}\n')
    systemctl.chmod(0o700)
    return survey({}, root=root, systemctl=str(systemctl) if answer is not None else None)


def asked(root: Path) -> str | None:
    return (root / "asked").read_text().strip() if (root / "asked").exists() else None


def test_a_service_of_the_system(tmp_path: Path) -> None:
    answer = "KillMode=control-group\nOOMPolicy=stop\n"
    facts = machine(tmp_path, "0::/system.slice/etl.service\n", answer=answer)
    assert facts == Facts("etl.service", "control-group", "stop")
    assert asked(tmp_path) == "show -p KillMode -p OOMPolicy -- etl.service"
    assert len(hazards(facts)) == 2


def test_a_service_of_a_user(tmp_path: Path) -> None:
    group = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/etl.service\n"
    facts = machine(tmp_path, group, answer="KillMode=process\nOOMPolicy=continue\n")
    assert facts == Facts("etl.service", "process", "continue")
    assert (asked(tmp_path) or "").startswith("--user show")


def test_cgroup_v1_names_the_unit_in_a_hierarchy_of_its_own(tmp_path: Path) -> None:
    assert machine(tmp_path, "4:memory:/x\n1:name=systemd:/system.slice/etl.service\n0::/\n").unit == "etl.service"


@pytest.mark.parametrize(
    "group",
    [
        "0::/user.slice/user-1000.slice/session-3.scope\n",
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n",
        "0::/\n",
        "",
        "nonsense\n",
    ],
)
def test_a_terminal_or_a_container_is_no_service(tmp_path: Path, group: str) -> None:
    facts = machine(tmp_path, group, answer="KillMode=control-group\n")
    assert facts.unit is None
    assert asked(tmp_path) is None


def test_a_systemctl_that_is_missing_or_at_a_loss_leaves_settings_unknown(tmp_path: Path) -> None:
    assert machine(tmp_path / "mute", "0::/a.service\n", answer="") == Facts("a.service")
    assert machine(tmp_path / "odd", "0::/a.service\n", answer="KillMode=\nwhat?\n") == Facts("a.service")
    (tmp_path / "none/proc/self").mkdir(parents=True)
    (tmp_path / "none/proc/self/cgroup").write_text("0::/a.service\n")
    assert survey({}, root=tmp_path / "none", systemctl="no-such-systemctl") == Facts("a.service")


def test_a_systemctl_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolkeeper.survey.PATIENCE_SECONDS", 0.1)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a.service\n")
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "systemctl").chmod(0o700)
    assert survey({}, root=tmp_path, systemctl=str(tmp_path / "systemctl")) == Facts("a.service")


def test_systemd_names_who_it_has_started_where_the_unit_cannot_be_seen(tmp_path: Path) -> None:
    assert survey({"SYSTEMD_EXEC_PID": str(os.getpid())}, root=tmp_path).unit == ""
    assert survey({"SYSTEMD_EXEC_PID": "1", "INVOCATION_ID": "of a parent"}, root=tmp_path).unit is None


@pytest.mark.parametrize("group", ["", "pod", "pod/one"])
def test_a_control_group_that_dies_as_a_whole_is_found_at_every_height(tmp_path: Path, group: str) -> None:
    assert machine(tmp_path, "0::/pod/one\n", oom_group=group).oom_group == f"/{group}"


def test_a_control_group_beside_ours_does_not_matter(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/pod/one\n", oom_group="pod/two").oom_group is None


def test_this_machine_can_be_surveyed() -> None:
    facts = survey()
    assert not facts.ends_container
    assert all(isinstance(warning, str) for warning in hazards(facts))


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.mark.parametrize("leave", ["", "leave_pid_one(); "])
def test_pid_one_knows_that_the_container_ends_with_it_also_after_it_has_left(leave: str) -> None:
    program = (
        "from poolkeeper.init_process import leave_pid_one; from poolkeeper.survey import survey; "
        f"{leave}print(survey().ends_container)"
    )
    try:
        done = subprocess.run(
            [*UNSHARE, sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare" in done.stderr:
        pytest.skip("a pid namespace needs privileges that are not given here")
    assert done.stdout == "True\n"
