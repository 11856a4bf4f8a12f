"""The tree of block ids of a stored disk, read page by page.

Leaf pages hold the ids of `page_refs` consecutive blocks, inner pages the ids of `page_refs` pages below. A page of
nothing but zero ids is itself the zero id, so that a hole of any size costs nothing. Pages of equal content are equal
chunks, so two points share what did not change.

A page that cannot be read loses the blocks below it and no others: its place in the tree says which they are.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from safehold.model.errors import DamageError
from safehold.vault.names import ZERO_ID
from safehold.vault.node import ID, decode_node, read_ids
from safehold.vault.records import Member
from safehold.vault.sealing import MAX_PLAIN

__all__ = ["DiskTree", "PagesSeen", "Piece", "Run", "changed_blocks"]

LEAF, INNER = "disk.leaf", "disk.inner"
_LARGEST_DISK = 1 << 60
_SMALLEST_BLOCK = 512
_MOST_REFS = 1 << 16
"""What no writer of ours exceeds. Points come from writers that may be hostile, so a reader checks before it computes with them."""

_CACHED_PAGES = 64
"""Pages kept by a reader: 64 of 512 ids are 1 MiB and span 16 GiB of disk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive blocks from number `first` on, at most those of one leaf page, whose ids stand end to end in `ids`. Without ids they are
    zeros (or were met before, see `PagesSeen`), or, where `lost` says why, a page above them cannot be read.
    """

    first: int
    count: int
    ids: bytes = b""
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks of one kind: data, zeros, or, where `lost` says why, what nobody can tell because a page cannot be read."""

    first: int
    count: int
    data: bool
    lost: str = ""


@dataclass
class PagesSeen:
    """Pages of disks of one dedup domain that a walk has met, by all that makes the subtree below one what it is.

    A page takes about 130 bytes here. A disk of 64 TiB in blocks of 512 KiB has 262,144 leaf pages of 512: 34 MB. Who wants to make it more
    has to store as much.
    """

    count: int = 0
    _seen: dict[tuple[int, int, int], set[bytes]] = field(default_factory=dict)

    def add(self, tree: DiskTree, identity: bytes, level: int, blocks: int) -> bool:
        """Note a page of `level` that stands for so many blocks; false where it was met before."""
        seen = self._seen.setdefault((tree.page_refs, level, blocks), set())
        if identity in seen:
            return False
        seen.add(identity)
        self.count += 1
        return True

    def has(self, tree: DiskTree, identity: bytes, level: int, blocks: int) -> bool:
        """True where `add` was called for the same."""
        return identity in self._seen.get((tree.page_refs, level, blocks), ())


class DiskTree:
    """Reads block ids of a stored disk. Thread-safe; keeps the last pages."""

    def __init__(self, member: Member, page_refs: int, load: Callable[[bytes], bytes]) -> None:
        """`load` gives a metadata chunk's plaintext."""
        possible = (
            0 <= member.size <= _LARGEST_DISK
            and _SMALLEST_BLOCK <= member.block_size <= MAX_PLAIN
            and 2 <= page_refs <= _MOST_REFS
            and len(member.root) == ID
        )
        if not possible:
            raise DamageError("point describes a disk that cannot be", on=member.name)
        self.root, self.levels = member.root, member.levels
        self._member = member
        self.blocks = -(-member.size // member.block_size) if member.size else 0
        self.page_refs = page_refs
        self._load = load
        self._cache: OrderedDict[tuple[bytes, bool], bytes] = OrderedDict()
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
            return bytes(length * ID)
        key = identity, level == 1
        with self._lock:
            ids = self._cache.get(key)
            if ids is not None:
                self._cache.move_to_end(key)
        if ids is None:
            node = decode_node(self._load(identity), f"metadata chunk {identity.hex()[:16]}")
            ids = node.chunks if level == 1 else node.nodes
            if node.kind != (LEAF if level == 1 else INNER):
                raise DamageError(f"disk tree holds a {node.kind} node at level {level}", on=identity.hex()[:16])
            with self._lock:
                self._cache[key] = ids
                while len(self._cache) > _CACHED_PAGES:
                    self._cache.popitem(last=False)
        if len(ids) != length * ID:
            raise DamageError("disk tree page has the wrong number of entries", on=identity.hex()[:16])
        return ids

    def page_length(self, level: int, number: int) -> int:
        """Entries in page `number` of `level`."""
        below = self.blocks
        for _ in range(level - 1):
            below = -(-below // self.page_refs)
        return min(self.page_refs, below - number * self.page_refs)

    def block_ids(self, first: int, count: int) -> list[bytes]:
        """The ids of consecutive blocks. DamageError, naming the bytes, where a page cannot be read."""
        out: list[bytes] = []
        for piece in self.look_up(first, count):
            if piece.lost:
                raise self._unreadable(piece.first, piece.count, piece.lost)
            out += read_ids(piece.ids)
        return out

    def look_up(self, first: int, count: int) -> Iterator[Piece]:
        """Consecutive blocks, zeros with their ids too."""
        while count:
            page, slot = divmod(first, self.page_refs)
            take = min(count, self.page_refs - slot)
            try:
                yield Piece(first, take, self._leaf(page)[slot * ID : (slot + take) * ID])
            except DamageError as error:
                yield Piece(first, take, lost=str(error))
            first, count = first + take, count - take

    def _leaf(self, number: int) -> bytes:
        identity = self.root
        for level in range(self.levels, 1, -1):
            span = self.page_refs ** (level - 2)
            ids = self.page(identity, level, number // (span * self.page_refs))
            slot = number // span % self.page_refs
            identity = ids[slot * ID : (slot + 1) * ID]
            if identity == ZERO_ID:
                break
        return self.page(identity, 1, number)

    def runs(self) -> Iterator[Run]:
        """The whole disk in order, neighbours of one kind joined."""
        return _joined(run for piece in self.pieces() for run in _kinds(piece))

    def pieces(self, seen: PagesSeen | None = None) -> Iterator[Piece]:
        """The whole disk in order. Holes, what lies below a page that cannot be read, and pages that `seen` has already, which are given
        without their ids, are passed as subtrees.
        """
        passed: Piece | None = None
        for piece in self._walk(self.root, self.levels, 0, seen) if self.levels else ():
            if not piece.ids and not piece.lost:
                passed = replace(passed, count=passed.count + piece.count) if passed else piece
                continue
            if passed is not None:
                yield passed
                passed = None
            yield piece
        if passed is not None:
            yield passed

    def _walk(self, identity: bytes, level: int, number: int, seen: PagesSeen | None) -> Iterator[Piece]:
        first, count = self._below(level, number)
        if identity == ZERO_ID or (seen is not None and not seen.add(self, identity, level, count)):
            yield Piece(first, count)
            return
        try:
            ids = self.page(identity, level, number)
        except DamageError as error:
            yield Piece(first, count, lost=str(error))
            return
        if level == 1:
            yield Piece(first, count, ids)
            return
        for slot, child in enumerate(read_ids(ids)):
            yield from self._walk(child, level - 1, number * self.page_refs + slot, seen)

    def hurt(self, bad: Mapping[bytes, str], clean: PagesSeen) -> Iterator[Run]:
        """Blocks whose chunk is `bad` or whose page cannot be read, in order and page by page, with the reason. Subtrees without such are
        noted as `clean` and walked once, so finding a few places takes as long as there are pages.
        """
        return self._hurt(self.root, self.levels, 0, bad, clean) if self.levels else iter(())

    def _hurt(
        self, identity: bytes, level: int, number: int, bad: Mapping[bytes, str], clean: PagesSeen
    ) -> Iterator[Run]:
        first, count = self._below(level, number)
        if identity == ZERO_ID or clean.has(self, identity, level, count):
            return
        try:
            ids = self.page(identity, level, number)
        except DamageError as error:
            yield Run(first, count, True, str(error))
            return
        if level == 1:
            children = enumerate(read_ids(ids), first)
            found = _joined(Run(block, 1, True, bad[child]) for block, child in children if child in bad)
        else:
            pages = enumerate(read_ids(ids), number * self.page_refs)
            found = chain.from_iterable(self._hurt(child, level - 1, n, bad, clean) for n, child in pages)
        sound = True
        for run in found:
            sound = False
            yield run
        if sound:
            clean.add(self, identity, level, count)

    def _below(self, level: int, number: int) -> tuple[int, int]:
        """The first of the blocks below page `number` of `level`, and how many they are."""
        span = self.page_refs**level
        return number * span, min(span, self.blocks - number * span)

    def _unreadable(self, first: int, count: int, reason: str) -> DamageError:
        size = self._member.block_size
        end = min((first + count) * size, self._member.size)
        return DamageError(f"bytes {first * size}-{end - 1} cannot be read: {reason}", on=self._member.name)

    def readable(self, identity: bytes, level: int, number: int) -> bytes:
        """What `page` gives; DamageError, naming the bytes of the disk that are below it, where it cannot be read."""
        try:
            return self.page(identity, level, number)
        except DamageError as error:
            raise self._unreadable(*self._below(level, number), str(error)) from error


def _kinds(piece: Piece) -> Iterator[Run]:
    if not piece.ids:
        yield Run(piece.first, piece.count, bool(piece.lost), piece.lost)
        return
    for run in _SAME_KIND.finditer(piece.ids):
        yield Run(piece.first + run.start() // ID, (run.end() - run.start()) // ID, not run.group(1))


_SAME_KIND = re.compile(rb"((?:\0{%d})+)|(?:(?!\0{%d}).{%d})+" % (ID, ID, ID), re.DOTALL)
"""Whole ids from a whole id on: holes, or none of them. The pages of a large disk are nearly all holes, so nothing is done for each id."""


def _joined(runs: Iterator[Run]) -> Iterator[Run]:
    last: Run | None = None
    for run in runs:
        if last is not None and (last.data, last.lost) == (run.data, run.lost) and last.first + last.count == run.first:
            last = replace(last, count=last.count + run.count)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


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
    before, after = old.readable(left, level, number), new.readable(right, level, number)
    for slot in range(len(after) // ID):
        a, b = before[slot * ID : (slot + 1) * ID], after[slot * ID : (slot + 1) * ID]
        if a == b:
            continue
        child = number * new.page_refs + slot
        if level == 1:
            yield child
        else:
            yield from _differences(old, new, a, b, level - 1, child)
