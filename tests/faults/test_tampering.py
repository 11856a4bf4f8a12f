"""Every kind of object that docs/format.md lists is damaged in every region. Damage is found, and never restored as right."""

from __future__ import annotations

import random
import re
from pathlib import Path

import msgspec
import pytest

from safehold.app.keys import add_key
from safehold.app.verify import Depth, Expected, check_expected, verify_points
from safehold.model.errors import DamageError, RollbackError, SafeholdError, VaultKeyError
from safehold.objects.memory import MemoryStore
from safehold.recovery.disk import Losses
from safehold.recovery.verify import verify_stored
from safehold.vault.access import unlock_with_kit
from safehold.vault.envelope import close, decode, encode, open_object
from safehold.vault.names import Kind, forget_name, gc_name, kind_of, log_name, pin_name
from safehold.vault.records import Forget, GcRecord, LogPiece, Pin, PointBody, PointObject, SealedKey
from safehold.vault.sealing import open_body, open_secret, seal_body
from safehold.vault.slots import Recipient
from safehold.vault.vault import Places, Vault
from tests.worlds import BLOCK, World, read_back

FORMAT = Path(__file__).parents[2] / "docs/format.md"
LISTED = re.findall(r"^\| `([a-z.]+)` \| `[^|]+\| ", FORMAT.read_text(), re.MULTILINE)


def disk(seed: int) -> bytes:
    """40 blocks: five pages, some holes, several packs."""
    return b"".join(bytes([n % 5 and (seed if n == 7 else n)]) * BLOCK if n % 7 else bytes(BLOCK) for n in range(40))


def random_disk(seed: int) -> bytes:

    return random.Random(seed).randbytes(24 * BLOCK) + bytes(4 * BLOCK) + b"tail"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A vault with at least one object of every kind."""
    world = World(tmp_path_factory.mktemp("world"))
    world.back_up(disk(1))
    world.back_up(disk(2))
    world.back_up(random_disk(3), "other")
    writer = world.new_writer("foreign")
    world.back_up(random_disk(4), "foreign", world.open_writer(writer))
    vault = world.open()
    owner = vault.owner_key
    vault.notes().add(vault.id, "kit", {})
    vault.notes().add(vault.id, "kit", {})

    def put(name: str, payload: bytes, signer: object) -> None:
        world.store.put(name, [close(vault.id, name, payload, signer)])  # type: ignore[arg-type]

    for n in range(2):
        put(pin_name(bytes([n] * 16)), encode(Pin(0, "a/b", b"sealed")), owner.sign)
        put(forget_name(f"points/a/{n}"), encode(Forget(0, f"a/{n}")), owner.sign)
        key = SealedKey(writer.wid, bytes(16), 0, 1, b"sealed")
        put(log_name(writer.wid, bytes(16), 1, n), encode(LogPiece(key, b"piece")), writer.sign)
    put(
        gc_name(1),
        encode(GcRecord(number=1, previous=vault.chain.digest, generation=0, owner=owner.public)),
        owner.sign,
    )

    add_key(world.open(), world.unlock(), Recipient(world.private.public_key().public_bytes_raw()), "second")
    return world


def names(world: World, kind: Kind) -> list[str]:
    return [s.name for s in world.store.list("") if kind_of(s.name) is kind]


def copy(world: World) -> MemoryStore:
    store = MemoryStore()
    for stamp in world.store.list(""):
        store.put(stamp.name, [world.store.get(stamp.name)])
    return store


def never_wrong(world: World, store: MemoryStore) -> int:
    """Restore what can be opened on a machine that knows nothing; every byte that comes back is right. Returns how many points did."""
    right = 0
    try:
        vault = world.fresh(store)
        points, _ = vault.points()
    except SafeholdError:
        return right
    for point in points:
        try:
            restored = read_back(vault, point)
        except SafeholdError:
            losses = Losses(True)
            salvaged = read_back(vault, point, losses)
            assert losses.ranges, "a failed restore names what is lost"
            lost = {n for start, end in losses.ranges for n in range(start // BLOCK, -(-end // BLOCK))}
            whole = world.expected[point.id]
            for n in range(-(-len(whole) // BLOCK)):
                if n not in lost:
                    assert salvaged[n * BLOCK : (n + 1) * BLOCK] == whole[n * BLOCK : (n + 1) * BLOCK]
        else:
            assert restored == world.expected[point.id]
            right += 1
    return right


def test_the_format_lists_every_kind() -> None:
    assert sorted(LISTED) == sorted(kind.prefix for kind in Kind)


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


def test_another_valid_point_under_the_name_is_found_by_expect(world: World, tmp_path: Path) -> None:
    """A writer's key holder replaces a point by another that is valid in itself."""

    vault = world.fresh()
    points, _ = vault.points()
    expected = [Expected(p.name, p.digest.hex()) for p in points]
    assert check_expected(points, expected) == []
    victim = points[0]
    store = copy(world)
    record = decode(open_object(victim.name, store.get(victim.name)).payload, PointObject, victim.name)
    secret = open_secret(vault.id, vault._require_keyring(), record.key, on=victim.name)
    body = decode(open_body(secret.session_key, vault.id, victim.name, record.sealed), PointBody, victim.name)
    changed_body = encode(msgspec.structs.replace(body, run="forged"))
    sealed = seal_body(secret.session_key, vault.id, victim.name, changed_body)
    forged = encode(PointObject(record.key, sealed, record.certificate))
    store.put(victim.name, [close(vault.id, victim.name, forged, vault.writer().sign)], create_only=False)
    assert verify_stored(store, world.ctx).found == []
    changed = world.fresh(store)
    assert verify_points(changed, None, Depth.DATA, [], world.ctx).found == []
    found = verify_points(world.fresh(store), None, Depth.STRUCTURE, expected, world.ctx).found
    assert [f.on for f in found] == [victim.name]
    store.delete(victim.name)
    found = verify_points(world.fresh(store), None, Depth.STRUCTURE, expected, world.ctx).found
    assert [f.on for f in found] == [victim.name]


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
