"""What a point needs, in pieces that can be checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from safehold.model.errors import DamageError
from safehold.model.files import Form
from safehold.vault.catalogue import Point
from safehold.vault.content import LostParts, parts_or_lost
from safehold.vault.disk import StoredDisk
from safehold.vault.disk_tree import PagesSeen
from safehold.vault.names import ZERO_ID
from safehold.vault.node import ID, Node, decode_node, split_ids
from safehold.vault.records import Member
from safehold.vault.tree import Gap, StoredTree
from safehold.vault.vault import Vault

__all__ = ["Unit", "nodes_or_lost", "units"]

_WINDOW = 8 * 1024 * 1024
_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Unit:
    """`logical` bytes of a member and the chunks they need. `lost` says why metadata on the way, and so what it needs, cannot be read."""

    logical: int
    ids: list[bytes]
    lost: str = ""


def units(vault: Vault, point: Point, member: Member, seen: PagesSeen) -> Iterator[Unit]:
    """All of a member. Metadata is read on the way. Pages of a disk that are in `seen` come without their chunks: whoever saw them had
    those. DamageError where the member is none that can be.
    """
    if member.kind == "volume":
        return _disk_units(vault.disk(point, member), seen)
    if member.kind == "tree":
        return _tree_units(vault.tree(point, member))
    if member.kind == "stream":
        return _stream_units(member, vault.chunks(point).one)
    return _other_units(member, vault.chunks(point).one)


def _disk_units(disk: StoredDisk, seen: PagesSeen) -> Iterator[Unit]:
    step = max(1, _WINDOW // disk.block_size)
    for piece in disk.tree.pieces(seen):
        start, end = disk.span(piece.first, piece.count)
        if not piece.ids:
            yield Unit(end - start, [], piece.lost)
        for at in range(0, piece.count if piece.ids else 0, step):
            start, end = disk.span(piece.first + at, min(step, piece.count - at))
            yield Unit(end - start, list(split_ids(piece.ids[at * ID : (at + step) * ID])))


def _tree_units(tree: StoredTree) -> Iterator[Unit]:
    for page in tree.pages():
        if isinstance(page, Gap):
            yield Unit(0, [], page.reason)
            continue
        ids: dict[bytes, None] = {}
        for found in page:
            if found.entry.form == Form.PIECE:
                ids[found.piece[0]] = None
                continue
            for part in found.parts_or_lost(tree.load):
                if isinstance(part, LostParts):
                    yield Unit(0, [], str(part.error))
                else:
                    ids[part[0]] = None
        ids.pop(ZERO_ID, None)
        yield Unit(sum(found.entry.size for found in page), list(ids))


def _stream_units(member: Member, load: Callable[[bytes], bytes]) -> Iterator[Unit]:
    batch: list[bytes] = []
    logical = 0
    for part in parts_or_lost(member.root, member.size, load) if member.size else ():
        if isinstance(part, LostParts):
            yield Unit(part.length, [], str(part.error))
            continue
        identity, length = part
        if identity != ZERO_ID:
            batch.append(identity)
        logical += length
        if len(batch) == _CHUNKS:
            yield Unit(logical, batch)
            batch, logical = [], 0
    yield Unit(logical, batch)


def _other_units(member: Member, load: Callable[[bytes], bytes]) -> Iterator[Unit]:
    for one in nodes_or_lost(member.root, load):
        yield Unit(0, [], str(one)) if isinstance(one, DamageError) else Unit(0, list(split_ids(one.chunks)))


def nodes_or_lost(root: bytes, load: Callable[[bytes], bytes]) -> Iterator[Node | DamageError]:
    """All of a member of a kind that a later program wrote: what it refers to can be checked all the same."""
    stack, met = [root], {ZERO_ID}
    while stack:
        identity = stack.pop()
        if identity in met:
            continue
        met.add(identity)
        try:
            node = decode_node(load(identity), f"metadata chunk {identity.hex()[:16]}")
        except DamageError as error:
            yield error
            continue
        stack += split_ids(node.nodes)
        yield node
