"""Which processes have a file or a device open, from /proc (proc_pid_fd(5), proc_pid_fdinfo(5)), and whether anybody at all writes to a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["command_of", "file_writers", "open_for_writing", "openers", "processes"]


def processes() -> list[int]:
    """All that can be seen from here."""
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def command_of(process: int) -> str:
    """The name that the kernel shows for it."""
    try:
        return Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
    except OSError:
        return "gone"


def openers(is_it: Callable[[str], bool]) -> Iterator[tuple[int, bool]]:
    """Processes but this one that have something open, and whether for writing. `is_it` knows it by the path of a descriptor in /proc, and may raise
    OSError: then it is not it.
    """
    for process, files in _open_files():
        theirs = [fd for fd in files if _known(is_it, f"/proc/{process}/fd/{fd}")]
        if theirs:
            yield process, any(_writable(_told(process, fd)) for fd in theirs)


def _known(is_it: Callable[[str], bool], place: str) -> bool:
    try:
        return is_it(place)
    except OSError:
        return False


def file_writers(path: str) -> list[int]:
    """Processes but this one that have the file open for writing."""
    own = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        wanted, inode = os.stat(own), _told(os.getpid(), str(own)).get("ino")
    finally:
        os.close(own)

    def writes(process: int, fd: str) -> bool:
        told = _told(process, fd)
        # The kernel tells this without a word to the file system, which may hang.
        if told.get("ino") != inode or not _writable(told):
            return False
        return _known(lambda place: os.path.samestat(os.stat(place), wanted), f"/proc/{process}/fd/{fd}")

    return [process for process, files in _open_files() if any(writes(process, fd) for fd in files)]


def _open_files() -> Iterator[tuple[int, list[str]]]:
    """Processes but this one with their descriptors, as far as they may be looked into."""
    for process in processes():
        if process != os.getpid():
            with contextlib.suppress(OSError):
                yield process, os.listdir(f"/proc/{process}/fd")


def _told(process: int, fd: str) -> dict[str, str]:
    """What the kernel says of an open file; nothing where it is closed. Before Linux 5.14 there is no `ino`."""
    try:
        lines = Path(f"/proc/{process}/fdinfo/{fd}").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split(":", 1) for line in lines if ":" in line)
    return {name: value.strip() for name, value in rows}


def _writable(told: dict[str, str]) -> bool:
    return int(told.get("flags", "0"), 8) & os.O_ACCMODE != os.O_RDONLY


def open_for_writing(fd: int) -> bool | None:
    """Whether anybody at all has a regular file open for writing; None where this file system or user cannot tell.

    The kernel grants a read lease only on a file that nobody has open for writing. The lease is given back at once:
    holding it would make the next writer wait.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    try:
        # The signal of a broken lease would end the process; this one is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
