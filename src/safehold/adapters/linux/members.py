"""The block devices of one file system: btrfs lies on several as one, and the journal or log of others may be on a device of its own."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from safehold.adapters.linux.mounts import Mounted, major_minor, mounts

__all__ = ["members", "members_seen", "mounts_of"]

_JOURNALS = Path("/proc/fs/jbd2")
"""One entry for each journal that is in use: for one that lies on the file system's own device, that device's name, a hyphen and the inode."""
_BTRFS = Path("/sys/fs/btrfs")
_FS_INFO, _FS_INFO_SIZE = 0x8400941F, 1024
"""`_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`, of the kernel's include/uapi/linux/btrfs.h: two numbers of eight bytes, then the file system's
id.
"""
_SUPERBLOCK = 1024
_MAGIC, _MAGIC_AT = b"\x53\xef", 0x38
_JOURNAL_INODE, _JOURNAL_DEVICE = 0xE0, 0xE4
"""Of ext4's superblock, by the kernel's fs/ext4/ext4.h: `s_journal_inum`, `s_journal_dev`. Mounting sets the latter where it was another."""


def members(mounted: Mounted) -> frozenset[str]:
    """Numbers (`major:minor`) of all devices that a mounted file system has its blocks on; none where it has no device of this machine.

    OSError where that cannot be told.
    """
    if mounted.type == "btrfs":
        return frozenset(_btrfs(mounted.path))
    found = set(_source(mounted))
    if mounted.type == "xfs":
        for option in mounted.super_options:
            name, _, value = option.partition("=")
            if name in ("logdev", "rtdev"):
                found.add(major_minor(os.stat(value).st_rdev))
    if mounted.type in ("ext3", "ext4"):
        found.update(_journal(mounted.device))
    return frozenset(found)


def members_seen(mounted: Mounted) -> frozenset[str]:
    """As `members`; where that cannot be told, what the file system was mounted by."""
    try:
        return members(mounted)
    except OSError:
        return frozenset(_source(mounted))


def mounts_of(number: str) -> list[Mounted]:
    """What is mounted of the device of that number; nothing of none."""
    # What btrfs shows as its device is none.
    return [
        mounted
        for mounted in mounts()
        if number and number in (members_seen(mounted) if mounted.type == "btrfs" else (mounted.device,))
    ]


def _source(mounted: Mounted) -> Iterator[str]:
    if mounted.source.startswith("/") and Path(mounted.source).is_block_device():
        yield major_minor(os.stat(mounted.source).st_rdev)


def _btrfs(path: str) -> Iterator[str]:
    told = bytearray(_FS_INFO_SIZE)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FS_INFO, told)
    finally:
        os.close(fd)
    place = _BTRFS / str(uuid.UUID(bytes=bytes(told[16:32]))) / "devices"
    for name in os.listdir(place):
        yield (place / name / "dev").read_text().strip()


def _journal(number: str) -> Iterator[str]:
    """The device of an external journal of ext4."""
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{number}"))
    if any(_JOURNALS.glob(f"{name}-*")):
        return
    node = f"/dev/{name}"
    with open(node, "rb") as device:
        info = os.fstat(device.fileno())
        if not stat.S_ISBLK(info.st_mode) or major_minor(info.st_rdev) != number:
            raise FileNotFoundError(2, "the device that is mounted has no node", node)
        device.seek(_SUPERBLOCK)
        block = device.read(1024)
    if block[_MAGIC_AT : _MAGIC_AT + 2] != _MAGIC:
        raise OSError(22, "no superblock of ext4", node)
    inode, encoded = struct.unpack_from("<II", block, _JOURNAL_INODE)
    if not inode and encoded:
        # As the kernel writes a device's number into 32 bits (new_decode_dev).
        yield f"{encoded >> 8 & 0xFFF}:{encoded & 0xFF | encoded >> 12 & 0xFFF00}"
