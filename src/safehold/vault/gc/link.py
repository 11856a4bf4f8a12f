"""The next record of the gc chain: whoever creates it first decides what holds from there on."""

from __future__ import annotations

import msgspec

from safehold.model.errors import ObjectExists
from safehold.ports.store import Store
from safehold.vault.envelope import close, encode
from safehold.vault.keys import OwnerKey
from safehold.vault.names import gc_name
from safehold.vault.records import GcRecord

__all__ = ["add_link"]


def add_link(store: Store, vault: bytes, signer: OwnerKey, before: GcRecord, digest: bytes, **changes: object) -> bool:
    """Create the record after `before`, whose stored bytes hash to `digest`: the same but for the changes. False where somebody else made it
    first.
    """
    link = msgspec.structs.replace(
        before, number=before.number + 1, previous=digest, generation=signer.generation, **changes
    )
    name = gc_name(link.number)
    try:
        store.put(name, [close(vault, name, encode(link), signer.sign)])
    except ObjectExists:
        return False
    return True
