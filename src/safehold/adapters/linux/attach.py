"""Served volumes as block devices of this machine, each with a record: attached, mounted, unmounted, detached."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from safehold.adapters.linux.attachment import Attachment, Backing, Unsuitable, run_tool
from safehold.adapters.linux.holders import Held, demand_free, device_number
from safehold.adapters.linux.kernel_device import KernelDevice
from safehold.adapters.linux.loop_device import LoopDevice
from safehold.adapters.linux.members import mounts_of
from safehold.adapters.linux.mount_users import busy, demand_topmost
from safehold.adapters.linux.mounts import Mounted, mounts
from safehold.model.errors import FailedError, UsageError
from safehold.model.remembered import keep

__all__ = [
    "attach",
    "attachments",
    "dead",
    "demand_unused",
    "detach",
    "mount",
    "mounted_on",
    "unmount",
    "unreadable",
    "unrecorded",
]

_TURN = 60.0
"""Seconds that others who attach or detach are waited for."""


def _backing(attached: Attachment) -> Backing:
    return KernelDevice() if attached.backend else LoopDevice()


def attachments(directory: Path) -> list[Attachment]:
    """What is on record as attached, also where the device is `dead`; records of devices that are gone are left out, and `unreadable` ones."""
    found = []
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            one = msgspec.json.decode(path.read_bytes(), type=Attachment)
            if _backing(one).there(one):
                found.append(one)
    return found


def unreadable(directory: Path) -> dict[str, Path]:
    """Records that cannot be read, by their volumes."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            msgspec.json.decode(path.read_bytes(), type=Attachment)
        except FileNotFoundError:
            continue
        except (OSError, msgspec.MsgspecError):
            found[path.stem] = path
    return found


def unrecorded(directory: Path, volumes: Iterable[str]) -> list[Attachment]:
    """What is there of those volumes, and of all that the directory tells of, and is on no record: the record was lost, or whoever attached or
    detached was killed. Where only a daemon is left, its `device` is empty. Nothing while somebody is at it, who puts it on record.
    """
    try:
        lock = os.open(directory / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        recorded = {one.volume for one in attachments(directory)}
        told = {path.stem for path in directory.iterdir() if path.suffix in (".json", ".disk", ".pid")}
        wanted = sorted({*volumes, *told} - recorded)
        return [one for backing in (KernelDevice(), LoopDevice()) for one in backing.left(directory, wanted)]
    except OSError:
        return []
    finally:
        os.close(lock)


def dead(attached: Attachment) -> bool:
    """True where the device gives errors for ever: it can only be detached."""
    return _backing(attached).dead(attached)


def attach(directory: Path, socket: Path, volume: str) -> Attachment:
    """Make a device of a volume that is served on that socket. `directory` keeps the records, readable to their owner.

    UsageError where it is attached already or this cannot be done here, FailedError where a step fails; nothing stays half done.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _turn(directory) as turn:
        return _attach(directory, socket, volume, turn)


def _attach(directory: Path, socket: Path, volume: str, turn: int) -> Attachment:
    for one in attachments(directory):
        if one.volume == volume:
            raise UsageError(
                f"the volume is attached already, as {one.device}"
                + (", whose storage daemon is gone" if dead(one) else ""),
                on=volume,
                remedy=f"safehold volume detach {volume}",
            )
    if os.geteuid():
        raise UsageError(
            "making a block device needs root",
            remedy="use the NBD address that safehold volume show prints, with qemu or libnbd",
        )
    made = msgspec.structs.replace(_make(directory, socket, volume, turn), made=time.monotonic())
    try:
        _keep(directory, made)
    except BaseException:
        with contextlib.suppress(FailedError):
            _backing(made).take(made, turn)
        (directory / f"{volume}.json").unlink(missing_ok=True)
        raise
    return made


def _make(directory: Path, socket: Path, volume: str, turn: int) -> Attachment:
    if KernelDevice.usable(socket):
        with contextlib.suppress(Unsuitable):
            return KernelDevice().make(directory, socket, volume, turn)
    return LoopDevice().make(directory, socket, volume, turn)


def mount(directory: Path, attached: Attachment, place: str, options: str = "") -> Attachment:
    """Mount an attached volume. UsageError where something is mounted there, FailedError."""
    with _turn(directory) as turn:
        return _mount(directory, attached, place, options, turn)


def _mount(directory: Path, attached: Attachment, place: str, options: str, turn: int) -> Attachment:
    more = ["-o", options] if options else []
    # As the kernel's table of mounts has it.
    real = os.path.realpath(place)
    # It is there already where whoever mounted it was killed before that was on record.
    if _mounted_on(attached.device, real) is None:
        _demand_empty(real)
        run_tool(["mount", *more, attached.device, real], attached.volume, turn)
    mounted = msgspec.structs.replace(attached, mount=real, options=options)
    _keep(directory, mounted)
    return mounted


def unmount(directory: Path, attached: Attachment, place: str) -> Attachment:
    """Unmount what was mounted on `place` with `mount`, also where whoever mounted it was killed before that was on record. FailedError while
    it is in use.
    """
    with _turn(directory) as turn:
        return _unmount(directory, msgspec.structs.replace(attached, mount=place), turn)


def _unmount(directory: Path, attached: Attachment, turn: int) -> Attachment:
    unmounted = _let_go(attached, turn)
    _keep(directory, unmounted)
    return unmounted


def _let_go(attached: Attachment, turn: int) -> Attachment:
    """Unmount it where it is mounted; this is not on record then."""
    there = _mounted_on(attached.device, attached.mount)
    if there is not None:
        demand_topmost(there)
        # What is open on a device that is dead stays open, and need not be closed first.
        lazily = ["--lazy"] if dead(attached) else []
        try:
            run_tool(["umount", *lazily, attached.mount], attached.volume, turn)
        except FailedError as error:
            held = busy(there)
            if held is None:
                raise
            raise held from error
    return msgspec.structs.replace(attached, mount="", options="")


def detach(directory: Path, attached: Attachment) -> None:
    """Take the device away, unmounted before where Safehold mounted it; one that was killed on the way goes on. UsageError where it is mounted
    elsewhere too, `holders.Held` where somebody else has it: it is as it was then. A dead one is let go of, and is gone for good once nobody has
    anything open on it.
    """
    backing = _backing(attached)
    was = attached
    with _turn(directory) as turn:
        flush = False
        if backing.there(attached):
            gone = backing.dead(attached)
            _demand_ours(attached, "unmount it first: umount --lazy" if gone else "unmount it first")
            demand_unused(attached)
            # Put on record by what follows: a full disk must not keep the device.
            attached = _let_go(attached, turn)
            flush = not gone
        try:
            if flush:
                run_tool(["blockdev", "--flushbufs", attached.device], attached.volume, turn)
            backing.take(attached, turn)
        except Held:
            # Such as where another namespace has it mounted, which shows only when this one does not.
            if was.mount:
                _mount(directory, attached, was.mount, was.options, turn)
            raise
        except FailedError:
            _keep(directory, attached)
            raise
        (directory / f"{attached.volume}.json").unlink(missing_ok=True)


def demand_unused(attached: Attachment) -> None:
    """`holders.Held` where something is mounted over it, or somebody has the device besides who mounted it. A dead one is let go of
    whoever has it.
    """
    there = _mounted_on(attached.device, attached.mount)
    if there is not None:
        demand_topmost(there)
    number = device_number(attached.device)
    # A file system in user space is a program that has it open for as long as it is mounted; who else has, shows when it is not.
    by_program = any(mounted.device == number and mounted.type.startswith("fuse") for mounted in mounts())
    if not by_program and not dead(attached):
        demand_free(attached.device)


def _demand_ours(attached: Attachment, remedy: str) -> None:
    users = mounted_on(attached.device)
    if users and users != [attached.mount]:
        raise UsageError(f"{attached.device} is mounted on {', '.join(users)}", on=attached.volume, remedy=remedy)


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[int]:
    """One at a time attaches and detaches. What it runs inherits the lock: where it is killed, the next one waits for what is still under way.

    FailedError where that does not end.
    """
    lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + _TURN
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise FailedError(
                        "another attach or detach is at work and does not end",
                        on=str(directory / ".lock"),
                        remedy="see which: fuser -v " + str(directory / ".lock"),
                    ) from None
                time.sleep(0.05)
        yield lock
    finally:
        os.close(lock)


def _keep(directory: Path, attached: Attachment) -> None:
    keep(directory / f"{attached.volume}.json", msgspec.json.encode(attached))


def _demand_empty(place: str) -> None:
    """Whatever is mounted there would be hidden, and two that are mounted on one place cannot be told apart by it."""
    # What mounts by itself when it is looked at is there to be mounted over.
    taken = [mounted for mounted in mounts() if mounted.path == place and mounted.type != "autofs"]
    if taken:
        raise UsageError(
            f"{taken[-1].source} ({taken[-1].type}) is mounted there already",
            on=place,
            remedy="give another directory, or detach or unmount that first",
        )


def _mounted_on(device: str, place: str) -> Mounted | None:
    return next((mounted for mounted in mounts_of(device_number(device)) if mounted.path == place), None)


def mounted_on(device: str) -> list[str]:
    """Where a device is mounted."""
    return [mounted.path for mounted in mounts_of(device_number(device))]
