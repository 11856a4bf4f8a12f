"""Who has a disk, be it a device or an image file: where it is mounted, what lies on it, which programs have it open; and a claim that keeps all of
them away from a device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from safehold.adapters.linux.members import members_seen
from safehold.adapters.linux.mounts import Mounted, major_minor, mount_named, mount_of, mounts
from safehold.adapters.linux.namespaces import mounts_elsewhere
from safehold.adapters.linux.openers import command_of, file_writers, openers, processes
from safehold.adapters.linux.stack import is_device, loops_on, swap_places
from safehold.model.errors import FailedError

__all__ = [
    "Held",
    "Holder",
    "claimed",
    "demand_free",
    "device_holders",
    "device_number",
    "device_writers",
    "file_holders",
    "held_by",
]

_CLASS = Path("/sys/class/block")
_NUMBERED = Path("/sys/dev/block")
_BRIEFLY = 5.0
"""Seconds for which somebody may have it: whenever a device was written to, udev and LVM look at it."""
_LOOK = 0.1
_NAMED = 3
"""So many of those who have something are named."""
_UNSEEN = "something that cannot be seen from here has it for itself, perhaps a mount in another namespace"


@dataclass(frozen=True)
class Holder:
    """Somebody who has a disk: in words, and whether that somebody can write to it."""

    who: str
    writes: bool


class Held(FailedError):
    """Somebody else has the device. Nothing was done."""


def device_number(device: str) -> str:
    """`major:minor` of the device of that name, whatever lies where its node should be; nothing where there is none."""
    try:
        return (_CLASS / Path(device).name / "dev").read_text().strip()
    except OSError:
        return ""


def device_holders(path: str) -> list[Holder]:
    """Who has in use what a block device or a partition of it holds; OSError where there is none. A read-only mount is a holder that does not
    write; a program that can only read it is none.
    """
    number = major_minor(os.stat(path).st_rdev)
    numbers = {number: Path(path).name} | _numbers((_NUMBERED / number).resolve().name)
    here = _mounted_here(numbers)
    found = [_mount(mounted) for mounted in here] + _upon(numbers)
    found += _loop_holders(loops_on(lambda name: is_device(name, numbers)))
    servers = _servers(numbers)
    found += [_process(process) for process, writes in _openers(numbers) if writes and process not in servers]
    if _kept(path):
        # What is mounted here is so in the namespaces of many services too.
        seen = {number for mounted in here for number in _devices(mounted)}
        found += _mounted_elsewhere(numbers.keys() - seen)
        found = found or [Holder(_UNSEEN, True)]
    return found


def file_holders(path: str) -> list[Holder]:
    """Users of an image file that can be seen: loop devices on it, and processes that have it open for writing."""
    return [*_loop_holders(_loops_on_file(path)), *(_process(process) for process in file_writers(path))]


def device_writers(numbers: Container[str]) -> list[int]:
    """Processes but this one that have one of these devices (`major:minor`) open for writing."""
    return [process for process, writes in _openers(numbers) if writes]


def demand_free(device: str) -> None:
    """Held where something lies on the device or a partition of it, or somebody has one of them open. Mounts are not looked at."""
    users = _users(device)
    end = time.monotonic() + _BRIEFLY
    while users and time.monotonic() < end:
        time.sleep(_LOOK)
        users = _users(device)
    if users:
        raise held_by(users, "device", device)


@contextlib.contextmanager
def claimed(device: str) -> Iterator[None]:
    """Inside, nobody can mount the device or put something on top of it (open(2), O_EXCL). Held where somebody has.

    Where the device has no node, nobody can come by it either.
    """
    demand_free(device)
    end = time.monotonic() + _BRIEFLY
    while True:
        try:
            line = _claim(device)
            break
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                yield
                return
            if error.errno != errno.EBUSY:
                raise FailedError(f"it cannot be opened ({error.strerror})", on=device, remedy="see dmesg") from error
            if time.monotonic() > end:
                numbers = _numbers(Path(device).name)
                mounted = [_mount(one) for one in _mounted_here(numbers)] or _mounted_elsewhere(numbers.keys())
                users = [*(holder.who for holder in mounted), *_users(device)]
                raise held_by(users or [_UNSEEN], "device", device) from None
        time.sleep(_LOOK)
    try:
        yield
    finally:
        os.close(line)


def _claim(device: str) -> int:
    return os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)


def _kept(device: str) -> bool:
    """Whether the kernel keeps others from having it, or a partition of it, for themselves: it is mounted somewhere, or part of something larger."""
    try:
        os.close(_claim(device))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def held_by(users: Sequence[str], what: str, on: str) -> Held:
    """What to tell of something that is in use; a few of the users are named."""
    more = f", and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
    return Held(
        f"the {what} is in use: {'; '.join(users[:_NAMED])}{more}",
        on=on,
        remedy="nothing was changed; stop what uses it, and try again",
    )


def _users(device: str) -> list[str]:
    """Whoever has the device besides mounts, those who only read it included: it is about to be taken from them."""
    numbers = _numbers(Path(device).name)
    found = [holder.who for holder in _upon(numbers)]
    found += [f"/dev/{block.name} lies on it" for block in loops_on(lambda name: is_device(name, numbers))]
    return found + [_process(process).who for process, _ in _openers(numbers)]


def _numbers(name: str) -> dict[str, str]:
    """Names of a device and its partitions, by `major:minor`."""
    names = [name, *(part.parent.name for part in (_CLASS / name).glob("*/partition"))]
    return {number: one for one in names if (number := device_number(one))}


def _mount(mounted: Mounted) -> Holder:
    read_only = "ro" in mounted.options
    who = f"mounted on {mounted.path}" + (" (read-only)" if read_only else "")
    return Holder(who, not (read_only and "ro" in mounted.super_options))


def _mounted_here(numbers: dict[str, str]) -> list[Mounted]:
    return [mounted for mounted in mounts() if _devices(mounted) & numbers.keys()]


def _devices(mounted: Mounted) -> frozenset[str]:
    """Numbers of what is mounted here, and on btrfs, which shows another, of its devices."""
    return _shown(mounted) | (members_seen(mounted) if mounted.type == "btrfs" else frozenset())


def _shown(mounted: Mounted) -> frozenset[str]:
    """Numbers by which the table of mounts tells what the file system lies on: its own, and its source's."""
    # Nothing else is a device, and what else is named as a source may hang when it is looked at.
    if mounted.source.startswith("/dev/"):
        with contextlib.suppress(OSError):
            info = os.stat(mounted.source)
            if stat.S_ISBLK(info.st_mode):
                return frozenset([mounted.device, major_minor(info.st_rdev)])
    return frozenset([mounted.device])


def _mounted_elsewhere(numbers: Set[str]) -> list[Holder]:
    """Where it is mounted in other namespaces, of which a process can be seen: once for each."""
    found = []
    for process, there in mounts_elsewhere():
        # The path leads elsewhere from here.
        mounted = next((one for one in there if _shown(one) & numbers), None)
        if mounted:
            holder = _mount(mounted)
            who = f"process {process} ({command_of(process)}) sees it {holder.who}, in another namespace"
            found.append(Holder(who, holder.writes))
    return found


def _upon(numbers: dict[str, str]) -> list[Holder]:
    """Devices that the kernel has made upon it, and swap."""
    found = [
        Holder(f"{_title(holder)} lies on {name}", True)
        for name in numbers.values()
        for holder in sorted((_CLASS / name).glob("holders/*"))
    ]
    for place in swap_places():
        with contextlib.suppress(OSError):
            if is_device(place, numbers):
                found.append(Holder(f"the kernel swaps to {place}", True))
    return found


def _title(holder: Path) -> str:
    """What an administrator calls a device that lies on another: LVM and other mapped devices have a name of their own."""
    with contextlib.suppress(OSError):
        return f"/dev/mapper/{(holder / 'dm' / 'name').read_text().strip()}"
    return f"/dev/{holder.name}"


def _loops_on_file(path: str) -> list[Path]:
    wanted, device = os.stat(path), mount_of(path).device

    def lies_on(name: str) -> bool:
        mounted = mount_named(name)
        # What lies on another file system is another file, and that file system may hang.
        return mounted is not None and mounted.device == device and os.path.samestat(os.stat(name), wanted)

    return loops_on(lies_on)


def _loop_holders(blocks: Iterable[Path]) -> Iterator[Holder]:
    """Who uses loop devices. One that cannot be written to and that nobody uses is no holder."""
    for block in blocks:
        numbers = _numbers(block.name)
        read_only = _text(block / "ro") == "1"
        users = [_mount(mounted) for mounted in _mounted_here(numbers)] + _upon(numbers)
        for user in users:
            yield Holder(f"/dev/{block.name}, {user.who}", user.writes and not read_only)
        if not users and not read_only:
            yield Holder(f"/dev/{block.name} lies on it", True)


def _openers(numbers: Container[str]) -> Iterator[tuple[int, bool]]:
    return openers(lambda place: is_device(os.readlink(place), numbers, place))


def _servers(numbers: dict[str, str]) -> set[int]:
    """Processes that the devices come from: `qemu-nbd` and `nbd-client` may have an nbd device open for as long as there is one."""
    threads = {told for name in numbers.values() if (told := _text(_CLASS / name / "pid"))}
    return {
        process for thread in threads for process in processes() if os.path.exists(f"/proc/{process}/task/{thread}")
    }


def _process(process: int) -> Holder:
    return Holder(f"process {process} ({command_of(process)}) has it open", True)


def _text(path: Path) -> str:
    """What the kernel tells there; nothing where it does not."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
