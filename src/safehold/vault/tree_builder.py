"""Makes the pages of a tree of files, and decides where they end."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from blake3 import blake3

from safehold.vault.node import Node
from safehold.vault.tree import INNER, LEAF, Child, Group, LeafRef

__all__ = ["FEWEST_ENTRIES", "MOST_ENTRIES", "Boundaries", "InnerBuilder", "RawGroup", "encode_leaf"]

FEWEST_ENTRIES, MOST_ENTRIES = 128, 4096
_DIRECTORIES = 64
"""One directory in so many begins a page."""
_INNER_FEWEST, _INNER_MOST, _INNER_CHILDREN = 16, 1024, 128


class RawGroup(msgspec.Struct, frozen=True, array_like=True):
    """A group whose entries are not decoded."""

    parent: bytes
    entries: msgspec.Raw


class Boundaries:
    """Where pages end, by a secret of the dedup domain: page sizes then tell nothing about known directory trees."""

    def __init__(self, dedup_key: bytes) -> None:
        self._key = blake3(dedup_key, derive_key_context="safehold 1 tree page boundaries").digest()

    def _hash(self, *parts: bytes) -> int:
        return int.from_bytes(blake3(b"\0".join(parts), key=self._key).digest()[:4], "big")

    def begins_page(self, parent: bytes, first: bytes) -> bool:
        """True where a page begins with these entries of a directory, unless it would get too small."""
        return self._hash(parent, first) % _DIRECTORIES == 0

    def begins_part(self, parent: bytes, name: bytes) -> bool:
        """True where a large directory is cut before `name`."""
        return self._hash(parent, name) % (MOST_ENTRIES // 4) == 0

    def begins_inner(self, parent: bytes, name: bytes, level: int) -> bool:
        """True where an inner page of that level begins."""
        return self._hash(parent, name, bytes([level])) % _INNER_CHILDREN == 0


def encode_leaf(groups: list[RawGroup] | list[Group], chunks: bytes, nodes: bytes) -> Node:
    """The node of a leaf page."""
    return Node(LEAF, nodes=nodes, chunks=chunks, body=msgspec.msgpack.encode(groups))


class InnerBuilder:
    """Takes leaves in order and stores the pages above them."""

    def __init__(self, boundaries: Boundaries, put: Callable[[Node], bytes]) -> None:
        self._boundaries, self._put = boundaries, put
        self._levels: list[list[LeafRef]] = [[]]

    def add(self, leaf: LeafRef) -> None:
        """The next leaf."""
        self._add(leaf, 0)

    def _add(self, ref: LeafRef, level: int) -> None:
        if level == len(self._levels):
            self._levels.append([])
        row = self._levels[level]
        full = len(row) >= _INNER_MOST
        if full or (len(row) >= _INNER_FEWEST and self._boundaries.begins_inner(ref.parent, ref.name, level)):
            self._close(level)
            row = self._levels[level]
        row.append(ref)

    def _close(self, level: int) -> None:
        row, self._levels[level] = self._levels[level], []
        children = [Child(ref.parent, ref.name, ref.entries) for ref in row]
        node = Node(INNER, nodes=b"".join(ref.identity for ref in row), body=msgspec.msgpack.encode(children))
        first = row[0]
        self._add(LeafRef(self._put(node), first.parent, first.name, sum(ref.entries for ref in row)), level + 1)

    def finish(self) -> tuple[bytes, int, int]:
        """The root's id, the number of levels of pages, and the number of entries."""
        if self._levels == [[]]:
            self._levels = [[LeafRef(self._put(encode_leaf([], b"", b"")), b"", b"", 0)]]
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._close(level)
            level += 1
        root = self._levels[level][0]
        return root.identity, level + 1, root.entries
