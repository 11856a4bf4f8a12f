"""Mount points: which are the kernel's own, and which should be there."""

from __future__ import annotations

import os
import re
from pathlib import Path

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


def _mounts() -> list[tuple[bytes, str, bool]]:
    """(mount point, file system type, whether the file system itself is read-only) of everything mounted here."""
    out = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        kind, _, options = after.split(b" ", 2)
        out.append((_unescape(before.split()[4]), kind.decode(), b"ro" in options.split(b",")))
    return out


def mount_points() -> set[bytes]:
    """Paths of all mount points."""
    return {path for path, _, _ in _mounts()}


def kernel_mounts() -> set[bytes]:
    """Paths of mount points that show the kernel's state."""
    return {path for path, kind, _ in _mounts() if kind in _KERNEL}


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
    return {path: (quiet and kind in _STILL) or kind in _KERNEL for path, kind, quiet in _mounts()}


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
