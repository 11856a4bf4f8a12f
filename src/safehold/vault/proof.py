"""Whether a pack is what its name says, down to every chunk in it."""

from __future__ import annotations

from blake3 import blake3

from safehold.model.errors import DamageError
from safehold.vault.bounds import largest_pack
from safehold.vault.fetch import NOT_THERE
from safehold.vault.pack import open_table, parse_header, table_span
from safehold.vault.sealing import ChunkOpener
from safehold.vault.vault import Vault

__all__ = ["BAD", "prove_pack"]

BAD = NOT_THERE
"""What `prove_pack` raises: ObjectNotFound where there is no such pack, any other where it is bad."""


def prove_pack(vault: Vault, name: str, size: int, opener: ChunkOpener) -> int:
    """Read a pack of `size` bytes and open every chunk in it; returns how many there are. One of `BAD` where anything is wrong."""
    if size > largest_pack(vault.parameters):
        raise DamageError(f"pack has {size} bytes, more than any of this vault can have", on=name)
    data = memoryview(vault.store.get(name))
    if blake3(data).hexdigest() != name.rpartition("/")[2]:
        raise DamageError("stored bytes are not what was written under this name", on=name)
    header = parse_header(data, vault.id, name)
    if header is None or not header.sessions:
        raise DamageError("pack has no header", on=name)
    start, length = table_span(len(data), bytes(data[-4:]), name)
    first = vault.session_secret(header.sessions[0], on=name)
    rows = open_table(bytes(data[start : start + length]), vault.id, header, first, name)
    for row in rows:
        record = data[row.offset : row.offset + row.stored]
        slot = int.from_bytes(record[:2], "little")
        if slot >= len(header.sessions):
            raise DamageError("record names a session that the pack does not list", on=name)
        secret = vault.session_secret(header.sessions[slot], on=name)
        opener.open(record, header.kind, row.identity, row.codec, row.plain, secret, secret.dedup_key)
    return len(rows)
