"""Seals, and what happens to a sealed epoch afterwards: made durable, drained, folded away."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safehold.blocks.checkpoint import Change, ChangeKind
from safehold.blocks.layers import DataFile, Overlay, Phase
from safehold.blocks.layout import SECTOR, VolumeFiles, VolumeRecord, sync_directory
from safehold.blocks.maps import BlockMap, SectorMap
from safehold.blocks.troubles import Doing
from safehold.blocks.volume import LiveVolume
from safehold.model.errors import FailedError

__all__ = ["MOST_EPOCHS", "Epochs", "LiveHeader", "Prepared", "PutAway", "seal_together"]

MOST_EPOCHS = 8
"""Sealed epochs that may wait for the vault: each one more makes writes look at one map more."""


_MOST_OVERLAYS = 4 * MOST_EPOCHS
"""Overlays that are not folded away: each is two open files, and one more to look into for a write."""


class LiveHeader:
    """The file `live.map`: which boot the maps are of, which epoch is the current one, and whether they were put away in order.

    A seal is one small write to it, which outlives the process. And whether the disk below has failed the volume: that stays. Written and never
    mapped, for the reason that `maps` gives.
    """

    _FORM = struct.Struct("<8sBBB5xQ64s")
    _MAGIC = b"SHLIVE01"
    _LENGTH = 4096

    def __init__(self, path: Path) -> None:
        """OSError where it cannot be made."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._descriptor, 0, self._LENGTH)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self) -> tuple[bool, int, str]:
        """(put away in order, current epoch, boot); epoch 0 where the file says nothing. OSError."""
        magic, clean, _, _, epoch, boot = self._FORM.unpack(os.pread(self._descriptor, self._FORM.size, 0))
        if magic != self._MAGIC:
            return False, 0, ""
        return bool(clean), epoch, boot.rstrip(b"\0").decode(errors="replace")

    def write(self, *, clean: bool, epoch: int, boot: str) -> None:
        """Say all of it, durably. OSError."""
        self._put(0, self._FORM.pack(self._MAGIC, clean, self.failed, self.moving, epoch, boot.encode()[:64]))
        os.fdatasync(self._descriptor)

    @property
    def failed(self) -> bool:
        """True where something that was written did not reach the disk. OSError."""
        return os.pread(self._descriptor, 1, 9) != b"\0"

    def fail(self) -> None:
        """Say so, durably where that can still be."""
        with contextlib.suppress(OSError):
            self._put(9, b"\1")
            os.fdatasync(self._descriptor)

    @property
    def moving(self) -> bool:
        """True where what was redirected is being moved into the data, and the maps may say so of some that has not reached the disk. OSError."""
        return os.pread(self._descriptor, 1, 10) != b"\0"

    def move(self, *, begun: bool) -> None:
        """Say that, or that all of it has. OSError."""
        self._put(10, bytes((begun,)))

    def put_away(self) -> None:
        """The maps are on the disk as they are. OSError."""
        self._put(8, b"\1")
        os.fdatasync(self._descriptor)

    def turn(self, epoch: int) -> None:
        """Another epoch is the current one from here on. OSError, and it may be either of them."""
        self._put(16, struct.pack("<Q", epoch))

    def _put(self, offset: int, data: bytes) -> None:
        # So few bytes of one page are written whole or not at all.
        os.pwrite(self._descriptor, data, offset)


class Prepared:
    """What the next epoch needs, made before the gate is closed."""

    def __init__(self, files: VolumeFiles, record: VolumeRecord, epoch: int) -> None:
        self.epoch = epoch
        self.dirty = BlockMap.create(files.dirty(epoch), record.blocks)
        sectors = SectorMap.create(files.overlay_sectors(epoch), record.sectors)
        self.overlay = Overlay(
            epoch, DataFile(files.overlay(epoch), size=record.blocks * record.block), sectors, record.block // SECTOR
        )
        # Their content is synced later, each by itself; their names are not.
        sync_directory(files.directory)


class PutAway(OSError):
    """The volume was put away: its files belong to whoever opens it next, and nothing was done."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ESHUTDOWN, "the volume was put away", str(path))


class Epochs:
    """The sealed epochs of one volume, oldest first. Thread-safe; whoever reads an epoch has to see that nobody ends it.

    Once it is put away, whatever would change its files raises `PutAway`: other threads may still be about to.
    """

    def __init__(
        self,
        volume: LiveVolume,
        files: VolumeFiles,
        record: VolumeRecord,
        header: LiveHeader,
        sealed: dict[int, BlockMap],
    ) -> None:
        self.volume = volume
        self.files = files
        self.header = header
        self._record = record
        self._sealed = dict(sorted(sealed.items()))
        # For what may take minutes, and for what may not wait for that.
        self._folding = threading.Lock()
        self._ending = threading.Lock()
        self._put_away = False

    @property
    def open(self) -> list[int]:
        """Numbers of the sealed epochs that are not drained."""
        with self.volume.gate.lock:
            return list(self._sealed)

    def dirty(self, epoch: int) -> BlockMap:
        """The blocks that a sealed epoch changed."""
        return self._sealed[epoch]

    def prepare(self) -> Prepared:
        """FailedError where too many epochs are open already, and for a volume that its disk has failed. OSError."""
        if self._put_away:
            raise PutAway(self.files.directory)
        if self.volume.read_only:
            raise FailedError(
                "the disk below failed to write, and what the volume has now may not be what was written",
                on=self._record.name,
                remedy="restore its last snapshot to another volume: safehold restore NAME@latest --to volume:OTHER",
            )
        if len(self.volume.gate.phase.overlays) >= _MOST_OVERLAYS:
            raise FailedError(
                "what was written beside the content of the volume cannot be moved to it, and is too much by now",
                on=self._record.name,
                remedy=f"see why: safehold volume show {self._record.name}",
            )
        if len(self._sealed) >= MOST_EPOCHS:
            raise FailedError(
                f"{len(self._sealed)} snapshots are still on their way to the vault",
                on=self._record.name,
                remedy="wait for them (safehold volume show), or mend what stops them",
            )
        return Prepared(self.files, self._record, self.volume.gate.phase.epoch + 1)

    def turn(self, prepared: Prepared) -> None:
        """The seal itself. The caller holds the gate's lock, and the header says that `prepared` is for the current epoch."""
        phase = self.volume.gate.phase
        self._sealed[phase.epoch] = phase.dirty
        held = (*phase.held, phase.dirty)
        self.volume.gate.switch(Phase(prepared.epoch, prepared.dirty, held, (prepared.overlay, *phase.overlays)))

    def settle(self, epoch: int) -> None:
        """Have a sealed epoch survive a power loss: its writers out, its data and maps on the disk; harmless where it is dropped already. OSError."""
        with self._at_work(self._ending):
            if epoch in self._sealed:
                self._settle(epoch)

    def _settle(self, epoch: int) -> None:
        self.volume.gate.drain()
        self._sync(self._sealed[epoch])
        self.volume.note([Change(ChangeKind.SEALED, epoch, 0, 0, 1)])
        self.volume.flush()

    @contextlib.contextmanager
    def _at_work(self, lock: threading.Lock) -> Iterator[None]:
        with lock:
            if self._put_away:
                raise PutAway(self.files.directory)
            yield

    @contextlib.contextmanager
    def put_away(self) -> Iterator[None]:
        """Inside, everything that was sealed survives a power loss, nothing is under way, and nothing is begun any more, ever. OSError, and then
        work goes on.
        """
        # A fold looks at it between blocks, and is as good half done.
        self._put_away = True
        try:
            with self._folding, self._ending:
                for epoch in self.open:
                    self._settle(epoch)
                self.volume.flush()
                yield
        except BaseException:
            self._put_away = False
            raise

    def abandon(self) -> None:
        """Return when nothing is under way; nothing is begun any more, ever. Also where it could not be put away."""
        self._put_away = True
        with self._folding, self._ending:
            pass

    def drop(self, epoch: int) -> None:
        """Nothing is held for a sealed epoch any more, which has reached the vault, or never will; harmless where it is dropped already. OSError.

        What was redirected because of it is for `fold`.
        """
        with self._at_work(self._ending):
            if epoch in self._sealed:
                self._drop(epoch)

    def _drop(self, epoch: int) -> None:
        gate = self.volume.gate
        with gate.lock:
            dirty = self._sealed.pop(epoch)
            phase = gate.phase
            held = tuple(one for one in phase.held if one is not dirty)
            gate.switch(Phase(phase.epoch, phase.dirty, held, phase.overlays))
        self.volume.note([Change(ChangeKind.DRAINED, epoch, 0, 0, 1)])
        try:
            self.volume.flush()
        finally:
            # Whatever comes of that: nothing is held for it any more, and the next start would take it for a seal that is.
            dirty.path.unlink(missing_ok=True)

    def pass_on(self, epoch: int) -> None:
        """What a sealed epoch changed counts as changed in the next one too, durably: it will never reach the vault by itself. OSError."""
        with self._at_work(self._ending):
            if epoch not in self._sealed:
                return
            with self.volume.gate.lock:
                later = next((self._sealed[one] for one in self._sealed if one > epoch), self.volume.gate.phase.dirty)
            for start, end in self._sealed[epoch].runs():
                later.fill(start, end, 1)
            self._sync(later)

    def _sync(self, dirty: BlockMap) -> None:
        with self.volume.failing():
            dirty.sync()

    def suspect(self) -> None:
        """Everything counts as changed since the last seal."""
        with self.volume.gate.lock:
            dirty = self.volume.gate.phase.dirty
            dirty.fill(0, dirty.length, 1)

    def fold(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Move into the data what no open epoch keeps apart any more: after each `drop`, and when a volume was opened. It may take minutes, and
        ends early where the volume is put away meanwhile, or somebody has `stopped` it. OSError.
        """
        if self.volume.gate.phase.overlays:
            with self._at_work(self._folding):
                try:
                    self._fold(stopped)
                except OSError as error:
                    self.volume.troubles.met(Doing.FOLDING, error)
                    raise
            if self.volume.troubles.now:
                self.volume.troubles.passed(Doing.FOLDING)

    def _fold(self, stopped: Callable[[], bool]) -> None:
        volume, gate = self.volume, self.volume.gate
        buffer = memoryview(bytearray(volume.block))
        while gate.phase.overlays:
            oldest = gate.phase.overlays[-1]
            if any(epoch < oldest.epoch for epoch in self.open):
                return
            # Writers of earlier phases may still redirect to it.
            gate.drain()
            self.header.move(begun=True)
            for block in oldest.blocks():
                if self._put_away or stopped():
                    return
                volume.fold_block(oldest, block, buffer)
            volume.flush()
            self.header.move(begun=False)
            with gate.lock:
                # Nothing is redirected to it any more: what is not held goes in place, what is held has a newer overlay.
                phase = gate.phase
                gate.switch(Phase(phase.epoch, phase.dirty, phase.held, phase.overlays[:-1]))
            gate.drain()
            volume.flush()
            # In this order: an overlay without its map is damage, a map without its overlay is collected when the volume is opened.
            oldest.file.path.unlink(missing_ok=True)
            oldest.sectors.path.unlink(missing_ok=True)


def seal_together(epochs: Sequence[Epochs], prepared: Sequence[Prepared]) -> tuple[float, float]:
    """Seal volumes at one instant; returns from when to when their gates were closed, seconds since 1970.

    A write that was acknowledged before is in, one that began after is not, across all of them. OSError, and none is sealed then.
    """
    with contextlib.ExitStack() as locks:
        # Always in the same order, so that two groups with a volume in common do not wait for each other.
        for one in sorted(epochs, key=lambda each: str(each.files.directory)):
            locks.enter_context(one.volume.gate.lock)
        began = time.time()
        for one, ready in zip(epochs, prepared, strict=True):
            if ready.epoch != one.volume.gate.phase.epoch + 1:
                raise RuntimeError("another seal came between")
        _turn_headers(epochs, prepared)
        for one, ready in zip(epochs, prepared, strict=True):
            one.turn(ready)
        return began, time.time()


def _turn_headers(epochs: Sequence[Epochs], prepared: Sequence[Prepared]) -> None:
    """All or none, and before anything else of a seal: the only step of it that can fail."""
    try:
        for one, ready in zip(epochs, prepared, strict=True):
            one.header.turn(ready.epoch)
    except OSError:
        for one in epochs:
            # One that is left ahead makes the next opening find a seal that nobody recorded, and take it back.
            with contextlib.suppress(OSError):
                one.header.turn(one.volume.gate.phase.epoch)
        raise
