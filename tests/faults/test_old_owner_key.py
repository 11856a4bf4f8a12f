"""What somebody can do who holds an owner key that was rotated away, and can write to the store: nothing to the gc chain."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from safehold.app.keys import export_writer, rotate_key
from safehold.model.errors import DamageError, RollbackError
from safehold.vault.envelope import close, decode, encode
from safehold.vault.gc.prune import Prune
from safehold.vault.keys import OwnerKey, new_seed
from safehold.vault.names import gc_name
from safehold.vault.records import GcRecord, OwnerPublic
from safehold.vault.slots import Recipient
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey
from tests.faults.test_request_counts import CountingStore
from tests.worlds import BLOCK, World, read_back

DATA = b"".join(bytes([n + 1]) * BLOCK for n in range(8))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def rotate(world: World) -> OwnerKey:
    """Rotate the owner's key; the old one."""
    vault = world.fresh()
    old = vault.owner_key
    rotate_key(vault, world.unlock(), Recipient(world.private.public_key().public_bytes_raw()), "next")
    return old


def put_record(world: World, signer: OwnerKey, owner: OwnerPublic, **changes: object) -> str:
    """The next gc record, as whoever holds `signer` would make it."""
    stored = world.store.get(list(world.store.list("gc/"))[-1].name)
    newest = decode(stored[4:-96], GcRecord, "newest")
    record = msgspec.structs.replace(
        newest,
        **{
            "number": newest.number + 1,
            "previous": blake3(stored).digest(),
            "generation": signer.generation,
            "owner": owner,
            **changes,
        },
    )
    name = gc_name(record.number)
    world.store.put(name, [close(world.fresh().id, name, encode(record), signer.sign)])
    return name


def refused(world: World, vault: Vault, old: OwnerKey) -> None:
    """Nothing is sealed to the old key, and nothing is written at all."""
    assert vault.chain.broken
    assert vault.owner.generation != old.generation
    with pytest.raises(DamageError):
        world.back_up(DATA, "mine", vault)


@pytest.mark.parametrize("rubbish", [True, False])
def test_a_key_that_was_rotated_away_commands_nothing(world: World, rubbish: bool) -> None:
    writer = world.new_writer("mine*")
    world.back_up(DATA)
    world.open_writer(writer)
    old = rotate(world)
    name = put_record(world, old, old.public, **({"previous": b"rubbish"} if rubbish else {}))
    put_record(world, old, old.public)  # The second follows the first rightly.
    for vault in (
        world.open(),
        world.fresh(),
        world.open_writer(writer),
        world.open_writer(writer, machine="another"),
    ):
        refused(world, vault, old)
        assert [problem.on for problem in vault.chain.problems] == [name]
    with pytest.raises(DamageError):
        Prune(world.fresh(), world.root, lambda session, now: True, world.ctx).run()
    point = world.fresh().points()[0][0]
    assert read_back(world.fresh(), point) == DATA


def test_an_old_key_signs_no_other_successor_in(world: World) -> None:
    """He makes a key of his own and claims that it is the next one."""
    world.back_up(DATA)
    old = rotate(world)
    his = OwnerKey(1, new_seed())
    put_record(world, old, his.public)
    refused(world, world.fresh(), old)
    assert world.fresh().owner.seal != his.public.seal


def test_a_machine_that_saw_the_rotation_needs_no_record_before_it(world: World) -> None:
    world.back_up(DATA)
    old = rotate(world)
    world.open(machine="witness")
    put_record(world, old, old.public)
    world.store.delete(gc_name(0))
    refused(world, world.open(machine="witness"), old)


def test_owner_keys_follow_each_other_one_by_one(world: World) -> None:
    writer = world.new_writer("mine*")
    first = rotate(world)
    rotate(world)
    world.back_up(DATA, "mine", world.open_writer(writer))
    assert world.open_writer(writer, machine="another").owner.generation == 2
    put_record(world, world.fresh().owner_key, OwnerKey(4, new_seed()).public)
    refused(world, world.fresh(), first)


def test_a_writer_of_a_later_key_follows_the_chain(world: World) -> None:
    """Its credential pins a key that older records are not signed by."""
    rotate(world)
    writer = WriterKey.load(export_writer(world.open(), "later", ("mine*",)).export("x"), on="credential")
    world.back_up(DATA, "mine", world.open_writer(writer, machine="another"))
    rotate(world)
    world.back_up(DATA, "mine", world.open_writer(writer, machine="yet another"))
    assert world.open_writer(writer, machine="yet another").owner.generation == 2


def test_an_old_record_that_rots_is_told_of_and_stops_nothing(world: World) -> None:
    writer = world.new_writer("mine*")
    rotate(world)
    rotate(world)
    put_record(world, world.fresh().owner_key, world.fresh().owner)
    whole = world.store.get(gc_name(1))
    for damaged in (whole[:-1], b""):
        world.store.delete(gc_name(1))
        if damaged:
            world.store.put(gc_name(1), [damaged])
        vault = world.fresh()
        assert [problem.on for problem in vault.chain.problems] == [gc_name(1)]
        world.back_up(DATA, "disk", vault)
        # The record that is lost is the one that told a writer of the next key.
        assert world.open_writer(writer, machine=f"blind {len(damaged)}").chain.broken


def test_a_chain_that_was_replaced_is_noticed(world: World) -> None:
    old = rotate(world)
    world.open(machine="witness")
    world.store.delete(gc_name(1))
    put_record(world, old, old.public)
    with pytest.raises(RollbackError):
        world.open(machine="witness")


def test_opening_again_costs_one_listing_and_one_record(tmp_path: Path) -> None:
    store = CountingStore()
    world = World(tmp_path, store)
    writer = world.new_writer("mine*")
    for _ in range(3):
        rotate(world)
    for vault in (world.open, lambda: world.open_writer(writer)):
        vault()
        store.calls.clear()
        vault()
        assert store.calls["get gc"] == 1
    before = len(list(store.list("gc/")))
    for _ in range(20):
        put_record(world, world.open().owner_key, world.open().owner)
    store.calls.clear()
    world.open_writer(writer, machine="another")
    assert store.calls["get gc"] == before + 20
