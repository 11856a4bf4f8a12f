"""Where the bytes of a volume lie: data, overlays, and the arrangement of them that is in force."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from safehold.blocks.layout import SECTOR
from safehold.blocks.maps import BlockMap, SectorMap

__all__ = ["MISSING", "PARTIAL", "PRESENT", "REGION", "DataFile", "Gate", "Overlay", "Phase"]

MISSING, PARTIAL, PRESENT = 0, 1, 2
"""States of a block. Missing is what a map that was lost says, for then a vault is asked instead of zeros given out."""

REGION = 4 * 1024 * 1024
"""Bytes, and the alignment, of what is written past the page cache. The cache keeps pages of up to 2 MiB in one piece, and a piece that somebody
else has just written to cannot be thrown out: what lies on the disk below the rest of it would not be seen.
"""

_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_LIBC = ctypes.CDLL(None, use_errno=True)
_ZEROS = memoryview(bytes(1024 * 1024))


def _punched(descriptor: int, offset: int, length: int) -> bool:
    """True where there is a hole there now."""
    mode = _PUNCH_HOLE | _KEEP_SIZE
    return not _LIBC.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length))


class DataFile:
    """A sparse file that is read and written at offsets. Closed when nobody refers to it any more: readers may still be at work on one
    that is no longer needed.
    """

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        """With a size it is made, or made anew; without one it has to be there."""
        flags = os.O_RDWR | os.O_CLOEXEC
        self.path = path
        self._past_cache: int | None = None
        self._descriptors: list[int] = []
        """All there are. None is closed before the end: others may be writing by it."""
        self._opening = threading.Lock()
        self.descriptor = os.open(path, flags if size is None else flags | os.O_CREAT | os.O_TRUNC, 0o600)
        self._descriptors.append(self.descriptor)
        if size is not None:
            os.truncate(self.descriptor, size)
        # Behind the end, where there is nothing to lose.
        self.punches = _punched(self.descriptor, -(-os.fstat(self.descriptor).st_size // SECTOR) * SECTOR, SECTOR)
        """True where the file system makes holes; elsewhere zeros have to be written."""

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def fileno(self) -> int:
        """See `ports.export.OpenFile`."""
        return self.descriptor

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view`; what lies beyond the end of the file is zeros. OSError."""
        got = os.preadv(self.descriptor, [view], offset)
        while got < len(view):
            more = os.preadv(self.descriptor, [view[got:]], offset + got)
            if not more:
                view[got:] = bytes(len(view) - got)
                return
            got += more

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view`. OSError."""
        done = os.pwrite(self.descriptor, view, offset)
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done:], offset + done)

    def write_region(self, offset: int, view: memoryview) -> None:
        """Write one whole region, past the page cache where the file system can: what is filled in is more than anybody is about to read.
        The memory starts on a page. Nobody else may write anywhere in the region meanwhile; it may be read. OSError.
        """
        descriptor = self._descriptor_past_cache()
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(descriptor, view[done:], offset + done)
            except OSError as error:
                if descriptor == self.descriptor or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                descriptor = self._past_cache = self.descriptor

    def _descriptor_past_cache(self) -> int:
        with self._opening:
            if self._past_cache is None:
                try:
                    # By its descriptor: the file may have another name by now.
                    self._past_cache = os.open(
                        f"/proc/self/fd/{self.descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
                    )
                    self._descriptors.append(self._past_cache)
                except OSError:
                    self._past_cache = self.descriptor
            return self._past_cache

    def put(self, offset: int, length: int, data: memoryview | None) -> None:
        """`write` the `data` that are this long, or `zero` where there are none. OSError."""
        if data is None:
            self.zero(offset, length)
        else:
            self.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, as a hole where the file system can. OSError."""
        if not self.punches or not _punched(self.descriptor, offset, length):
            for at in range(offset, offset + length, len(_ZEROS)):
                self.write(at, _ZEROS[: offset + length - at])

    def allocated(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The range as (start, end, has data). OSError."""
        at = start
        while at < end:
            try:
                low = min(max(os.lseek(self.descriptor, at, os.SEEK_DATA), at), end)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                low = end
            if low > at:
                yield at, low, False
            if low < end:
                high = min(os.lseek(self.descriptor, low, os.SEEK_HOLE), end)
                yield low, high, True
                low = high
            at = low

    def sync(self) -> None:
        """Return when what was written is durable. OSError, after which nothing written before can be relied on."""
        os.fdatasync(self.descriptor)


class Overlay:
    """Redirected writes of one epoch: a sparse file and the map of its sectors."""

    def __init__(self, epoch: int, file: DataFile, sectors: SectorMap, per_block: int) -> None:
        """`per_block` sectors make a block. OSError."""
        self.epoch = epoch
        self.file = file
        self.sectors = sectors
        self._per_block = per_block
        # Takes memory only where something is set, unlike a bytearray.
        self.touched = mmap.mmap(
            -1, max(-(-sectors.length // per_block), 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        """1 for blocks of which it may have sectors: reads of all others need not ask the map, which is in a file."""
        for block in self.blocks():
            self.touched[block] = 1

    def blocks(self) -> Iterator[int]:
        """Numbers of the blocks of which it has sectors, ascending."""
        last = -1
        for start, end in self.sectors.runs():
            for block in range(max(start // self._per_block, last + 1), (end - 1) // self._per_block + 1):
                last = block
                yield block

    def take(self, block: int, low: int, high: int) -> None:
        """It has the sectors from `low` to before `high`, which are of one block. OSError."""
        self.touched[block] = 1
        self.sectors.fill(low, high, 1)


class Phase:
    """One arrangement: the epoch that writes belong to, the blocks that sealed epochs hold, and the overlays, newest first.

    Nothing of it changes but the number of writers inside, which belongs to the volume's gate.
    """

    def __init__(self, epoch: int, dirty: BlockMap, held: tuple[BlockMap, ...], overlays: tuple[Overlay, ...]) -> None:
        self.epoch = epoch
        self.dirty = dirty
        self.held = held
        self.overlays = overlays
        self.plain = not overlays
        self.writers = 0
        self.retired = False
        self.idle = threading.Event()

    @property
    def overlay(self) -> Overlay:
        """Where this epoch's redirected writes go; there is one whenever anything is held or overlaid."""
        return self.overlays[0]

    def holds(self, block: int) -> bool:
        """True where a sealed epoch needs the block as it is."""
        return any(dirty.cells[block] for dirty in self.held)

    def bare(self, first: int, last: int) -> bool:
        """True where no overlay has anything of the blocks from `first` to `last`."""
        return all(overlay.touched.find(b"\1", first, last + 1) < 0 for overlay in self.overlays)

    def shadows(self, low: int, high: int) -> bool:
        """True where an overlay has one of the sectors from `low` to before `high`."""
        return any(overlay.sectors.any(low, high) for overlay in self.overlays)


class Gate:
    """Lets writers into the phase in force, and waits for those of earlier ones.

    A writer enters by `phase.writers += 1` under the lock, and leaves by taking it back and setting `idle` where the phase is
    retired and nobody else is in it; that is written out where writes are served. `lock` is held only for the moment of entering,
    leaving or switching; to switch several volumes at one instant, hold all their locks.
    """

    def __init__(self, phase: Phase) -> None:
        self.lock = threading.Lock()
        self.phase = phase
        self._retired: list[Phase] = []

    def switch(self, phase: Phase) -> None:
        """Put another phase in force; the caller holds the lock."""
        old, self.phase = self.phase, phase
        old.retired = True
        if old.writers:
            self._retired.append(old)
        else:
            old.idle.set()

    def drain(self, before: Phase | None = None) -> None:
        """Return when no writer is left in any phase that was in force before a certain one, else in any that is no longer in force. A writer
        waits for phases before its own alone, so that no two wait for each other.
        """
        while True:
            with self.lock:
                self._retired = [phase for phase in self._retired if phase.writers]
                oldest = next(iter(self._retired), before)
            if oldest is None or oldest is before:
                return
            oldest.idle.wait()
