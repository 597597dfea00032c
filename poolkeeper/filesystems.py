"""What kind of filesystem a path lies on: locks, sockets and SQLite's WAL need one that is not on the network."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["filesystem_type", "is_network"]

NETWORK = {
    "9p", "acfs", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "vmhgfs",
    "webdav",
}  # fmt: skip
NETWORK_BY_FUSE = {
    "beegfs", "ceph", "curlftpfs", "davfs", "davfs2", "gcsfuse", "geesefs", "glusterfs", "goofys", "gvfsd-fuse",
    "juicefs", "mfs", "moosefs", "mount-s3", "mountpoint-s3", "ossfs", "portal", "rclone", "s3fs", "seaweedfs",
    "smbnetfs", "sshfs", "vmhgfs-fuse",
}  # fmt: skip


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo, as far as it matters."""

    id: int
    parent: int
    point: str
    kind: str


def is_network(kind: str | None) -> bool:
    """Whether ``kind``, as the kernel names it, is a filesystem of another machine; what is not known is not."""
    if kind is None:
        return False
    driver, _, served = kind.lower().partition(".")
    return kind.lower() in NETWORK or (driver in ("fuse", "fuseblk") and served in NETWORK_BY_FUSE)


def filesystem_type(path: str | os.PathLike[str], *, mountinfo: str | None = None) -> str | None:
    """Return the name of the filesystem that ``path`` lies on, or would lie on if it existed; None: not known.

    Args:
        path: need not exist; symbolic links are followed.
        mountinfo: the text of /proc/self/mountinfo; None: this system's.
    """
    target = os.path.realpath(path)
    if mountinfo is not None:
        return _kind_at(target, _parse(mountinfo))
    if sys.platform != "linux":
        return _kind_by_psutil(target)
    try:
        return _kind_at(target, _parse(os.fsdecode(Path("/proc/self/mountinfo").read_bytes())))
    except OSError:
        return None


def _kind_at(target: str, mounts: list[Mount]) -> str | None:
    """Walk from the root as the kernel does: a mount over a folder hides what was mounted below that folder before."""
    ids = {mount.id for mount in mounts}
    here = [mount for mount in mounts if mount.parent not in ids or mount.parent == mount.id]
    kind = None
    passed: set[int] = set()
    while candidates := [mount for mount in here if mount.id not in passed and _is_below(target, mount.point)]:
        crossed = min(reversed(candidates), key=lambda mount: len(mount.point))
        passed.add(crossed.id)
        kind = crossed.kind
        here = [mount for mount in mounts if mount.parent == crossed.id]
    return kind


def _is_below(target: str, point: str) -> bool:
    return target == point or target.startswith(point.rstrip("/") + "/")


def _parse(mountinfo: str) -> list[Mount]:
    mounts = []
    for line in mountinfo.split("\n"):
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and fields[0].isdecimal() and fields[1].isdecimal():
            mounts.append(Mount(int(fields[0]), int(fields[1]), _plain(fields[4]), _plain(kinds[0])))
    return mounts


def _plain(escaped: str) -> str:
    """Undo the kernel's octal escapes of blank, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), escaped)


def _kind_by_psutil(target: str) -> str | None:
    import psutil

    found = [part for part in psutil.disk_partitions(all=True) if _is_below(target, part.mountpoint)]
    return max(found, key=lambda part: len(part.mountpoint)).fstype if found else None
