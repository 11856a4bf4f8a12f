"""A served volume as a loop device, without a kernel that speaks NBD.

qemu-storage-daemon connects to the volume service and shows the volume as a file; a loop device makes a disk of it. When the service goes
away, requests wait in the daemon until it is back or the time is over; `nbdfuse` would end instead.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Collection
from pathlib import Path

from safehold.adapters.linux.attachment import RECONNECT, Attachment, run_tool
from safehold.adapters.linux.holders import claimed, device_number
from safehold.adapters.linux.members import mounts_of
from safehold.adapters.linux.mounts import mounts
from safehold.adapters.linux.openers import processes
from safehold.model.errors import FailedError, UsageError

__all__ = ["LoopDevice", "end_daemon"]

_PATIENCE = 10.0
_AGAIN = 0.5
"""Seconds after which a daemon that is still there is told once more to end."""
_NEVER = -1
"""As the start of a process, where there is none."""


class LoopDevice:
    """See `attachment.Backing`."""

    def make(self, directory: Path, socket: Path, volume: str, turn: int) -> Attachment:
        """See `attachment.Backing`."""
        _demand()
        file, pidfile = directory / f"{volume}.disk", directory / f"{volume}.pid"
        self._end_left(directory, volume, turn)
        file.touch(mode=0o600)
        pidfile.unlink(missing_ok=True)
        node = (
            f"driver=nbd,node-name=v,server.type=unix,server.path={_comma(socket)},export={_comma(volume)},"
            f"reconnect-delay={RECONNECT}"
        )
        export = f"type=fuse,id=e,node-name=v,mountpoint={_comma(file)},writable=on"
        try:
            run_tool(
                [
                    "qemu-storage-daemon",
                    *("--blockdev", node, "--export", export, "--daemonize", "--pidfile", str(pidfile)),
                ],
                f"volume {volume}",
            )
        except FailedError:
            # No daemon came of it, so nothing shows in there.
            file.unlink(missing_ok=True)
            raise
        pid = int(pidfile.read_text())
        try:
            # Never with --direct-io: past the page cache the daemon's file gives back something else than was written.
            device = run_tool(["losetup", "--find", "--show", str(file)], f"volume {volume}", turn).strip()
        except BaseException:
            with contextlib.suppress(FailedError, OSError):
                end_daemon(pid, _start(pid), time.monotonic() + _PATIENCE)
                file.unlink()
            raise
        return Attachment(volume, device, str(file), pid, _start(pid))

    def left(self, directory: Path, volumes: Collection[str]) -> list[Attachment]:
        """See `attachment.Backing`."""
        devices: dict[str, list[str]] = {}
        for place in sorted(Path("/sys/block").glob("loop*")):
            devices.setdefault(_backing(place.name), []).append(f"/dev/{place.name}")
        found = []
        for volume in volumes:
            file, pidfile = directory / f"{volume}.disk", directory / f"{volume}.pid"
            shown = devices.get(str(file), [])
            # Only where something tells of it: looking for a daemon is looking at every process.
            pid = _daemon(pidfile) if shown or pidfile.exists() or os.path.lexists(file) else 0
            started = _start(pid) if pid else _NEVER
            if shown or pid:
                found += [Attachment(volume, device, str(file), pid, started) for device in shown or [""]]
        return found

    def _end_left(self, directory: Path, volume: str, turn: int) -> None:
        """What an attach or a daemon that was killed left: devices of the file, a daemon that is on no record, and the file as a mount. UsageError
        where a device is mounted, `holders.Held` where somebody has it: it was lost from the record, and is in use.
        """
        left = self.left(directory, [volume])
        for one in left:
            for mounted in mounts_of(device_number(one.device)):
                raise UsageError(
                    f"{one.device} is a device of the volume, mounted on {mounted.path}, and nothing of that is on record",
                    on=volume,
                    remedy=f"umount {mounted.path}, then safehold volume detach {volume}",
                )
        for one in left:
            self.take(one, turn)
        _unmount_file(directory / f"{volume}.disk", turn)

    def there(self, attached: Attachment) -> bool:
        """See `attachment.Backing`."""
        return _backing(attached.device) == attached.file

    def dead(self, attached: Attachment) -> bool:
        """See `attachment.Backing`: the daemon ended under the device."""
        return _start(attached.pid) != attached.started

    def take(self, attached: Attachment, turn: int) -> None:
        """See `attachment.Backing`."""
        dead = self.dead(attached)
        if self.there(attached):
            # What is open on a device that is dead stays open; the kernel takes any other away when its last user is gone.
            with contextlib.nullcontext() if dead else claimed(attached.device):
                run_tool(["losetup", "--detach", attached.device], attached.volume, turn)
        if dead:
            _unmount_file(Path(attached.file), turn)
        else:
            self._end_daemon_of(attached)
        Path(attached.file).unlink(missing_ok=True)

    def _end_daemon_of(self, attached: Attachment) -> None:
        # The kernel lets go of a loop device behind; the daemon can be stopped only then.
        end = time.monotonic() + _PATIENCE
        while self.there(attached):
            if time.monotonic() > end:
                raise FailedError(
                    "the device is still held by somebody",
                    on=attached.device,
                    remedy="see who: lsof " + attached.device,
                )
            time.sleep(0.02)
        end_daemon(attached.pid, attached.started, end)


def _demand() -> None:
    for program, package in (("qemu-storage-daemon", "qemu-system-common"), ("losetup", "mount")):
        if shutil.which(program) is None:
            raise UsageError(f"{program} is not installed", remedy=f"install the package {package}")
    if not os.path.exists("/dev/fuse"):
        raise UsageError("this kernel has no FUSE", remedy="load the module fuse")


def _comma(text: object) -> str:
    # What QEMU's option parser takes for a comma.
    return str(text).replace(",", ",,")


def _daemon(pidfile: Path) -> int:
    """The storage daemon that was told to write its number there; 0 where there is none. What was written may be lost, or be of another one."""
    word = str(pidfile).encode()
    for process in processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            if os.path.basename(words[0]) == b"qemu-storage-daemon" and word in words:
                return process
    return 0


def _unmount_file(file: Path, turn: int) -> None:
    """A daemon that was killed leaves its file as a mount."""
    if any(mounted.path == str(file) for mounted in mounts()):
        run_tool(["umount", "--lazy", str(file)], str(file), turn)


def end_daemon(pid: int, started: int, end: float) -> None:
    """Stop the storage daemon `pid`, that `started` at these ticks, and return when it is gone. FailedError where it is there still at `end`."""
    due = time.monotonic()
    while _start(pid) == started != 0:
        if (now := time.monotonic()) >= due:
            # More than once: QEMU only notes a signal, and sleeps over one that comes just before it waits for events.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            due = now + _AGAIN
        elif now > end:
            raise FailedError("the storage daemon does not end", on=f"process {pid}", remedy="stop it by hand")
        time.sleep(0.02)


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
