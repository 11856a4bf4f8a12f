"""Index runs: which chunk lies where, signed by who wrote the packs and sealed under the domain's index key."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from safehold.model.errors import DamageError
from safehold.vault.envelope import Opened, close, decode, encode
from safehold.vault.names import Kind, kind_of
from safehold.vault.pack import PackRow
from safehold.vault.records import RunObject, RunPack
from safehold.vault.sealing import open_body, seal_body

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ROW_SIZE", "encode_rows", "open_run_rows", "read_run", "store_run"]

_ROW = struct.Struct("<32sIIII")
ROW_SIZE = _ROW.size
_FRAME = (1024 * 1024 // ROW_SIZE) * ROW_SIZE
"""A frame's plaintext: whole rows, at most 1 MiB, so that a reader needs no more than that at once."""


def encode_rows(rows: Iterable[tuple[int, PackRow]]) -> bytes:
    """48-byte rows, sorted by chunk id, from (pack number, row) pairs."""
    ordered = sorted(rows, key=lambda pair: (pair[1].identity, pair[0], pair[1].offset))
    return b"".join(_ROW.pack(r.identity, number, r.offset, r.stored, r.plain | r.codec << 28) for number, r in ordered)


def store_run(
    vault: bytes,
    name: str,
    domain: bytes,
    index_key: bytes,
    packs: Sequence[RunPack],
    rows: Buffer,
    signer: Ed25519PrivateKey,
    *,
    base_generation: int | None = None,
) -> bytes:
    """The stored bytes of the run `name`; a base run says which owner generation signed it."""
    view = memoryview(rows)
    # One at a time: a base run is large, and sealing it needs no copy of all of it.
    frames = (bytes(view[at : at + _FRAME]) for at in range(0, len(view), _FRAME))
    record = RunObject(
        domain=domain,
        generation=base_generation or 0,
        base=base_generation is not None,
        packs=tuple(packs),
        rows=len(view) // ROW_SIZE,
        frames=tuple(seal_body(index_key, vault, f"{name}#{n}", frame) for n, frame in enumerate(frames)),
    )
    return close(vault, name, encode(record), signer)


def read_run(opened: Opened) -> RunObject:
    """The run in an object whose signature the caller checks; DamageError where it lists what cannot be packs."""
    record = decode(opened.payload, RunObject, opened.name)
    if any(kind_of(pack.name) not in (Kind.PACK, Kind.META) for pack in record.packs):
        raise DamageError("index run lists something that is no pack", on=opened.name)
    return record


def open_run_rows(vault: bytes, name: str, index_key: bytes, record: RunObject) -> bytearray:
    """The 48-byte rows of a run, end to end; DamageError where they do not open or do not add up."""
    rows = bytearray()
    for number, frame in enumerate(record.frames):
        rows += open_body(index_key, vault, f"{name}#{number}", frame)
    if len(rows) != record.rows * ROW_SIZE:
        raise DamageError("index run has another number of rows than it says", on=name)
    return rows
