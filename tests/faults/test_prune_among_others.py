"""Prunes while backups come and go, restores that outlast them, and what a prune leaves that stops in the middle."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from safehold.app.keys import rotate_key
from safehold.model.errors import FencedError
from safehold.objects.memory import MemoryStore
from safehold.ports.store import Store
from safehold.testing.fault_store import Killed
from safehold.testing.interleave import InterleavedStore
from safehold.vault.catalogue import Point
from safehold.vault.gc import listed, runs
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.report import PruneReport
from safehold.vault.gc.sessions import OpenSession
from safehold.vault.names import commit_name
from safehold.vault.records import PointBody, SessionInfo
from safehold.vault.slots import Recipient
from safehold.vault.vault import Vault
from tests.worlds import BLOCK, World, read_back

INFO = SessionInfo("elsewhere", "boot", 1, 1, "test", 0.0, "run")
BODY = PointBody((), (), "elsewhere", "id", "test", "run", 0.0, 0.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, store=MemoryStore())


def alive(session: OpenSession, now: float) -> bool:
    return False


def prune(world: World, dead: Callable[[OpenSession, float], bool] = alive, store: Store | None = None) -> PruneReport:
    return Prune(world.fresh(store), world.root, dead, world.ctx).run()


def point_of(vault: Vault, name: str) -> Point:
    return next(point for point in vault.points()[0] if name in point.resources)


def expire(world: World, name: str) -> None:
    vault = world.fresh()
    point = point_of(vault, name)
    vault.expiry().forget(point.wid, point.sid)
    vault.expiry().collect(vault.store_time())


def packs(world: World) -> set[str]:
    return {stamp.name for prefix in ("packs/", "meta/") for stamp in world.store.list(prefix)}


def contents(*letters: str) -> bytes:
    return b"".join(random.Random(letter).randbytes(BLOCK) for letter in letters)


def test_backups_that_overlap_for_ever_do_not_hold_a_prune_up(world: World) -> None:
    world.back_up(contents("a"), "old")
    garbage = packs(world)
    expire(world, "old")
    with world.open(machine="first").session(INFO, 1) as first:
        assert [one.sid for one in prune(world).waiting] == [first.sid]
        with world.open(machine="second").session(INFO, 1) as second:
            first.commit(BODY)
            report = prune(world)
            assert report.waiting == []
            assert report.deleted_packs == len(garbage)
            assert packs(world) == set()
            second.commit(BODY)
    assert len(world.fresh().points()[0]) == 2


def test_sessions_that_were_open_are_waited_for_to_the_last(world: World) -> None:
    """By name in the chain, across prunes and a key rotation; the dead among all sessions are ended meanwhile."""
    world.back_up(contents("a"), "old")
    garbage = packs(world)
    expire(world, "old")
    with (
        world.open(machine="first").session(INFO, 1) as first,
        world.open(machine="second").session(INFO, 1) as second,
    ):
        assert {one.sid for one in prune(world).waiting} == {first.sid, second.sid}
        first.commit(BODY)
        rotate_key(world.open(), world.unlock(), Recipient(world.private.public_key().public_bytes_raw()), "next")
        with world.open(machine="third").session(INFO, 1) as third:
            report = prune(world, lambda session, now: session.sid == third.sid)
            assert [one.sid for one in report.waiting] == [second.sid]
            assert [one.sid for one in report.fenced] == [third.sid]
            assert packs(world) == garbage
            with pytest.raises(FencedError):
                third.commit(BODY)
        before = len(list(world.store.list("gc/")))
        assert prune(world).waiting
        assert len(list(world.store.list("gc/"))) == before, "waiting adds nothing to the chain"
        second.commit(BODY)
        assert prune(world).deleted_packs == len(garbage)


def test_a_backup_during_a_prune_stays_in_the_index(tmp_path: Path) -> None:
    """At whatever call of the prune it comes: no run is made into a base run without rows of packs that are there."""
    at, happened = 0, True
    while happened:
        # Every step that matters is several calls long.
        at, happened = at + 4, False
        world = World(tmp_path / str(at), store=MemoryStore())
        world.back_up(contents("a"), "old")
        world.back_up(contents("b"), "kept")
        expire(world, "old")

        def back_up() -> None:
            nonlocal happened
            happened = True
            world.back_up(contents("c", "d"), "young", world.open(machine="young"))  # noqa: B023 - called in this round

        prune(world, store=InterleavedStore(world.store, at, back_up))
        vault = world.fresh()
        locator, _, _ = vault.domain(vault.writer().domain)
        assert packs(world) - set(vault.chain.unusable_packs) <= locator.reader_view().packs(), f"at call {at}"


class _StopsAtRuns:
    """Dies when the first index run is to be deleted."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def delete(self, name: str, version: str | None = None) -> None:
        if name.startswith("index/"):
            raise Killed
        self._inner.delete(name, version)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_a_prune_that_stopped_in_the_middle_is_not_forgotten_after_the_listing_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs are gone and the runs that name them are not: those are ignored for as long as they are there."""
    monkeypatch.setattr(runs, "MOST_RUNS", 0)
    world.back_up(contents("a"), "old")
    expire(world, "old")
    with pytest.raises(Killed):
        prune(world, store=_StopsAtRuns(world.store))  # type: ignore[arg-type]
    assert packs(world) == set()
    # Thirty days later.
    monkeypatch.setattr(listed, "LISTED", 0.0)
    world.back_up(contents("b"), "other")
    expire(world, "other")
    with pytest.raises(Killed):
        prune(world, store=_StopsAtRuns(world.store))  # type: ignore[arg-type]
    world.back_up(contents("a"), "again")
    vault = world.fresh()
    assert read_back(vault, point_of(vault, "again")) == contents("a")


def test_a_restore_outlasts_many_prunes_that_move_what_it_reads(world: World) -> None:
    letters = "abcdefgh"
    for length in (8, 3, 1):
        world.back_up(contents(*letters[:length]), f"first {length}")
    reader = world.open(machine="reader")
    point = point_of(reader, "first 1")
    moved = 0
    for length in (8, 3):
        assert read_back(reader, point) == contents("a")
        expire(world, f"first {length}")
        moved += bool(prune(world).moved)
    assert moved > 1, "nothing to outlast"
    assert read_back(reader, point) == contents("a")
    assert reader.store.head(commit_name(point.wid, point.sid)).size


def test_only_runs_that_name_a_dead_pack_are_written_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune does work in proportion to what goes, however large the index is."""
    for letter in "abcdefgh":
        world.back_up(contents(letter), letter)
    monkeypatch.setattr(runs, "MOST_RUNS", 0)
    # A session may put two packs in one run or in two: both are small.
    monkeypatch.setattr(runs, "_SHARD_ROWS", 5)
    expire(world, "a")
    prune(world)
    locator, _, _ = world.fresh().domain(world.fresh().writer().domain)
    before = {name: {pack.name for pack in locator.record(name).packs} for name in locator.run_names()}
    assert len(before) > 2
    assert all(locator.record(name).base for name in before)
    there = packs(world)
    monkeypatch.setattr(runs, "MOST_RUNS", 1000)
    expire(world, "d")
    prune(world)
    gone = there - packs(world)
    after = set(locator.run_names())
    assert gone
    assert {name for name in before if name not in after} == {name for name, named in before.items() if named & gone}
    assert locator.reader_view().packs() == packs(world)
