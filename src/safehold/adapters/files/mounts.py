"""Mount points: which are the kernel's own, and which should be there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safehold.adapters.linux.mounts import mounts

__all__ = ["expected_mounts", "kernel_mounts", "mount_points", "still_mounts"]

_KERNEL = {"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"}
_KERNEL |= {
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
}
"""File systems that show the kernel's state: nothing in them can be restored."""

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)


def mount_points() -> set[bytes]:
    """Paths of all mount points."""
    return {os.fsencode(mounted.path) for mounted in mounts()}


def kernel_mounts() -> set[bytes]:
    """Paths of mount points that show the kernel's state."""
    return {os.fsencode(mounted.path) for mounted in mounts() if mounted.type in _KERNEL}


_STILL = {
    "btrfs",
    "cramfs",
    "erofs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "iso9660",
    "squashfs",
    "tmpfs",
    "udf",
    "vfat",
    "xfs",
    "zfs",
}
"""File systems that this kernel alone writes to. Others, a share or an overlay, may be read-only here and change all the same, by what lies
below them.
"""


def still_mounts() -> dict[bytes, bool]:
    """For each mount point whether nobody can write to its file system, by whatever path. What is mounted last counts."""
    return {
        os.fsencode(mounted.path): ("ro" in mounted.super_options and mounted.type in _STILL) or mounted.type in _KERNEL
        for mounted in mounts()
    }


def expected_mounts(table: Path = Path("/etc/fstab")) -> set[bytes]:
    """Mount points that the system's table says are mounted at boot."""
    try:
        lines = table.read_bytes().splitlines()
    except OSError:
        return set()
    out = set()
    for line in lines:
        fields = line.split()
        if len(fields) >= 4 and not fields[0].startswith(b"#") and fields[1].startswith(b"/"):
            options = fields[3].split(b",")
            if b"noauto" not in options and b"nofail" not in options:
                out.add(os.path.normpath(_unescape(fields[1])))
    return out
