"""Maps of a byte for each block or sector, in sparse files that several threads share."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ByteMap"]


class ByteMap:
    """`length` small numbers in a file, mapped shared: what is set outlives the process at once, and a power loss after `sync`.

    A byte for each, not a bit, so that threads set neighbours without a lock; the file is sparse and the memory is the page
    cache's. The file must be there and long enough.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.length = length
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # A map cannot be empty.
            self.cells = mmap.mmap(descriptor, max(length, 1))
        finally:
            os.close(descriptor)

    @classmethod
    def create(cls, path: Path, length: int) -> ByteMap:
        """A map of zeros in a file of its own; one that is left over is replaced."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(descriptor, max(length, 1))
        finally:
            os.close(descriptor)
        return cls(path, length)

    def fill(self, start: int, end: int, value: int) -> None:
        """Set all from `start` to before `end`."""
        self.cells[start:end] = bytes((value,)) * (end - start)

    def all(self, start: int, end: int, value: int) -> bool:
        """True where every one from `start` to before `end` is `value`."""
        return self.cells[start:end].count(value) == end - start

    def any(self, start: int, end: int) -> bool:
        """True where one from `start` to before `end` is not zero."""
        part = self.cells[start:end]
        return part.count(0) != len(part)

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """(start, end) of the runs that are not zero. Holes of the file are skipped, so that an empty map of any size is cheap."""
        end = self.length if end is None else end
        for low, high in self._parts(start, end):
            part = self.cells[low:high]
            # Every value that is not zero counts alike.
            flags = part.translate(_NONZERO)
            at = flags.find(1)
            while at >= 0:
                stop = flags.find(0, at)
                stop = len(flags) if stop < 0 else stop
                yield low + at, low + stop
                at = flags.find(1, stop)

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where the file has data, in pieces of bounded size."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = start
            while at < end:
                try:
                    low = max(os.lseek(descriptor, at, os.SEEK_DATA), at)
                except OSError:
                    return
                if low >= end:
                    return
                high = min(os.lseek(descriptor, low, os.SEEK_HOLE), end)
                for piece in range(low, high, _PIECE):
                    yield piece, min(piece + _PIECE, high)
                at = high
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Return when all that is set is durable. OSError where it cannot be."""
        self.cells.flush()


_PIECE = 1 << 20
_NONZERO = bytes((0,)) + bytes((1,)) * 255
