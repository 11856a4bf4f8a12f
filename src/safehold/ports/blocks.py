"""The seam that captured, stored and served disks share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from safehold.model.extents import Extent

__all__ = ["Blocks", "IncrementalBlocks", "Lineage", "MutableBlocks"]


@dataclass(frozen=True, slots=True)
class Lineage:
    """An earlier point that a disk can tell its differences from; `token` is opaque and made by the disk's own
    implementation.
    """

    token: str


class Blocks(Protocol):
    """A disk that does not change while it is open."""

    @property
    def size(self) -> int:
        """Length in bytes; any number, not only whole sectors."""
        ...

    def extents(self, since: Lineage | None = None) -> Iterator[Extent]:
        """The whole disk from byte 0 to `size`, in order and without gaps, as data, zero, or (only with `since`)
        same.

        ZERO is a promise that all bytes are zero; DATA may still be zeros.
        """
        ...

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill all of `buf` from byte `offset`; safe from several threads. SourceError or DamageError where it
        cannot.
        """
        ...


@runtime_checkable
class IncrementalBlocks(Blocks, Protocol):
    """A disk that knows what changed since its last point, and the ids that its blocks have there.

    Its `extents` call SAME what did not change; that is never read. Numbers and ids are of the vault's blocks.
    """

    def known_ids(self, first: int, count: int) -> list[bytes]:
        """The ids of consecutive blocks that are SAME; 32 zero bytes for a block of zeros. From several threads."""
        ...

    def remember_ids(self, first: int, identities: list[bytes]) -> None:
        """Blocks that were read, with the ids they have in the point that is being made. From several threads."""
        ...

    def remember_zeros(self, first: int, count: int) -> None:
        """Blocks that are zeros in the point that is being made. From several threads."""
        ...


class MutableBlocks(Protocol):
    """A disk that a restore writes to."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill all of `buf` from byte `offset`; safe from several threads. TargetError where it cannot."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at byte `offset`; safe from several threads for ranges that do not overlap. TargetError.

        Cheapest for data that starts on a page of memory, at an offset that is a multiple of 4,096.
        """
        ...

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeros, by punching or zeroing, never by leaving what was there."""
        ...

    def flush(self) -> None:
        """Return when everything written is durable."""
        ...
