"""One live volume: reads, writes and flushes while snapshots are taken and missing blocks arrive. See `ports.export.Export`."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator

from safehold.blocks.checkpoint import Change, ChangeKind, CheckpointLog
from safehold.blocks.durability import Durability, unbound
from safehold.blocks.layers import MISSING, PARTIAL, PRESENT, REGION, DataFile, Gate, Overlay, Phase
from safehold.blocks.layout import SECTOR
from safehold.blocks.maps import Maps, runs_of
from safehold.blocks.troubles import Doing, Told, Troubles
from safehold.blocks.whereabouts import ABSENT, BASE, owners, runs

__all__ = ["LiveVolume"]

_LOCKS = 64
_MOST_CHANGES = 50_000
"""Changes of the maps that wait for a flush; more are made durable without being asked, so that memory stays bounded."""


class LiveVolume:
    """The data path. Thread-safe; reads take no lock, writes a short one."""

    read_only = False
    block_size = SECTOR
    """See `ports.export.Export`; not the volume's blocks, which are far larger."""

    def __init__(
        self,
        size: int,
        block: int,
        data: DataFile,
        maps: Maps,
        phase: Phase,
        log: CheckpointLog,
        report: Callable[[str], None],
        fail: Callable[[], None],
    ) -> None:
        """`report` is told what an operator has to know: why the volume became read-only, what could not be fetched. `fail` is called
        when the volume becomes read-only, and has to see that it stays so. `troubles` has what may be over again.
        """
        self.troubles = Troubles(data.path.parent)
        self.size, self.block = size, block
        self.data, self.maps, self.gate = data, maps, Gate(phase)
        self._states = maps.states.cells
        self.fetch: Callable[[int], None] | None = None
        """Makes a missing block present by calling `fill`; DamageError or OSError where it cannot."""
        self._report, self._fail = report, fail
        self._durability = Durability(data, maps, self.gate, log, self.troubles, unbound(self._lose))
        self.settled, self._changes = self._durability.settled, self._durability.changes
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill `buf`; waits for the vault where a sector is missing. OSError EIO where it cannot be had."""
        first, last = offset // self.block, (offset + len(buf) - 1) // self.block
        phase = self.gate.phase
        try:
            if (phase.plain or phase.bare(first, last)) and self.here(first, last):
                self.data.read_into(offset, buf)
            else:
                self.read_layers(phase.overlays, offset, buf)
        except OSError as error:
            self.troubles.met(Doing.READING, error)
            raise
        if self.troubles.now:
            self.troubles.passed(Doing.READING)

    def read_ready(self, offset: int, buf: memoryview) -> bool:
        """See `ports.export.Export`."""
        first, length = offset // self.block, len(buf)
        if first == (offset + length - 1) // self.block and self._states[first] == PRESENT and not self.troubles.now:
            for overlay in self.gate.phase.overlays:
                if overlay.touched[first]:
                    break
            else:
                try:
                    self.data.read_into(offset, buf)
                except OSError as error:
                    self.troubles.met(Doing.READING, error)
                    raise
                return True
        elif not self.ready(offset, length):
            return False
        self.read_into(offset, buf)
        return True

    def ready(self, offset: int, length: int) -> bool:
        """See `ports.export.Export`."""
        return not length or self.here(offset // self.block, (offset + length - 1) // self.block)

    def lies(self, offset: int, length: int) -> tuple[DataFile, int] | None:
        """See `ports.export.Export`: the data, where nothing is missing and no overlay has any of it."""
        # While something fails it is read here, which tells how that goes.
        if not length or self.troubles.now:
            return None
        phase, first, last = self.gate.phase, offset // self.block, (offset + length - 1) // self.block
        if (phase.plain or phase.bare(first, last)) and self.here(first, last):
            return self.data, offset
        return None

    def unreadable(self, error: OSError) -> None:
        """See `ports.export.Export`."""
        self.troubles.met(Doing.READING, error)

    def here(self, first: int, last: int) -> bool:
        """True where the blocks from `first` to `last` are present."""
        if first == last:
            return self._states[first] == PRESENT
        return self._states[first : last + 1].count(PRESENT) == last + 1 - first

    def read_layers(self, overlays: tuple[Overlay, ...], offset: int, buf: memoryview) -> None:
        """Read through certain overlays, newest first, and what lies below them."""
        end = offset + len(buf)
        while offset < end:
            block = offset // self.block
            stop = min(end, (block + 1) * self.block)
            self._read_block(overlays, block, offset, buf[: stop - offset])
            buf, offset = buf[stop - offset :], stop

    def _read_block(self, overlays: tuple[Overlay, ...], block: int, offset: int, buf: memoryview) -> None:
        low, high = offset // SECTOR, -(-(offset + len(buf)) // SECTOR)
        places = owners(self.maps, overlays, block, low, high)
        if ABSENT in places:
            self.require(block)
            places = owners(self.maps, overlays, block, low, high)
        at = low
        for owner, run in itertools.groupby(places):
            count = len(list(run))
            start, stop = max(at * SECTOR, offset), min((at + count) * SECTOR, offset + len(buf))
            source = self.data if owner == BASE else overlays[owner].file
            source.read_into(start, buf[start - offset : stop - offset])
            at += count

    def require(self, block: int) -> None:
        """Have a block present, from the vault if need be. OSError EIO where that cannot be."""
        if self.maps.states.cells[block] == PRESENT:
            return
        if self.fetch is None:
            self._report(f"block {block} is missing and nothing fills the volume")
            raise Told(errno.EIO, "the block is not here and nothing fetches it")
        try:
            self.fetch(block)
        except OSError as error:
            # Whoever fetches says why.
            raise Told(error.errno, error.strerror) from error

    def fill(self, block: int, content: memoryview) -> None:
        """Vault content of one whole block arrives: every sector that was not written here takes it. OSError."""
        base = block * self.block
        with self._lock(block):
            state = self.maps.states.cells[block]
            if state == PRESENT:
                return
            if state == MISSING:
                self.data.write(base, content)
            else:
                low, high = self.maps.span(block)
                written = self.maps.sectors.get(low, high)
                at = written.find(0)
                while at >= 0:
                    stop = written.find(1, at)
                    stop = len(written) if stop < 0 else stop
                    self.data.write(base + at * SECTOR, content[at * SECTOR : stop * SECTOR])
                    at = written.find(0, stop)
            self._present(block, block + 1)
        self._bound_changes()

    def fill_run(self, first: int, content: memoryview) -> None:
        """Vault content of consecutive whole blocks arrives, in memory that starts on a page. Regions of which nothing was ever written go
        past the page cache. OSError.
        """
        try:
            self._fill_run(first, content)
        except OSError as error:
            self.troubles.met(Doing.FILLING, error)
            raise
        if self.troubles.now:
            self.troubles.passed(Doing.FILLING)
        self._bound_changes()

    def _fill_run(self, first: int, content: memoryview) -> None:
        count = -(-len(content) // self.block)
        step = 1 if REGION % self.block else REGION // self.block
        at = first
        while at < first + count:
            stop = min((at // step + 1) * step, first + count)
            part = content[(at - first) * self.block : (stop - first) * self.block]
            if len(part) != REGION or not self._fill_region(at, stop, part):
                for block in range(at, stop):
                    self.fill(block, part[(block - at) * self.block :][: self.block])
            at = stop

    def _fill_region(self, first: int, end: int, content: memoryview) -> bool:
        with contextlib.ExitStack() as stack:
            # Whoever wants to write to a missing block waits for its lock.
            for place in sorted({block % _LOCKS for block in range(first, end)}):
                stack.enter_context(self._locks[place])
            if self.maps.states.cells[first:end] != bytes([MISSING]) * (end - first):
                return False
            self.data.write_region(first * self.block, content)
            self._present(first, end)
        return True

    # -- writing -----------------------------------------------------------------------------------------------------

    def prepare(self, offset: int, length: int) -> None:
        """See `ports.export.Export`: the blocks of which a part of a sector is to change. OSError EIO where one cannot be had."""
        self._check_writable()
        end = offset + length
        if length and offset % SECTOR:
            self.require(offset // self.block)
        if length and end % SECTOR and end != self.size:
            self.require((end - 1) // self.block)

    def write(self, offset: int, data: memoryview) -> None:
        """See `ports.export.Export`."""
        try:
            self._change(offset, len(data), data)
        except OSError as error:
            self.troubles.met(Doing.WRITING, error)
            raise
        if self.troubles.now:
            self.troubles.passed(Doing.WRITING)

    @property
    def zeroes_fast(self) -> bool:
        """See `ports.export.Export`."""
        return self.data.punches

    def write_zeroes(self, offset: int, length: int) -> None:
        """See `ports.export.Export`: a hole where the file system can."""
        try:
            self._change(offset, length, None)
        except OSError as error:
            self.troubles.met(Doing.WRITING, error)
            raise

    discard = write_zeroes

    def _change(self, offset: int, length: int, data: memoryview | None) -> None:
        if self.read_only:
            self._check_writable()
        if not length:
            return
        gate = self.gate
        first, last = offset // self.block, (offset + length - 1) // self.block
        with gate.lock:
            phase = gate.phase
            # Under the lock: whoever comes in after a seal has to see what those before it will change. And before the data:
            # the map may say too much, never too little.
            if first != last or not phase.dirty.cells[first]:
                phase.dirty.mark(first, last + 1)
            phase.writers += 1
        try:
            if phase.plain and self.here(first, last):
                self.data.put(offset, length, data)
                return
            for block in range(first, last + 1):
                start = max(offset, block * self.block)
                stop = min(offset + length, (block + 1) * self.block)
                part = None if data is None else data[start - offset : stop - offset]
                self._change_block(phase, block, start, stop, part)
        finally:
            # `gate.leave`, written out: this is where every write passes.
            with gate.lock:
                phase.writers -= 1
                if phase.retired and not phase.writers:
                    phase.idle.set()
        self._bound_changes()

    def _change_block(self, phase: Phase, block: int, start: int, stop: int, data: memoryview | None) -> None:
        low, high = start // SECTOR, -(-stop // SECTOR)
        ragged = bool(start % SECTOR) or bool(stop % SECTOR and stop != self.size)
        if ragged:
            # Part of a sector needs the rest of it; what is on its way from an earlier phase would come to lie beneath a copy.
            self.require(block)
            self.gate.drain(before=phase)
        with self._lock(block):
            if phase.holds(block) or phase.shadows(low, high):
                overlay = phase.overlay
                if ragged:
                    start, stop, data = self._whole(phase, block, start, stop, data)
                overlay.file.put(start, stop - start, data)
                overlay.take(block, low, high)
                self._changes.append(Change(ChangeKind.OVERLAY, overlay.epoch, low, high - low, 1))
                return
            self.data.put(start, stop - start, data)
            if self.maps.states.cells[block] != PRESENT:
                self.written(block, low, high)

    def _whole(
        self, phase: Phase, block: int, start: int, stop: int, data: memoryview | None
    ) -> tuple[int, int, memoryview]:
        """The whole sectors that a change touches, with the change made in them."""
        low, high = start // SECTOR * SECTOR, -(-stop // SECTOR) * SECTOR
        content = memoryview(bytearray(high - low))
        self._read_block(phase.overlays, block, low, content)
        content[start - low : stop - low] = bytes(stop - start) if data is None else data
        return low, high, content

    def written(self, block: int, low: int, high: int) -> None:
        """Sectors of a block that is not present have got content of their own. The caller holds the block's lock."""
        first, end = self.maps.span(block)
        self.maps.sectors.fill(low, high, 1)
        if self.maps.sectors.get(first, end).count(1) == end - first:
            self._present(block, block + 1)
            return
        self.maps.states.fill(block, block + 1, PARTIAL)
        self._changes.append(Change(ChangeKind.STATE, 0, block, 1, PARTIAL))
        self._changes.append(Change(ChangeKind.SECTOR, 0, low, high - low, 1))

    def _present(self, first: int, end: int) -> None:
        # Whoever sees the state finds the change, and has no need of the sectors.
        self._changes.append(Change(ChangeKind.STATE, 0, first, end - first, PRESENT))
        self.maps.states.fill(first, end, PRESENT)

    def _lock(self, block: int) -> threading.Lock:
        return self._locks[block % _LOCKS]

    # -- durability --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """See `ports.export.Export`. After a failure the volume is read-only: the kernel has forgotten what it could not write."""
        self._check_writable()
        self._durability.flush()

    def prove(self) -> None:
        """Have the disk take what was written, and say so. OSError where it does not: the volume is read-only then."""
        self._durability.prove()

    def failing(self) -> contextlib.AbstractContextManager[None]:
        """An OSError in here means that something written before is lost: from then on nothing is written to the volume any more."""
        return self._durability.failing()

    def _lose(self, error: OSError) -> None:
        self.read_only = True
        self._fail()
        self._report(f"writing to {self.data.path} failed ({error.strerror}): the volume is read-only")

    def _check_writable(self) -> None:
        if self.read_only:
            raise Told(errno.EROFS, os.strerror(errno.EROFS))

    def _bound_changes(self) -> None:
        if len(self._changes) > _MOST_CHANGES:
            self.flush()

    def note(self, changes: list[Change]) -> None:
        """Have changes of the maps written with the next flush."""
        self._durability.note(changes)

    # -- folding -----------------------------------------------------------------------------------------------------

    def fold_block(self, overlay: Overlay, block: int, buffer: memoryview) -> int:
        """Move one block's sectors of an overlay into the data; returns bytes moved. `buffer` has room for a block."""
        low, high = self.maps.span(block)
        moved = 0
        with self._lock(block):
            for start, end in runs_of(overlay.sectors.get(low, high)):
                start, end = low + start, low + end
                part = buffer[: (end - start) * SECTOR]
                overlay.file.read_into(start * SECTOR, part)
                self.data.write(start * SECTOR, part)
                if self.maps.states.cells[block] != PRESENT:
                    self.written(block, start, end)
                overlay.sectors.fill(start, end, 0)
                self._changes.append(Change(ChangeKind.OVERLAY, overlay.epoch, start, end - start, 0))
                moved += len(part)
        self._bound_changes()
        return moved

    # -- what is where -----------------------------------------------------------------------------------------------

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]]:
        """See `ports.export.Export`: holes are where nothing was ever written or was discarded; missing blocks count as data."""
        try:
            yield from runs(self.maps, self.data, self.gate.phase, self.block, offset, length)
        except OSError as error:
            self.troubles.met(Doing.READING, error)
            raise
