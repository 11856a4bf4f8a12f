"""Making a vault. Its `vault.json` is put last and makes it one; what a killed attempt leaves behind is recognised
and removed by the next.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from safehold.model.context import Context
from safehold.model.errors import ObjectExists, ObjectNotFound, UsageError
from safehold.model.units import format_count
from safehold.ports.store import Store
from safehold.vault.access import FORMAT, Unlocked
from safehold.vault.envelope import close, encode
from safehold.vault.keys import Keyring, OwnerKey, new_seed
from safehold.vault.kit import Kit
from safehold.vault.names import Kind, gc_name, key_name, kind_of, writer_name
from safehold.vault.records import Features, GcRecord, Generation, KeyPayload, OwnerPublic, Parameters, VaultDocument
from safehold.vault.slots import Wrapper, new_slot_id
from safehold.vault.writers import new_writer, store_certificate

__all__ = ["Made", "add_slot", "create_vault", "timestamp"]

_MOMENT = 1.0
_LEFTOVERS = frozenset({Kind.KEY, Kind.WRITER, Kind.GC})
"""What an attempt writes before `vault.json`. Anything else in the place means that it is in use."""


@dataclass(frozen=True)
class Made:
    """A fresh vault: its opened key and its recovery kit."""

    unlocked: Unlocked
    kit: Kit


def timestamp(ctx: Context) -> str:
    """Now, as text with seconds, in UTC."""
    return datetime.fromtimestamp(ctx.clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _clear_leftovers(store: Store, ctx: Context) -> None:
    """UsageError for a place that holds anything but the remains of an unfinished attempt; those are removed."""
    remains = _leftovers(store)
    if not remains:
        return
    # Another attempt may be at work this very moment: it would go on within the second.
    ctx.clock.sleep(_MOMENT)
    if _leftovers(store) != remains:
        raise _rival(store)
    ctx.progress.note(f"removing {format_count(len(remains), 'object')} of an unfinished vault init")
    for name, version in remains:
        # By version: what another attempt puts under the same name meanwhile is not ours to remove.
        store.delete(name, version)


def _leftovers(store: Store) -> list[tuple[str, str]]:
    remains = []
    for stamp in store.list(""):
        kind = kind_of(stamp.name)
        if kind is Kind.VAULT:
            raise UsageError(
                "there is a vault here already",
                on=store.url,
                remedy=f"look at it: safehold vault info --vault {store.url}",
            )
        if kind not in _LEFTOVERS:
            raise UsageError(
                "the place is not empty", on=f"{store.url} ({stamp.name})", remedy="give an empty or new place"
            )
        remains.append((stamp.name, stamp.version))
    return remains


def _rival(store: Store) -> UsageError:
    return UsageError(
        "somebody else is making a vault here at the same moment", on=store.url, remedy="use that one, or another place"
    )


def create_vault(store: Store, wrapper: Wrapper, parameters: Parameters, label: str, ctx: Context) -> Made:
    """Make a vault with one key slot. UsageError where the place is not empty."""
    _clear_leftovers(store, ctx)
    vault = os.urandom(16)
    generation = Generation(0, new_seed())
    owner = OwnerKey(0, generation.seed)
    created = timestamp(ctx)
    document = VaultDocument(FORMAT, vault.hex(), created, parameters, Features(), _as_text(owner.public))
    raw = msgspec.json.format(msgspec.json.encode(document), indent=1)
    payload = KeyPayload((generation,), raw + b"\n")

    writer = new_writer(vault, owner.public, "owner", ("*",))
    slot = new_slot_id()
    genesis = GcRecord(number=0, previous=b"", generation=0, owner=owner.public)
    # The chain's first record has one name for all, so it is the claim: whoever makes it goes on.
    objects = {
        gc_name(0): close(vault, gc_name(0), encode(genesis), owner.sign),
        writer_name(writer.wid): store_certificate(writer, owner, exported=False),
        key_name(slot): _slot_object(vault, slot, payload, wrapper, label, created),
        Kind.VAULT.prefix: close(vault, Kind.VAULT.prefix, raw),
    }
    try:
        for name, stored in objects.items():
            store.put(name, [stored])
        _demand(store, objects)
    except (ObjectExists, ObjectNotFound):
        _withdraw(store, objects)
        raise _rival(store) from None
    return Made(Unlocked(payload, document, slot), Kit(vault, Keyring(payload.generations).generations))


def _demand(store: Store, objects: dict[str, bytes]) -> None:
    """ObjectNotFound unless everything is there still: another attempt may have taken it for leftovers."""
    for name, stored in objects.items():
        if store.get(name) != stored:
            raise ObjectNotFound("object was replaced", on=name)


def _withdraw(store: Store, objects: dict[str, bytes]) -> None:
    """Remove what is ours and nobody else's, the document first: without it there is no vault."""
    for name, stored in reversed(objects.items()):
        try:
            if store.get(name) == stored:
                store.delete(name)
        except ObjectNotFound:
            continue


def _as_text(public: OwnerPublic) -> dict[str, str | int]:
    return {"generation": public.generation, "seal": public.seal.hex(), "sign": public.sign.hex()}


def add_slot(store: Store, vault: bytes, payload: KeyPayload, wrapper: Wrapper, label: str, created: str) -> bytes:
    """Store another key slot that holds `payload`; returns its id."""
    slot = new_slot_id()
    store.put(key_name(slot), [_slot_object(vault, slot, payload, wrapper, label, created)])
    return slot


def _slot_object(vault: bytes, slot: bytes, payload: KeyPayload, wrapper: Wrapper, label: str, created: str) -> bytes:
    return close(vault, key_name(slot), encode(wrapper.wrap(vault, slot, payload, label, created)))
