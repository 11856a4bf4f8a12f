"""All volumes of a machine: made, opened, sealed, resized and deleted, and offered to clients."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from safehold.blocks.growing import grow_volume
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import Snapshot, VolumeFiles, VolumeRecord, read_record, write_record
from safehold.blocks.names import LOCK, check_name
from safehold.blocks.opening import close_volume, create_volume, unfinished
from safehold.blocks.recycle_bin import RecycleBin
from safehold.blocks.sealing import seal_volumes
from safehold.model.clock import Clock
from safehold.model.errors import FailedError, UsageError
from safehold.ports.export import Export

__all__ = ["VolumeDirectory"]

_T = TypeVar("_T")


class VolumeDirectory:
    """The volumes below one directory; one process at a time has it. Offers them as `ports.export.ExportDirectory`."""

    def __init__(self, root: Path, boot: str, clock: Clock, log: Callable[[str], None] = lambda text: None) -> None:
        """FailedError where another process has them. Volumes that cannot be opened are in `broken`, with why. `log` as for `HeldVolume`."""
        self.root = root
        self.bin = RecycleBin(root)
        self._boot, self._clock, self._log = boot, clock, log
        self._lock = threading.RLock()
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._claim = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedError(
                "another process serves the volumes", on=str(root), remedy="use that one, or stop it first"
            ) from None
        except OSError as error:
            raise FailedError(
                f"volumes cannot be kept here ({error.strerror})", on=str(root), remedy="check the directory"
            ) from error
        self._broken: dict[str, FailedError] = {}
        self._busy: dict[str, str] = {}
        """What is being done to volumes, or to what is to be one: slow work that nobody else is to wait for, nor to get into."""
        self._freed = threading.Condition(self._lock)
        self._closing = False
        self._volumes: dict[str, HeldVolume] = {}
        with contextlib.suppress(OSError):
            self.bin.make()
        for left in root.glob(".*.new"):
            # A volume that was being made when its service was killed; it may have had a point kept for it already.
            # A disk that does not take that now is no reason to serve nothing.
            with contextlib.suppress(OSError):
                self.bin.cast_out(left, left.name[1 : -len(".new")])
        for directory in sorted(root.iterdir()):
            if directory.is_dir() and not directory.name.startswith(".") and directory != self.bin.place:
                self._open(directory)

    def _open(self, directory: Path) -> None:
        """Have a volume among those that are open, or among the broken."""
        name = directory.name
        try:
            held = HeldVolume(directory, self._boot, self._log)
        except FailedError as error:
            problem = _afresh(error)
        except OSError as error:
            problem = FailedError(
                f"the volume cannot be opened ({error.strerror})",
                on=str(error.filename or directory),
                remedy="see that the disk below has room and can be written to, then: safehold volume stop; safehold volume list",
            )
        except Exception as error:  # the last line of defence: one volume's damage is not another's
            problem = FailedError(
                f"the volume cannot be opened, its files are damaged ({type(error).__name__}: {error})",
                on=str(directory),
                remedy="its last completed snapshot can be restored: safehold restore NAME@latest --to volume:OTHER",
            )
        else:
            with self._lock:
                self._volumes[name] = held
                self._broken.pop(name, None)
            return
        with self._lock:
            self._broken[name] = problem

    def put_away(self) -> None:
        """Put all volumes away in order, once what is being done to some of them has ended; what is pending goes on the next time. Nobody else can
        open them before `close`.
        """
        with self._lock:
            self._closing = True
            self._freed.wait_for(lambda: not self._busy)
            for held in self._volumes.values():
                # One that cannot be put away says so itself; its maps count as after a crash.
                with contextlib.suppress(OSError):
                    close_volume(held.volume, held.epochs)
            self._volumes = {}

    def close(self) -> None:
        """Put all volumes away, and let others open them."""
        self.put_away()
        os.close(self._claim)

    # -- what takes its time -----------------------------------------------------------------------------------------

    @property
    def busy(self) -> dict[str, str]:
        """What is being done to which volumes at this moment (made, deleted, resized, taken back). Such a one cannot be had for anything else."""
        with self._lock:
            return dict(self._busy)

    def serves(self, held: HeldVolume) -> bool:
        """True where this is the volume of its name, and nobody is about to put it away."""
        with self._lock:
            return self._volumes.get(held.name) is held and held.name not in self._busy

    def _begin(self, name: str, what: str) -> None:
        """Have a name for slow work, until `_end`; with the lock held."""
        self._demand_idle(name)
        if self._closing:
            raise FailedError(
                f"the volume service is about to end, and nothing is {what} any more",
                on=name,
                remedy="start it again: safehold volume list",
            )
        self._busy[name] = what

    def _end(self, name: str) -> None:
        with self._lock:
            del self._busy[name]
            self._freed.notify_all()

    def _demand_idle(self, name: str) -> None:
        if name in self._busy:
            raise FailedError(
                f"the volume is being {self._busy[name]}", on=name, remedy="wait until it is: safehold volume list"
            )

    @contextlib.contextmanager
    def _away(self, held: HeldVolume) -> Iterator[None]:
        """Inside, nobody has the volume. It is opened again, whatever came of it, unless it is somewhere else by then."""
        directory = held.files.directory
        with self._lock:
            del self._volumes[directory.name]
        try:
            yield
        finally:
            # Who still has it from before begins nothing any more, also where it could not be put away in order.
            held.epochs.abandon()
            if directory.exists():
                self._open(directory)

    # -- for clients -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """See `ports.export.ExportDirectory`."""
        with self._lock:
            return sorted(self._volumes.keys() - self._busy.keys())

    def open(self, name: str) -> Export | None:
        """See `ports.export.ExportDirectory`."""
        with self._lock:
            held = self._volumes.get(name)
            if held is None or name in self._busy:
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
        """Every open volume, by name."""
        with self._lock:
            return [self._volumes[name] for name in sorted(self._volumes)]

    @contextlib.contextmanager
    def standing(self) -> Iterator[list[HeldVolume]]:
        """Every open volume, by name; none is sealed, put away or opened meanwhile, so a snapshot is on record in all of its volumes or in none.
        Those that are `busy` may be put away next.
        """
        with self._lock:
            yield self.all()

    @property
    def broken(self) -> dict[str, FailedError]:
        """Volumes that could not be opened, and why."""
        with self._lock:
            return dict(self._broken)

    def has(self, name: str) -> bool:
        """True where there is a volume of that name, also one that cannot be opened, or that is being made or deleted."""
        with self._lock:
            return name in self._volumes or name in self._broken or name in self._busy

    def get(self, name: str) -> HeldVolume:
        """UsageError where there is none, FailedError where it could not be opened, or is `busy`."""
        with self._lock:
            self._demand_idle(name)
            if name in self._broken:
                raise _afresh(self._broken[name])
            if name not in self._volumes:
                there = ", ".join(sorted(self._volumes)) or "none yet: safehold volume create NAME --size 10G"
                raise UsageError("no such volume", on=name, remedy=f"there are {there}")
            return self._volumes[name]

    def create(
        self,
        record: VolumeRecord,
        missing: Iterable[tuple[int, int]],
        ids: Iterable[tuple[int, bytes]],
        recorded: Callable[[], None] = lambda: None,
    ) -> HeldVolume:
        """Make and open a volume. See `opening.create_volume`; what is left of one that could not be made is in the bin, on its way out."""
        check_name(record.name)
        directory = self.root / record.name
        with self._lock:
            self._demand_idle(record.name)
            if self.has(record.name):
                raise FailedError(
                    "there is a volume of that name", on=record.name, remedy="choose another name, or delete it"
                )
            self._begin(record.name, "made")
        try:
            if directory.exists():
                raise FailedError(
                    "something of that name is there already", on=str(directory), remedy="choose another name"
                )
            # Reading a point's map may take its time, which nobody has who wants to end.
            held = self._make(directory, record, self._while_open(missing), self._while_open(ids), recorded)
            with self._lock:
                self._volumes[record.name] = held
            return held
        finally:
            self._end(record.name)

    def _while_open(self, items: Iterable[_T]) -> Iterator[_T]:
        for item in items:
            if self._closing:
                raise FailedError("the volume service ended before the volume was made", remedy="make it again")
            yield item

    def _make(
        self,
        directory: Path,
        record: VolumeRecord,
        missing: Iterable[tuple[int, int]],
        ids: Iterable[tuple[int, bytes]],
        recorded: Callable[[], None],
    ) -> HeldVolume:
        try:
            create_volume(directory, record, missing, ids, recorded)
            return HeldVolume(directory, self._boot, self._log)
        except BaseException:
            for left in (unfinished(directory), directory):
                # Where even that fails, the next start finds it: as what was being made, or as a volume.
                with contextlib.suppress(OSError):
                    self.bin.cast_out(left, record.name)
            raise

    def delete(self, name: str, demand: Callable[[], None], before: Callable[[str], None]) -> Path:
        """Put a volume into the recycle bin, also one that cannot be opened; returns where it lies. UsageError while it is in use. `demand` raises
        where it cannot be deleted now; no snapshot is sealed or sent of it from then on. `before` ends what works on it.
        """
        with self._lock:
            held = None if name in self._broken else self._idle(name, "deleted")
            demand()
            self._begin(name, "deleted")
        try:
            before(name)
            if held is None:
                return self._delete_broken(name)
            with self._away(held):
                # There may be no room for that, and this is to make some. It is as after a crash then, and the bin sees when it came there.
                with contextlib.suppress(OSError):
                    close_volume(held.volume, held.epochs)
                    held.update(deleted=self._clock.now())
                held.epochs.abandon()
                return self.bin.put(held.files.directory, held.record.uuid[:8])
        finally:
            self._end(name)

    def _delete_broken(self, name: str) -> Path:
        """Whatever its files are like. A record that cannot be read stays as it is: a newer program may have written it."""
        files = VolumeFiles(self.root / name)
        try:
            record = read_record(files)
        except FailedError:
            token = os.urandom(4).hex()
        else:
            token = record.uuid[:8]
            # It may be broken for want of room, which it is to give back: the bin sees when it came there.
            with contextlib.suppress(OSError):
                write_record(files, msgspec.structs.replace(record, deleted=self._clock.now()))
        place = self.bin.put(files.directory, token)
        with self._lock:
            del self._broken[name]
        return place

    def deleted(self) -> list[VolumeRecord]:
        """What lies in the recycle bin and can be read."""
        return [one.record for one in self.bin.entries() if one.record is not None]

    def undelete(self, name: str) -> HeldVolume:
        """Take the volume that was deleted last under that name out of the recycle bin, one that can be read before one that cannot. FailedError
        where it cannot be opened: it is among the broken then.
        """
        mine = sorted(
            (one for one in self.bin.entries() if one.called(name)), key=lambda one: (one.record is not None, one.when)
        )
        if not mine:
            raise UsageError("no such volume in the recycle bin", on=name, remedy="safehold volume list --deleted")
        name = mine[-1].name
        with self._lock:
            self._demand_idle(name)
            if self.has(name):
                raise UsageError("there is a volume of that name", on=name, remedy="delete that one first")
            self._begin(name, "taken back")
        try:
            self._open(self.bin.take(mine[-1]))
            with self._lock:
                held, problem = self._volumes.get(name), self._broken.get(name)
            if held is None:
                raise FailedError(
                    f"the volume is out of the recycle bin, and {problem}",
                    on=name,
                    remedy=f"mend that and restart the service, or put it back: safehold volume delete {name}",
                )
            # Without room for it: the bin goes by when a volume came there, should that be later.
            with contextlib.suppress(OSError):
                held.update(deleted=0.0)
            return held
        finally:
            self._end(name)

    def resize(self, name: str, size: int, before: Callable[[str], None]) -> HeldVolume:
        """Make a volume larger; what is added is zeros. UsageError while it is in use or has snapshots on their way; `before` ends what works on
        it.
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
            self._begin(name, "resized")
        try:
            before(name)
            with self._away(held):
                close_volume(held.volume, held.epochs)
                # Whatever comes of it: the record tells which size counts, and what is longer than that does no harm.
                grow_volume(held.files, held.record, size)
        finally:
            self._end(name)
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
        """Seal volumes at one instant; see `seal_volumes`."""
        with self._lock:
            return seal_volumes([self.get(name) for name in names], describe)


def _afresh(error: FailedError) -> FailedError:
    """The same error without where it was raised: that has hold of what was being opened, whose files would stay open while the error is kept."""
    return type(error)(error.what, on=error.on, remedy=error.remedy)
