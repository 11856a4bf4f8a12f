"""Every kind of object that docs/format.md lists is damaged in every region. Damage is found, and never restored as right."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from safehold.app.verify import Depth, verify_points
from safehold.model.errors import DamageError, RollbackError, VaultKeyError
from safehold.recovery.verify import verify_stored
from safehold.vault.access import unlock_with_kit
from safehold.vault.envelope import close, open_object
from safehold.vault.names import Kind, gc_name
from safehold.vault.places import Places
from safehold.vault.vault import Vault
from tests.faults.everything import LISTED, TABLE, Listed, copy, disk, everything, names, never_wrong, random_disk
from tests.faults.regions import regions
from tests.worlds import BLOCK, World, read_back


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return everything(tmp_path_factory.mktemp("world"))


def test_the_format_lists_every_kind() -> None:
    assert sorted(LISTED) == sorted(kind.prefix for kind in Kind)
    for listed in TABLE:
        if listed.kind is not Kind.VAULT:
            assert listed.code == f"`{listed.kind.code.decode()}`"
        assert listed.signed_by.startswith("–") == (not listed.kind.signed)


def test_undamaged(world: World) -> None:
    assert verify_stored(world.store, world.ctx).found == []
    assert never_wrong(world, copy(world)) == 4
    for depth in Depth:
        assert verify_points(world.fresh(), None, depth, [], world.ctx).found == []


@pytest.mark.parametrize("prefix", LISTED)
def test_flips_and_truncations_are_found(world: World, prefix: str) -> None:
    kind = next(k for k in Kind if k.prefix == prefix)
    name = names(world, kind)[-1]
    whole = world.store.get(name)
    step = max(1, len(whole) // 24)
    damaged = 0
    for at in [*range(0, len(whole), step), len(whole) - 1, len(whole) - 33, len(whole) // 2]:
        store = copy(world)
        store.put(name, [whole[:at], bytes([whole[at] ^ 1 << at % 8]), whole[at + 1 :]], create_only=False)
        found = verify_stored(store, world.ctx).found
        assert name in {f.on for f in found}, f"flip at {at} of {len(whole)}"
        never_wrong(world, store)
        damaged += 1
    for length in (1, 5, 40, len(whole) // 2, len(whole) - 1):
        store = copy(world)
        store.put(name, [whole[:length]], create_only=False)
        assert name in {f.on for f in verify_stored(store, world.ctx).found}, f"cut to {length}"
        never_wrong(world, store)
        damaged += 1
    store = copy(world)
    store.put(name, [whole, b"x"], create_only=False)
    assert name in {f.on for f in verify_stored(store, world.ctx).found}
    never_wrong(world, store)
    assert damaged >= 20


@pytest.mark.parametrize("prefix", LISTED)
def test_every_region_is_flipped(world: World, prefix: str) -> None:
    """By name, in another object than above: small regions lie between the steps there."""
    kind = next(k for k in Kind if k.prefix == prefix)
    name = names(world, kind)[0]
    whole = world.store.get(name)
    named = regions(kind, whole)
    assert len(named) >= 3
    for region, at in named.items():
        store = copy(world)
        store.put(name, [whole[:at], bytes([whole[at] ^ 0x10]), whole[at + 1 :]], create_only=False)
        assert name in {f.on for f in verify_stored(store, world.ctx).found}, region
        right = never_wrong(world, store)
        if kind in (Kind.PACK, Kind.META) and region.startswith("record"):
            # The plaintext is needed: reading finds it too.
            assert right < 4, region
            assert verify_points(world.fresh(store), None, Depth.DATA, [], world.ctx).found, region


@pytest.mark.parametrize("listed", [t for t in TABLE if t.kind.signed], ids=lambda listed: listed.prefix)
def test_a_strangers_signature_counts_nowhere(world: World, listed: Listed) -> None:
    """The frame is right, so nothing that has no key can tell; whoever goes by the object does."""
    stranger = Ed25519PrivateKey.generate()
    vault = world.fresh()
    for name in names(world, listed.kind):
        payload = open_object(name, world.store.get(name)).payload
        store = copy(world)
        store.put(name, [close(vault.id, name, payload, stranger)], create_only=False)
        right = never_wrong(world, store)
        if listed.kind is Kind.POINT:
            assert [r.name for r in world.fresh(store).points()[1]] == [name]
        else:
            assert right == 4, name


@pytest.mark.parametrize("prefix", [p for p in LISTED if p != "vault.json"])
def test_swapped_siblings_are_found(world: World, prefix: str) -> None:
    kind = next(k for k in Kind if k.prefix == prefix)
    one, two, *_ = names(world, kind)
    store = copy(world)
    store.put(one, [world.store.get(two)], create_only=False)
    store.put(two, [world.store.get(one)], create_only=False)
    assert {one, two} <= {f.on for f in verify_stored(store, world.ctx).found}
    never_wrong(world, store)


@pytest.mark.parametrize("prefix", LISTED)
def test_each_object_absent(world: World, prefix: str) -> None:
    kind = next(k for k in Kind if k.prefix == prefix)
    for name in names(world, kind):
        store = copy(world)
        store.delete(name)
        never_wrong(world, store)
        if kind in (Kind.PACK, Kind.META):
            assert name in {f.on for f in verify_stored(store, world.ctx).found}
            for depth in Depth:
                assert verify_points(world.fresh(store), None, depth, [], world.ctx).found, (name, depth)


def test_lost_index_costs_nothing(world: World) -> None:
    store = copy(world)
    for name in names(world, Kind.INDEX):
        store.delete(name)
    assert never_wrong(world, store) == 4
    assert verify_points(world.fresh(store), None, Depth.DATA, [], world.ctx).found == []


def test_lost_gc_chain_costs_nothing_but_is_said(world: World) -> None:
    store = copy(world)
    for name in names(world, Kind.GC):
        store.delete(name)
    assert never_wrong(world, store) == 4
    assert any("gc" in f.on for f in verify_points(world.fresh(store), None, Depth.STRUCTURE, [], world.ctx).found)


def test_lost_vault_document_and_slots(world: World, tmp_path: Path) -> None:

    store = copy(world)
    for name in names(world, Kind.KEY):
        store.delete(name)
    with pytest.raises(DamageError, match="all key slots are gone"):
        world.open(store)
    store = copy(world)
    store.delete("vault.json")
    assert never_wrong(world, store) == 4
    for name in names(world, Kind.KEY):
        store.delete(name)
    unlocked = unlock_with_kit(store, world.kit)
    vault = Vault.for_owner(store, store, unlocked, Places(tmp_path / "s", tmp_path / "c"), world.ctx)
    points, rejected = vault.points()
    assert rejected == []
    assert [read_back(vault, point) for point in points] == [world.expected[point.id] for point in points]
    assert len(points) == 4


def test_a_rolled_back_vault_is_noticed_by_who_has_seen_it(world: World) -> None:

    store = copy(world)
    world.open(store, "witness")
    store.delete(gc_name(1))
    with pytest.raises(RollbackError, match="rolled back"):
        world.open(store, "witness")
    store.delete(gc_name(0))
    with pytest.raises(RollbackError):
        world.open(store, "witness")


def test_another_owners_document_is_refused(world: World, tmp_path: Path) -> None:

    other = World(tmp_path)
    store = copy(world)
    store.put("vault.json", [other.store.get("vault.json")], create_only=False)
    with pytest.raises(DamageError, match="replaced"):
        world.fresh(store)

    with pytest.raises(VaultKeyError, match="another vault"):
        unlock_with_kit(store, world.kit)


def test_lost_certificates_cost_nothing_for_reading(world: World) -> None:
    store = copy(world)
    for name in names(world, Kind.WRITER):
        store.delete(name)
    assert never_wrong(world, store) == 4
    vault = world.fresh(store)
    world.back_up(disk(9), "again", vault)
    assert never_wrong(world, store) == 5


@pytest.mark.parametrize("depth", list(Depth))
def test_a_bad_block_is_told_of_every_point_that_has_it(tmp_path: Path, depth: Depth) -> None:
    world = World(tmp_path)
    data = random_disk(5)
    world.back_up(data)
    packs = names(world, Kind.PACK)
    world.back_up(bytes(reversed(data[: 4 * BLOCK])) + data[4 * BLOCK :])
    whole = world.store.get(packs[0])
    world.store.delete(packs[0])
    if depth is Depth.DATA:
        world.store.put(packs[0], [bytes(b ^ 1 for b in whole)])
    findings = verify_points(world.fresh(), None, depth, [], world.ctx).found
    hurt = {finding.point for finding in findings}
    assert len(hurt) == 2 == len(world.expected)
