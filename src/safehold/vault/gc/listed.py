"""Which names may leave the chain's lists: what was deleted long ago."""

from __future__ import annotations

from safehold.model.errors import DamageError, ObjectNotFound
from safehold.vault.bounds import check_size
from safehold.vault.envelope import decode, open_object
from safehold.vault.names import Kind, kind_of
from safehold.vault.records import GcRecord
from safehold.vault.vault import Vault

__all__ = ["LISTED", "long_listed"]

LISTED = 30 * 86400.0
"""Seconds that dead packs and absorbed runs stay named in the chain."""


def long_listed(vault: Vault, record: GcRecord, now: float) -> tuple[set[str], set[str]]:
    """Names that `record` lists as dead and as absorbed, for long enough by the store's time `now`, and whose objects are gone: a run that an
    interrupted prune left would count again.
    """
    store = vault.store
    for stamp in reversed(list(store.list(Kind.GC.prefix + "/"))):
        if kind_of(stamp.name) is Kind.GC and stamp.time < now - LISTED:
            try:
                check_size(stamp)
                old = decode(open_object(stamp.name, store.get(stamp.name)).payload, GcRecord, stamp.name)
            except (DamageError, ObjectNotFound):
                # An older one does as well: what it lists has been listed for longer.
                continue
            there = {one.name for kind in (Kind.INDEX, Kind.PACK, Kind.META) for one in store.list(kind.prefix + "/")}
            return (set(old.dead) & set(record.dead)) - there, (set(old.absorbed) & set(record.absorbed)) - there
    return set(), set()
