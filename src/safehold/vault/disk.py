"""A stored disk: a tree of block ids, written while blocks arrive and read page by page.

Leaf pages hold the ids of `page_refs` consecutive blocks, inner pages the ids of `page_refs` pages below. A page of
nothing but zero ids is itself the zero id, so that a hole of any size costs nothing. Pages of equal content are equal
chunks, so two points share what did not change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from safehold.model.errors import DamageError
from safehold.model.extents import Extent, ExtentKind
from safehold.ports.blocks import Lineage
from safehold.vault.fetch import Fetcher, Finder, Lost
from safehold.vault.names import ZERO_ID
from safehold.vault.node import Node, decode_node
from safehold.vault.records import Member
from safehold.vault.sealing import MAX_PLAIN

__all__ = ["BlocksRead", "DiskTree", "DiskTreeBuilder", "StoredDisk", "changed_blocks"]

LEAF, INNER = "disk.leaf", "disk.inner"
_ID = 32
_LARGEST_DISK = 1 << 60
_SMALLEST_BLOCK = 512
_MOST_REFS = 1 << 16
"""What no writer of ours exceeds. Points come from writers that may be hostile, so a reader checks before it computes with them."""

_CACHED_PAGES = 64
"""Pages kept by a reader: 64 of 512 ids are 1 MiB and span 16 GiB of disk."""


class DiskTreeBuilder:
    """Takes block ids in any order and stores pages as soon as they are full. Thread-safe."""

    def __init__(self, blocks: int, page_refs: int, put: Callable[[Node], bytes]) -> None:
        """`put` stores a node and returns its id; it is called from whichever thread filled a page, from one at a time."""
        self._blocks = blocks
        self._refs = page_refs
        self._put = put
        self._lock = threading.Lock()
        self._storing = threading.Lock()
        self._open: dict[int, tuple[bytearray, int]] = {}
        self._leaves: dict[int, bytes] = {}

    def set(self, first: int, identities: list[bytes]) -> None:
        """The ids of consecutive blocks from number `first`; each block is set exactly once."""
        at = 0
        while at < len(identities):
            page, slot = divmod(first + at, self._refs)
            take = min(self._refs - slot, len(identities) - at)
            self._fill(page, slot, identities[at : at + take])
            at += take

    def set_zero(self, first: int, count: int) -> None:
        """Blocks of zeros; whole pages of them cost nothing."""
        end = first + count
        while first < end:
            page, slot = divmod(first, self._refs)
            take = min(self._refs - slot, end - first)
            if take < self._page_length(page):
                self._fill(page, slot, [ZERO_ID] * take)
            first += take

    def _page_length(self, page: int) -> int:
        return min(self._refs, self._blocks - page * self._refs)

    def _fill(self, page: int, slot: int, identities: list[bytes]) -> None:
        length = self._page_length(page)
        with self._lock:
            ids, count = self._open.get(page) or (bytearray(length * _ID), 0)
            ids[slot * _ID : (slot + len(identities)) * _ID] = b"".join(identities)
            count += len(identities)
            if count < length:
                self._open[page] = (ids, count)
                return
            self._open.pop(page, None)
        stored = self._store(LEAF, bytes(ids))
        if stored != ZERO_ID:
            with self._lock:
                self._leaves[page] = stored

    def _store(self, kind: str, ids: bytes) -> bytes:
        if not ids.strip(b"\0"):
            return ZERO_ID
        with self._storing:
            return self._put(Node(kind, chunks=ids) if kind == LEAF else Node(kind, nodes=ids))

    def finish(self) -> tuple[bytes, int]:
        """The root's id and the number of levels (0 for a disk without blocks) once every block was set."""
        if self._open:
            raise ValueError(f"{len(self._open)} pages are not complete")
        pages, count, levels = self._leaves, -(-self._blocks // self._refs), 1
        while count > 1:
            above: dict[int, bytearray] = {}
            for page, identity in pages.items():
                parent, slot = divmod(page, self._refs)
                ids = above.setdefault(parent, bytearray(min(self._refs, count - parent * self._refs) * _ID))
                ids[slot * _ID : (slot + 1) * _ID] = identity
            pages = {parent: self._store(INNER, bytes(ids)) for parent, ids in sorted(above.items())}
            count = -(-count // self._refs)
            levels += 1
        return pages.get(0, ZERO_ID), levels if self._blocks else 0


class DiskTree:
    """Reads block ids of a stored disk. Thread-safe; keeps the last pages."""

    def __init__(self, member: Member, page_refs: int, load: Callable[[bytes], bytes]) -> None:
        """`load` gives a metadata chunk's plaintext."""
        possible = (
            0 <= member.size <= _LARGEST_DISK
            and _SMALLEST_BLOCK <= member.block_size <= MAX_PLAIN
            and 2 <= page_refs <= _MOST_REFS
            and len(member.root) == _ID
        )
        if not possible:
            raise DamageError("point describes a disk that cannot be", on=member.name)
        self.root, self.levels = member.root, member.levels
        self.blocks = -(-member.size // member.block_size) if member.size else 0
        self.page_refs = page_refs
        self._load = load
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()
        if self.levels != self._depth():
            raise DamageError(
                f"disk tree says {self.levels} levels where its size needs {self._depth()}", on=member.name
            )

    def _depth(self) -> int:
        count, depth = self.blocks, 0
        while count > 1 or (count and not depth):
            count, depth = -(-count // self.page_refs), depth + 1
        return depth

    def page(self, identity: bytes, level: int, number: int) -> bytes:
        """The ids in page `number` of `level` (1 is a leaf); DamageError where the node is of another kind or
        length.
        """
        length = self.page_length(level, number)
        if identity == ZERO_ID:
            return bytes(length * _ID)
        with self._lock:
            ids = self._cache.get(identity)
            if ids is not None:
                self._cache.move_to_end(identity)
        if ids is None:
            node = decode_node(self._load(identity), f"metadata chunk {identity.hex()[:16]}")
            ids = node.chunks if level == 1 else node.nodes
            if node.kind != (LEAF if level == 1 else INNER):
                raise DamageError(f"disk tree holds a {node.kind} node at level {level}", on=identity.hex()[:16])
            with self._lock:
                self._cache[identity] = ids
                while len(self._cache) > _CACHED_PAGES:
                    self._cache.popitem(last=False)
        if len(ids) != length * _ID:
            raise DamageError("disk tree page has the wrong number of entries", on=identity.hex()[:16])
        return ids

    def page_length(self, level: int, number: int) -> int:
        """Entries in page `number` of `level`."""
        below = self.blocks
        for _ in range(level - 1):
            below = -(-below // self.page_refs)
        return min(self.page_refs, below - number * self.page_refs)

    def block_ids(self, first: int, count: int) -> list[bytes]:
        """The ids of consecutive blocks."""
        out: list[bytes] = []
        while count:
            page, slot = divmod(first, self.page_refs)
            ids = self._leaf(page)
            take = min(count, self.page_refs - slot)
            out += [ids[i * _ID : (i + 1) * _ID] for i in range(slot, slot + take)]
            first, count = first + take, count - take
        return out

    def _leaf(self, number: int) -> bytes:
        identity = self.root
        for level in range(self.levels, 1, -1):
            span = self.page_refs ** (level - 2)
            ids = self.page(identity, level, number // (span * self.page_refs))
            slot = number // span % self.page_refs
            identity = ids[slot * _ID : (slot + 1) * _ID]
            if identity == ZERO_ID:
                break
        return self.page(identity, 1, number)

    def runs(self) -> Iterator[tuple[int, int, bool]]:
        """The whole disk as (first block, count, has data), neighbours of one kind joined; holes are skipped as
        subtrees.
        """
        start, total, data = 0, 0, False
        for count, has_data in self._walk(self.root, self.levels, 0):
            if total and has_data != data:
                yield start, total, data
                start, total = start + total, 0
            data = has_data
            total += count
        if total:
            yield start, total, data

    def _walk(self, identity: bytes, level: int, number: int) -> Iterator[tuple[int, bool]]:
        if not level:
            return
        if identity == ZERO_ID:
            span = self.page_refs**level
            yield min(span, self.blocks - number * span), False
            return
        ids = self.page(identity, level, number)
        for slot in range(len(ids) // _ID):
            child = ids[slot * _ID : (slot + 1) * _ID]
            if level == 1:
                yield 1, child != ZERO_ID
            else:
                yield from self._walk(child, level - 1, number * self.page_refs + slot)


def changed_blocks(old: DiskTree, new: DiskTree) -> Iterator[int]:
    """Numbers of the blocks of `new` that differ from those of `old` (or lie beyond its end), ascending; equal
    subtrees are not read.

    Both must be of one domain, block size and page size: ids are compared, not contents.
    """
    if old.blocks == new.blocks:
        yield from _differences(old, new, old.root, new.root, new.levels, 0)
        return
    step = new.page_refs
    for first in range(0, new.blocks, step):
        before = old.block_ids(first, max(0, min(step, old.blocks - first)))
        after = new.block_ids(first, min(step, new.blocks - first))
        for slot, identity in enumerate(after):
            if slot >= len(before) or before[slot] != identity:
                yield first + slot


def _differences(old: DiskTree, new: DiskTree, left: bytes, right: bytes, level: int, number: int) -> Iterator[int]:
    if left == right:
        return
    before, after = old.page(left, level, number), new.page(right, level, number)
    for slot in range(len(after) // _ID):
        a, b = before[slot * _ID : (slot + 1) * _ID], after[slot * _ID : (slot + 1) * _ID]
        if a == b:
            continue
        child = number * new.page_refs + slot
        if level == 1:
            yield child
        else:
            yield from _differences(old, new, a, b, level - 1, child)


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
        """Data and zero extents, in whole blocks."""
        for first, count, data in self.tree.runs():
            start, end = first * self.block_size, min((first + count) * self.block_size, self.size)
            yield Extent(start, end - start, ExtentKind.DATA if data else ExtentKind.ZERO)

    def read_blocks(self, first: int, count: int, buf: memoryview) -> BlocksRead:
        """Read blocks `first` to `first + count` into `buf`, which ends with the last of them. What lies in the places of blocks of zeros is
        left alone; what lies in those of lost ones is anything.
        """
        identities = self.tree.block_ids(first, count)
        wanted = [n for n, identity in enumerate(identities) if identity != ZERO_ID]
        places = [buf[n * self.block_size : (n + 1) * self.block_size] for n in wanted]
        data, lost = [], []
        for result in self._fetcher.many(self.finder, [identities[n] for n in wanted], self.dedup_key, places):
            block = first + wanted[result.position]
            if isinstance(result, Lost):
                lost.append(Lost(block, result.identity, result.reason))
            else:
                data.append(block)
        zeros = [first + n for n, identity in enumerate(identities) if identity == ZERO_ID]
        return BlocksRead(sorted(data), zeros, lost)

    def read_whole(self, first: int, count: int, buf: memoryview) -> list[Lost]:
        """Like `read_blocks`, with zeros in their places too; gives what is lost."""
        read = self.read_blocks(first, count, buf)
        for block in read.zeros:
            place = buf[(block - first) * self.block_size : (block - first + 1) * self.block_size]
            place[:] = bytes(len(place))
        return read.lost

    def check(self, identities: list[bytes]) -> Iterator[Lost]:
        """Read chunks only to see that they can be read; `position` of a lost one is its place in the list."""
        for result in self._fetcher.many(self.finder, identities, self.dedup_key):
            if isinstance(result, Lost):
                yield result

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
