"""What a point needs, in pieces that can be checked one by one, and what each piece is to its owner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from safehold.model.files import Form, printable
from safehold.vault.catalogue import Point
from safehold.vault.content import read_parts
from safehold.vault.disk import StoredDisk
from safehold.vault.names import ZERO_ID
from safehold.vault.node import decode_node, split_ids
from safehold.vault.records import Member
from safehold.vault.tree import EntryAt, StoredTree
from safehold.vault.vault import Vault

__all__ = ["Hurt", "Unit", "units"]

_WINDOW = 8 * 1024 * 1024
_CHUNKS = 64
_NAMED = 5
"""Files or ranges that a message names; the rest are counted."""


@dataclass
class Hurt:
    """Byte ranges and files that cannot be read, by the reason. Thread-safe."""

    ranges: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def range(self, reason: str, start: int, end: int) -> None:
        """Bytes `start` to `end` of a disk or stream."""
        with self._lock:
            self.ranges.setdefault(reason, []).append((start, end))

    def file(self, reason: str, path: str) -> None:
        """A file of a tree."""
        with self._lock:
            self.files.setdefault(reason, set()).add(path)

    def told(self) -> Iterator[str]:
        """One sentence for each reason."""
        for reason, ranges in self.ranges.items():
            spelled = [f"{start}-{end - 1}" for start, end in _joined(ranges)]
            yield f"bytes {_some(spelled)} cannot be read: {reason}"
        for reason, files in self.files.items():
            yield f"{len(files)} files cannot be read: {_some(sorted(files))}: {reason}"


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] >= start:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _some(texts: list[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Unit:
    """`logical` bytes of a member and the chunks they need; `tell(id, reason, hurt)` notes what is lost with a chunk."""

    logical: int
    ids: list[bytes]
    tell: Callable[[bytes, str, Hurt], None]


def units(vault: Vault, point: Point, member: Member) -> Iterator[Unit]:
    """All of a member. Metadata is read on the way: DamageError where it cannot be."""
    if member.kind == "volume":
        return _disk_units(vault.disk(point, member))
    if member.kind == "tree":
        return _tree_units(vault.tree(point, member))
    if member.kind == "stream":
        return _stream_units(member, vault.chunks(point).one)
    return _other_units(member, vault.chunks(point).one)


def _disk_units(disk: StoredDisk) -> Iterator[Unit]:
    size, block = disk.size, disk.block_size
    step = max(1, _WINDOW // block)
    for first, count, data in disk.tree.runs():
        if not data:
            yield Unit(min((first + count) * block, size) - first * block, [], _nothing)
            continue
        for at in range(first, first + count, step):
            many = min(step, first + count - at)
            ids = disk.tree.block_ids(at, many)
            length = min((at + many) * block, size) - at * block
            yield Unit(length, [i for i in ids if i != ZERO_ID], _tell_blocks(at, ids, block, size))


def _nothing(identity: bytes, reason: str, hurt: Hurt) -> None:
    return


def _tell_blocks(first: int, ids: list[bytes], block: int, size: int) -> Callable[[bytes, str, Hurt], None]:
    def tell(identity: bytes, reason: str, hurt: Hurt) -> None:
        for n, other in enumerate(ids, first):
            if other == identity:
                hurt.range(reason, n * block, min((n + 1) * block, size))

    return tell


def _tree_units(tree: StoredTree) -> Iterator[Unit]:
    for leaf in tree.leaves():
        page = tree.page(leaf)
        users: dict[bytes, list[EntryAt]] = {}
        for found in page:
            if found.entry.form == Form.PIECE:
                users.setdefault(found.piece[0], []).append(found)
            else:
                # Once for each chunk, however often the file repeats it.
                for identity in dict.fromkeys(identity for identity, _ in found.parts(tree.load)):
                    users.setdefault(identity, []).append(found)
        users.pop(ZERO_ID, None)
        yield Unit(sum(found.entry.size for found in page), list(users), _tell_files(users))


def _tell_files(users: dict[bytes, list[EntryAt]]) -> Callable[[bytes, str, Hurt], None]:
    def tell(identity: bytes, reason: str, hurt: Hurt) -> None:
        for found in users[identity]:
            hurt.file(reason, "/" + printable(found.path))

    return tell


def _stream_units(member: Member, load: Callable[[bytes], bytes]) -> Iterator[Unit]:
    batch: list[bytes] = []
    where: dict[bytes, list[tuple[int, int]]] = {}
    at = start = 0
    for identity, length in read_parts(member.root, member.size, load) if member.size else ():
        batch.append(identity)
        where.setdefault(identity, []).append((at, at + length))
        at += length
        if len(batch) == _CHUNKS:
            yield Unit(at - start, [i for i in batch if i != ZERO_ID], _tell_ranges(where))
            batch, where, start = [], {}, at
    yield Unit(at - start, [i for i in batch if i != ZERO_ID], _tell_ranges(where))


def _tell_ranges(where: dict[bytes, list[tuple[int, int]]]) -> Callable[[bytes, str, Hurt], None]:
    def tell(identity: bytes, reason: str, hurt: Hurt) -> None:
        for start, end in where[identity]:
            hurt.range(reason, start, end)

    return tell


def _other_units(member: Member, load: Callable[[bytes], bytes]) -> Iterator[Unit]:
    """A kind that a later program wrote: what it refers to can be checked all the same."""
    stack, met = [member.root], {ZERO_ID}
    while stack:
        identity = stack.pop()
        if identity in met:
            continue
        met.add(identity)
        node = decode_node(load(identity), f"metadata chunk {identity.hex()[:16]}")
        stack += split_ids(node.nodes)
        yield Unit(0, list(split_ids(node.chunks)), lambda i, reason, hurt: hurt.file(reason, member.name))
