"""Intents to expire points: what an owner signed before deleting one."""

from __future__ import annotations

from safehold.model.errors import DamageError, ObjectNotFound
from safehold.ports.store import Store
from safehold.vault.envelope import decode, open_object
from safehold.vault.names import forget_name
from safehold.vault.records import Forget
from safehold.vault.trust import OwnerTrust

__all__ = ["is_forgotten"]


def is_forgotten(store: Store, vault: bytes, trust: OwnerTrust, point: str) -> bool:
    """True where the owner said that the point `points/<wid>/<sid>` is to be expired."""
    wanted = point.removeprefix("points/")
    name = forget_name(bytes.fromhex(wanted.rpartition("/")[2]))
    try:
        opened = open_object(name, store.get(name))
        record = decode(opened.payload, Forget, name)
        trust.check(vault, opened, record.generation)
    except (ObjectNotFound, DamageError):
        return False
    return record.point == wanted
