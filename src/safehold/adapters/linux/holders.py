"""Who has a block device: what lies on it, who has it open, where it is mounted, and a claim that keeps all of them away."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from safehold.adapters.linux.mounts import major_minor
from safehold.adapters.linux.stack import swap_places
from safehold.model.errors import FailedError

__all__ = ["Held", "claimed", "demand_free", "device_number"]

_CLASS = Path("/sys/class/block")
_BRIEFLY = 5.0
"""Seconds for which somebody may have it: whenever a device was written to, udev and LVM look at it."""
_LOOK = 0.1


class Held(FailedError):
    """Somebody else has the device. Nothing was done."""


def device_number(device: str) -> str:
    """`major:minor` of the device of that name, whatever lies where its node should be; nothing where there is none."""
    try:
        return (_CLASS / Path(device).name / "dev").read_text().strip()
    except OSError:
        return ""


def demand_free(device: str) -> None:
    """Held where something lies on the device or a partition of it, or somebody has one of them open. Mounts are not looked at."""
    users = _users(device)
    end = time.monotonic() + _BRIEFLY
    while users and time.monotonic() < end:
        time.sleep(_LOOK)
        users = _users(device)
    if users:
        raise _held(device, users)


@contextlib.contextmanager
def claimed(device: str) -> Iterator[None]:
    """Inside, nobody can mount the device or put something on top of it (open(2), O_EXCL). Held where somebody has.

    Where the device has no node, nobody can come by it either.
    """
    demand_free(device)
    end = time.monotonic() + _BRIEFLY
    while True:
        try:
            line = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                yield
                return
            if error.errno != errno.EBUSY:
                raise FailedError(f"it cannot be opened ({error.strerror})", on=device, remedy="see dmesg") from error
            if time.monotonic() > end:
                users = _users(device) + _mounted_by(device)
                raise _held(device, users or ["something that cannot be seen from here has it for itself"]) from None
        time.sleep(_LOOK)
    try:
        yield
    finally:
        os.close(line)


def _held(device: str, users: list[str]) -> Held:
    more = f", and {len(users) - 3} more" if len(users) > 3 else ""
    return Held(
        f"the device is in use: {'; '.join(users[:3])}{more}",
        on=device,
        remedy="nothing was changed; stop what uses it, and try again",
    )


def _numbers(device: str) -> dict[str, str]:
    """Names of the device and its partitions, by `major:minor`."""
    name = Path(device).name
    names = [name, *(part.parent.name for part in (_CLASS / name).glob("*/partition"))]
    return {number: one for one in names if (number := device_number(one))}


def _users(device: str) -> list[str]:
    numbers = _numbers(device)
    found = [
        f"{_title(holder)} lies on {name}"
        for name in numbers.values()
        for holder in sorted((_CLASS / name).glob("holders/*"))
    ]
    for place in swap_places():
        with contextlib.suppress(OSError):
            if _is(place, numbers):
                found.append(f"the kernel swaps to {place}")
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if _is(loop.read_text().rstrip("\n"), numbers):
                found.append(f"/dev/{loop.parent.parent.name} lies on it")
    return found + [f"process {process} ({_command(process)}) has it open" for process in _openers(numbers)]


def _title(holder: Path) -> str:
    """What an administrator calls a device that lies on another: LVM and other mapped devices have a name of their own."""
    with contextlib.suppress(OSError):
        return f"/dev/mapper/{(holder / 'dm' / 'name').read_text().strip()}"
    return f"/dev/{holder.name}"


def _is(node: str, numbers: dict[str, str], place: str = "") -> bool:
    """True where a node is one of the devices; it is looked at by way of `place`, if that is given. What lies elsewhere than in /dev is not asked:
    its file system may hang.
    """
    if not node.startswith("/dev/"):
        return False
    info = os.stat(place or node)
    return stat.S_ISBLK(info.st_mode) and major_minor(info.st_rdev) in numbers


def _openers(numbers: dict[str, str]) -> list[int]:
    return [process for process in _processes() if process != os.getpid() and _has_open(process, numbers)]


def _has_open(process: int, numbers: dict[str, str]) -> bool:
    place = f"/proc/{process}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(place):
            with contextlib.suppress(FileNotFoundError):
                if _is(os.readlink(f"{place}/{name}"), numbers, f"{place}/{name}"):
                    return True
    return False


def _mounted_by(device: str) -> list[str]:
    """Where it is mounted, in any namespace of which a process can be seen."""
    numbers = _numbers(device)
    seen: set[int] = set()
    found: list[str] = []
    for process in _processes():
        with contextlib.suppress(OSError):
            space = os.stat(f"/proc/{process}/ns/mnt").st_ino
            if space in seen:
                continue
            seen.add(space)
            for line in Path(f"/proc/{process}/mountinfo").read_text("latin-1").splitlines():
                _, _, number, _, path, *_ = line.split(" ")
                if number in numbers:
                    found.append(f"process {process} ({_command(process)}) sees it mounted on {path}")
                    break
    return found


def _processes() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return "gone"
