"""Raw images and block devices as disks to read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from safehold.model.errors import SourceError
from safehold.model.extents import Extent, ExtentKind
from safehold.ports.blocks import Lineage

__all__ = ["RawBlocks", "open_for_reading"]


def open_for_reading(path: str) -> int:
    """A descriptor for reading that leaves the access time alone where that is allowed. SourceError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            return os.open(path, flags | os.O_NOATIME)
        except PermissionError:
            return os.open(path, flags)
    except OSError as error:
        raise SourceError(
            f"cannot be opened ({error.strerror})", on=path, remedy="check the path and the permissions"
        ) from error


class RawBlocks:
    """A file or device whose bytes are the disk's bytes."""

    def __init__(self, fd: int, path: str) -> None:
        """`fd` stays the caller's."""
        self._fd = fd
        self._path = path
        try:
            # Seeking to the end gives the size of devices too.
            self.size = os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            raise SourceError(
                f"nobody can tell its size ({error.strerror})",
                on=path,
                remedy="give a file that lies on a disk; what a program says is backed up from standard input: … | safehold backup -",
            ) from error
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def extents(self, since: Lineage | None = None) -> Iterator[Extent]:
        """Holes of a sparse file are zero; everything else, and all of a device, is data."""
        at = 0
        while at < self.size:
            try:
                data = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    yield Extent(at, self.size - at, ExtentKind.DATA)
                    return
                data = self.size
            data = min(data, self.size)
            if data > at:
                yield Extent(at, data - at, ExtentKind.ZERO)
            if data == self.size:
                return
            at = min(os.lseek(self._fd, data, os.SEEK_HOLE), self.size)
            yield Extent(data, at - data, ExtentKind.DATA)

    def read_into(self, offset: int, buf: memoryview) -> None:
        """See `ports.blocks.Blocks`; SourceError where the disk became shorter or cannot be read."""
        done = 0
        while done < len(buf):
            try:
                got = os.preadv(self._fd, [buf[done:]], offset + done)
            except OSError as error:
                raise SourceError(
                    f"bytes from {offset + done} cannot be read ({error.strerror})", on=self._path
                ) from error
            if not got:
                raise SourceError(f"became shorter while it was read: it ends at {offset + done}", on=self._path)
            done += got
