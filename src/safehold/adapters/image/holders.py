"""Who else has a disk open: mounts, swap, other devices on top of it, and processes writing to an image."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safehold.adapters.linux.mounts import Mounted, mount_named, mount_of, mounts

__all__ = ["Holder", "device_holders", "file_holders", "open_for_writing", "write_counter"]


@dataclass(frozen=True)
class Holder:
    """Somebody who uses a disk: in words, and whether that somebody can write to it."""

    who: str
    writes: bool


def device_holders(path: str) -> list[Holder]:
    """Users of a block device or of its partitions; a read-only mount is a holder that does not write."""
    number = os.stat(path).st_rdev
    found = list(_device_holders({f"{os.major(number)}:{os.minor(number)}"}))
    if not found and _claimed(path):
        found.append(Holder("claimed in the kernel, perhaps by a mount in another namespace", True))
    return found


def _claimed(path: str) -> bool:
    """Whether the kernel keeps others from using the device or a partition of it: what is mounted somewhere, a member of something larger."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _device_holders(numbers: set[str]) -> Iterator[Holder]:
    numbers = set(numbers)
    for number in list(numbers):
        numbers.update(_partitions(Path("/sys/dev/block") / number))
    for mounted in mounts():
        if _numbers(mounted) & numbers:
            read_only = "ro" in mounted.options
            yield Holder(
                f"mounted on {mounted.path}" + (" (read-only)" if read_only else ""),
                not (read_only and "ro" in mounted.super_options),
            )
    for number in sorted(numbers):
        base = Path("/sys/dev/block") / number
        for holder in sorted((base / "holders").glob("*")):
            yield Holder(f"used by device {holder.name}", True)
    swaps = _lines(Path("/proc/swaps"))[1:]
    for line in swaps:
        name = line.split()[0]
        try:
            device = os.stat(name).st_rdev
        except OSError:
            continue
        if f"{os.major(device)}:{os.minor(device)}" in numbers:
            yield Holder(f"swap ({name})", True)


def _partitions(base: Path) -> Iterator[str]:
    for entry in base.glob("*/partition"):
        yield (entry.parent / "dev").read_text().strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _numbers(mounted: Mounted) -> set[str]:
    """The file system's own number, and on btrfs, where that is another one, its device's."""
    numbers = {mounted.device}
    # Nothing else is a device, and what else is named as a source may hang when it is looked at.
    if mounted.source.startswith("/dev/"):
        with contextlib.suppress(OSError):
            info = os.stat(mounted.source)
            if stat.S_ISBLK(info.st_mode):
                numbers.add(f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}")
    return numbers


def file_holders(path: str) -> list[Holder]:
    """Users of an image file that can be seen: loop devices on it, and processes that have it open for writing."""
    return [*_loops(path), *_writers(path)]


def _loops(path: str) -> Iterator[Holder]:
    wanted, device = os.stat(path), mount_of(path).device
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            name = backing.read_text().rstrip("\n")
            mounted = mount_named(name)
            # What lies on another file system is another file, and that file system may hang.
            if mounted is None or mounted.device != device:
                continue
            there = os.stat(name)
        except OSError:
            continue
        if (there.st_dev, there.st_ino) != (wanted.st_dev, wanted.st_ino):
            continue
        block = backing.parent.parent
        read_only = (block / "ro").read_text().strip() == "1"
        mounts = list(_device_holders({(block / "dev").read_text().strip()}))
        if mounts:
            yield from (
                Holder(f"/dev/{block.name}, {holder.who}", holder.writes and not read_only) for holder in mounts
            )
        elif not read_only:
            yield Holder(f"loop device /dev/{block.name}", True)


def _writers(path: str) -> Iterator[Holder]:
    own = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        wanted, inode = os.stat(own), _told(Path(f"/proc/self/fdinfo/{own}")).get("ino")
    finally:
        os.close(own)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(_writes(entry, fd, wanted, inode) for fd in os.listdir(entry / "fd")):
                yield Holder(f"process {entry.name} ({(entry / 'comm').read_text().strip()})", True)


def _writes(process: Path, fd: str, wanted: os.stat_result, inode: str | None) -> bool:
    try:
        told = _told(process / "fdinfo" / fd)
        # The kernel tells this without a word to the file system, which may hang.
        if told.get("ino") != inode or int(told["flags"], 8) & os.O_ACCMODE == os.O_RDONLY:
            return False
        there = os.stat(process / "fd" / fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)


def _told(fdinfo: Path) -> dict[str, str]:
    """What the kernel says of an open file (proc_pid_fdinfo(5)). Before Linux 5.14 there is no `ino`."""
    rows = (line.split(":", 1) for line in fdinfo.read_text().splitlines() if ":" in line)
    return {name: value.strip() for name, value in rows}


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


def write_counter(device: str) -> int | None:
    """Sectors written to a block device since boot; None where the kernel does not count them."""
    number = os.stat(device).st_rdev
    fields = _lines(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat"))
    return int(fields[0].split()[6]) if fields else None
