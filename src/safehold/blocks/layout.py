"""The files of a volume and what its record says."""

from __future__ import annotations

import enum
import os
from pathlib import Path

import msgspec

from safehold.model.errors import FailedError
from safehold.model.quiet import Quieted

__all__ = [
    "SECTOR",
    "Attempt",
    "Lineage",
    "Snapshot",
    "SnapshotState",
    "VolumeFiles",
    "VolumeRecord",
    "read_record",
    "sync_directory",
    "write_record",
]

SECTOR = 4096
"""Bytes; the page of memory and the unit in which file systems write."""

VERSION = 1


class SnapshotState(enum.StrEnum):
    """A snapshot is pending until its point is in the vault, or until it is known that it never will be."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


class Attempt(msgspec.Struct, frozen=True):
    """What a snapshot is once its vault has the object `name`: the point of that id, with that root of the volume, for which so many bytes were read
    and stored.
    """

    name: str
    point: str
    root: str
    read: int
    stored: int


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One seal that somebody asked for.

    `taken` is seconds since 1970 from when to when the gate was closed, `group` names the volumes sealed at the same instant,
    `point` the recovery point once there is one. `durable` is true once its content survives a power loss, `vouched` once whoever took
    it has said how still it was held: `quiet` are the brackets that did. `full` says that everything is compared. `attempt` is what it was
    last sent to the vault as; whether it came to be that, the vault knows.
    """

    id: str
    epoch: int
    taken: tuple[float, float]
    achieved: str
    asked: str
    state: SnapshotState = SnapshotState.PENDING
    group: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    point: str = ""
    problem: str = ""
    durable: bool = False
    vouched: bool = True
    quiet: tuple[Quieted, ...] = ()
    full: bool = False
    read: int = 0
    stored: int = 0
    attempt: Attempt | None = None


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the ids in the file `ids` are: of which point in which vault; `size` is the volume's length at that time, and `root` what all of them
    together come to, in hex.
    """

    vault: str
    point: str
    size: int
    domain: str = ""
    root: str = ""


class VolumeRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a volume is. `block` and `size` in bytes; `origin` is the point that it is filled in from, as RESOURCE@ID, or nothing.

    `suspect` says why the map of changes cannot be believed, so that the next snapshot compares everything. `deleted` is when it
    was put into the recycle bin, 0 for a volume in use. `failed` says how the disk below failed the volume, which is read-only from then on.
    """

    name: str
    uuid: str
    size: int
    block: int
    vault: str
    created: float
    version: int = VERSION
    origin: str = ""
    pin: str = ""
    lineage: Lineage | None = None
    suspect: str = ""
    snapshots: tuple[Snapshot, ...] = ()
    deleted: float = 0.0
    failed: str = ""

    @property
    def blocks(self) -> int:
        """Number of blocks, the last one possibly short."""
        return -(-self.size // self.block)

    @property
    def sectors(self) -> int:
        """Number of sectors of all blocks, the last one counted whole."""
        return self.blocks * (self.block // SECTOR)

    @property
    def pending(self) -> tuple[Snapshot, ...]:
        """Snapshots that have not reached the vault, oldest first."""
        return tuple(s for s in self.snapshots if s.state is SnapshotState.PENDING)


class VolumeFiles:
    """Names of the files in a volume's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = directory / "vol.json"
        self.data = directory / "data"
        self.live = directory / "live.map"
        self.states = directory / "states"
        self.sectors = directory / "sectors"
        self.checkpoint = directory / "ckpt.log"
        self.ids = directory / "ids"
        self.ids_delta = directory / "ids.delta"

    def dirty(self, epoch: int) -> Path:
        """The map of the blocks that an epoch changed."""
        return self.directory / f"dirty.{epoch}"

    def overlay(self, epoch: int) -> Path:
        """The redirected writes of an epoch."""
        return self.directory / f"ov.{epoch}"

    def overlay_sectors(self, epoch: int) -> Path:
        """Which sectors an overlay has."""
        return self.directory / f"ov.{epoch}.map"

    def epochs(self, prefix: str) -> list[int]:
        """Numbers of the files that are there for one prefix (`dirty` or `ov`), ascending."""
        found = []
        for name in os.listdir(self.directory):
            start, _, number = name.partition(".")
            if start == prefix and number.isdecimal():
                found.append(int(number))
        return sorted(found)

    def lone_maps(self) -> list[Path]:
        """Maps of overlays that are not there: what is left where the service was killed, or the power failed, while one was deleted."""
        overlays = {self.overlay_sectors(epoch) for epoch in self.epochs("ov")}
        return [path for path in self.directory.glob("ov.*.map") if path not in overlays]


def sync_directory(directory: Path) -> None:
    """Return when the names in a directory are durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_record(files: VolumeFiles, record: VolumeRecord) -> None:
    """Replace the record, durably and at once. msgspec.MsgspecError where it could not be read again, and the old one stays: with a record
    that cannot be read the volume would be lost.
    """
    encoded = msgspec.json.encode(record)
    msgspec.json.decode(encoded, type=VolumeRecord)
    fresh = files.record.with_suffix(".new")
    with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
        out.write(msgspec.json.format(encoded, indent=1))
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, files.record)
    sync_directory(files.directory)


def read_record(files: VolumeFiles) -> VolumeRecord:
    """FailedError where there is none that can be understood."""
    try:
        record = msgspec.json.decode(files.record.read_bytes(), type=VolumeRecord)
    except (OSError, msgspec.MsgspecError) as error:
        raise FailedError(
            f"the record of a volume cannot be read ({error})",
            on=str(files.record),
            remedy="its last completed snapshot can be restored: safehold restore NAME@latest --to volume:OTHER",
        ) from error
    if record.version > VERSION:
        raise FailedError(
            f"the volume was written by a newer safehold (version {record.version})",
            on=str(files.record),
            remedy="use that one",
        )
    return record
