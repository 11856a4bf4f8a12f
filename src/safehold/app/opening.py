"""Opening a vault with whatever credentials are at hand."""

from __future__ import annotations

from dataclasses import dataclass

from safehold.model.context import Context
from safehold.model.errors import DamageError, VaultKeyError
from safehold.ports.store import Store
from safehold.vault.access import Unlocked, read_document, unlock, unlock_with_kit
from safehold.vault.addresses import Addresses
from safehold.vault.kit import Kit
from safehold.vault.places import Places
from safehold.vault.slots import Unlocker
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey

__all__ = ["Credentials", "Stores", "known_at", "open_owner", "open_vault"]


@dataclass(frozen=True)
class Stores:
    """One store twice: `store` retries what may pass, `direct` does not (commits need to know of every attempt). `place` is its address with
    all that tells it from others.
    """

    store: Store
    direct: Store
    place: str


@dataclass(frozen=True)
class Credentials:
    """Exactly one of the three is set."""

    unlocker: Unlocker | None = None
    kit: Kit | None = None
    writer: WriterKey | None = None


def open_vault(stores: Stores, credentials: Credentials, places: Places, ctx: Context) -> Vault:
    """The vault at that store. UsageError where there is none, VaultKeyError where the credentials do not open it."""
    if credentials.writer is not None:
        document, _, wrong = read_document(stores.store)
        if document is None:
            raise DamageError(
                wrong,
                on=stores.store.url,
                remedy="a writer credential needs vault.json: whatever the owner writes puts a missing one back, such as safehold vault prune",
            )
        return Vault.for_writer(stores.store, stores.direct, document, credentials.writer, places, ctx)
    return open_owner(stores, credentials, places, ctx)[0]


def open_owner(stores: Stores, credentials: Credentials, places: Places, ctx: Context) -> tuple[Vault, Unlocked]:
    """The vault opened by its owner, and the opened key itself. See `open_vault`; VaultKeyError for a writer credential too, DamageError where
    another vault stands at the address of one that this machine knows.
    """
    unlocked = _unlock(stores, credentials)
    known_at(places).admit(stores.place, unlocked)
    return Vault.for_owner(stores.store, stores.direct, unlocked, places, ctx), unlocked


def known_at(places: Places) -> Addresses:
    """What this machine remembers of the addresses of vaults."""
    return Addresses(places.state / "addresses")


def _unlock(stores: Stores, credentials: Credentials) -> Unlocked:
    if credentials.kit is not None:
        return unlock_with_kit(stores.store, credentials.kit)
    if credentials.unlocker is None:
        raise VaultKeyError(
            "a writer credential cannot do this",
            on=stores.store.url,
            remedy="open the vault with the owner's passphrase",
        )
    return unlock(stores.store, credentials.unlocker)
