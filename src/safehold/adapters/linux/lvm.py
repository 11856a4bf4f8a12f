"""Snapshots of logical volumes, by LVM's own programs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from safehold.model.context import Context
from safehold.model.environment import plain_environment
from safehold.model.errors import ConsistencyError, FailedError, SafeholdError

__all__ = ["LogicalVolume", "LvmSnapshot", "is_logical_volume", "logical_volume", "lvm_snapshot"]

_PATIENCE = 120.0
"""Seconds for one of LVM's programs: another one that runs keeps it waiting."""

_SHARE = 4
"""A snapshot gets room for changes of one part in so many of its volume, or all that its group has left."""

_OWNER = "safehold.owner="
_FIELDS = "vg_name,lv_name,lv_kernel_major,lv_kernel_minor,lv_size,segtype,origin,lv_tags,lv_attr,vg_free,vg_extent_size,data_percent"


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """One that is active. `size`, `free` (in its group, for snapshots) and `extent` in bytes; a `thin` one shares the free space of its pool."""

    group: str
    name: str
    size: int
    thin: bool
    free: int
    extent: int

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


class LvmSnapshot:
    """A logical volume as it was at one instant. `path` is its device; `room` the bytes of changes that it survives, 0 where its pool decides."""

    def __init__(self, group: str, name: str, room: int) -> None:
        self.path = f"/dev/{group}/{name}"
        self.room = room
        self._spec = f"{group}/{name}"

    def check(self) -> None:
        """Make sure that it has been what it was until now. ConsistencyError where the changes were more than it has room for."""
        rows = _report(self._spec)
        # The fifth attribute is I or S once a snapshot is invalid: lvs(8).
        if not rows or rows[0]["lv_attr"][4] in "IS" or (self.room and float(rows[0]["data_percent"] or 100) >= 100):
            raise ConsistencyError(
                f"more was written to it during the backup than its LVM snapshot has room for ({self.room >> 20} MiB)",
                on=self._spec,
                remedy="leave more free space in its volume group (vgs), or back up when less is written; what was uploaded is reused",
            )


def is_logical_volume(path: str) -> bool:
    """Whether a block device is one of LVM's, as the kernel tells it."""
    number = os.stat(path).st_rdev
    try:
        told = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/dm/uuid").read_text()
    except OSError:
        return False
    return told.startswith("LVM-")


def logical_volume(path: str) -> LogicalVolume:
    """The logical volume that a device is, by whatever name. FailedError where LVM does not know it or cannot be asked."""
    number = os.stat(path).st_rdev
    wanted = (str(os.major(number)), str(os.minor(number)))
    for row in _report():
        if (row["lv_kernel_major"], row["lv_kernel_minor"]) == wanted:
            return LogicalVolume(
                row["vg_name"],
                row["lv_name"],
                int(row["lv_size"]),
                row["segtype"] == "thin",
                int(row["vg_free"]),
                int(row["vg_extent_size"]),
            )
    raise FailedError("LVM does not know this device", on=path, remedy="see what lvs and dmsetup ls say of it")


@contextlib.contextmanager
def lvm_snapshot(volume: LogicalVolume, ctx: Context) -> Iterator[LvmSnapshot]:
    """A read-only snapshot, removed in the end. What killed backups of this volume left is removed before. FailedError where it cannot be made.

    Device mapper freezes a file system that is mounted from the volume for the moment in which it is made.
    """
    _sweep(volume, ctx)
    name = f"safehold-{uuid.uuid4().hex[:12]}"
    command = ["lvcreate", "--quiet", "--yes", "--snapshot", "--permission", "r", "--addtag", _OWNER + _owner()]
    room = 0 if volume.thin else _room(volume)
    if volume.thin:
        # Thin snapshots are left inactive unless this is said.
        command += ["--setactivationskip", "n"]
    else:
        command += ["--size", f"{room}b"]
    _run([*command, "--name", name, str(volume)], str(volume))
    try:
        yield LvmSnapshot(volume.group, name, room)
    finally:
        try:
            _remove(f"{volume.group}/{name}")
        except SafeholdError as error:
            # Not worth a backup: the next one of this volume removes it.
            ctx.progress.warn(f"{volume.group}/{name} is left behind: {error}")


def _room(volume: LogicalVolume) -> int:
    free = volume.free // volume.extent * volume.extent
    if not free:
        raise FailedError(
            "its volume group has no free space for a snapshot",
            on=str(volume),
            remedy=f"leave some: lvreduce another volume, or vgextend {volume.group}; a few percent of the volume do",
        )
    wanted = -(-volume.size // _SHARE // volume.extent) * volume.extent
    return min(free, max(wanted, volume.extent))


def _sweep(volume: LogicalVolume, ctx: Context) -> None:
    for row in _report(volume.group):
        owners = [tag.removeprefix(_OWNER) for tag in row["lv_tags"].split(",") if tag.startswith(_OWNER)]
        if row["origin"] == volume.name and owners and not _alive(owners[0]):
            left = f"{row['vg_name']}/{row['lv_name']}"
            try:
                _remove(left)
            except SafeholdError as error:
                ctx.progress.warn(f"{left}, which a backup left behind, cannot be removed: {error}")
            else:
                ctx.progress.note(f"{left} removed: the backup that it belonged to is gone")


def _remove(spec: str) -> None:
    _run(["lvremove", "--quiet", "--yes", "--force", spec], spec)


# -- whose a snapshot is -------------------------------------------------------------------------------------------------


def _owner() -> str:
    """This process, in characters that a tag may have: the machine, its boot, the number, and when it started."""
    return f"{_machine()}.{_boot()}.{os.getpid()}.{_started(os.getpid())}"


def _alive(owner: str) -> bool:
    """Whether a snapshot's owner may still be at work; another machine's always is."""
    machine, boot, pid, started = (owner.split(".") + [""] * 4)[:4]
    if machine != _machine():
        return True
    return boot == _boot() and pid.isdigit() and _started(int(pid)) == started


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or "none"
    except OSError:
        return "none"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


# -- LVM's programs ------------------------------------------------------------------------------------------------------


def _report(spec: str = "") -> list[Mapping[str, str]]:
    """What lvs(8) says of a volume, of all in a group, or of all."""
    command = ["lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", _FIELDS]
    said = _run([*command, *([spec] if spec else [])], spec or "LVM")
    try:
        report: list[Mapping[str, str]] = msgspec.json.decode(said)["report"][0]["lv"]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        raise FailedError(f"lvs says something that is no report ({error})", on=spec or "LVM") from error
    return report


def _run(command: Sequence[str], on: str) -> str:
    theirs = {name: value for name, value in os.environ.items() if name.startswith(("LVM_", "DM_"))}
    environment = plain_environment(os.environ) | theirs | {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE
        )
    except OSError as error:
        raise FailedError(
            f"{command[0]} cannot be run ({error.strerror})", on=on, remedy="install lvm2, and run as root"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise FailedError(
            f"{command[0]} did not end within {_PATIENCE:g} s", on=on, remedy="see what else holds LVM's lock"
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FailedError(f"{command[0]}: {lines[-1].strip()}", on=on, remedy="mend that, or run as root")
    return done.stdout
