"""What lies under the prefixes that a stolen writer credential may write keeps nobody else's points from being pruned, expired and verified."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from safehold.app.expire import apply_expiry, plan_single
from safehold.app.keys import revoke_writer
from safehold.app.verify import Depth, verify_next, verify_points
from safehold.model.errors import DamageError, UsageError
from safehold.vault.envelope import encode
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.report import PruneReport
from safehold.vault.gc.sessions import Sessions
from safehold.vault.names import Kind, commit_name, log_name, run_name, session_name
from safehold.vault.node import Node, encode_node
from safehold.vault.pack import PackRow
from safehold.vault.records import RunPack, SessionObject
from safehold.vault.sealing import chunk_id
from safehold.vault.writers import WriterKey
from tests.faults.test_stolen_writer import MINE, VICTIM, Thief
from tests.worlds import BLOCK, World, read_back

DEEP = b"\x81\xa1y" + b"\x91" * 100_000 + b"\xc0"
"""A MessagePack map with a field that nobody knows, nested too deeply to be skipped."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def stolen(world: World) -> WriterKey:
    """A credential with two backups behind it, of which the first was expired; so was one of two of the owner's."""
    writer = world.new_writer("mine*")
    world.back_up(MINE, "mine", world.open_writer(writer))
    world.back_up(bytes(BLOCK) + os.urandom(9 * BLOCK), "mine", world.open_writer(writer))
    world.back_up(VICTIM, "victim")
    world.back_up(os.urandom(9 * BLOCK), "victim")
    return WriterKey.load(writer.export("somewhere"), on="credential")


def prune(world: World) -> PruneReport:
    """Two prunes: what the first finds condemned by others is deleted, and then it looks again."""
    report = PruneReport()
    for _ in range(2):
        report = Prune(world.fresh(), world.root, lambda session, now: False, world.ctx).run()
    return report


class Unmoving(Prune):
    """Condemns only what is wholly garbage."""

    def _move(self, *arguments: object) -> None: ...


def expire_oldest(world: World, resource: str) -> frozenset[str]:
    """Let the first point of a resource go; the packs that it alone needed."""
    vault = world.fresh()
    before = Unmoving(vault, world.root, lambda session, now: False, world.ctx)
    condemned = frozenset(before._condemned(vault.chain))
    apply_expiry(vault, [next(p for p in vault.points()[0] if resource in p.resources)], world.ctx)
    return frozenset(before._condemned(vault.chain)) - condemned


def packs(world: World) -> frozenset[str]:
    return frozenset(s.name for prefix in ("packs/", "meta/") for s in world.store.list(prefix))


def honest_points_restore(world: World, *resources: str) -> None:
    vault = world.fresh()
    found = [p for p in vault.points()[0] if p.id in world.expected and set(p.resources) & set(resources)]
    assert {name for p in found for name in p.resources} == set(resources)
    for point in found:
        assert read_back(vault, point) == world.expected[point.id]


# -- what a thief can write ----------------------------------------------------------------------------------------------


def rubbish_point(thief: Thief) -> None:
    thief.world.store.put(commit_name(thief.who.wid, thief.sid), [b"rubbish"])


def misnamed_point(thief: Thief) -> None:
    thief.world.store.put(f"points/{thief.who.wid.hex()}/nonsense", [b"rubbish"])


def deep_point(thief: Thief) -> None:
    thief.put(commit_name(thief.who.wid, thief.sid), DEEP)


def point_of_a_key_that_nobody_has(thief: Thief) -> None:
    thief.key = msgspec.structs.replace(thief.key, generation=99)
    thief.point(commit_name(thief.who.wid, thief.sid), "mine", bytes(32))


def point_of_a_suite_that_nobody_knows(thief: Thief) -> None:
    thief.key = msgspec.structs.replace(thief.key, suite=2)
    thief.point(commit_name(thief.who.wid, thief.sid), "mine", bytes(32))


def point_of_anothers_name(thief: Thief) -> None:
    thief.point(commit_name(thief.who.wid, thief.sid), "victim", bytes(32))


def point_without_its_root(thief: Thief) -> None:
    thief.point(commit_name(thief.who.wid, thief.sid), "mine", os.urandom(32))


def with_root(thief: Thief, content: bytes, *rows: PackRow, more: tuple[RunPack, ...] = ()) -> None:
    """A point whose root chunk is `content`, in a pack that a run tells of."""
    root = chunk_id(thief.who.dedup_key, content)
    pack, told = thief.pack([(root, content)], Kind.META)
    thief.run(pack, [*told, *rows], wid=thief.who.wid, domain=thief.who.domain, index_key=thief.who.index_key)
    thief.point(commit_name(thief.who.wid, thief.sid), "mine", root)


def point_with_a_root_that_is_no_node(thief: Thief) -> None:
    with_root(thief, b"no node")


def point_with_a_root_too_deep(thief: Thief) -> None:
    with_root(thief, DEEP)


def point_without_its_data(thief: Thief) -> None:
    with_root(thief, encode_node(Node("disk.leaf", chunks=os.urandom(32 * 8))))


def point_whose_data_cannot_be_moved(thief: Thief) -> None:
    """Its pack is mostly garbage, and its session key of a suite that nobody knows."""
    good = thief.key
    thief.key = msgspec.structs.replace(good, suite=2, sealed=b"of another session")
    identity = os.urandom(32)
    pack, rows = thief.pack([(os.urandom(32), os.urandom(6 * BLOCK)), (identity, b"x" * 100)])
    thief.key = good
    who = thief.who
    thief.run(pack, rows, wid=who.wid, domain=who.domain, index_key=who.index_key, number=1)
    with_root(thief, encode_node(Node("disk.leaf", chunks=identity)))


def rubbish_session(thief: Thief) -> None:
    thief.world.store.put(session_name(thief.who.wid, thief.sid), [b"rubbish"])
    thief.world.store.put(f"sessions/{thief.who.wid.hex()}/nonsense", [b"rubbish"])
    thief.world.store.put(session_name(thief.who.wid, thief.sid, 7), [b"rubbish"])


def deep_session(thief: Thief) -> None:
    thief.put(session_name(thief.who.wid, thief.sid), DEEP)


def session_of_a_key_that_nobody_has(thief: Thief) -> None:
    key = msgspec.structs.replace(thief.key, generation=99)
    thief.put(session_name(thief.who.wid, thief.sid), encode(SessionObject(key, b"")))


def session_of_a_suite_that_nobody_knows(thief: Thief) -> None:
    key = msgspec.structs.replace(thief.key, suite=2)
    thief.put(session_name(thief.who.wid, thief.sid), encode(SessionObject(key, b"")))


def rubbish_runs(thief: Thief) -> None:
    thief.world.store.put(run_name(thief.who.wid, thief.sid, 0), [b"rubbish"])
    thief.world.store.put(f"index/{thief.who.wid.hex()}/nonsense", [b"rubbish"])
    thief.put(run_name(thief.who.wid, thief.sid, 1), DEEP)


def runs_of_what_is_not_there(thief: Thief) -> None:
    gone = RunPack(f"packs/hot/00/{'0' * 64}", 1 << 40)
    rows = [PackRow(os.urandom(32), 1 << 31, (1 << 32) - 1, 0x0FFFFFFF, 15)]
    thief.run(gone, rows, wid=thief.who.wid, domain=thief.who.domain, index_key=thief.who.index_key)


def rubbish_packs(thief: Thief) -> None:
    for name in (
        f"packs/hot/66/{'6' * 64}",
        f"meta/77/{'7' * 64}",
        f"packs/cold/88/{'8' * 64}",
        "packs/hot/x",
        "meta/x",
    ):
        thief.world.store.put(name, [os.urandom(300)])
        thief.world.store.put(name[:-1] + "5", [b"abc"])
        thief.world.store.put(name[:-1] + "4", [b""])


def rubbish_logs(thief: Thief) -> None:
    thief.world.store.put(log_name(thief.who.wid, bytes(16), 1, 1), [b"rubbish"])
    thief.world.store.put(f"logs/{thief.who.wid.hex()}/nonsense", [b"rubbish"])


UNREADABLE = [
    rubbish_point,
    misnamed_point,
    deep_point,
    point_of_a_key_that_nobody_has,
    point_of_a_suite_that_nobody_knows,
    point_without_its_root,
    point_with_a_root_that_is_no_node,
    point_with_a_root_too_deep,
    point_without_its_data,
]
"""What a point of it needs is unknown then."""
OTHER = [
    point_of_anothers_name,
    point_whose_data_cannot_be_moved,
    rubbish_session,
    deep_session,
    session_of_a_key_that_nobody_has,
    session_of_a_suite_that_nobody_knows,
    rubbish_runs,
    runs_of_what_is_not_there,
    rubbish_packs,
    rubbish_logs,
]
Attack = Callable[[Thief], None]


@pytest.mark.parametrize("attack", [*UNREADABLE, *OTHER], ids=lambda one: one.__name__)
def test_the_owner_goes_on(world: World, stolen: WriterKey, attack: Attack) -> None:
    """Backups, verification, expiry and pruning of others go on while the thief may still write; his sessions end as any that is silent."""
    attack(Thief(world, stolen))
    world.back_up(os.urandom(3 * BLOCK), "victim", world.fresh())
    garbage = expire_oldest(world, "victim")
    assert all(session.wid == stolen.wid for session in Sessions(world.fresh()).open())
    for _ in range(2):
        Prune(world.fresh(), world.root, lambda session, now: True, world.ctx).run()
    assert garbage
    assert not garbage & packs(world), "what nothing of the owner's needs is gone"
    honest_points_restore(world, "victim", "mine")
    verify_next(world.fresh(), 0.0, 1 << 40, world.ctx)
    for depth in Depth:
        found = verify_points(world.fresh(), None, depth, [], world.ctx).found
        owners = {p.id for p in world.fresh().points()[0] if "victim" in p.resources}
        assert not [f for f in found if f.point in owners]


@pytest.mark.parametrize("attack", [*UNREADABLE, *OTHER], ids=lambda one: one.__name__)
def test_after_the_revocation_it_is_as_if_nothing_were_there(world: World, stolen: WriterKey, attack: Attack) -> None:
    revoke_writer(world.open(), stolen.wid.hex())
    garbage = expire_oldest(world, "mine")
    attack(Thief(world, stolen))
    report = prune(world)
    assert not report.spared
    assert not report.waiting
    assert garbage
    assert not garbage & packs(world)
    honest_points_restore(world, "victim", "mine")


@pytest.mark.parametrize("attack", UNREADABLE, ids=lambda one: one.__name__)
def test_what_cannot_be_read_may_be_an_honest_point(world: World, stolen: WriterKey, attack: Attack) -> None:
    """Everything that its writer ever stored stays, until the owner lets the object go or has it back."""
    world.new_writer("unconcerned")
    garbage = expire_oldest(world, "mine")
    attack(Thief(world, stolen))
    report = prune(world)
    assert list(report.spared) == [stolen.domain]
    assert garbage <= packs(world)
    _, rejected = world.fresh().points()
    names = [one for one in rejected if not one.void]
    vault = world.fresh()
    if attack is misnamed_point:
        with pytest.raises(UsageError):
            plan_single(vault, ["@nonsense"])
        world.store.delete(names[0].name)
    else:
        sid = names[0].name[-32:] if names else next(p.id for p in vault.points()[0] if p.body.program == "forged")
        apply_expiry(vault, plan_single(vault, [f"@{sid[:12]}"]), world.ctx)
    report = prune(world)
    assert not report.spared
    assert not garbage & packs(world)
    honest_points_restore(world, "victim", "mine")


def test_a_damaged_honest_point_of_a_writer_costs_nothing(world: World, stolen: WriterKey) -> None:
    """Its runs are lost as well, a thief names its packs as his own, and the writer is revoked later: it comes back whole."""
    point = next(p for p in world.fresh().points()[0] if "mine" in p.resources)
    held = world.store.get(point.name)
    world.store.put(point.name, [held[:50] + b"flip" + held[54:]], create_only=False)
    revoke_writer(world.open(), stolen.wid.hex())
    for stamp in list(world.store.list(f"index/{stolen.wid.hex()}/")):
        world.store.delete(stamp.name)
    second = world.new_writer("second")
    other = Thief(world, second)
    claims = [
        (RunPack(name, world.store.head(name).size), PackRow(os.urandom(32), 0, 64, 20, 0)) for name in packs(world)
    ]
    for number, (pack, row) in enumerate(claims):
        other.run(pack, [row], wid=second.wid, domain=second.domain, index_key=second.index_key, number=number)
    assert list(prune(world).spared) == [stolen.domain]
    world.store.put(point.name, [held], create_only=False)
    # Its time is that of coming back, which is after the revocation; only the note's going shows what is there.
    for stamp in list(world.store.list(f"notes/{stolen.wid.hex()}/")):
        world.store.delete(stamp.name)
    back = next(p for p in world.fresh().points()[0] if p.name == point.name)
    assert read_back(world.fresh(), back) == world.expected[point.id]


def test_what_the_owner_cannot_read_of_his_own_stops_the_prune(world: World, stolen: WriterKey) -> None:
    garbage = expire_oldest(world, "victim")
    before = packs(world)
    point = next(p for p in world.fresh().points()[0] if "victim" in p.resources)
    held = world.store.get(point.name)
    for damaged in (held[:-1], b"rubbish"):
        world.store.put(point.name, [damaged], create_only=False)
        with pytest.raises(DamageError, match="needs is unknown") as caught:
            prune(world)
        assert f"safehold point expire @{point.id[:8]}" in caught.value.remedy
        assert packs(world) == before
    world.store.put(f"points/{'3' * 32}/{'3' * 32}", [b"of nobody"])
    world.store.put(point.name, [held], create_only=False)
    with pytest.raises(DamageError):
        prune(world)
    vault = world.fresh()
    apply_expiry(vault, plan_single(vault, [f"@{'3' * 8}"]), world.ctx)
    prune(world)
    assert garbage
    assert not garbage & packs(world)
