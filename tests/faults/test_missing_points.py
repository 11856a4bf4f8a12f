"""Points that are gone, and points that came by ways a prune has not seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safehold.app.expire import apply_expiry, hold, plan_single, release
from safehold.app.keys import revoke_writer, rotate_key
from safehold.app.points import pick
from safehold.app.verify import Depth, verify_next, verify_points
from safehold.model.errors import DamageError, UsageError
from safehold.objects.memory import MemoryStore
from safehold.vault.catalogue import Point, choose
from safehold.vault.envelope import close, encode
from safehold.vault.gc.prune import Prune
from safehold.vault.keys import seal_to
from safehold.vault.names import gc_name, pin_name
from safehold.vault.records import NoteBody, Pin
from safehold.vault.slots import Recipient
from safehold.vault.trust import Chain
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey
from tests.worlds import BLOCK, World, read_back


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five backups, of which the first two were expired and pruned."""
    world = World(tmp_path)
    for _ in range(5):
        world.back_up(os.urandom(3 * BLOCK))
    vault = world.open()
    apply_expiry(vault, vault.points()[0][:2], world.ctx)
    assert prune(world).report.deleted
    return world


def packs(world: World) -> set[str]:
    return {stamp.name for stamp in world.store.list("packs/")}


def prune(world: World, vault: Vault | None = None, *, dead: bool = False) -> Prune:
    done = Prune(vault or world.fresh(), world.root, lambda session, now: dead, world.ctx)
    done.run()
    return done


def found(world: World, store: MemoryStore | None = None) -> list[str]:
    by_all = [f.on for f in verify_points(world.fresh(store), None, Depth.STRUCTURE, [], world.ctx).found]
    by_piece = [f.on for f in verify_next(world.fresh(store), 0.0, 1 << 40, world.ctx).findings.found]
    assert by_all == by_piece
    return by_all


def test_a_point_that_is_gone_is_found_by_a_machine_that_knows_nothing(world: World) -> None:
    assert found(world) == []
    first, second, third = world.fresh().points()[0]
    world.store.delete(second.name)
    assert found(world) == [second.name]
    rotate_key(world.open(), world.unlock(), Recipient(world.private.public_key().public_bytes_raw()), "new")
    assert found(world) == [second.name]
    vault = world.fresh()
    apply_expiry(vault, [first], world.ctx)
    assert found(world) == [second.name], "an expired point is not lost"
    before = packs(world)
    with pytest.raises(DamageError, match=second.name) as refused:
        prune(world)
    assert packs(world) == before, "what it needs is there when it comes back"
    assert f"point expire @{second.id[:8]}" in refused.value.remedy
    vault = world.fresh()
    apply_expiry(vault, plan_single(vault, [f"@{second.id[:8]}"]), world.ctx)
    assert found(world) == [], "the owner gave it up"
    prune(world)
    assert packs(world) < before
    assert [p.name for p in world.fresh().points()[0]] == [third.name]
    assert read_back(world.fresh(), third) == world.expected[third.id]


def lose(world: World, name: str, how: str) -> bytes:
    """A point's object is not there any more, or nothing is in it; returns what it was."""
    whole = world.store.get(name)
    world.store.delete(name)
    if how == "emptied":
        world.store.put(name, [b""])
    return whole


@pytest.fixture
def unpruned(tmp_path: Path) -> World:
    """Three backups of one disk and one of another, of which no prune has told."""
    world = World(tmp_path)
    for _ in range(3):
        world.back_up(os.urandom(3 * BLOCK))
    world.back_up(os.urandom(3 * BLOCK), "other")
    world.open().points()
    return world


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_what_this_machine_has_read_is_missed(unpruned: World, how: str) -> None:
    world = unpruned
    first, second, newest, other = world.open().points()[0]
    whole = lose(world, newest.name, how)
    for _ in range(2):
        vault = world.open()
        assert [f.on for f in verify_points(vault, None, Depth.STRUCTURE, [], world.ctx).found] == [newest.name]
        assert [f.on for f in verify_next(vault, 0.0, 1 << 40, world.ctx).findings.found] == [newest.name]
    points, rejected = vault.points()
    assert points == [first, second, other]
    assert [(one.name, one.time, one.resources, one.gone) for one in rejected] == [
        (newest.name, newest.time, ("disk",), True)
    ]
    with pytest.raises(DamageError) as refused:
        pick(vault, "disk@latest")
    assert f"disk@{second.id[:8]}" in refused.value.remedy
    assert pick(vault, f"disk@{second.id[:8]}", "other@latest") == [second, other]
    before = packs(world)
    with pytest.raises(DamageError, match=newest.name):
        prune(world, world.open())
    assert packs(world) == before
    world.store.put(newest.name, [whole], create_only=False)
    assert world.open().points() == ([first, second, newest, other], [])
    lose(world, newest.name, how)
    vault = world.open()
    apply_expiry(vault, plan_single(vault, [f"@{newest.id[:8]}"]), world.ctx)
    assert pick(world.open(), "disk@latest") == [second]
    prune(world, world.open())
    assert packs(world) < before
    for point in (first, second, other):
        assert read_back(world.open(), point) == world.expected[point.id]


def test_the_last_point_that_this_machine_made_is_missed_before_it_was_read(unpruned: World) -> None:
    world = unpruned
    late = world.back_up(os.urandom(BLOCK), "other")
    (name,) = [stamp.name for stamp in world.store.list("points/") if stamp.name.endswith(late.point)]
    world.store.delete(name)
    vault = world.open()
    assert [one.name for one in vault.points()[1]] == [name]
    with pytest.raises(DamageError):
        pick(vault, "other@latest")
    later = world.back_up(os.urandom(BLOCK), "other", vault)
    assert pick(world.open(), "other@latest")[0].id == later.point, "whatever that one was, this is newer"
    assert [f.on for f in verify_points(world.open(), None, Depth.STRUCTURE, [], world.ctx).found] == [name]


def test_what_this_machine_made_is_missed_of_its_resource_alone(unpruned: World) -> None:
    """At another address, such as a mirror's that is behind, which nothing was read from before."""
    world = unpruned
    late = world.back_up(os.urandom(BLOCK), "other")
    mirror = MemoryStore()
    for stamp in sorted(world.store.list(""), key=lambda one: one.time):
        if not (stamp.name.startswith("points/") and stamp.name.endswith(late.point)):
            mirror.put(stamp.name, [world.store.get(stamp.name)])
    mirror.url = "memory:mirror"
    for _ in range(2):
        vault = world.open(mirror)
        assert [one.resources for one in vault.points()[1]] == [("other",)]
        with pytest.raises(DamageError, match="a newer point cannot be read"):
            pick(vault, "other@latest")
        assert pick(vault, "disk@latest")[0].resources == ("disk",)
        # It is not the last that was made any more, and still known.
        world.back_up(os.urandom(BLOCK), "disk", vault)


def test_nobody_who_asks_by_time_is_given_the_point_before_the_lost_one(world: World) -> None:
    """On a machine that has never read it, which knows only that it was there when the prune was."""
    first, second, _ = world.fresh().points()[0]
    world.store.delete(second.name)
    points, rejected = world.fresh().points()
    with pytest.raises(DamageError, match="a newer point cannot be read") as refused:
        choose(points, "disk", "then", lambda text: (second.time, second.time), rejected)
    assert f"disk@{first.id[:8]}" in refused.value.remedy


def test_a_lost_point_that_is_asked_for_by_its_id_is_told_to_be_lost(unpruned: World) -> None:
    world = unpruned
    newest = world.open().points()[0][2]
    world.store.delete(newest.name)
    with pytest.raises(DamageError, match="the point cannot be read: a point is gone") as refused:
        pick(world.open(), f"disk@{newest.id[:8]}")
    assert f"point expire @{newest.id[:8]}" in refused.value.remedy
    with pytest.raises(UsageError, match="no point"):
        pick(world.open(), f"other@{newest.id[:8]}")


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_a_held_point_that_is_no_more_is_released_and_let_go(unpruned: World, how: str) -> None:
    """Each refusal names the next step, up to the prune."""
    world = unpruned
    newest = world.open().points()[0][2]
    hold(world.open(), f"disk@{newest.id}", "audit")
    whole = world.store.get(newest.name)
    world.store.delete(newest.name)
    if how == "damaged":
        world.store.put(newest.name, [whole[:-9] + b"x" + whole[-8:]])
    with pytest.raises(DamageError) as stuck:
        prune(world, world.open())
    assert f"safehold point expire @{newest.id[:8]}" in stuck.value.remedy
    with pytest.raises(UsageError, match="audit") as refused:
        plan_single(world.open(), [f"@{newest.id[:8]}"])
    assert refused.value.remedy == f"safehold point release @{newest.id[:8]}"
    assert release(world.open(), f"@{newest.id[:8]}").name == newest.name
    vault = world.open()
    apply_expiry(vault, plan_single(vault, [f"@{newest.id[:8]}"]), world.ctx)
    prune(world, world.open())
    assert world.open().points()[1] == []


def test_what_a_lost_point_is_pinned_by_is_named(unpruned: World) -> None:
    world = unpruned
    vault = world.open()
    newest = vault.points()[0][2]
    pin = vault.expiry().pin(newest.wid, newest.sid, NoteBody("volume", 0.0, {"volume": "data", "host": "db1"}))
    lose(world, newest.name, "deleted")
    with pytest.raises(UsageError, match="the volume data on db1 is filled in from this point") as refused:
        plan_single(world.open(), [f"@{newest.id[:8]}"])
    assert "safehold volume delete data --for-good" in refused.value.remedy
    assert f"safehold point unpin @{newest.id[:8]}" in refused.value.remedy
    world.open().expiry().unpin(pin)
    vault = world.open()
    apply_expiry(vault, plan_single(vault, [f"@{newest.id[:8]}"]), world.ctx)
    assert world.open().points()[1] == []


def test_a_prune_misses_what_the_newest_record_names(world: World) -> None:
    """Another prune told of it since this vault was opened."""
    mine = world.fresh()
    late = world.back_up(os.urandom(BLOCK), vault=world.fresh())
    apply_expiry(world.fresh(), world.fresh().points()[0][:1], world.ctx)
    prune(world)
    (name,) = [stamp.name for stamp in world.store.list("points/") if stamp.name.endswith(late.point)]
    world.store.delete(name)
    before = packs(world)
    with pytest.raises(DamageError, match=name):
        prune(world, mine)
    assert packs(world) == before


def test_what_others_expire_is_not_missed(unpruned: World) -> None:
    world = unpruned
    first, second, _, _ = world.open().points()[0]
    elsewhere = world.fresh()
    apply_expiry(elsewhere, [first, second], world.ctx)
    assert world.open().points()[1] == []
    prune(world, elsewhere)
    assert world.open().points()[1] == []
    assert verify_points(world.open(), None, Depth.DATA, [], world.ctx).found == []


def test_damage_that_a_verification_met_is_known_to_whoever_lists_the_points(unpruned: World) -> None:
    world = unpruned
    *_, newest, other = world.open().points()[0]
    whole = world.store.get(newest.name)
    world.store.put(newest.name, [whole[:-9] + b"x" + whole[-8:]], create_only=False)
    assert [f.on for f in verify_points(world.open(), None, Depth.STRUCTURE, [], world.ctx).found] == [newest.name]
    for _ in range(2):
        assert [one.resources for one in world.open().points()[1]] == [("disk",)]
    with pytest.raises(DamageError, match=newest.name):
        pick(world.open(), "disk@latest")
    assert pick(world.open(), "other@latest") == [other]
    world.store.put(newest.name, [whole], create_only=False)
    assert pick(world.open(), "disk@latest") == [newest]


def test_a_point_that_is_put_while_a_prune_ends_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look at the points and the record that tells of them: it is older than the record, which lacks it."""
    apply_expiry(world.open(), world.open().points()[0][:1], world.ctx)
    late: list[str] = []
    create = Prune._create

    def create_late(self: Prune, chain: Chain, **changes: object) -> bool:
        if "points" in changes:
            late.append(world.back_up(os.urandom(BLOCK), vault=world.fresh()).point)
        return create(self, chain, **changes)

    monkeypatch.setattr(Prune, "_create", create_late)
    prune(world)
    monkeypatch.undo()
    vault = world.fresh()
    assert vault.chain.record is not None
    point = vault.points()[0][-1]
    assert late == [point.id]
    assert point.name not in vault.chain.record.points
    assert point.time <= world.store.head(gc_name(vault.chain.record.number)).time
    assert found(world) == []
    prune(world)
    assert read_back(world.fresh(), point) == world.expected[point.id]


@pytest.mark.parametrize("backwards", [False, True])
def test_in_a_copy_all_points_count(world: World, *, backwards: bool) -> None:
    store = MemoryStore()
    for stamp in sorted(world.store.list(""), key=lambda one: one.name, reverse=backwards):
        store.put(stamp.name, [world.store.get(stamp.name)])
    points, rejected = world.fresh(store).points()
    assert len(points) == 3
    assert rejected == []
    assert found(world, store) == []


def test_an_older_point_than_the_newest_is_given_only_by_name(world: World) -> None:
    """The newest cannot be read any more: nothing asked of the vault takes the one before it without a word."""
    first, second, newest = world.fresh().points()[0]
    assert pick(world.fresh(), "disk@latest") == [newest]
    whole = world.store.get(newest.name)
    world.store.put(newest.name, [whole[:-9] + b"x" + whole[-8:]], create_only=False)
    vault = world.fresh()
    for selector in ("disk", "disk@latest", "disk@2999-01-01"):
        with pytest.raises(DamageError, match=newest.name) as refused:
            pick(vault, selector)
        assert f"disk@{second.id[:8]}" in refused.value.remedy
        with pytest.raises(DamageError, match=newest.name):
            verify_points(vault, selector, Depth.STRUCTURE, [], world.ctx)
    with pytest.raises(DamageError, match=newest.name):
        plan_single(vault, ["disk@latest"])
    assert pick(vault, f"disk@{second.id[:8]}", f"disk@{first.id}") == [second, first]
    vault.expiry().forget(newest.wid, newest.sid)
    assert pick(world.fresh(), "disk@latest") == [second], "the owner gave the newest up"


def test_a_writers_rubbish_is_in_the_way_of_its_own_resources_alone(world: World) -> None:
    writer = world.new_writer("web-*")
    world.back_up(b"web" * BLOCK, "web-1", world.open_writer(writer))
    newest = world.fresh().points()[0][-1]
    world.store.put(f"points/{writer.wid.hex()}/{os.urandom(16).hex()}", [b"rubbish"])
    vault = world.fresh()
    assert pick(vault, "disk@latest")[0].resources == ("disk",)
    with pytest.raises(DamageError):
        pick(vault, "@latest")
    with pytest.raises(DamageError) as refused:
        pick(vault, "web-1@latest")
    assert f"web-1@{newest.id[:8]}" in refused.value.remedy


@pytest.fixture
def lent(tmp_path: Path) -> tuple[World, WriterKey, Point]:
    """A backup of the owner's, one of a writer that may make points of `web`, which is handed over, and one of the owner's after it."""
    world = World(tmp_path)
    writer = world.new_writer("web")
    world.back_up(os.urandom(3 * BLOCK))
    made = world.back_up(os.urandom(3 * BLOCK), "web", world.open_writer(writer))
    world.back_up(os.urandom(3 * BLOCK))
    points = world.open().points()[0]
    return world, writer, next(point for point in points if point.id == made.point)


def test_what_a_writers_lost_point_needs_is_there_after_any_prune(lent: tuple[World, WriterKey, Point]) -> None:
    """The machine that prunes first has read the point; the others know of it by that prune's record alone."""
    world, _, point = lent
    whole = lose(world, point.name, "deleted")
    vault = world.open()
    apply_expiry(vault, vault.points()[0][:1], world.ctx)
    # Its session counts as open now, and at some time as dead.
    assert prune(world, world.open()).report.waiting
    assert prune(world, world.open(), dead=True).report.deleted
    for vault in (world.fresh(), world.open()):
        prune(world, vault)
        assert [one.name for one in vault.points()[1]] == [point.name]
    fresh = world.fresh()
    assert pick(fresh, "disk@latest"), "its writer makes no points of this resource"
    # No point of this resource is left, and nobody knows here whether the one that is gone was of it.
    with pytest.raises(UsageError, match="1 that cannot be read may be of it"):
        pick(fresh, "web@latest")
    with pytest.raises(DamageError, match="point of this resource can be read") as refused:
        pick(world.open(), "web@latest")
    assert f"point expire @{point.id[:8]}" in refused.value.remedy
    world.store.put(point.name, [whole], create_only=False)
    assert read_back(world.fresh(), point) == world.expected[point.id]
    lose(world, point.name, "deleted")
    vault = world.fresh()
    apply_expiry(vault, plan_single(vault, [f"@{point.id[:8]}"]), world.ctx)
    before = packs(world)
    prune(world)
    assert packs(world) < before
    assert world.fresh().points()[1] == []


def test_a_point_that_comes_back_after_its_writer_was_revoked_is_what_it_was(
    lent: tuple[World, WriterKey, Point],
) -> None:
    world, writer, point = lent
    revoke_writer(world.open(), writer.wid.hex())
    assert point in world.open().points()[0]
    whole = lose(world, point.name, "deleted")
    assert [one.gone for one in world.open().points()[1]] == [True]
    world.store.put(point.name, [whole], create_only=False)
    vault = world.open()
    assert point in vault.points()[0]
    assert vault.points()[1] == []
    prune(world, vault)
    assert read_back(world.open(), point) == world.expected[point.id]


def test_other_content_under_a_points_name_is_no_point(lent: tuple[World, WriterKey, Point]) -> None:
    """A writer whose store lets it delete puts another point of its own in the place of one, under the same session."""
    world, writer, point = lent
    elsewhere, right = MemoryStore(), os.urandom
    for stamp in world.store.list(""):
        if stamp.name != point.name:
            elsewhere.put(stamp.name, [world.store.get(stamp.name)])
    for kind in ("sessions", "index"):
        for stamp in list(elsewhere.list(f"{kind}/{point.name.removeprefix('points/')}")):
            elsewhere.delete(stamp.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda n: point.sid if n == len(point.sid) else right(n))
        forged = world.back_up(right(BLOCK), "web", world.open_writer(writer, elsewhere, "thief"))
    assert forged.point == point.id
    world.store.delete(point.name)
    world.store.put(point.name, [elsewhere.get(point.name)])
    vault = world.open()
    (one,) = vault.points()[1]
    assert (one.name, one.time, one.resources) == (point.name, point.time, ("web",))
    assert point.name in [f.on for f in verify_points(vault, None, Depth.STRUCTURE, [], world.ctx).found]


def test_a_pin_that_was_left_behind_makes_no_expired_point_lost(unpruned: World) -> None:
    world = unpruned
    vault = world.open()
    first = vault.points()[0][0]
    apply_expiry(vault, [first], world.ctx)
    assert first.name not in [stamp.name for stamp in world.store.list("points/")]
    name = pin_name(os.urandom(16))
    owner = vault.owner_key
    sealed = seal_to(owner.public.seal, b"x", b"SH1 pin" + vault.id + name.encode())
    record = Pin(owner.generation, first.name.removeprefix("points/"), sealed)
    world.store.put(name, [close(vault.id, name, encode(record), owner.sign)])
    assert world.open().points()[1] == []
    prune(world, world.open())


def test_a_copy_that_lags_behind_has_lost_nothing_but_what_was_made_here_last(unpruned: World) -> None:
    world = unpruned
    points = world.open().points()[0]
    copy = MemoryStore()
    copy.url = "memory:copy"
    for stamp in world.store.list(""):
        if stamp.name != points[2].name:
            copy.put(stamp.name, [world.store.get(stamp.name)])
    assert world.open(copy).points()[1] == []
    assert world.open().points() == (points, [])


def test_what_a_writer_may_not_make_is_not_missed(lent: tuple[World, WriterKey, Point]) -> None:
    world, writer, _ = lent
    other = world.open_writer(writer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WriterKey, "may_write", lambda self, name: True)
        world.back_up(os.urandom(BLOCK), "disk", other)
    (one,) = world.open().points()[1]
    assert one.barred
    world.store.delete(one.name)
    assert world.open().points()[1] == []
    assert pick(world.open(), "disk@latest")


def test_intents_are_looked_at_once(unpruned: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = unpruned
    vault = world.open()
    prune(world, vault)
    apply_expiry(vault, vault.points()[0][:2], world.ctx)
    right, read = MemoryStore.get, list[str]()

    def get(self: MemoryStore, name: str) -> bytes:
        read.append(name.split("/")[0])
        return right(self, name)

    monkeypatch.setattr(MemoryStore, "get", get)
    for times in (2, 0):
        read.clear()
        assert world.open().points()[1] == []
        assert read.count("forget") == times
