"""System calls on mounts that the standard library does not have. The watchdog has its own, as it imports nothing of ours."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

__all__ = [
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REMOUNT",
    "MS_SHARED",
    "drop_cached",
    "freeze",
    "mount",
    "sync_file_system",
    "thaw",
    "unmount",
]

MS_RDONLY, MS_REMOUNT, MS_PRIVATE, MS_SHARED = 0x1, 0x20, 1 << 18, 1 << 20

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
"""`_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`, ioctl_fs(2)."""

_BLKFLSBUF = 0x1261

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def freeze(fd: int) -> None:
    """Write everything out and keep new writes waiting. OSError: EBUSY where it is frozen already."""
    fcntl.ioctl(fd, _FIFREEZE, 0)


def thaw(fd: int) -> bool:
    """Let writes go on; false where the file system was not frozen. OSError for anything else."""
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def sync_file_system(fd: int) -> None:
    """Write out what is dirty in the file system of `fd`; syncfs(2). OSError."""
    _check(_libc.syncfs(fd), "syncfs")


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2). OSError."""
    data = options.encode() if options else None
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data), "mount")


def unmount(target: str) -> None:
    """umount2(2), without force. OSError: EBUSY where it is in use."""
    _check(_libc.umount2(os.fsencode(target), 0), "umount")


def drop_cached(device: int) -> None:
    """Forget what was read through a block device before: a file system writes past that cache. OSError; BLKFLSBUF."""
    fcntl.ioctl(device, _BLKFLSBUF, 0)
