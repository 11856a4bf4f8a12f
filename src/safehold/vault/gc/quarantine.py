"""Packs that were found bad are told of in the gc chain, which every writer reads before it deduplicates: what they hold is stored again where it
still exists, and points that need it can be read again.

What made a verification suspect a pack is no proof: an index run may lie, and a chunk may never have been where it says. So a suspect is read
whole before it is told of. A pack that is missing is not told of: whoever deduplicates sees that by himself.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from safehold.model.errors import DamageError, FormatError, ObjectNotFound, StoreError
from safehold.vault.gc.link import add_link
from safehold.vault.proof import BAD, prove_pack
from safehold.vault.sealing import ChunkOpener
from safehold.vault.vault import Vault

__all__ = ["note_packs"]

_MOST_RACES = 10
_MOST_READ = 64
"""Suspects that are read in one run, picked by lot: a hostile writer's runs can name any number of packs."""


def note_packs(vault: Vault, right: Iterable[str], wrong: Iterable[str], suspect: Iterable[str]) -> None:
    """Note which packs are bad and which are so no longer, as far as that is news: `right` and `wrong` were read whole, `suspect` are read here, as
    are those that were bad so far. Where the vault cannot be written to, a warning says so.
    """
    right, wrong = set(right), set(wrong)
    record = vault.chain.record
    if record is None or vault.chain.behind:
        # A verification says that by itself. A record after one that is not the newest would stand where another is hidden.
        return
    _read({*suspect, *record.damaged} - right - wrong, vault, right, wrong)
    try:
        vault.chain.require("write")
        _tell_writers(vault, right, wrong)
    except (StoreError, FormatError, DamageError) as error:
        vault.ctx.progress.warn(f"what was found damaged could not be noted in the vault: {error}")


def _read(suspects: set[str], vault: Vault, right: set[str], wrong: set[str]) -> None:
    opener = ChunkOpener(vault.id)
    for name in random.sample(sorted(suspects), min(len(suspects), _MOST_READ)):
        vault.ctx.cancel.check()
        try:
            prove_pack(vault, name, vault.store.head(name).size, opener)
        except ObjectNotFound:
            right.add(name)
        except BAD:
            wrong.add(name)
        else:
            right.add(name)


def _tell_writers(vault: Vault, right: set[str], wrong: set[str]) -> None:
    for _ in range(_MOST_RACES):
        chain = vault.newest_chain()
        if chain.record is None or chain.behind:
            return
        chain.require("write")
        known = frozenset(chain.record.damaged)
        damaged = (known | (wrong - frozenset(chain.record.dead))) - right
        if damaged == known:
            return
        if add_link(vault.store, vault.id, vault.owner_key, chain.record, chain.digest, damaged=tuple(sorted(damaged))):
            return
