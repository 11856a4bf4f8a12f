"""One live volume: reads, writes and flushes while snapshots are taken and missing blocks arrive. See `ports.export.Export`."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator

from safehold.blocks.checkpoint import Change, ChangeKind, CheckpointLog, NoRoom
from safehold.blocks.layers import MISSING, PARTIAL, PRESENT, REGION, DataFile, Gate, Overlay, Phase
from safehold.blocks.layout import SECTOR
from safehold.blocks.maps import Maps, runs_of
from safehold.blocks.summary import everything

__all__ = ["LiveVolume"]

_LOCKS = 64
_MOST_CHANGES = 50_000
"""Changes of the maps that wait for a flush; more are made durable without being asked, so that memory stays bounded."""

_BASE = -1
_ABSENT = -2


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
        when the volume becomes read-only, and has to see that it stays so.
        """
        self.size, self.block = size, block
        self.data, self.maps, self.gate = data, maps, Gate(phase)
        self._states = maps.states.cells
        self.fetch: Callable[[int], None] | None = None
        """Makes a missing block present by calling `fill`; DamageError or OSError where it cannot."""
        self._log = log
        self.settled: set[int] = set()
        """Sealed epochs that survive a power loss."""
        self._report, self._fail = report, fail
        self._changes: deque[Change] = deque()
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._flushing = threading.Lock()
        self._asked = self._flushed = 0

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill `buf`; waits for the vault where a sector is missing. OSError EIO where it cannot be had."""
        first, last = offset // self.block, (offset + len(buf) - 1) // self.block
        phase = self.gate.phase
        if phase.plain and self.here(first, last):
            self.data.read_into(offset, buf)
            return
        self.read_layers(phase.overlays, offset, buf)

    def ready(self, offset: int, length: int) -> bool:
        """See `ports.export.Export`."""
        return not length or self.here(offset // self.block, (offset + length - 1) // self.block)

    def lies(self, offset: int, length: int) -> tuple[DataFile, int] | None:
        """See `ports.export.Export`: the data, where nothing is missing and no overlay is in force."""
        if self.gate.phase.plain and self.ready(offset, length):
            return self.data, offset
        return None

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
        owners = self._owners(overlays, block, low, high)
        if _ABSENT in owners:
            self.require(block)
            owners = self._owners(overlays, block, low, high)
        at = low
        for owner, run in itertools.groupby(owners):
            count = len(list(run))
            start, stop = max(at * SECTOR, offset), min((at + count) * SECTOR, offset + len(buf))
            source = self.data if owner == _BASE else overlays[owner].file
            source.read_into(start, buf[start - offset : stop - offset])
            at += count

    def _owners(self, overlays: tuple[Overlay, ...], block: int, low: int, high: int) -> list[int]:
        """For each sector the overlay's place in the list, `_BASE`, or `_ABSENT`."""
        # Overlays before the data: a fold moves sectors down, and one that was looked for first is found on either side.
        above = [overlay.sectors.get(low, high) for overlay in overlays]
        state = self.maps.states.cells[block]
        if state == PRESENT:
            owners = [_BASE] * (high - low)
        elif state == MISSING:
            owners = [_ABSENT] * (high - low)
        else:
            owners = [_BASE if cell else _ABSENT for cell in self.maps.sectors.get(low, high)]
        for place in range(len(above) - 1, -1, -1):
            if above[place].count(0) != high - low:
                owners = [place if cell else owner for cell, owner in zip(above[place], owners, strict=True)]
        return owners

    def require(self, block: int) -> None:
        """Have a block present, from the vault if need be. OSError EIO where that cannot be."""
        if self.maps.states.cells[block] == PRESENT:
            return
        if self.fetch is None:
            self._report(f"block {block} is missing and nothing fills the volume")
            raise OSError(errno.EIO, "the block is not here and nothing fetches it")
        self.fetch(block)

    def fill(self, block: int, content: memoryview) -> None:
        """Vault content of one whole block arrives: every sector that was not written here takes it."""
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
            self._present(block)
        self._bound_changes()

    def fill_run(self, first: int, content: memoryview) -> None:
        """Vault content of consecutive whole blocks arrives, in memory that starts on a page. Regions of which nothing was ever written go
        past the page cache.
        """
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
        self._bound_changes()

    def _fill_region(self, first: int, end: int, content: memoryview) -> bool:
        with contextlib.ExitStack() as stack:
            # Whoever wants to write to a missing block waits for its lock.
            for place in sorted({block % _LOCKS for block in range(first, end)}):
                stack.enter_context(self._locks[place])
            if self.maps.states.cells[first:end] != bytes([MISSING]) * (end - first):
                return False
            self.data.write_region(first * self.block, content)
            for block in range(first, end):
                self._present(block)
        return True

    # -- writing -----------------------------------------------------------------------------------------------------

    def prepare(self, offset: int, length: int) -> None:
        """See `ports.export.Export`: the blocks of which a part of a sector is to change. OSError EIO where one cannot be had."""
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        end = offset + length
        if length and offset % SECTOR:
            self.require(offset // self.block)
        if length and end % SECTOR and end != self.size:
            self.require((end - 1) // self.block)

    def write(self, offset: int, data: memoryview) -> None:
        """See `ports.export.Export`."""
        self._change(offset, len(data), data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """See `ports.export.Export`: a hole where the file system can."""
        self._change(offset, length, None)

    discard = write_zeroes

    def _change(self, offset: int, length: int, data: memoryview | None) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
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
                if data is None:
                    self.data.zero(offset, length)
                else:
                    self.data.write(offset, data)
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
                _put(overlay.file, start, stop - start, data)
                overlay.sectors.fill(low, high, 1)
                self._changes.append(Change(ChangeKind.OVERLAY, overlay.epoch, low, high - low, 1))
                return
            _put(self.data, start, stop - start, data)
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
            self._present(block)
            return
        self.maps.states.fill(block, block + 1, PARTIAL)
        self._changes.append(Change(ChangeKind.STATE, 0, block, 1, PARTIAL))
        self._changes.append(Change(ChangeKind.SECTOR, 0, low, high - low, 1))

    def _present(self, block: int) -> None:
        # Whoever sees the state finds the change, and has no need of the sectors.
        self._changes.append(Change(ChangeKind.STATE, 0, block, 1, PRESENT))
        self.maps.states.fill(block, block + 1, PRESENT)

    def _lock(self, block: int) -> threading.Lock:
        return self._locks[block % _LOCKS]

    # -- durability --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """See `ports.export.Export`. Those who ask at once share one. After a failure the volume is read-only: the kernel has
        forgotten what it could not write.
        """
        with self.gate.lock:
            self._asked += 1
            ticket = self._asked
        with self._flushing:
            if self._flushed >= ticket:
                return
            with self.gate.lock:
                goal = self._asked
            self._make_durable()
            self._flushed = goal

    def _make_durable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        # Before the changes are taken: what a map is read as halfway through a change, the change makes good.
        fresh = self._log.anew(everything(self.maps, self.gate.phase, sorted(self.settled))) if self._log.long else None
        # Only what was there before the data is synced: its data is in the page cache by now.
        changes = [self._changes.popleft() for _ in range(len(self._changes))]
        with self.failing():
            self.data.sync()
            for overlay in self.gate.phase.overlays:
                overlay.file.sync()
            if fresh is not None and fresh.take_over(self._log.path, changes):
                self._log = fresh
            elif changes:
                try:
                    self._log.append(changes)
                except NoRoom:
                    self._changes.extendleft(reversed(changes))
                    raise

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """An OSError in here means that something written before is lost: from then on nothing is written to the volume any more."""
        try:
            yield
        except NoRoom:
            raise
        except OSError as error:
            self.read_only = True
            self._fail()
            self._report(f"writing to {self.data.path} failed ({error.strerror}): the volume is read-only")
            raise

    def _bound_changes(self) -> None:
        if len(self._changes) > _MOST_CHANGES:
            self.flush()

    def note(self, changes: list[Change]) -> None:
        """Have changes of the maps written with the next flush."""
        for change in changes:
            if change.kind is ChangeKind.SEALED:
                self.settled.add(change.epoch)
            elif change.kind is ChangeKind.DRAINED:
                self.settled.discard(change.epoch)
        self._changes.extend(changes)

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
        end = offset + length
        while offset < end:
            block = offset // self.block
            stop = min(end, (block + 1) * self.block)
            low, high = offset // SECTOR, -(-stop // SECTOR)
            if self.maps.states.cells[block] != PRESENT or self.gate.phase.shadows(low, high):
                yield stop - offset, False, False
            else:
                for start, high_end, has_data in self.data.allocated(offset, stop):
                    yield high_end - start, not has_data, not has_data
            offset = stop


def _put(file: DataFile, offset: int, length: int, data: memoryview | None) -> None:
    if data is None:
        file.zero(offset, length)
    else:
        file.write(offset, data)
