"""System calls that the standard library does not have."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

__all__ = ["join_mounts", "lock_memory", "mount", "thaw"]

_FITHAW = 0xC0045878
"""`_IOWR('X', 120, int)`, ioctl_fs(2)."""

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_CLONE_NEWNS = 0x00020000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def lock_memory() -> None:
    """Keep all of this process in memory, so that it needs no disk to go on. OSError where that is not allowed; mlockall(2)."""
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE), "mlockall")


def join_mounts(fd: int) -> None:
    """See the mounts of the process whose namespace `fd` is; setns(2). OSError."""
    _check(_libc.setns(fd, _CLONE_NEWNS), "setns")


def thaw(fd: int) -> bool:
    """Thaw the file system that `fd` lies on; false where it was not frozen. OSError for anything else."""
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2). OSError."""
    data = options.encode() if options else None
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data), "mount")
