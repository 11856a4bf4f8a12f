"""A served volume as a block device of this machine, without a kernel that speaks NBD.

qemu-storage-daemon connects to the volume service and shows the volume as a file; a loop device makes a disk of it. When the service goes
away, requests wait in the daemon until it is back or the time is over; `nbdfuse` would end instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from safehold.adapters.linux.mounts import mounts
from safehold.model.errors import FailedError, UsageError

__all__ = ["Attachment", "attach", "attachments", "dead", "detach", "mount", "unmount"]

RECONNECT = 30
"""Seconds that requests wait for a service that went away, before the disk gives errors: longer than a restart, shorter than the kernel's
patience with a hung task.
"""

_PATIENCE = 10.0
_TURN = 60.0
"""Seconds that others who attach or detach are waited for."""


class Attachment(msgspec.Struct, frozen=True):
    """A volume and the device it is; `mount` is where Safehold mounted it, `options` how. `pid` and `started` name the daemon for good."""

    volume: str
    device: str
    file: str
    pid: int
    started: int
    mount: str = ""
    options: str = ""


def attachments(directory: Path) -> list[Attachment]:
    """What is attached, also where its daemon is gone and the device is `dead`; records of devices that are gone are left out."""
    found = []
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            one = msgspec.json.decode(path.read_bytes(), type=Attachment)
            if _backing(one.device) == one.file:
                found.append(one)
    return found


def dead(attached: Attachment) -> bool:
    """True where the daemon ended under the device, which gives errors for ever: it can only be detached."""
    return _start(attached.pid) != attached.started


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
    _demand()
    file, pidfile = directory / f"{volume}.disk", directory / f"{volume}.pid"
    _end_stale(file, pidfile, turn)
    file.touch(mode=0o600)
    pidfile.unlink(missing_ok=True)
    node = f"driver=nbd,node-name=v,server.type=unix,server.path={_comma(socket)},export={_comma(volume)},reconnect-delay={RECONNECT}"
    export = f"type=fuse,id=e,node-name=v,mountpoint={_comma(file)},writable=on"
    _run(
        ["qemu-storage-daemon", "--blockdev", node, "--export", export, "--daemonize", "--pidfile", str(pidfile)],
        f"volume {volume}",
    )
    pid = int(pidfile.read_text())
    try:
        # Never with --direct-io: past the page cache the daemon's file gives back something else than was written.
        device = _run(["losetup", "--find", "--show", str(file)], f"volume {volume}", turn).strip()
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    made = Attachment(volume, device, str(file), pid, _start(pid))
    _keep(directory, made)
    return made


def mount(directory: Path, attached: Attachment, place: str, options: str = "") -> Attachment:
    """Mount an attached volume. FailedError."""
    more = ["-o", options] if options else []
    with _turn(directory) as turn:
        # It is there already where whoever mounted it was killed before that was on record.
        if os.path.abspath(place) not in _mounted(attached.device):
            _run(["mount", *more, attached.device, place], attached.volume, turn)
        mounted = msgspec.structs.replace(attached, mount=os.path.abspath(place), options=options)
        _keep(directory, mounted)
    return mounted


def unmount(directory: Path, attached: Attachment, place: str) -> Attachment:
    """Unmount what was mounted on `place` with `mount`, also where whoever mounted it was killed before that was on record. FailedError while
    it is in use.
    """
    with _turn(directory) as turn:
        return _unmount(directory, msgspec.structs.replace(attached, mount=place), turn)


def _unmount(directory: Path, attached: Attachment, turn: int) -> Attachment:
    if attached.mount and attached.mount in _mounted(attached.device):
        # What is open on a device that is dead stays open, and need not be closed first.
        lazily = ["--lazy"] if dead(attached) else []
        _run(["umount", *lazily, attached.mount], attached.volume, turn)
    unmounted = msgspec.structs.replace(attached, mount="", options="")
    _keep(directory, unmounted)
    return unmounted


def detach(directory: Path, attached: Attachment) -> None:
    """Take the device away, unmounted before where Safehold mounted it; one that was killed on the way goes on. UsageError where something else
    holds it. A dead one is let go of, and is gone for good once nobody has anything open on it.
    """
    with _turn(directory) as turn:
        if dead(attached):
            _take_dead(directory, attached, turn)
            return
        if _backing(attached.device) == attached.file:
            _take_device(directory, attached, turn)
        # The kernel lets go of a loop device behind; the daemon can be stopped only then.
        end = time.monotonic() + _PATIENCE
        while _backing(attached.device) == attached.file:
            if time.monotonic() > end:
                raise FailedError(
                    "the device is still held by somebody",
                    on=attached.device,
                    remedy="see who: lsof " + attached.device,
                )
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(attached.pid, signal.SIGTERM)
        _wait_for_end(attached.pid, attached.started, end)
        (directory / f"{attached.volume}.json").unlink(missing_ok=True)
        Path(attached.file).unlink(missing_ok=True)


def _take_device(directory: Path, attached: Attachment, turn: int) -> None:
    _demand_ours(attached, "unmount it first")
    if attached.mount:
        attached = _unmount(directory, attached, turn)
    _run(["blockdev", "--flushbufs", attached.device], attached.volume, turn)
    _run(["losetup", "--detach", attached.device], attached.volume, turn)


def _take_dead(directory: Path, attached: Attachment, turn: int) -> None:
    if _backing(attached.device) == attached.file:
        _demand_ours(attached, "unmount it first: umount --lazy")
        _unmount(directory, attached, turn)
        _run(["losetup", "--detach", attached.device], attached.volume, turn)
    _unmount_file(Path(attached.file), turn)
    (directory / f"{attached.volume}.json").unlink(missing_ok=True)
    Path(attached.file).unlink(missing_ok=True)


def _demand_ours(attached: Attachment, remedy: str) -> None:
    users = _mounted(attached.device)
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


def _demand() -> None:
    if os.geteuid():
        raise UsageError(
            "making a block device needs root",
            remedy="use the NBD address that safehold volume show prints, with qemu or libnbd",
        )
    for program, package in (("qemu-storage-daemon", "qemu-system-common"), ("losetup", "mount")):
        if shutil.which(program) is None:
            raise UsageError(f"{program} is not installed", remedy=f"install the package {package}")
    if not os.path.exists("/dev/fuse"):
        raise UsageError("this kernel has no FUSE", remedy="load the module fuse")


def _comma(text: object) -> str:
    # What QEMU's option parser takes for a comma.
    return str(text).replace(",", ",,")


def _end_stale(file: Path, pidfile: Path, turn: int) -> None:
    """What an attach or a daemon that was killed left: devices of the file, a daemon that is on no record, and the file as a mount."""
    for device in Path("/sys/block").glob("loop*"):
        if _backing(device.name) == str(file):
            _run(["losetup", "--detach", f"/dev/{device.name}"], device.name, turn)
    with contextlib.suppress(OSError, ValueError):
        pid = int(pidfile.read_text())
        if str(pidfile).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGTERM)
            _wait_for_end(pid, _start(pid), time.monotonic() + _PATIENCE)
    _unmount_file(file, turn)


def _unmount_file(file: Path, turn: int) -> None:
    """A daemon that was killed leaves its file as a mount."""
    if any(mounted.path == str(file) for mounted in mounts()):
        _run(["umount", "--lazy", str(file)], str(file), turn)


def _wait_for_end(pid: int, started: int, end: float) -> None:
    while _start(pid) == started != 0:
        if time.monotonic() > end:
            raise FailedError("the storage daemon does not end", on=f"process {pid}", remedy="stop it by hand")
        time.sleep(0.02)


def _keep(directory: Path, attached: Attachment) -> None:
    path = directory / f"{attached.volume}.json"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(attached))
    os.replace(fresh, path)


def _run(command: Sequence[str], on: str, *keep: int) -> str:
    """Its output. `keep` are descriptors that it holds for as long as it lives."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, pass_fds=keep)
    if done.returncode:
        # The first line is the reason; what follows, with mount(8), is where to read on.
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FailedError(
            f"{command[0]} failed: {said[0].strip() if said else f'exit code {done.returncode}'}",
            on=on,
            remedy="mend that and try again",
        )
    return done.stdout


def _mounted(device: str) -> list[str]:
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    return [mounted.path for mounted in mounts() if mounted.device == wanted]


def _backing(device: str) -> str:
    try:
        return Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    except OSError:
        return ""


def _start(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none, or one that has ended and that nobody has waited for."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if told[0] in "ZX" else int(told[19])
