"""A stored disk: blocks of a point, fetched where they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safehold.model.errors import DamageError
from safehold.model.extents import Extent, ExtentKind
from safehold.ports.blocks import Lineage
from safehold.vault.disk_tree import DiskTree
from safehold.vault.fetch import Fetcher, Finder, Lost
from safehold.vault.names import ZERO_ID
from safehold.vault.node import read_ids
from safehold.vault.records import Member

__all__ = ["BlocksRead", "StoredDisk"]


@dataclass(frozen=True, slots=True)
class BlocksRead:
    """Numbers of the blocks that were read, ascending; of those that are zeros; and those that cannot be read, whose `position` is the
    block's number.
    """

    data: list[int]
    zeros: list[int]
    lost: list[Lost]


class StoredDisk:
    """`Blocks` over a point's member: nothing is fetched before it is read."""

    def __init__(self, member: Member, tree: DiskTree, fetcher: Fetcher, finder: Finder, dedup_key: bytes) -> None:
        self.member = member
        self.tree = tree
        self.block_size = member.block_size
        self._fetcher, self.finder, self.dedup_key = fetcher, finder, dedup_key

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.member.size

    @property
    def remote(self) -> bool:
        """True where reading waits for a network rather than for the processor."""
        return self._fetcher.remote

    def extents(self, since: Lineage | None = None) -> Iterator[Extent]:
        """Data and zero extents, in whole blocks. What cannot be told is data, which cannot be read."""
        for run in self.tree.runs():
            start, end = self.span(run.first, run.count)
            yield Extent(start, end - start, ExtentKind.DATA if run.data else ExtentKind.ZERO)

    def span(self, first: int, count: int) -> tuple[int, int]:
        """The bytes of consecutive blocks: the first one, and the one behind the last."""
        return first * self.block_size, min((first + count) * self.block_size, self.size)

    def read_blocks(self, first: int, count: int, buf: memoryview) -> BlocksRead:
        """Read blocks `first` to `first + count` into `buf`, which ends with the last of them. What lies in the places of blocks of zeros is
        left alone; what lies in those of lost ones is anything.
        """
        wanted: list[tuple[int, bytes]] = []
        data: list[int] = []
        zeros: list[int] = []
        lost: list[Lost] = []
        for piece in self.tree.look_up(first, count):
            if piece.lost:
                lost += [Lost(block, ZERO_ID, piece.lost) for block in range(piece.first, piece.first + piece.count)]
            for block, identity in enumerate(read_ids(piece.ids), piece.first):
                if identity == ZERO_ID:
                    zeros.append(block)
                else:
                    wanted.append((block, identity))
        places = [buf[(n - first) * self.block_size : (n - first + 1) * self.block_size] for n, _ in wanted]
        for result in self._fetcher.many(self.finder, [identity for _, identity in wanted], self.dedup_key, places):
            block = wanted[result.position][0]
            if isinstance(result, Lost):
                lost.append(Lost(block, result.identity, result.reason))
            else:
                data.append(block)
        return BlocksRead(sorted(data), zeros, lost)

    def read_whole(self, first: int, count: int, buf: memoryview) -> list[Lost]:
        """Like `read_blocks`, with zeros in their places too; gives what is lost."""
        read = self.read_blocks(first, count, buf)
        for block in read.zeros:
            place = buf[(block - first) * self.block_size : (block - first + 1) * self.block_size]
            place[:] = bytes(len(place))
        return read.lost

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill `buf` from byte `offset`; DamageError names the block that cannot be read."""
        end = offset + len(buf)
        if offset < 0 or end > self.size:
            raise ValueError(f"bytes {offset}..{end} lie outside of a disk of {self.size}")
        if offset == end:
            return
        first, last = offset // self.block_size, (end - 1) // self.block_size
        base = first * self.block_size
        size = min((last + 1) * self.block_size, self.size) - base
        # Blocks are read whole: straight into place where all that is asked for is whole blocks.
        whole = buf if size == len(buf) else memoryview(bytearray(size))
        for one in self.read_whole(first, last - first + 1, whole):
            raise DamageError(
                f"bytes from {one.position * self.block_size} cannot be read: {one.reason}", on=self.member.name
            )
        if whole is not buf:
            buf[:] = whole[offset - base : end - base]
