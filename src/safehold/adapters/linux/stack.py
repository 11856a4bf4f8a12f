"""What lies below a path: its file system, the device that is on, the image file behind a loop device, and so on down."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from safehold.adapters.linux.members import members, members_seen
from safehold.adapters.linux.mounts import Mounted, major_minor, mount_of

__all__ = [
    "above",
    "backing_file",
    "below",
    "disks",
    "is_device",
    "loops_on",
    "roots",
    "roots_seen",
    "swap_places",
]

_BLOCK = Path("/sys/dev/block")


def below(path: str) -> frozenset[str]:
    """Numbers (`major:minor`) of all file systems and devices that a write to `path`, or to what will be made there, may wait for."""
    seen: set[str] = set()
    _path(path, seen)
    return frozenset(seen)


def _path(path: str, seen: set[str]) -> None:
    while not os.path.lexists(path):
        path = os.path.dirname(os.path.abspath(path))
    info = os.stat(path) if os.path.exists(path) else os.lstat(path)
    if stat.S_ISBLK(info.st_mode):
        _device(major_minor(info.st_rdev), seen)
        return
    mounted = mount_of(path)
    for number in (mounted.device, *members_seen(mounted)):
        _device(number, seen)
    for option in mounted.super_options:
        # An overlay is written to in its upper directory.
        name, _, value = option.partition("=")
        if name == "upperdir" and os.path.exists(value):
            _path(value, seen)


def _device(number: str, seen: set[str]) -> None:
    if number in seen:
        return
    seen.add(number)
    place = _BLOCK / number
    if not place.exists():
        return
    for slave in place.glob("slaves/*/dev"):
        _device(slave.read_text().strip(), seen)
    if (place / "partition").exists():
        _device((place.resolve().parent / "dev").read_text().strip(), seen)
    backing = place / "loop" / "backing_file"
    if backing.exists():
        _path(backing.read_text().rstrip("\n").removesuffix(" (deleted)"), seen)


def above(number: str) -> frozenset[str]:
    """Numbers of a device, its partitions, and all that LVM, md, other mapped devices and loop devices make of them."""
    found: set[str] = set()
    waiting = [number]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            place = (_BLOCK / one).resolve()
            parts = (part.parent / "dev" for part in place.glob("*/partition"))
            waiting += [path.read_text().strip() for path in (*parts, *place.glob("holders/*/dev"))]
            waiting += _loops_over(one)
    return frozenset(found)


def _loops_over(number: str) -> list[str]:
    """Numbers of the loop devices that lie on a device instead of a file."""
    found = []
    for block in loops_on(lambda name: is_device(name, {number})):
        # One may be taken away at this moment.
        with contextlib.suppress(OSError):
            found.append((block / "dev").read_text().strip())
    return found


def is_device(node: str, numbers: Container[str], place: str = "") -> bool:
    """True where a node is one of the devices; it is looked at by way of `place`, if that is given. What lies elsewhere than in /dev is not asked:
    its file system may hang.
    """
    if not node.startswith("/dev/"):
        return False
    info = os.stat(place or node)
    return stat.S_ISBLK(info.st_mode) and major_minor(info.st_rdev) in numbers


def loops_on(lies_on: Callable[[str], bool]) -> list[Path]:
    """The loop devices, in /sys, on what the function knows by its name."""
    found = []
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            if lies_on(backing.read_text().rstrip("\n")):
                found.append(backing.parent.parent)
    return found


def swap_places() -> Iterator[str]:
    """Files and devices that the kernel swaps to; a kernel that cannot swap has none."""
    try:
        lines = Path("/proc/swaps").read_text().splitlines()[1:]
    except FileNotFoundError:
        return
    for line in lines:
        yield line.split()[0].replace("\\040", " ")


def disks(path: str) -> frozenset[str]:
    """Numbers of the block devices that the file system at `path` is itself on, as far as that can be told from here; not of
    those further down.
    """
    mounted = mount_of(path)
    return frozenset(number for number in (mounted.device, *members_seen(mounted)) if (_BLOCK / number).exists())


def roots(path: str) -> dict[str, str]:
    """Numbers and names of the block devices that the file system at `path` is on at the bottom: below LVM, md, other mapped devices and
    partitions, and not below loop devices. OSError where that cannot be told.
    """
    mounted = mount_of(path)
    return _roots_of(mounted, members(mounted))


def roots_seen(mounted: Mounted) -> dict[str, str]:
    """As `roots`, of what is mounted there, as far as that can be told from here."""
    return _roots_of(mounted, members_seen(mounted))


def _roots_of(mounted: Mounted, devices: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number in (mounted.device, *devices):
        _roots(number, found)
    return found


def _roots(number: str, found: dict[str, str]) -> None:
    place = _BLOCK / number
    if (place / "partition").exists():
        _roots((place.resolve().parent / "dev").read_text().strip(), found)
        return
    slaves = [slave.read_text().strip() for slave in place.glob("slaves/*/dev")]
    for slave in slaves:
        _roots(slave, found)
    if not slaves and place.exists():
        found[number] = f"/dev/{place.resolve().name}"


def backing_file(path: str) -> str | None:
    """The image file that all of the file system at `path` lies in, by a loop device; None where there is none."""
    found = disks(path)
    backing = _BLOCK / next(iter(found), "none") / "loop" / "backing_file"
    if len(found) != 1 or not backing.exists():
        return None
    return backing.read_text().rstrip("\n")
