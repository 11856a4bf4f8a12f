"""Rows and locations."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["ID_SIZE", "PLAIN_BITS", "ROW", "Location", "pack_row"]

ROW = struct.Struct("<32sIIII")
ID_SIZE = 32
PLAIN_BITS = 28


class Location(NamedTuple):
    """Where one copy of a chunk lies: the pack's object name, the record's offset and length, the plain length, the
    codec.
    """

    pack: str
    offset: int
    stored: int
    plain: int
    codec: int


def pack_row(identity: bytes, pack: int, offset: int, stored: int, plain: int, codec: int) -> bytes:
    """The 48 bytes of a row."""
    return ROW.pack(identity, pack, offset, stored, plain | codec << PLAIN_BITS)
