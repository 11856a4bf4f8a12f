"""Maps of a byte for each block or sector, in files that several threads share.

What is set outlives the process at once, as the page cache does, and a power loss after `sync`. A byte for each, not a bit, so that threads
set neighbours without a lock.

Nothing is set by a store to mapped memory. A store that needs room and finds none ends the process (SIGBUS), and where a file system never
overwrites (btrfs, bcachefs, zfs; snapshots and reflinks elsewhere) every store may need some, whatever was taken beforehand. A write is told.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["BlockMap", "Maps", "SectorMap", "is_sound"]

_PIECE = 1 << 20
_FLAGS = bytes((0,)) + bytes((1,)) * 255


class BlockMap:
    """`length` small numbers, one for each block; `cells` are they, mapped to be read. All of the file's space is taken when it is made, so that
    setting one needs none where the file system overwrites.
    """

    def __init__(self, path: Path, length: int) -> None:
        """The file has to be there and long enough. OSError."""
        self.path = path
        self.length = length
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        _check_length(self._descriptor, path, length)
        # A map cannot be empty.
        self.cells = mmap.mmap(self._descriptor, max(length, 1), prot=mmap.PROT_READ)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @classmethod
    def create(cls, path: Path, length: int) -> BlockMap:
        """A map of zeros in a file of its own; one that is left over is replaced. OSError where there is no room."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, max(length, 1))
        finally:
            os.close(descriptor)
        return cls(path, length)

    def fill(self, start: int, end: int, value: int) -> None:
        """Set all from `start` to before `end`. OSError where there is no room; some may be set then."""
        _fill(self._descriptor, start, end, value)

    def mark(self, start: int, end: int) -> None:
        """Set all from `start` to before `end` to 1, in a map that has no other number but 0; costs no more than a look where they are.
        OSError as for `fill`.
        """
        if self.cells.find(b"\0", start, end) >= 0:
            _fill(self._descriptor, start, end, 1)

    def runs(self) -> Iterator[tuple[int, int]]:
        """(start, end) of the runs that are not zero."""
        for low in range(0, self.length, _PIECE):
            for start, end in runs_of(self.cells[low : min(low + _PIECE, self.length)]):
                yield low + start, low + end

    def sync(self) -> None:
        """Return when all that is set is durable. OSError where it cannot be."""
        os.fdatasync(self._descriptor)


class SectorMap:
    """`length` small numbers, one for each sector, in a sparse file that is read and written: it is too long for all of its space to be
    taken, and a write that finds no room is an error that can be told.
    """

    def __init__(self, path: Path, length: int) -> None:
        """The file has to be there and long enough. OSError."""
        self.path = path
        self.length = length
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        _check_length(self._descriptor, path, length)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @classmethod
    def create(cls, path: Path, length: int) -> SectorMap:
        """A map of zeros in a file of its own; one that is left over is replaced. OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(descriptor, length)
        finally:
            os.close(descriptor)
        return cls(path, length)

    def get(self, start: int, end: int) -> bytes:
        """The numbers from `start` to before `end`. OSError."""
        return os.pread(self._descriptor, end - start, start)

    def fill(self, start: int, end: int, value: int) -> None:
        """Set all from `start` to before `end`. OSError where there is no room; some may be set then."""
        _fill(self._descriptor, start, end, value)

    def any(self, start: int, end: int) -> bool:
        """True where one from `start` to before `end` is not zero. OSError."""
        part = self.get(start, end)
        return part.count(0) != len(part)

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """(start, end) of the runs that are not zero. Holes of the file are skipped, so that an empty map of any size is cheap."""
        for low, high in _parts(self._descriptor, start, self.length if end is None else end):
            for first, last in runs_of(self.get(low, high)):
                yield low + first, low + last

    def sync(self) -> None:
        """Return when all that is set is durable. OSError where it cannot be."""
        os.fdatasync(self._descriptor)


def is_sound(path: Path, length: int) -> bool:
    """True where a map is there, as long as it has to be, and can be read to its end: a page of mapped memory that cannot be ends the process."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        _check_length(descriptor, path, length)
        for low, high in _parts(descriptor, 0, length):
            os.pread(descriptor, high - low, low)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _parts(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, in pieces of bounded size."""
    at = start
    while at < end:
        try:
            low = max(os.lseek(descriptor, at, os.SEEK_DATA), at)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        if low >= end:
            return
        high = min(os.lseek(descriptor, low, os.SEEK_HOLE), end)
        for piece in range(low, high, _PIECE):
            yield piece, min(piece + _PIECE, high)
        at = high


def _fill(descriptor: int, start: int, end: int, value: int) -> None:
    done = start
    while done < end:
        done += os.pwrite(descriptor, bytes((value,)) * (end - done), done)


def _check_length(descriptor: int, path: Path, length: int) -> None:
    there = os.fstat(descriptor).st_size
    if there < length:
        raise OSError(errno.EIO, f"the map has {there} bytes, and {length} belong to it", str(path))


class Maps:
    """What is known of the blocks of a volume and of the sectors of partial ones."""

    def __init__(self, states: BlockMap, sectors: SectorMap, per_block: int, valid_sectors: int) -> None:
        """`per_block` sectors make a block; `valid_sectors` is where the volume ends."""
        self.states = states
        self.sectors = sectors
        self.per_block = per_block
        self.valid_sectors = valid_sectors

    def span(self, block: int) -> tuple[int, int]:
        """The sectors of a block that lie within the volume."""
        low = block * self.per_block
        return low, min(low + self.per_block, self.valid_sectors)


def runs_of(cells: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of the runs that are not zero."""
    flags = cells.translate(_FLAGS)
    at = flags.find(1)
    while at >= 0:
        stop = flags.find(0, at)
        stop = len(flags) if stop < 0 else stop
        yield at, stop
        at = flags.find(1, stop)
