"""All volumes of a machine: made, opened, sealed, resized and deleted, and offered to clients."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from safehold.blocks.epochs import seal_together
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import (
    Snapshot,
    VolumeFiles,
    VolumeRecord,
    read_record,
    sync_directory,
)
from safehold.blocks.opening import close_volume, create_volume, grow_volume
from safehold.model.clock import Clock
from safehold.model.errors import FailedError, UsageError
from safehold.ports.export import Export

__all__ = ["VolumeDirectory", "check_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DELETED = "deleted"


def check_name(name: str) -> None:
    """UsageError where a volume cannot be called that."""
    if not _NAME.fullmatch(name) or name == _DELETED:
        raise UsageError(
            "a volume cannot be called that",
            on=name,
            remedy="use up to 64 letters, digits, dots, dashes and underscores, the first a letter or digit",
        )


class VolumeDirectory:
    """The volumes below one directory; one process at a time has it. Offers them as `ports.export.ExportDirectory`."""

    def __init__(self, root: Path, boot: str, clock: Clock, log: Callable[[str], None] = lambda text: None) -> None:
        """FailedError where another process has them. Volumes that cannot be opened are in `broken`, with why. `log` as for `HeldVolume`."""
        self.root = root
        self._boot, self._clock, self._log = boot, clock, log
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
                self._open(directory)

    def _open(self, directory: Path) -> None:
        """Have a volume among those that are open, or among the broken."""
        self._volumes.pop(directory.name, None)
        try:
            self._volumes[directory.name] = HeldVolume(directory, self._boot, self._log)
        except FailedError as error:
            self.broken[directory.name] = error
        except OSError as error:
            self.broken[directory.name] = FailedError(
                f"the volume cannot be opened ({error.strerror})",
                on=str(error.filename or directory),
                remedy="see that the disk below has room and can be written to, and restart the service",
            )
        except Exception as error:  # the last line of defence: one volume's damage is not another's
            self.broken[directory.name] = FailedError(
                f"the volume cannot be opened, its files are damaged ({type(error).__name__}: {error})",
                on=str(directory),
                remedy="its last completed snapshot can be restored: safehold restore NAME@latest --to volume:OTHER",
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

    @contextlib.contextmanager
    def standing(self) -> Iterator[list[HeldVolume]]:
        """Every volume, by name; none is sealed, made or removed meanwhile, so a snapshot is on record in all of its volumes or in none."""
        with self._lock:
            yield self.all()

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
            try:
                held = HeldVolume(self.root / record.name, self._boot, self._log)
            except BaseException:
                shutil.rmtree(self.root / record.name)
                raise
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
            close_volume(held.volume, held.epochs)
            bin_ = self.root / _DELETED
            place = self._place(held.record)
            try:
                held.update(deleted=self._clock.now())
                bin_.mkdir(exist_ok=True, mode=0o700)
                os.replace(held.files.directory, place)
            except BaseException:
                # It was put away: what is written to it from here on has to be after another opening.
                self._open(held.files.directory)
                raise
            del self._volumes[name]
            sync_directory(self.root)
            sync_directory(bin_)
            return place

    def _place(self, record: VolumeRecord) -> Path:
        return self.root / _DELETED / f"{record.name}.{record.uuid[:8]}"

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
            os.replace(self._place(mine[-1]), self.root / name)
            sync_directory(self.root)
            held = self._volumes[name] = HeldVolume(self.root / name, self._boot, self._log)
            held.update(deleted=0.0)
            return held

    def remove(self, record: VolumeRecord) -> None:
        """Delete for good what lies in the recycle bin. OSError."""
        shutil.rmtree(self._place(record))

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
                self._open(held.files.directory)
            return self.get(name)

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
        """Seal volumes at one instant; `describe` makes each one's snapshot from when the gate was closed. OSError where that cannot be put on
        record: there is no snapshot then.
        """
        with self._lock:
            volumes = [self.get(name) for name in names]
            prepared = [held.epochs.prepare() for held in volumes]
            reasons = [held.record.suspect for held in volumes]
            for held, reason in zip(volumes, reasons, strict=True):
                if reason:
                    held.epochs.suspect()
            taken = seal_together([held.epochs for held in volumes], prepared)
            snapshots: list[Snapshot] = []
            try:
                for held, reason in zip(volumes, reasons, strict=True):
                    snapshot = msgspec.structs.replace(describe(held, taken), full=bool(reason))
                    held.put_on_record(snapshot, reason)
                    snapshots.append(snapshot)
            except BaseException:
                for held, snapshot in zip(volumes, snapshots, strict=False):
                    with contextlib.suppress(OSError):
                        held.fail_snapshot(snapshot, "it could not be put on record for all volumes", compare=False)
                for held, ready in list(zip(volumes, prepared, strict=True))[len(snapshots) :]:
                    with contextlib.suppress(OSError):
                        held.epochs.pass_on(ready.epoch - 1)
                        held.epochs.drop(ready.epoch - 1)
                raise
            return snapshots
