"""A served volume as a block device of this machine, without a kernel that speaks NBD.

qemu-storage-daemon connects to the volume service and shows the volume as a file; a loop device makes a disk of it. When the service goes
away, requests wait in the daemon until it is back or the time is over; `nbdfuse` would end instead.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from safehold.model.errors import FailedError, UsageError

__all__ = ["Attachment", "attach", "attachments", "detach", "mount", "unmount"]

RECONNECT = 30
"""Seconds that requests wait for a service that went away, before the disk gives errors: longer than a restart, shorter than the kernel's
patience with a hung task.
"""

_PATIENCE = 10.0


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
    """What is attached; records of daemons that are gone are left out."""
    found = []
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            one = msgspec.json.decode(path.read_bytes(), type=Attachment)
            if _start(one.pid) == one.started:
                found.append(one)
    return found


def attach(directory: Path, socket: Path, volume: str) -> Attachment:
    """Make a device of a volume that is served on that socket. `directory` keeps the records, readable to their owner.

    UsageError where it is attached already or this cannot be done here, FailedError where a step fails; nothing stays half done.
    """
    for one in attachments(directory):
        if one.volume == volume:
            raise UsageError(f"the volume is attached already, as {one.device}", on=volume)
    _demand()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    file, pidfile = directory / f"{volume}.disk", directory / f"{volume}.pid"
    _unmount_stale(file)
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
        device = _run(["losetup", "--find", "--show", str(file)], f"volume {volume}").strip()
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    made = Attachment(volume, device, str(file), pid, _start(pid))
    _keep(directory, made)
    return made


def mount(directory: Path, attached: Attachment, place: str, options: str = "") -> Attachment:
    """Mount an attached volume. FailedError."""
    more = ["-o", options] if options else []
    _run(["mount", *more, attached.device, place], attached.volume)
    mounted = msgspec.structs.replace(attached, mount=os.path.abspath(place), options=options)
    _keep(directory, mounted)
    return mounted


def unmount(directory: Path, attached: Attachment) -> Attachment:
    """Unmount what was mounted with `mount`. FailedError while it is in use."""
    if attached.mount and os.path.ismount(attached.mount):
        _run(["umount", attached.mount], attached.volume)
    unmounted = msgspec.structs.replace(attached, mount="", options="")
    _keep(directory, unmounted)
    return unmounted


def detach(directory: Path, attached: Attachment) -> None:
    """Take the device away, unmounted before where Safehold mounted it. UsageError where something else holds it."""
    users = _mounted(attached.device)
    if users and users != [attached.mount]:
        raise UsageError(
            f"{attached.device} is mounted on {', '.join(users)}", on=attached.volume, remedy="unmount it first"
        )
    if attached.mount:
        attached = unmount(directory, attached)
    _run(["blockdev", "--flushbufs", attached.device], attached.volume)
    _run(["losetup", "--detach", attached.device], attached.volume)
    # The kernel lets go of a loop device behind; the daemon can be stopped only then.
    end = time.monotonic() + _PATIENCE
    while _backing(attached.device) == attached.file:
        if time.monotonic() > end:
            raise FailedError(
                "the device is still held by somebody", on=attached.device, remedy="see who: lsof " + attached.device
            )
        time.sleep(0.02)
    os.kill(attached.pid, signal.SIGTERM)
    while _start(attached.pid) == attached.started:
        if time.monotonic() > end:
            raise FailedError("the storage daemon does not end", on=f"process {attached.pid}", remedy="stop it by hand")
        time.sleep(0.02)
    (directory / f"{attached.volume}.json").unlink(missing_ok=True)
    Path(attached.file).unlink(missing_ok=True)


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


def _unmount_stale(file: Path) -> None:
    """What a daemon that was killed left mounted."""
    if any(line.split()[4] == str(file) for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        _run(["umount", "--lazy", str(file)], str(file))


def _keep(directory: Path, attached: Attachment) -> None:
    path = directory / f"{attached.volume}.json"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(attached))
    os.replace(fresh, path)


def _run(command: Sequence[str], on: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FailedError(
            f"{command[0]} failed: {said[-1] if said else f'exit code {done.returncode}'}",
            on=on,
            remedy="mend that and try again",
        )
    return done.stdout


def _mounted(device: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    return [line.split()[4] for line in lines if line.split()[2] == wanted]


def _backing(device: str) -> str:
    try:
        return Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    except OSError:
        return ""


def _start(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
