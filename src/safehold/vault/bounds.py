"""How large an object can be. What is larger was made to hurt whoever reads it whole, and is treated as damaged without being read."""

from __future__ import annotations

from safehold.model.errors import DamageError
from safehold.ports.store import Stamp
from safehold.vault.names import Kind, kind_of
from safehold.vault.records import Parameters
from safehold.vault.sealing import MAX_PLAIN

__all__ = ["check_size", "largest_pack"]

_KIB, _MIB = 1024, 1024 * 1024
_LARGEST = {
    Kind.VAULT: _MIB,
    Kind.KEY: _MIB,
    Kind.WRITER: _MIB,
    Kind.SESSION: 64 * _KIB,
    # Five times the rows of the largest run that this program writes.
    Kind.INDEX: 256 * _MIB,
    # A point names all that is missing in it, a note all packs that are damaged.
    Kind.POINT: 64 * _MIB,
    Kind.NOTE: 64 * _MIB,
    Kind.LOG: 64 * _MIB,
    Kind.PIN: 64 * _KIB,
    Kind.FORGET: 64 * _KIB,
    # The names of all points, and of what was deleted in 30 days.
    Kind.GC: 1024 * _MIB,
}
"""Bytes, by kind; packs depend on the vault's parameters."""


def check_size(stamp: Stamp) -> None:
    """DamageError where a listed object is larger than any of its kind can be. Packs are none of this function's business."""
    kind = kind_of(stamp.name)
    if kind in _LARGEST and stamp.size > _LARGEST[kind]:
        raise DamageError(f"object has {stamp.size} bytes, more than any of its kind can have", on=stamp.name)


def largest_pack(parameters: Parameters) -> int:
    """Bytes that no pack of a vault exceeds: one chunk goes beyond the target size, and the table of contents, which for tiny chunks is about
    as large as they are, comes on top.
    """
    return 3 * parameters.pack_size + 2 * MAX_PLAIN
