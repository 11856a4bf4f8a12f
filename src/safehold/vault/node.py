"""Metadata nodes: what they refer to can be read without knowing what they are."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from safehold.model.errors import DamageError
from safehold.vault.envelope import decode, encode
from safehold.vault.names import ZERO_ID

__all__ = ["ID", "Node", "decode_node", "encode_node", "read_ids", "split_ids"]

ID = 32


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """A metadata chunk. `nodes` and `chunks` are ids set end to end: of nodes to walk on into, and of data.

    An id of 32 zero bytes stands for a subtree or block of zeros and refers to nothing.
    """

    kind: str
    nodes: bytes = b""
    chunks: bytes = b""
    body: bytes = b""


def encode_node(node: Node) -> bytes:
    """The plaintext of the metadata chunk."""
    return encode(node)


def decode_node(data: bytes, name: str) -> Node:
    """Undo `encode_node`; DamageError naming `name`, also for ids that are cut short."""
    node = decode(data, Node, name)
    if len(node.nodes) % ID or len(node.chunks) % ID:
        raise DamageError("metadata node has a reference cut short", on=name)
    return node


def read_ids(ids: bytes) -> Iterator[bytes]:
    """Each id, the zero id too."""
    return (ids[at : at + ID] for at in range(0, len(ids), ID))


def split_ids(ids: bytes) -> Iterator[bytes]:
    """Each id that refers to something."""
    for at in range(0, len(ids), ID):
        identity = ids[at : at + ID]
        if identity != ZERO_ID:
            yield identity
