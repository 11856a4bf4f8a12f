"""All volumes of a machine: made, opened, sealed, resized and deleted, and offered to clients."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from safehold.blocks.epochs import Epochs, seal_together
from safehold.blocks.ids import BlockIds
from safehold.blocks.layers import PRESENT
from safehold.blocks.layout import (
    Lineage,
    Snapshot,
    SnapshotState,
    VolumeFiles,
    VolumeRecord,
    read_record,
    sync_directory,
    write_record,
)
from safehold.blocks.opening import close_volume, create_volume, grow_volume, open_volume
from safehold.blocks.volume import LiveVolume
from safehold.model.clock import Clock
from safehold.model.errors import FailedError, UsageError
from safehold.model.quiet import Quieted
from safehold.ports.export import Export

__all__ = ["HeldVolume", "VolumeDirectory", "check_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DELETED = "deleted"
_NOT_WRITTEN = "the disk below failed to write before the snapshot was on it"
_KEPT_SNAPSHOTS = 100
"""Finished snapshots that a record remembers; the vault has their points."""


def check_name(name: str) -> None:
    """UsageError where a volume cannot be called that."""
    if not _NAME.fullmatch(name) or name == _DELETED:
        raise UsageError(
            "a volume cannot be called that",
            on=name,
            remedy="use up to 64 letters, digits, dots, dashes and underscores, the first a letter or digit",
        )


def _report(held: HeldVolume | None, problem: str) -> None:
    if held is not None:
        held.told(problem)


class HeldVolume:
    """One open volume, its record, and who uses it. `problem` says what an operator should know, or nothing."""

    def __init__(self, directory: Path, boot: str) -> None:
        """FailedError where it cannot be opened."""
        self.files = VolumeFiles(directory)
        self.record = read_record(self.files)
        self.problem = ""
        self.clients = 0
        self._changing = threading.Lock()
        # Not bound to this object: in a circle nothing is closed before the garbage collector comes along.
        mine = weakref.ref(self)
        opened = open_volume(directory, self.record, boot, lambda problem: _report(mine(), problem))
        self.volume: LiveVolume = opened.volume
        self.epochs: Epochs = opened.epochs
        self.ids = BlockIds(self.files)
        if self.record.lineage:
            self.ids.adopt(self.record.lineage.point)
        if self.volume.read_only:
            self.told(self.record.failed or opened.suspect)
        elif opened.suspect:
            self.update(suspect=opened.suspect)
            self.problem = opened.suspect
        self._reconcile()

    @property
    def name(self) -> str:
        """What it is called."""
        return self.record.name

    def told(self, problem: str) -> None:
        """The volume says what an operator should know. That its disk failed it is on record, and stands before all else."""
        self.problem = self.record.failed or problem
        if self.volume.read_only and not self.record.failed:
            # Such a disk may not take this either; `live.map` says it too.
            with contextlib.suppress(OSError):
                self.update(failed=problem, suspect=problem)

    def update(self, **changes: object) -> None:
        """Change the record, durably. OSError, and nothing has changed then."""
        with self._changing:
            self._replace(msgspec.structs.replace(self.record, **changes))

    def _replace(self, record: VolumeRecord) -> None:
        write_record(self.files, record)
        self.record = record

    def change_snapshot(self, identity: str, lineage: Lineage | None = None, **changes: object) -> Snapshot:
        """Change what the record says of one snapshot, and of the lineage where there is another, durably; returns the snapshot."""
        with self._changing:
            return self._change_snapshot(identity, lineage, changes)

    def vouch(self, identity: str, achieved: str, quiet: tuple[Quieted, ...]) -> Snapshot:
        """Somebody says how still a snapshot was held; returns it. One that is not pending stays as it is."""
        with self._changing:
            snapshot = next(one for one in self.record.snapshots if one.id == identity)
            if snapshot.state is not SnapshotState.PENDING:
                return snapshot
            return self._change_snapshot(identity, None, {"vouched": True, "achieved": achieved, "quiet": quiet})

    def _change_snapshot(self, identity: str, lineage: Lineage | None, changes: dict[str, object]) -> Snapshot:
        all_of_them = tuple(
            msgspec.structs.replace(one, **changes) if one.id == identity else one for one in self.record.snapshots
        )
        done = [one for one in all_of_them if one.state is not SnapshotState.PENDING][:-_KEPT_SNAPSHOTS]
        kept = tuple(one for one in all_of_them if one not in done)
        self._replace(msgspec.structs.replace(self.record, snapshots=kept, lineage=lineage or self.record.lineage))
        return next(one for one in all_of_them if one.id == identity)

    def _reconcile(self) -> None:
        """Bring snapshots and epochs together after whatever came between."""
        pending = {one.epoch: one for one in self.record.pending}
        for one in pending.values():
            if one.epoch not in self.epochs.open:
                self.change_snapshot(
                    one.id,
                    state=SnapshotState.FAILED,
                    problem="the machine went down before the snapshot was on its disk; take another",
                )
            elif self.volume.read_only and not one.durable:
                self.change_snapshot(one.id, state=SnapshotState.FAILED, problem=_NOT_WRITTEN)
        if self.volume.read_only:
            return
        for epoch in list(self.epochs.open):
            if epoch not in pending:
                done = any(s.epoch == epoch and s.state is SnapshotState.COMPLETED for s in self.record.snapshots)
                # A seal that nobody recorded belongs to nobody; a completed one only has to be let go of.
                self.epochs.drop(epoch) if done else self.epochs.give_up(epoch)
        self.epochs.fold()

    def settle(self, snapshot: Snapshot) -> None:
        """Have a pending snapshot survive a power loss. OSError where it does not; on a volume that its disk has failed it is none then."""
        try:
            self.epochs.settle(snapshot.epoch)
        except OSError:
            if self.volume.read_only:
                self.fail_snapshot(snapshot, _NOT_WRITTEN, compare=False)
            raise
        self.change_snapshot(snapshot.id, durable=True)

    def fail_snapshot(self, snapshot: Snapshot, problem: str, *, compare: bool) -> None:
        """A pending snapshot will never be a point; with `compare` the next one reads everything. OSError."""
        if compare:
            # First: whoever sees that it failed takes another at once, and that one is to compare everything.
            self.update(suspect=problem)
        self.change_snapshot(snapshot.id, state=SnapshotState.FAILED, problem=problem)
        if not self.volume.read_only:
            self.epochs.give_up(snapshot.epoch)

    def complete_snapshot(self, identity: str, lineage: Lineage, *, read: int, stored: int) -> None:
        """The oldest pending snapshot has become the point of that lineage. OSError; what is left is done by another call then."""
        snapshot = next((one for one in self.record.snapshots if one.id == identity), None)
        if snapshot is None:
            return
        if snapshot.state is SnapshotState.PENDING:
            self.ids.keep(lineage.point)
            self.change_snapshot(
                identity,
                lineage,
                state=SnapshotState.COMPLETED,
                point=lineage.point,
                read=read,
                stored=stored,
                problem="",
            )
        self.ids.adopt(lineage.point)
        if self.volume.read_only:
            return
        if snapshot.epoch in self.epochs.open:
            self.epochs.drop(snapshot.epoch)
        else:
            self.epochs.fold()

    @property
    def missing(self) -> int:
        """Blocks that are not all here."""
        states = self.volume.maps.states
        return states.length - states.cells[: states.length].count(PRESENT)


class VolumeDirectory:
    """The volumes below one directory; one process at a time has it. Offers them as `ports.export.ExportDirectory`."""

    def __init__(self, root: Path, boot: str, clock: Clock) -> None:
        """FailedError where another process has them. Volumes that cannot be opened are in `broken`, with why."""
        self.root = root
        self._boot, self._clock = boot, clock
        self._lock = threading.RLock()
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._claim = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedError(
                "another process serves the volumes", on=str(root), remedy="use that one, or stop it first"
            ) from None
        except OSError as error:
            raise FailedError(
                f"volumes cannot be kept here ({error.strerror})", on=str(root), remedy="check the directory"
            ) from error
        self.broken: dict[str, FailedError] = {}
        self._making: set[str] = set()
        self._volumes: dict[str, HeldVolume] = {}
        for directory in sorted(root.iterdir()):
            if directory.is_dir() and not directory.name.startswith(".") and directory.name != _DELETED:
                try:
                    self._volumes[directory.name] = HeldVolume(directory, boot)
                except FailedError as error:
                    self.broken[directory.name] = error
                except OSError as error:
                    self.broken[directory.name] = FailedError(
                        f"the volume cannot be opened ({error.strerror})",
                        on=str(error.filename or directory),
                        remedy="see that the disk below has room and can be written to, and restart the service",
                    )

    def close(self) -> None:
        """Put all volumes away in order; what is pending goes on the next time."""
        with self._lock:
            for held in self._volumes.values():
                # One that cannot be put away says so itself; its maps count as after a crash.
                with contextlib.suppress(OSError):
                    close_volume(held.volume, held.epochs)
            self._volumes = {}
            os.close(self._claim)

    # -- for clients -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """See `ports.export.ExportDirectory`."""
        with self._lock:
            return sorted(self._volumes)

    def open(self, name: str) -> Export | None:
        """See `ports.export.ExportDirectory`."""
        with self._lock:
            held = self._volumes.get(name)
            if held is None:
                return None
            held.clients += 1
            return held.volume

    def release(self, name: str) -> None:
        """See `ports.export.ExportDirectory`."""
        with self._lock:
            held = self._volumes.get(name)
            if held is not None:
                held.clients -= 1

    # -- for operators -----------------------------------------------------------------------------------------------

    def all(self) -> list[HeldVolume]:
        """Every volume, by name."""
        with self._lock:
            return [self._volumes[name] for name in sorted(self._volumes)]

    def get(self, name: str) -> HeldVolume:
        """UsageError where there is none, FailedError where it could not be opened."""
        with self._lock:
            if name in self.broken:
                raise self.broken[name]
            if name not in self._volumes:
                there = ", ".join(sorted(self._volumes)) or "none yet: safehold volume create NAME --size 10G"
                raise UsageError("no such volume", on=name, remedy=f"there are {there}")
            return self._volumes[name]

    def create(
        self, record: VolumeRecord, missing: Iterable[tuple[int, int]], ids: Iterable[tuple[int, bytes]]
    ) -> HeldVolume:
        """Make and open a volume. See `opening.create_volume`."""
        check_name(record.name)
        with self._lock:
            if record.name in self.broken or record.name in self._volumes or record.name in self._making:
                raise FailedError(
                    "there is a volume of that name", on=record.name, remedy="choose another name, or delete it"
                )
            self._making.add(record.name)
        try:
            # Reading a point's map may take its time; clients of other volumes come and go meanwhile.
            create_volume(self.root / record.name, record, missing, ids)
            held = HeldVolume(self.root / record.name, self._boot)
            with self._lock:
                self._volumes[record.name] = held
            return held
        finally:
            with self._lock:
                self._making.discard(record.name)

    def delete(self, name: str, before: Callable[[str], None]) -> Path:
        """Put a volume into the recycle bin; returns where it lies. UsageError while it is in use; `before` is called once it is not, and ends
        what works on it.
        """
        with self._lock:
            held = self._idle(name, "deleted")
            before(name)
            held.update(deleted=self._clock.now())
            close_volume(held.volume, held.epochs)
            bin_ = self.root / _DELETED
            bin_.mkdir(exist_ok=True, mode=0o700)
            place = bin_ / f"{name}.{held.record.uuid[:8]}"
            os.replace(held.files.directory, place)
            sync_directory(self.root)
            sync_directory(bin_)
            del self._volumes[name]
            return place

    def deleted(self) -> list[VolumeRecord]:
        """What lies in the recycle bin."""
        bin_ = self.root / _DELETED
        return [read_record(VolumeFiles(one)) for one in sorted(bin_.iterdir())] if bin_.is_dir() else []

    def undelete(self, name: str) -> HeldVolume:
        """Take the volume that was deleted last under that name out of the recycle bin."""
        with self._lock:
            if name in self._volumes or name in self.broken:
                raise UsageError("there is a volume of that name", on=name, remedy="delete that one first")
            mine = sorted((r for r in self.deleted() if r.name == name), key=lambda r: r.deleted)
            if not mine:
                raise UsageError("no such volume in the recycle bin", on=name, remedy="safehold volume list --deleted")
            os.replace(self.root / _DELETED / f"{name}.{mine[-1].uuid[:8]}", self.root / name)
            sync_directory(self.root)
            held = self._volumes[name] = HeldVolume(self.root / name, self._boot)
            held.update(deleted=0.0)
            return held

    def empty_bin(self, before: float) -> list[str]:
        """Delete for good what was put into the recycle bin before that time, seconds since 1970; returns the names."""
        with self._lock:
            old = [record for record in self.deleted() if record.deleted < before]
            for record in old:
                shutil.rmtree(self.root / _DELETED / f"{record.name}.{record.uuid[:8]}")
            return [record.name for record in old]

    def resize(self, name: str, size: int, before: Callable[[str], None]) -> HeldVolume:
        """Make a volume larger; what is added is zeros. UsageError while it is in use or has snapshots on their way; `before` as for
        `delete`.
        """
        with self._lock:
            held = self._idle(name, "resized")
            if held.volume.read_only:
                raise FailedError("the volume is read-only", on=name, remedy=f"see safehold volume show {name}")
            if size <= held.record.size:
                raise UsageError(
                    "a volume can only grow",
                    on=name,
                    remedy="restore what is on it to a smaller one with its own tools",
                )
            if held.record.pending:
                raise UsageError("snapshots are on their way", on=name, remedy="wait: safehold volume show " + name)
            before(name)
            close_volume(held.volume, held.epochs)
            try:
                grow_volume(held.files, held.record, size)
            finally:
                # Whatever came of it: the record tells which size counts, and what is longer than that does no harm.
                self._volumes[name] = HeldVolume(held.files.directory, self._boot)
            return self._volumes[name]

    def _idle(self, name: str, what: str) -> HeldVolume:
        held = self.get(name)
        if held.clients:
            raise UsageError(
                f"the volume is attached and cannot be {what}", on=name, remedy=f"first: safehold volume detach {name}"
            )
        return held

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def seal(
        self, names: Sequence[str], describe: Callable[[HeldVolume, tuple[float, float]], Snapshot]
    ) -> list[Snapshot]:
        """Seal volumes at one instant; `describe` makes each one's snapshot from when the gate was closed."""
        with self._lock:
            volumes = [self.get(name) for name in names]
            prepared = [held.epochs.prepare() for held in volumes]
            for held in volumes:
                if held.record.suspect:
                    held.epochs.suspect()
            taken = seal_together([held.epochs for held in volumes], prepared)
            snapshots = []
            for held in volumes:
                snapshot = describe(held, taken)
                snapshots.append(snapshot)
                held.update(suspect="", snapshots=(*held.record.snapshots, snapshot))
            return snapshots
