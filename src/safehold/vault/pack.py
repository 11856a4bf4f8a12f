"""Packs: many sealed chunks in one object, with a table of contents that makes a lost index rebuildable.

    pack   = header ‖ record … ‖ sealed table of contents ‖ u32 its length
    header = "SHPK" ‖ version 1 ‖ kind code ‖ u16 number of sessions ‖ vault id ‖ session entry …
    entry  = wid ‖ sid ‖ u16 generation ‖ u16 suite ‖ u16 length ‖ sealed session secrets
    table  = 12-byte nonce ‖ AES-256-GCM(rows), key BLAKE3-keyed(session key of slot 0, "toc"), AAD "SH1" ‖ vault ‖ kind ‖ "toc"
    row    = chunk id ‖ u32 offset ‖ u32 record length ‖ u32 plain length in the low 28 bits, codec in the high 4

Integers are little-endian.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from safehold.model.errors import DamageError
from safehold.vault.index.rows import Location
from safehold.vault.names import Kind
from safehold.vault.records import SealedKey
from safehold.vault.sealing import RECORD_OVERHEAD, ChunkSealer, SessionSecret

__all__ = [
    "EMPTY_PACK",
    "HEADER_GUESS",
    "LARGEST_HEADER",
    "MAX_SESSIONS",
    "TABLE_ROW",
    "PackBuilder",
    "PackHeader",
    "PackRow",
    "assemble",
    "open_table",
    "parse_header",
    "table_span",
]

_MAGIC = b"SHPK\x01"
_HEADER = struct.Struct("<5scH16s")
_ENTRY = struct.Struct("<16s16sHHH")
_ROW = struct.Struct("<32sIII")
_LENGTH = struct.Struct("<I")
_TABLE_OVERHEAD = 12 + 16 + _LENGTH.size

TABLE_ROW = _ROW.size
"""Bytes that a chunk takes in the table of contents."""

EMPTY_PACK = _HEADER.size + _ENTRY.size + 112 + _TABLE_OVERHEAD
"""Bytes of a pack of one session beside its records and their rows."""

MAX_SESSIONS = 256
"""Session keys in one header: 40 KiB of them."""

_LONGEST_KEY = 4096
"""Bytes of sealed session secrets; 112 with suite 1, and about 1,200 in a hybrid with ML-KEM."""

HEADER_GUESS = 512
"""A header with one or two sessions is shorter than this; longer ones say so in their first bytes."""

LARGEST_HEADER = _HEADER.size + MAX_SESSIONS * (_ENTRY.size + _LONGEST_KEY)


@dataclass(frozen=True, slots=True)
class PackRow:
    """One chunk in a pack: its id, where its record starts, and the lengths in bytes."""

    identity: bytes
    offset: int
    stored: int
    plain: int
    codec: int


@dataclass(frozen=True, slots=True)
class PackHeader:
    """What stands at the start of a pack: `length` bytes of it, the kind, and the sealed session keys by slot."""

    length: int
    kind: Kind
    sessions: tuple[SealedKey, ...]


def _encode_header(kind: Kind, vault: bytes, keys: Sequence[SealedKey]) -> bytes:
    entries = [_ENTRY.pack(k.wid, k.sid, k.generation, k.suite, len(k.sealed)) + k.sealed for k in keys]
    return _HEADER.pack(_MAGIC, kind.code, len(keys), vault) + b"".join(entries)


def parse_header(data: memoryview | bytes, vault: bytes, name: str) -> PackHeader | None:
    """The header at the start of `data`, or None where `data` is too short to hold all of it.

    DamageError where it is not a pack of this vault.
    """
    if len(data) < _HEADER.size:
        return None
    magic, code, count, owner = _HEADER.unpack_from(data)
    kinds = {Kind.PACK.code: Kind.PACK, Kind.META.code: Kind.META}
    if magic != _MAGIC or code not in kinds or owner != vault:
        raise DamageError("not a pack of this vault", on=name)
    if count > MAX_SESSIONS:
        raise DamageError(f"pack lists {count} sessions, more than any can", on=name)
    at = _HEADER.size
    sessions = []
    for _ in range(count):
        if len(data) < at + _ENTRY.size:
            return None
        wid, sid, generation, suite, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if length > _LONGEST_KEY:
            raise DamageError("pack lists a session key that is longer than any can be", on=name)
        if len(data) < at + length:
            return None
        sessions.append(SealedKey(wid, sid, generation, suite, bytes(data[at : at + length])))
        at += length
    return PackHeader(at, kinds[code], tuple(sessions))


def _table_cipher(session_key: bytes) -> AESGCM:
    return AESGCM(blake3(b"toc", key=session_key).digest())


def _table_aad(vault: bytes, kind: Kind) -> bytes:
    return b"SH1" + vault + kind.code + b"toc"


def table_span(size: int, tail: bytes, name: str) -> tuple[int, int]:
    """Where the sealed table of contents of a pack of `size` bytes starts and how long it is; `tail` is the pack's
    last 4 bytes.
    """
    length = _LENGTH.unpack(tail)[0]
    start = size - _LENGTH.size - length
    if length < _TABLE_OVERHEAD - _LENGTH.size or start < _HEADER.size:
        raise DamageError("pack ends in no table of contents", on=name)
    return start, length


def open_table(sealed: bytes, vault: bytes, header: PackHeader, secret: SessionSecret, name: str) -> list[PackRow]:
    """The rows of a pack's table of contents; `secret` is the one of slot 0."""
    try:
        plain = _table_cipher(secret.session_key).decrypt(sealed[:12], sealed[12:], _table_aad(vault, header.kind))
    except (InvalidTag, ValueError) as error:
        raise DamageError("pack's table of contents does not open with its key", on=name) from error
    if len(plain) % _ROW.size:
        raise DamageError("pack's table of contents has a broken row", on=name)
    return [
        PackRow(i, offset, stored, mixed & 0x0FFFFFFF, mixed >> 28)
        for i, offset, stored, mixed in _ROW.iter_unpack(plain)
    ]


def _encode_table(kind: Kind, vault: bytes, session_key: bytes, rows: Sequence[PackRow]) -> bytes:
    """The sealed table of contents and its length."""
    plain = b"".join(_ROW.pack(r.identity, r.offset, r.stored, r.plain | r.codec << 28) for r in rows)
    nonce = os.urandom(12)
    sealed = nonce + _table_cipher(session_key).encrypt(nonce, plain, _table_aad(vault, kind))
    return sealed + _LENGTH.pack(len(sealed))


def assemble(
    kind: Kind,
    vault: bytes,
    keys: Sequence[SealedKey],
    session_key: bytes,
    records: Sequence[tuple[bytes, Location, bytes, int]],
) -> tuple[bytes, list[PackRow]]:
    """A pack of records that were sealed before: (chunk id, where it lay, record, number of its key in `keys`). `session_key` is the one of
    the first key. Returns the stored bytes and the rows.
    """
    parts = [_encode_header(kind, vault, keys)]
    at = len(parts[0])
    rows = []
    for identity, location, record, slot in records:
        parts.append(slot.to_bytes(2, "little") + record[2:])
        rows.append(PackRow(identity, at, len(record), location.plain, location.codec))
        at += len(record)
    parts.append(_encode_table(kind, vault, session_key, rows))
    return b"".join(parts), rows


class PackBuilder:
    """Fills one pack in a buffer of its own. Not thread-safe: one thread has it at a time."""

    def __init__(
        self, kind: Kind, vault: bytes, key: SealedKey, session_key: bytes, buffer: mmap.mmap, target: int
    ) -> None:
        self.kind = kind
        self.buffer = buffer
        self.rows: list[PackRow] = []
        self.plain_bytes = 0
        self._vault = vault
        self._session_key = session_key
        self._view = memoryview(buffer)
        header = _encode_header(kind, vault, [key])
        self._view[: len(header)] = header
        self._at = len(header)
        self._target = target

    def fits(self, plain: int) -> bool:
        """True where a chunk of that length still goes in: below the target size, or as the first one."""
        table = _TABLE_OVERHEAD + (len(self.rows) + 1) * _ROW.size
        end = self._at + plain + RECORD_OVERHEAD + table
        return end <= len(self.buffer) and (not self.rows or self._at < self._target)

    def add(self, sealer: ChunkSealer, identity: bytes, plaintext: memoryview) -> int:
        """Seal a chunk into the pack; returns the record's length."""
        stored, codec = sealer.seal_into(self._view[self._at :], self.kind, identity, plaintext)
        self.rows.append(PackRow(identity, self._at, stored, len(plaintext), codec))
        self._at += stored
        self.plain_bytes += len(plaintext)
        return stored

    def finish(self) -> memoryview:
        """Seal the table of contents; the stored bytes of the pack, valid as long as the buffer is left alone."""
        table = _encode_table(self.kind, self._vault, self._session_key, self.rows)
        end = self._at + len(table)
        self._view[self._at : end] = table
        return self._view[:end]
