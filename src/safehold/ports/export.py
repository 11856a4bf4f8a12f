"""The seam between a disk that is served live and the protocol that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["Export", "ExportDirectory", "OpenFile"]


class OpenFile(Protocol):
    """A file that stays open for as long as this object is referred to."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


class Export(Protocol):
    """A disk that clients read and write while it is served. Every method is called from several threads at once.

    Offsets and lengths are in bytes, of any alignment, and already checked against `size`. Methods raise OSError with the
    errno that the client is to see (EIO where data cannot be had, ENOSPC, EROFS); whoever raises has told the operator why.
    Buffers belong to the caller again once a method returns.
    """

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    @property
    def read_only(self) -> bool:
        """True where every change is refused with EROFS. May turn true while the disk is served."""
        ...

    @property
    def block_size(self) -> int:
        """The request size and alignment in bytes that is cheapest."""
        ...

    @property
    def zeroes_fast(self) -> bool:
        """True where `write_zeroes` and `discard` write no zeros, so that a range of any length takes no time to speak of."""
        ...

    def ready(self, offset: int, length: int) -> bool:
        """True where reading the range waits for nothing but local disks. A hint, asked before every read: cheap and never
        blocking. A server answers other requests of the same client meanwhile where it is false.
        """
        ...

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill all of `buf`."""
        ...

    def read_ready(self, offset: int, buf: memoryview) -> bool:
        """`read_into` where the range is `ready`: in one call, as most requests are short reads. False where it is not; what is in `buf` means
        nothing then.
        """
        ...

    def lies(self, offset: int, length: int) -> tuple[OpenFile, int] | None:
        """A file that has the range, all of it, and from which of its bytes on; None where it is not in one file, or not for sure.
        Zeros are what lies beyond the file's end. The file may be read for as long as the answer is kept: changes that are made after this
        call may be seen there, or not.
        """
        ...

    def unreadable(self, error: OSError) -> None:
        """What `lies` told of could not be read: to be told to the operator."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`; once this returns, every later read sees it. Not durable until `flush`."""
        ...

    def prepare(self, offset: int, length: int) -> None:
        """Fetch whatever a change of the range waits for besides local disks: where it covers a part of a block of `block_size`, the rest of that
        may have to come first. After this, or where the range is `ready` or made of whole blocks, a change waits for local disks alone.
        """
        ...

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeros, never slower than writing them; its space stays taken where the disk can promise that."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """Make a range read as zeros and give its space back."""
        ...

    def flush(self) -> None:
        """Return when every write that was answered before this call is durable."""
        ...

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]]:
        """The range in runs of (length, hole, zero), as `base:allocation` means them; stopping early is allowed."""
        ...


class ExportDirectory(Protocol):
    """What a server offers. Called from several threads."""

    def names(self) -> list[str]:
        """Exports that a client may ask for."""
        ...

    def open(self, name: str) -> Export | None:
        """The export, held until `release`; None where there is none of that name."""
        ...

    def release(self, name: str) -> None:
        """One client of it hung up."""
        ...
