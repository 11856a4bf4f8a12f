"""Prunes on stores that cannot tell who came first, previews with read access alone, and scratch space that is not memory."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC
from pathlib import Path

import pytest
from typing_extensions import Buffer

from safehold.app.backup import BackupOptions
from safehold.app.expire import note_verified, plan_expiry
from safehold.app.host import Host
from safehold.app.prune import preview_prune, prune_vault
from safehold.app.service import Job, Memory, Plan, Result, from_source, run_due
from safehold.model.context import Context
from safehold.model.errors import StoreError, StorePermission
from safehold.model.resource import ResourceRef
from safehold.objects.check import broken_order
from safehold.objects.memory import MemoryStore
from safehold.policies.retention import KeepRules
from safehold.policies.schedule import parse_schedule
from safehold.ports.source import Source
from safehold.ports.store import Stamp, Store
from safehold.vault.gc.report import PruneReport
from safehold.vault.records import SessionInfo
from safehold.vault.vault import Vault
from tests.faults.test_request_counts import CountingStore
from tests.worlds import BLOCK, BytesDisk, BytesSource, World, read_back

HOST = Host("host", "id", "boot/ns")
DAY = 86400.0


def contents(*letters: str) -> bytes:
    return b"".join(random.Random(letter).randbytes(BLOCK) for letter in letters)


def expire(world: World, name: str) -> None:
    vault = world.fresh()
    point = next(point for point in vault.points()[0] if name in point.resources)
    vault.expiry().forget(point.wid, point.sid)


def prune(vault: Vault, ctx: Context, patience: float = 1e9) -> PruneReport:
    return prune_vault(vault, HOST, patience, broken_order, ctx)


def everything(store: Store) -> dict[str, bytes]:
    return {stamp.name: store.get(stamp.name) for stamp in store.list("") if not stamp.name.startswith("check-")}


# -- stores that overwrite -----------------------------------------------------------------------------------------------


class Overwriting(MemoryStore):
    """Takes a create-only put for any other, as servers do that ignore the header."""

    puts = 0

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        self.puts += 1
        return super().put(name, parts, create_only=False)


class Lagging(MemoryStore):
    """Lists an object only at the second look."""

    def __init__(self) -> None:
        super().__init__()
        self._looked: Counter[str] = Counter()

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        for stamp in super().list(prefix, after):
            self._looked[stamp.name] += 1
            if not stamp.name.startswith("check-") or self._looked[stamp.name] > 1:
                yield stamp


@pytest.mark.parametrize("kind", [Overwriting, Lagging])
def test_no_prune_where_the_store_cannot_tell_who_came_first(tmp_path: Path, kind: type[MemoryStore]) -> None:
    world = World(tmp_path, kind())
    world.back_up(contents("a", "b"), "old")
    world.back_up(contents("c"), "kept")
    expire(world, "old")
    before = everything(world.store)
    for _ in range(2):
        with pytest.raises(StoreError, match="not safe on this store") as caught:
            prune(world.open(), world.ctx)
        assert "--exclusive" in caught.value.remedy
        assert everything(world.store) == before
    assert preview_prune(world.open(), HOST, 1e9, world.ctx).condemned
    # Somebody vouches that nothing else is at work.
    assert prune_vault(world.open(), HOST, 1e9, None, world.ctx).deleted
    vault = world.fresh()
    assert [read_back(vault, point) for point in vault.points()[0]] == [contents("c")]


def test_a_good_store_is_tried_once_a_month(tmp_path: Path) -> None:
    store = CountingStore()
    world = World(tmp_path, store)
    world.back_up(contents("a"))
    world.open()
    counts = []
    for _ in range(2):
        store.calls.clear()
        prune(world.open(), world.ctx)
        counts.append(store.calls["put"])
        assert not [stamp.name for stamp in store.list("check-")]
    assert counts[0] > counts[1] + 15
    known = world.open().places.tried_stores
    known.write_text('{"counting://": 1.0}')
    store.calls.clear()
    prune(world.open(), world.ctx)
    assert store.calls["put"] == counts[0]
    known.write_text('{"s3://another": 99999999999.0}')
    store.calls.clear()
    prune(world.open(), world.ctx)
    assert store.calls["put"] == counts[0]
    known.write_bytes(b"\xffrubbish")
    prune(world.open(), world.ctx)


def test_an_unattended_prune_that_is_refused_is_a_failed_step(tmp_path: Path) -> None:
    world = World(tmp_path, Overwriting())

    def find(ctx: Context) -> tuple[Source, ResourceRef, BackupOptions]:
        return BytesSource(BytesDisk(bytearray(contents("a")))), ResourceRef("volume", "disk", "disk"), BackupOptions()

    plan = Plan(parse_schedule("02:00"), KeepRules(last=1), None, pruning=DAY)
    job = Job("disk", "main", plan, from_source(find), ("disk",))
    told: list[Result] = []
    memory = Memory(tmp_path / "memory", print)
    run_due([job], lambda name: world.open(), HOST, memory, UTC, told.append, broken_order, world.ctx, everything=True)
    codes = {result.step: result.code for result in told}
    assert codes == {"backup": 0, "expire": 0, "prune": StoreError.exit_code}


# -- previews ------------------------------------------------------------------------------------------------------------


class ReadOnly:
    """Refuses whatever changes something."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        raise StorePermission("the store refuses access", on=name)

    def delete(self, name: str, version: str | None = None) -> None:
        raise StorePermission("the store refuses access", on=name)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def read_only(world: World) -> Vault:
    return world.fresh(ReadOnly(world.store))  # type: ignore[arg-type]


def test_previews_need_read_access_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    writer = world.new_writer("web*")
    for letter in "abc":
        world.back_up(contents(letter), "web", world.open_writer(writer))
    with pytest.raises(StorePermission):
        prune(read_only(world), world.ctx)
    vault = read_only(world)
    rules = KeepRules(last=1)
    plan = plan_expiry(vault, [], rules, vault.listed_time(), UTC, world.ctx)
    assert len(plan.verified) == 3
    # The same as when it is carried out, which remembers what it verified.
    owner = world.fresh()
    real = plan_expiry(owner, [], rules, owner.store_time(), UTC, world.ctx)
    assert [point.id for point in plan.expiring] == [point.id for point in real.expiring]
    note_verified(owner, real)
    again = plan_expiry(owner, [], rules, owner.store_time(), UTC, world.ctx)
    assert again.verified == []
    assert [point.id for point in again.expiring] == [point.id for point in real.expiring]
    expire(world, "web")
    assert preview_prune(read_only(world), HOST, 1e9, world.ctx).condemned


def test_the_time_without_writing_is_that_of_the_newest_object(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.back_up(contents("a"))
    point = world.open().points()[0][0]
    vault = read_only(world)
    assert point.time <= vault.listed_time() <= world.open().store_time()


def mixed(tmp_path: Path) -> World:
    """A vault with whole packs of garbage, and with packs of which a little is live."""
    world = World(tmp_path)
    world.back_up(contents(*"abcdefgh"), "wide")
    world.back_up(contents("a"), "narrow")
    world.back_up(contents(*"stuvwx"), "gone")
    expire(world, "wide")
    expire(world, "gone")
    return world


def test_a_preview_says_what_the_prune_then_does(tmp_path: Path) -> None:
    world = mixed(tmp_path)
    before = preview_prune(read_only(world), HOST, 1e9, world.ctx)
    done = prune(world.fresh(), world.ctx)
    assert done.moved
    assert before.moved
    assert (before.condemned, before.condemned_packs) == (done.deleted, done.deleted_packs)
    assert before.waiting == []
    after = preview_prune(read_only(world), HOST, 1e9, world.ctx)
    assert (after.condemned_packs, after.moved) == (0, 0)


def test_a_preview_names_the_sessions_that_have_to_end_first(tmp_path: Path) -> None:
    world = mixed(tmp_path)
    info = SessionInfo("elsewhere", "boot", 1, 1, "test", 0.0, "run 7")
    with world.open(machine="busy").session(info, 1) as session:
        before = preview_prune(read_only(world), HOST, 1e9, world.ctx)
        assert [one.sid for one in before.waiting] == [session.sid]
        assert [one.info.run for one in before.waiting if one.info] == ["run 7"]
        late = preview_prune(read_only(world), HOST, -1e9, world.ctx)
        assert ([one.sid for one in late.fenced], late.waiting) == ([session.sid], [])
        assert [one.sid for one in prune(world.fresh(), world.ctx).waiting] == [session.sid]
        # What was condemned is told of in the same way; who began since is not waited for.
        with world.open(machine="later").session(info, 1):
            again = preview_prune(read_only(world), HOST, 1e9, world.ctx)
            assert [one.sid for one in again.waiting] == [session.sid]
            assert (again.condemned, again.condemned_packs) == (before.condemned, before.condemned_packs)
    assert preview_prune(read_only(world), HOST, 0.0, world.ctx).waiting == []


# -- what a prune asks for -----------------------------------------------------------------------------------------------


def test_names_that_are_listed_as_dead_are_deleted_once(tmp_path: Path) -> None:
    store = CountingStore()
    world = World(tmp_path, store)
    for n in range(12):
        world.back_up(bytes([n + 1]) * BLOCK + bytes([n + 101]) * BLOCK, f"disk {n}")
    for n in range(11):
        expire(world, f"disk {n}")
    vault = world.open()
    done = prune(vault, world.ctx)
    assert done.deleted_packs > 10
    dead = world.open().chain.unusable_packs
    for _ in range(2):
        world.back_up(contents("z"), "more")
        expire(world, "more")
        vault = world.open()
        store.calls.clear()
        again = prune(vault, world.ctx)
        # Packs and runs that go, the session, and the notes that tell the time.
        assert again.deleted_packs <= 4
        assert store.calls["delete"] < len(dead)


def test_packs_are_listed_as_often_for_many_domains_as_for_one(tmp_path: Path) -> None:
    counts = []
    for domains in (1, 6):
        store = _Listings()
        world = World(tmp_path / str(domains), store)
        for n in range(domains):
            world.back_up(contents("a"), f"web{n}", world.open_writer(world.new_writer(f"web{n}")))
        world.back_up(contents("b"), "old")
        expire(world, "old")
        vault = world.open()
        store.listed.clear()
        assert prune(vault, world.ctx).deleted_packs
        counts.append(store.listed["packs/"])
        vault = world.fresh()
        assert len(vault.points()[0]) == domains
        assert all(read_back(vault, point) == contents("a") for point in vault.points()[0])
    assert counts[0] == counts[1]


class _Listings(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.listed: Counter[str] = Counter()

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        self.listed[prefix] += 1
        return super().list(prefix, after)


def test_sorting_takes_place_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's directory for temporary files often is memory."""
    world = mixed(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    vault = world.open()
    assert preview_prune(vault, HOST, 1e9, world.ctx).condemned
    assert prune(vault, world.ctx).deleted
    assert [path.name for path in vault.places.scratch().iterdir() if path.name.startswith("prune-")] == []
