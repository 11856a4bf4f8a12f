"""The parts of stored objects by name, as docs/format.md draws them: an offset in each."""

from __future__ import annotations

import struct

from safehold.vault.names import Kind

_HEADER, _ENTRY = 24, 38


def regions(kind: Kind, stored: bytes) -> dict[str, int]:
    """An offset in every region of an object."""
    if kind in (Kind.PACK, Kind.META):
        return _pack(stored)
    end = len(stored)
    found = {"trailer, first": end - 32, "trailer, last": end - 1}
    if kind is Kind.VAULT:
        return found | {"json, first": 0, "json, middle": end // 2, "newline": end - 33}
    signature = 64 if kind.signed else 0
    payload = end - 32 - signature
    found |= {
        "magic": 0,
        "version": 2,
        "kind": 3,
        "payload, first": 4,
        "payload, middle": (4 + payload) // 2,
        "payload, last": payload - 1,
    }
    if signature:
        found |= {"signature, R": payload, "signature, S": payload + 32, "signature, last": payload + 63}
    return found


def _pack(stored: bytes) -> dict[str, int]:
    (sessions,) = struct.unpack_from("<H", stored, 6)
    assert sessions >= 1
    (sealed,) = struct.unpack_from("<H", stored, _HEADER + 36)
    records = _HEADER + _ENTRY + sealed
    assert sessions == 1
    (table_length,) = struct.unpack("<I", stored[-4:])
    table = len(stored) - 4 - table_length
    return {
        "magic": 0,
        "version": 4,
        "kind": 5,
        "number of sessions": 6,
        "number of sessions, high": 7,
        "vault id": 8,
        "entry, wid": _HEADER,
        "entry, sid": _HEADER + 16,
        "entry, generation": _HEADER + 32,
        "entry, suite": _HEADER + 34,
        "entry, length": _HEADER + 36,
        "entry, encapsulated key": _HEADER + _ENTRY,
        "entry, ciphertext": _HEADER + _ENTRY + 32,
        "entry, tag": records - 1,
        "record, slot": records,
        "record, nonce": records + 2,
        "record, ciphertext": records + 14,
        "table, nonce": table,
        "table, ciphertext": table + 12,
        "table, tag": table + table_length - 1,
        "length": len(stored) - 4,
        "length, high": len(stored) - 1,
    }
