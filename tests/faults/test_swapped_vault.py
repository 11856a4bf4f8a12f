"""Whoever can write to the store, and knows somebody's public key, puts key slots or a whole vault of his own there."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from safehold.app.keys import add_key, rotate_key
from safehold.app.making import make_vault
from safehold.app.opening import Credentials, Stores, open_vault
from safehold.model.errors import DamageError, SafeholdError, UsageError
from safehold.objects.memory import MemoryStore
from safehold.vault.access import unlock
from safehold.vault.create import add_slot, create_vault
from safehold.vault.envelope import close, encode
from safehold.vault.kit import Kit
from safehold.vault.names import key_name
from safehold.vault.records import Generation, KeyPayload, KeySlot, Parameters
from safehold.vault.slots import Identity, Passphrase, Recipient, Unlocker, Wrapper
from safehold.vault.vault import Vault
from tests.worlds import World

WORDS = "correct horse"
FIRST = bytes(16)
"""A slot's id before that of any other."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.back_up(b"data" * 1000)
    return world


def recipient(world: World) -> Recipient:
    return Recipient(world.private.public_key().public_bytes_raw())


def visit(world: World, store: MemoryStore, credentials: Credentials, machine: str = "home") -> Vault:
    return open_vault(Stores(store, store, "the place"), credentials, world.places(machine), world.ctx)


def identity(world: World) -> Credentials:
    return Credentials(unlocker=Identity(world.private))


def another_vault(world: World, wrapper: Wrapper) -> tuple[MemoryStore, Kit]:
    store = MemoryStore()
    return store, create_vault(store, wrapper, world.parameters, "fake", world.ctx).kit


# -- a whole vault -------------------------------------------------------------------------------------------------------


def test_another_vault_for_the_same_public_key_is_refused(world: World) -> None:
    fake, _ = another_vault(world, recipient(world))
    visit(world, world.store, identity(world))
    for _ in range(2):
        with pytest.raises(DamageError, match="this machine knows vault") as caught:
            visit(world, fake, identity(world))
        assert world.open().document.id[:8] in str(caught.value)
    visit(world, world.store, identity(world))
    # A machine that never saw the place cannot know.
    visit(world, fake, identity(world), "elsewhere")


def test_so_is_one_that_copied_the_real_ones_id(world: World) -> None:
    """Its owner is another; the chain of the real one goes on with a record of his."""
    visit(world, world.store, identity(world))
    real = world.open()
    fake = MemoryStore()
    for stamp in world.store.list("gc/"):
        fake.put(stamp.name, [world.store.get(stamp.name)])
    other, _ = another_vault(world, recipient(world))
    made = unlock(other, world.identity)
    document = msgspec.structs.replace(made.document, id=real.document.id)
    raw = msgspec.json.format(msgspec.json.encode(document), indent=1)
    fake.put("vault.json", [close(real.id, "vault.json", raw)])
    payload = msgspec.structs.replace(made.payload, document=raw + b"\n")
    add_slot(fake, real.id, payload, recipient(world), "fake", "")
    assert unlock(fake, world.identity).document.id == real.document.id
    with pytest.raises(DamageError, match="this machine knows vault"):
        visit(world, fake, identity(world))


def test_what_the_user_put_there_himself(world: World) -> None:
    """A kit or passphrase proves a vault; disks that take turns at one address are both known then. So does making it on this machine."""
    visit(world, world.store, identity(world))
    own, kit = another_vault(world, recipient(world))
    visit(world, own, Credentials(kit=kit))
    worded, _ = another_vault(world, Passphrase(WORDS))
    visit(world, worded, Credentials(unlocker=Passphrase(WORDS)))
    add_key(
        visit(world, worded, Credentials(unlocker=Passphrase(WORDS))),
        unlock(worded, Passphrase(WORDS)),
        recipient(world),
        "",
    )
    made = MemoryStore()
    make_vault(Stores(made, made, "the place"), recipient(world), Parameters(), world.places(), world.ctx, another=True)
    for store in (world.store, own, worded, made, own):
        visit(world, store, identity(world))
    with pytest.raises(DamageError):
        visit(world, another_vault(world, recipient(world))[0], identity(world))


def test_a_rotated_key_is_the_same_owners(world: World) -> None:
    visit(world, world.store, identity(world))
    rotate_key(world.open(), world.unlock(), recipient(world), "new")
    visit(world, world.store, identity(world))
    visit(world, world.store, identity(world), "first seen after the rotation")
    rotate_key(world.open(), world.unlock(), recipient(world), "newer")
    visit(world, world.store, identity(world), "first seen after the rotation")


# -- single slots --------------------------------------------------------------------------------------------------------


def sealed_to_us(world: World, payload: KeyPayload) -> KeySlot:
    return recipient(world).wrap(world.open().id, FIRST, payload, "", "")


def rubbish(world: World) -> KeySlot:
    return msgspec.structs.replace(sealed_to_us(world, world.unlock().payload), sealed=bytes(200))


def no_keys(world: World) -> KeySlot:
    return sealed_to_us(world, msgspec.structs.replace(world.unlock().payload, generations=()))


def a_short_seed(world: World) -> KeySlot:
    return sealed_to_us(world, msgspec.structs.replace(world.unlock().payload, generations=(Generation(0, b""),)))


def other_keys(world: World) -> KeySlot:
    payload = msgspec.structs.replace(world.unlock().payload, generations=(Generation(0, os.urandom(32)),))
    return sealed_to_us(world, payload)


def later_keys_alone(world: World) -> KeySlot:
    payload = msgspec.structs.replace(world.unlock().payload, generations=(Generation(7, os.urandom(32)),))
    return sealed_to_us(world, payload)


def another_document(world: World) -> KeySlot:
    return sealed_to_us(world, unlock(another_vault(world, recipient(world))[0], world.identity).payload)


def no_document(world: World) -> KeySlot:
    return sealed_to_us(world, msgspec.structs.replace(world.unlock().payload, document=b"{}"))


def a_document_without_an_owner(world: World) -> KeySlot:
    document = msgspec.json.encode(msgspec.structs.replace(world.open().document, owner={}))
    return sealed_to_us(world, msgspec.structs.replace(world.unlock().payload, document=document))


def a_document_of_the_future(world: World) -> KeySlot:
    document = msgspec.json.encode(msgspec.structs.replace(world.open().document, format=99))
    return sealed_to_us(world, msgspec.structs.replace(world.unlock().payload, document=document))


def endless_derivation(world: World) -> KeySlot:
    slot = Passphrase("x").wrap(world.open().id, FIRST, world.unlock().payload, "", "")
    assert slot.kdf is not None
    return msgspec.structs.replace(slot, kdf=msgspec.structs.replace(slot.kdf, memory=1 << 31, iterations=1 << 30))


FORGED = [
    rubbish,
    no_keys,
    a_short_seed,
    other_keys,
    later_keys_alone,
    another_document,
    no_document,
    a_document_without_an_owner,
    a_document_of_the_future,
]


def put_first(world: World, store: MemoryStore, slot: KeySlot) -> None:
    """The newest one is tried first, and anybody can say of his that it is."""
    slot = msgspec.structs.replace(slot, created="9999-01-01T00:00:00Z")
    store.put(key_name(FIRST), [close(slot.vault, key_name(FIRST), encode(slot))])


@pytest.mark.parametrize("forged", FORGED, ids=lambda one: one.__name__)
def test_a_forged_slot_is_passed_over(world: World, forged: object) -> None:
    put_first(world, world.store, forged(world))  # type: ignore[operator]
    unlocked = unlock(world.store, world.identity)
    assert unlocked.slot != FIRST
    assert any("passed over" in warning for warning in unlocked.warnings)
    assert len(world.open().points()[0]) == 1


@pytest.mark.parametrize("forged", FORGED, ids=lambda one: one.__name__)
def test_it_opens_nothing_by_itself(world: World, forged: object) -> None:
    slot = forged(world)  # type: ignore[operator]
    for stamp in list(world.store.list("keys/")):
        world.store.delete(stamp.name)
    put_first(world, world.store, slot)
    with pytest.raises(SafeholdError):
        unlock(world.store, world.identity)


def test_an_endless_derivation_is_passed_over(world: World) -> None:
    add_key(world.open(), world.unlock(), Passphrase(WORDS), "words")
    put_first(world, world.store, endless_derivation(world))
    words: Unlocker = Passphrase(WORDS)
    assert unlock(world.store, words).slot != FIRST
    with pytest.raises(DamageError, match="no key slot opens"):
        unlock(world.store, Passphrase("wrong"))


def test_a_slot_is_made_of_the_whole_kit_only(world: World) -> None:
    """One that lacks the older secrets could not be told from a forged one."""
    rotate_key(world.open(), world.unlock(), recipient(world), "new")
    generations = world.unlock().payload.generations
    half = Credentials(kit=Kit(world.open().id, generations[1:]))
    opened = visit(world, world.store, half)
    unlocked = msgspec.structs.replace(
        world.unlock(), payload=KeyPayload(generations[1:], world.unlock().payload.document)
    )
    with pytest.raises(UsageError, match="older secrets"):
        add_key(opened, unlocked, recipient(world), "")
