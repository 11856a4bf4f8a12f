"""A file's content as a list of parts: chunks and holes with their lengths, kept in nodes where the list is long.

file.parts   chunks: ids in order, the zero id for a hole; body: their lengths in bytes
file.index   nodes: file.parts or file.index nodes in order; body: the bytes below each
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from safehold.model.errors import DamageError
from safehold.vault.names import ZERO_ID
from safehold.vault.node import Node, decode_node, read_ids

__all__ = ["LostParts", "Part", "parts_or_lost", "read_parts", "write_parts"]

PARTS, INDEX = "file.parts", "file.index"
_MOST = 1024
"""Entries in a node: 32 KiB of ids, and 1 GiB of a file where chunks are 1 MiB."""

_DEEPEST = 6
"""Levels of nodes: more than any size that a file can have needs."""

_REPEATED_FILE, _REPEATED_NODE = 1 << 40, 4 << 20
"""Bytes of a file whose nodes may repeat, and the least that such a node stands for: 1 TiB in parts of 4 KiB is work, but it ends."""

Part = tuple[bytes, int]
"""Id of a chunk (the zero id for a hole) and its length in bytes."""


@dataclass(frozen=True, slots=True)
class LostParts:
    """`length` bytes of a file whose parts nobody can tell, since the list of them cannot be read for that `error`."""

    length: int
    error: DamageError


_lengths = msgspec.msgpack.Decoder(list[int])


def write_parts(parts: Sequence[Part], put: Callable[[Node], bytes]) -> bytes:
    """Store a list of parts in nodes; returns the top one's id."""
    level = list(parts)
    kind = PARTS
    while True:
        above: list[Part] = []
        for at in range(0, len(level), _MOST):
            some = level[at : at + _MOST]
            ids = b"".join(identity for identity, _ in some)
            body = msgspec.msgpack.encode([length for _, length in some])
            node = Node(kind, chunks=ids, body=body) if kind == PARTS else Node(kind, nodes=ids, body=body)
            above.append((put(node), sum(length for _, length in some)))
        if len(above) == 1:
            return above[0][0]
        level, kind = above, INDEX


def read_parts(root: bytes, size: int, load: Callable[[bytes], bytes]) -> Iterator[Part]:
    """The parts below a node, which together have `size` bytes; DamageError otherwise. `load` gives a node's plaintext."""
    for part in parts_or_lost(root, size, load):
        if isinstance(part, LostParts):
            raise part.error
        yield part


def parts_or_lost(
    root: bytes, size: int, load: Callable[[bytes], bytes], depth: int = _DEEPEST
) -> Iterator[Part | LostParts]:
    """As `read_parts`, going on past nodes that cannot be read; what comes has `size` bytes in any case."""
    try:
        node, ids, lengths = _read_list(root, size, load, depth)
    except DamageError as error:
        yield LostParts(size, error)
        return
    for identity, length in zip(ids, lengths, strict=True):
        if node.kind == PARTS:
            yield identity, length
        else:
            yield from parts_or_lost(identity, length, load, depth - 1)


def _read_list(
    root: bytes, size: int, load: Callable[[bytes], bytes], depth: int
) -> tuple[Node, list[bytes], list[int]]:
    name = f"metadata chunk {root.hex()[:16]}"
    if root == ZERO_ID:
        raise DamageError("list of a file's parts refers to nothing", on=name)
    node = decode_node(load(root), name)
    try:
        lengths = _lengths.decode(node.body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamageError("list of a file's parts does not decode", on=name) from error
    ids = list(read_ids(node.chunks if node.kind == PARTS else node.nodes))
    sound = node.kind in (PARTS, INDEX) and len(ids) == len(lengths) and sum(lengths) == size
    if (
        not sound
        or any(length <= 0 for length in lengths)
        or not depth
        or (node.kind == INDEX and _endless(ids, lengths))
    ):
        raise DamageError("list of a file's parts does not add up", on=name)
    return node, ids, lengths


def _endless(ids: Sequence[bytes], lengths: Sequence[int]) -> bool:
    """True for a few nodes that a hostile writer made to stand for more parts than anybody can walk."""
    if len(set(ids)) == len(ids):
        return False
    return sum(lengths) > _REPEATED_FILE or sorted(lengths)[len(lengths) // 2] < _REPEATED_NODE
