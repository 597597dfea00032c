"""Which filesystem a path lies on, from the text that the kernel gives."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.filesystems import _kind_by_psutil, filesystem_type, is_network

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw
30 27 0:40 / /home rw - autofs systemd-1 rw,fd=29
31 30 0:41 / /home rw - nfs4 server:/home rw,vers=4.2
32 31 0:42 / /home/me/scratch rw - xfs /dev/sdb rw
33 27 0:43 / /mnt/with\040blank rw - fuse.sshfs me@box: rw
34 27 0:44 / /data/old rw - ext4 /dev/sdc rw
35 27 0:45 / /data rw - cifs //server/data rw
36 27 0:46 / /mnt/tab\011back\134slash rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/none/such", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/.local/state/poolkeeper", "nfs4"),
        ("/home/me/scratch/x", "xfs"),
        ("/home/me/scratchy", "nfs4"),
        ("/homes", "ext4"),
        ("/mnt/with blank/x", "fuse.sshfs"),
        ("/mnt/tab\tback\\slash", "tmpfs"),
        ("/data/old/x", "cifs"),  # mounted later, over its parent: what was there is hidden
    ],
)
def test_the_mount_that_a_path_leads_to(path: str, kind: str) -> None:
    assert filesystem_type(path, mountinfo=MOUNTS) == kind


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/home/me")
    assert filesystem_type(tmp_path / "link" / "x", mountinfo=MOUNTS) == "nfs4"


def test_in_a_chroot_the_root_is_not_listed() -> None:
    assert filesystem_type("/srv", mountinfo="40 27 0:1 / /proc rw - proc proc rw\n") is None
    assert filesystem_type("/proc/1", mountinfo="40 27 0:1 / /proc rw - proc proc rw\n") == "proc"


def test_a_mount_that_is_its_own_parent() -> None:
    assert filesystem_type("/x", mountinfo="1 1 0:1 / / rw - overlay overlay rw\n") == "overlay"


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    filesystem_type("/x", mountinfo=text)
    filesystem_type("/x", mountinfo=MOUNTS.replace("/home", text))


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "afs", "ceph", "fuse.glusterfs", "lustre", "vboxsf"]
)
def test_network(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize(
    "kind",
    ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.ntfs-3g", "fuseblk", "apfs", "nfsd", "fuse", "", None],
)
def test_local(kind: str | None) -> None:
    assert not is_network(kind)


def test_this_machine() -> None:
    kinds = {part.fstype for part in psutil.disk_partitions(all=True)}
    assert {filesystem_type("/"), _kind_by_psutil("/"), filesystem_type("/none/such")} <= kinds
