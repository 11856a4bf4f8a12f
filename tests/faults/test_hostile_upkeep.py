"""What a stolen writer credential, rot and interruptions can make expiry and pruning do: nothing to others' points."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import msgspec
import pytest
import zstandard

from safehold.app.expire import apply_expiry, hold, plan_expiry
from safehold.app.keys import rotate_key
from safehold.app.verify import Depth, verify_points
from safehold.model.errors import DamageError, FormatError, UsageError
from safehold.policies.retention import KeepRules
from safehold.vault.catalogue import Point
from safehold.vault.envelope import close, decode, encode, open_object
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.sessions import Sessions
from safehold.vault.names import Kind, commit_name, gc_name, kind_of, pin_name
from safehold.vault.node import Node, encode_node
from safehold.vault.records import Features, GcRecord, Pin, PointObject
from safehold.vault.sealing import ChunkOpener, ChunkSealer, SessionSecret, chunk_id, seal_secret
from safehold.vault.slots import Recipient
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey
from tests.faults.test_stolen_writer import MINE, VICTIM, Thief
from tests.worlds import BLOCK, World, read_back


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def stolen(world: World) -> WriterKey:
    writer = world.new_writer("mine*")
    world.back_up(MINE, "mine", world.open_writer(writer))
    world.back_up(VICTIM, "victim")
    return WriterKey.load(writer.export("somewhere"), on="credential")


def prune(world: World, vault: Vault | None = None) -> Prune:
    done = Prune(vault or world.fresh(), world.root, lambda session, now: True, world.ctx)
    done.run()
    return done


def all_well(world: World) -> None:
    vault = world.fresh()
    for point in vault.points()[0]:
        if point.id in world.expected and point.body.program != "forged":
            assert read_back(vault, point) == world.expected[point.id]


def of(world: World, resource: str) -> Point:
    return next(p for p in world.fresh().points()[0] if resource in p.resources)


def test_a_prune_trusts_no_copy_that_it_has_not_read(world: World, stolen: WriterKey) -> None:
    """A thief claims to hold his host's old chunks in a pack of his, so that the good packs look superfluous."""
    ids = [chunk_id(stolen.dedup_key, MINE[n : n + BLOCK]) for n in range(0, len(MINE), BLOCK)]
    for _ in range(3):
        thief = Thief(world, stolen)
        thief.announce()
        pack, rows = thief.pack([(identity, os.urandom(BLOCK)) for identity in ids])
        thief.run(pack, rows, wid=stolen.wid, domain=stolen.domain, index_key=stolen.index_key)
        prune(world)
        prune(world)
    all_well(world)
    assert verify_points(world.fresh(), None, Depth.DATA, [], world.ctx).found == []


def test_of_two_copies_the_good_one_stays(world: World) -> None:
    first = world.open()
    with first.session(world_info(), 2) as session:
        # Two sessions at once store the same blocks twice.
        world.back_up(VICTIM, "one")
        lane = session.lane()
        lane.put(Kind.PACK, [memoryview(VICTIM[n : n + BLOCK]) for n in range(0, len(VICTIM), BLOCK)])
        session.flush()
    for rotten in [s.name for s in world.store.list("packs/")]:
        whole = world.store.get(rotten)
        data = bytearray(whole)
        for at in range(400, len(data) - 400, 50):
            data[at] ^= 1
        world.store.put(rotten, [bytes(data)], create_only=False)
        all_well(world)
        Prune(world.fresh(), world.root, lambda session, now: True, world.ctx)._condemned(world.fresh().chain)
        world.store.put(rotten, [whole], create_only=False)
    # Every other pack rots for good; the one that is left of each pair is not let go.
    rotten = next(iter(world.store.list("packs/"))).name
    data = bytearray(world.store.get(rotten))
    data[400:-400] = bytes(len(data) - 800)
    world.store.put(rotten, [bytes(data)], create_only=False)
    prune(world)
    prune(world)
    all_well(world)


def world_info():  # type: ignore[no-untyped-def]
    from safehold.vault.records import SessionInfo

    return SessionInfo("host", "boot", 1, 1, "test", 0.0, "run")


def test_another_writer_under_the_same_session_id(world: World, stolen: WriterKey) -> None:
    victim = of(world, "victim")
    thief = Thief(world, stolen)
    thief.sid = victim.sid
    thief.secret = replace(thief.secret, sid=victim.sid)
    thief.key = seal_secret(stolen.vault, stolen.owner, thief.secret)
    thief.point(commit_name(stolen.wid, victim.sid), "mine", bytes(32))
    vault = world.fresh()
    twin = next(p for p in vault.points()[0] if p.sid == victim.sid and p.wid == stolen.wid)
    hold(vault, f"mine@{twin.id}", "attack")
    assert not vault.notes().facts().get(victim.subject)
    plan = plan_expiry(vault, [], KeepRules(last=1), vault.store_time(), UTC, world.ctx)
    assert victim.name not in {p.name for p in plan.expiring}
    apply_expiry(vault, [p for p in vault.points()[0] if p.wid == stolen.wid and p.name != twin.name], world.ctx)
    prune(world)
    all_well(world)


def test_a_small_chunk_does_not_become_a_large_one() -> None:
    vault, key, dedup = bytes(16), bytes(32), bytes(32)
    bomb = zstandard.ZstdCompressor().compress(bytes(300_000_000))
    sealer = ChunkSealer(vault, key, 1)

    class Bomb:
        def compress(self, plaintext: object) -> bytes:
            return bomb

    sealer._compressor = Bomb()  # type: ignore[assignment]
    plain = bytes(200_000)
    out = bytearray(300_000)
    identity = chunk_id(dedup, plain)
    stored, codec = sealer.seal_into(memoryview(out), Kind.PACK, identity, memoryview(plain))
    with pytest.raises(ValueError, match="announces another length"):
        ChunkOpener(vault).open(
            memoryview(out)[:stored],
            Kind.PACK,
            identity,
            codec,
            len(plain),
            SessionSecret(vault, vault, key, dedup),
            dedup,
        )


@pytest.mark.parametrize("change", [{"suite": 2}, {"generation": 99}])
def test_points_and_packs_of_keys_that_nobody_has(world: World, stolen: WriterKey, change: dict[str, int]) -> None:
    thief = Thief(world, stolen)
    thief.key = msgspec.structs.replace(thief.key, **change)
    thief.point(commit_name(stolen.wid, thief.sid), "mine", bytes(32))
    thief.pack([(bytes(32), b"x" * 5000)])
    for name in [s.name for s in world.store.list("index/")]:
        world.store.delete(name)
    vault = world.fresh()
    points, rejected = vault.points()
    assert len(points) == 2
    assert len(rejected) == 1
    all_well(world)


def test_a_few_nodes_are_not_endless_work(world: World, stolen: WriterKey) -> None:
    from safehold.vault.content import read_parts

    nodes: dict[bytes, bytes] = {}

    def put(node: Node) -> bytes:
        data = encode_node(node)
        nodes[chunk_id(bytes(32), data)] = data
        return chunk_id(bytes(32), data)

    size = 1024
    ref = put(Node("file.parts", chunks=b"c" * 32 * 1024, body=msgspec.msgpack.encode([1] * 1024)))
    for _ in range(4):
        ref = put(Node("file.index", nodes=ref * 1024, body=msgspec.msgpack.encode([size] * 1024)))
        size *= 1024
    with pytest.raises(DamageError):
        list(read_parts(ref, size, nodes.__getitem__))


def test_after_a_rotation_writers_seal_to_the_new_key(world: World, stolen: WriterKey) -> None:
    vault = world.open()
    rotate_key(vault, world.unlock(), Recipient(world.private.public_key().public_bytes_raw()), "new")
    done = world.back_up(MINE + b"x", "mine", world.open_writer(stolen))
    name = next(s.name for s in world.store.list("points/") if s.name.endswith(done.point))
    record = decode(open_object(name, world.store.get(name)).payload, PointObject, name)
    assert record.key.generation == 1
    all_well(world)


def test_a_feature_that_forbids_deleting(world: World) -> None:
    world.back_up(VICTIM, "victim")
    vault = world.open()
    owner = vault.owner_key
    record = GcRecord(
        number=1,
        previous=vault.chain.digest,
        generation=0,
        owner=owner.public,
        features=Features(delete=("of the future",)),
    )
    world.store.put(gc_name(1), [close(vault.id, gc_name(1), encode(record), owner.sign)])
    fresh = world.fresh()
    with pytest.raises(FormatError, match="of the future"):
        fresh.expiry()
    with pytest.raises(FormatError):
        prune(world)
    assert len(fresh.points()[0]) == 1


def test_pinned_points_are_not_expired(world: World) -> None:
    world.back_up(VICTIM, "victim")
    world.back_up(MINE, "victim")
    vault = world.fresh()
    point = of(world, "victim")
    owner = vault.owner_key
    name = pin_name(os.urandom(16))
    pin = Pin(0, point.name.removeprefix("points/"), b"sealed")

    # The pin comes between the intent and the look for pins: the expiry is interrupted there.
    vault.expiry().forget(point.wid, point.sid)
    world.store.put(name, [close(vault.id, name, encode(pin), owner.sign)])
    assert vault.expiry().collect(vault.store_time()) == 0
    prune(world)
    assert point.name in {p.name for p in world.fresh().points()[0]}
    all_well(world)
    with pytest.raises(UsageError, match="depends on this point"):
        vault.expiry().forget(point.wid, point.sid)
    world.store.delete(name)
    assert vault.expiry().collect(vault.store_time()) == 1


def test_stray_objects_and_a_damaged_chain(world: World) -> None:
    world.back_up(VICTIM, "victim")
    for name in ("gc/0000000001.bak", "writers/x", "keys/x", "notes/x", "forget/x"):
        world.store.put(name, [b"rubbish"])
    all_well(world)
    data = bytearray(world.store.get(gc_name(0)))
    data[20] ^= 1
    world.store.put(gc_name(0), [bytes(data)], create_only=False)
    all_well(world)
    with pytest.raises(DamageError):
        world.back_up(MINE, "victim", world.fresh())
    with pytest.raises(DamageError):
        prune(world)
    assert any(kind_of(s.name) is Kind.POINT for s in world.store.list("points/"))


@pytest.mark.parametrize("change", [{"suite": 2}, {"generation": 99}])
def test_keys_that_nobody_has_hold_no_prune_up(world: World, stolen: WriterKey, change: dict[str, int]) -> None:
    """In a session that is open, and in the header of a pack which a point needs a little of."""
    waiting = Thief(world, stolen)
    waiting.key = msgspec.structs.replace(waiting.key, **change)
    waiting.announce()
    thief, other = Thief(world, stolen), Thief(world, stolen)
    other.key = msgspec.structs.replace(other.key, **change)
    needed = chunk_id(stolen.dedup_key, b"needed")
    node = encode_node(Node("disk.leaf", chunks=needed))
    root = chunk_id(stolen.dedup_key, node)
    pack, rows = thief.pack([(root, node)], Kind.META)
    thief.run(pack, rows, wid=stolen.wid, domain=stolen.domain, index_key=stolen.index_key)
    pack, rows = other.pack([(needed, b"needed"), (os.urandom(32), os.urandom(BLOCK))])
    other.run(pack, rows, wid=stolen.wid, domain=stolen.domain, index_key=stolen.index_key)
    thief.point(commit_name(stolen.wid, thief.sid), "mine", root)
    garbage = Thief(world, stolen).pack([(os.urandom(32), os.urandom(BLOCK))])[0].name
    vault = world.fresh()
    done = Prune(vault, world.root, lambda session, now: session.sid == waiting.sid, world.ctx)
    assert [(one.sid, one.info) for one in Sessions(vault).open()] == [(waiting.sid, None)]
    report = done.run()
    assert report.fenced
    assert garbage not in {stamp.name for stamp in world.store.list("packs/")}
    assert pack.name in {stamp.name for stamp in world.store.list("packs/")}
    all_well(world)
