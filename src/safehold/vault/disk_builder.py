"""Makes the tree of block ids of a disk while blocks arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable

from safehold.vault.disk_tree import INNER, LEAF
from safehold.vault.names import ZERO_ID
from safehold.vault.node import ID, Node

__all__ = ["DiskTreeBuilder", "root_of"]


def root_of(blocks: int, page_refs: int, ids: Callable[[int, int], bytes], identify: Callable[[Node], bytes]) -> bytes:
    """The root that a disk of that many blocks has. `ids` gives those of consecutive blocks in one piece, by first and count."""
    tree = DiskTreeBuilder(blocks, page_refs, identify)
    for first in range(0, blocks, page_refs):
        tree.set_joined(first, ids(first, min(page_refs, blocks - first)))
    return tree.finish()[0]


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
        self.set_joined(first, b"".join(identities))

    def set_joined(self, first: int, identities: bytes) -> None:
        """The same, with the ids in one piece."""
        at, count = 0, len(identities) // ID
        while at < count:
            page, slot = divmod(first + at, self._refs)
            take = min(self._refs - slot, count - at)
            self._fill(page, slot, identities[at * ID : (at + take) * ID])
            at += take

    def set_zero(self, first: int, count: int) -> None:
        """Blocks of zeros; whole pages of them cost nothing."""
        end = first + count
        while first < end:
            page, slot = divmod(first, self._refs)
            take = min(self._refs - slot, end - first)
            if take < self._page_length(page):
                self._fill(page, slot, ZERO_ID * take)
            first += take

    def _page_length(self, page: int) -> int:
        return min(self._refs, self._blocks - page * self._refs)

    def _fill(self, page: int, slot: int, identities: bytes) -> None:
        length = self._page_length(page)
        with self._lock:
            ids, count = self._open.get(page) or (bytearray(length * ID), 0)
            ids[slot * ID : slot * ID + len(identities)] = identities
            count += len(identities) // ID
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
                ids = above.setdefault(parent, bytearray(min(self._refs, count - parent * self._refs) * ID))
                ids[slot * ID : (slot + 1) * ID] = identity
            pages = {parent: self._store(INNER, bytes(ids)) for parent, ids in sorted(above.items())}
            count = -(-count // self._refs)
            levels += 1
        return pages.get(0, ZERO_ID), levels if self._blocks else 0
