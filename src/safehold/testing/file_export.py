"""A disk to serve that is a sparse file, and a directory of such disks: the simplest that the server can be tried with."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator, Mapping

from safehold.ports.export import Export

__all__ = ["FileExport", "FixedDirectory"]

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
"""Modes of fallocate(2)."""
_libc = ctypes.CDLL(None, use_errno=True)


class FileExport:
    """An `Export` over a file of this size in bytes, whose holes it tells and makes."""

    block_size = 4096

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self._file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        self.size = os.fstat(self._file).st_size
        self.read_only = read_only

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def read_ready(self, offset: int, buf: memoryview) -> bool:
        """See `ports.export.Export`."""
        self.read_into(offset, buf)
        return True

    def ready(self, offset: int, length: int) -> bool:
        """A file never has to be fetched."""
        return True

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill all of `buf`."""
        got = os.preadv(self._file, [buf], offset)
        while got < len(buf):
            more = os.preadv(self._file, [buf[got:]], offset + got)
            if not more:
                raise OSError(errno.EIO, "the file became shorter")
            got += more

    def fileno(self) -> int:
        """See `ports.export.OpenFile`."""
        return self._file

    def lies(self, offset: int, length: int) -> tuple[FileExport, int]:
        """In this file."""
        return self, offset

    def unreadable(self, error: OSError) -> None:
        """Nobody is told."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`."""
        put = os.pwrite(self._file, data, offset)
        while put < len(data):
            put += os.pwrite(self._file, data[put:], offset + put)

    def prepare(self, offset: int, length: int) -> None:
        """Nothing."""

    zeroes_fast = True
    """As file systems are that tests run on."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zeros that keep their space."""
        self._fallocate(_ZERO_RANGE | _KEEP_SIZE, offset, length)

    def discard(self, offset: int, length: int) -> None:
        """A hole."""
        self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self._file, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def flush(self) -> None:
        """Make it durable."""
        os.fdatasync(self._file)

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]]:
        """Data and holes as the file system tells them."""
        end = offset + length
        while offset < end:
            data = min(self._seek(offset, os.SEEK_DATA), end)
            if data > offset:
                yield data - offset, True, True
            offset = data
            if offset < end:
                hole = min(self._seek(offset, os.SEEK_HOLE), end)
                yield hole - offset, False, False
                offset = hole

    def _seek(self, offset: int, what: int) -> int:
        try:
            return os.lseek(self._file, offset, what)
        except OSError:
            return self.size


class FixedDirectory:
    """An `ExportDirectory` of disks that are there from its beginning, and a count of who holds each."""

    def __init__(self, exports: Mapping[str, Export]) -> None:
        self.held = dict.fromkeys(exports, 0)
        self._exports = exports
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """All of them."""
        return list(self._exports)

    def open(self, name: str) -> Export | None:
        """The disk of that name."""
        with self._lock:
            if name in self._exports:
                self.held[name] += 1
            return self._exports.get(name)

    def release(self, name: str) -> None:
        """Count down."""
        with self._lock:
            self.held[name] -= 1
