"""Packs that were found missing or bad are told of in the gc chain, which every writer reads before it deduplicates: what they hold is stored
again where it still exists, and points that need it can be read again.
"""

from __future__ import annotations

from collections.abc import Iterable

from safehold.model.errors import StoreError
from safehold.vault.gc.link import add_link
from safehold.vault.vault import Vault

__all__ = ["note_packs"]

_MOST_RACES = 10


def note_packs(vault: Vault, right: Iterable[str], wrong: Iterable[str]) -> None:
    """Note which packs were read and found right, and which are missing or bad, as far as that is news. Where the store cannot be written to,
    a warning says so.
    """
    right, wrong = frozenset(right), frozenset(wrong)
    try:
        vault.notes().note_packs(set(right - wrong), set(wrong))
        _tell_writers(vault, right - wrong, wrong)
    except StoreError as error:
        vault.ctx.progress.warn(f"what was found damaged could not be noted in the vault: {error}")


def _tell_writers(vault: Vault, right: frozenset[str], wrong: frozenset[str]) -> None:
    for _ in range(_MOST_RACES):
        chain = vault.newest_chain()
        if chain.record is None or chain.behind:
            # A verification says that by itself. A record after one that is not the newest would stand where another is hidden.
            return
        known = frozenset(chain.record.damaged)
        damaged = (known | (wrong - frozenset(chain.record.dead))) - right
        if damaged == known:
            return
        if add_link(vault.store, vault.id, vault.owner_key, chain.record, chain.digest, damaged=tuple(sorted(damaged))):
            return
