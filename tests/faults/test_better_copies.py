"""Where a chunk lies in several packs, a prune lets none go for one that it has not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehold.app.verify import Depth, verify_points
from safehold.vault.gc.preview import Preview
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.report import PruneReport
from safehold.vault.names import Kind
from tests.faults.test_prune_among_others import INFO, contents, packs
from tests.worlds import BLOCK, World, read_back

DATA = contents("a", "b", "c")


def prune(world: World) -> PruneReport:
    return Prune(world.fresh(), world.root, lambda session, now: True, world.ctx).run()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One point, whose chunks two packs hold: two backups that did not know of each other."""
    world = World(tmp_path)
    with world.open().session(INFO, 2) as session:
        world.back_up(DATA, "one", world.fresh())
        session.lane().put(Kind.PACK, [memoryview(DATA[at : at + BLOCK]) for at in range(0, len(DATA), BLOCK)])
        session.flush()
    return world


def spoil(world: World, pack: str) -> None:
    data = bytearray(world.store.get(pack))
    for at in range(400, len(data) - 400, 50):
        data[at] ^= 1
    world.store.put(pack, [bytes(data)], create_only=False)


def lose_runs(world: World, keeping: str) -> None:
    """Every index run, but those that tell of the pack `keeping`."""
    vault = world.fresh()
    for wid in {one.domain for one in vault.writers.values()}:
        locator, _, names = vault.domain(wid)
        for name in names:
            if keeping not in {pack.name for pack in locator.record(name).packs}:
                world.store.delete(name)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "found by verify"])
def test_the_rotten_one_is_not_the_one_that_stays(world: World, which: int, known: bool) -> None:
    """All runs are lost, or that of the good pack is and a verification has found the other one bad."""
    rotten = sorted(s.name for s in world.store.list("packs/"))[which]
    spoil(world, rotten)
    lose_runs(world, rotten if known else "")
    if known:
        assert verify_points(world.fresh(), None, Depth.DATA, [], world.ctx).found == []
        verify_points(world.fresh(), None, Depth.STRUCTURE, [], world.ctx)
    for _ in range(2):
        prune(world)
    vault = world.fresh()
    assert read_back(vault, vault.points()[0][0]) == DATA
    assert len(packs(world)) >= 2


def test_what_is_emptied_relies_on_no_pack_that_goes(tmp_path: Path) -> None:
    """A pack that is mostly garbage holds chunks of which others hold copies that nothing else needs: one prune leaves nothing to do."""
    for number in range(12):
        world = World(tmp_path / f"{number}")
        needed = contents("a", "b", "c")
        with world.open().session(INFO, 2) as first, world.open().session(INFO, 2) as second:
            world.back_up(needed + contents("d", "e", "f", "g", "h"), "two", world.fresh())
            world.back_up(needed, "one", world.fresh())
            for session, at in ((first, 0), (second, BLOCK)):
                session.lane().put(Kind.PACK, [memoryview(needed)[at : at + BLOCK]])
                session.flush()
        vault = world.fresh()
        (gone,) = (point for point in vault.points()[0] if point.body.members[0].name == "two")
        vault.expiry().forget(gone.wid, gone.sid)
        vault.expiry().collect(vault.store_time() + 30 * 86400)
        prune(world)
        assert Preview(world.fresh(), world.root, lambda session, now: True, world.ctx).run().condemned_packs == 0
        vault = world.fresh()
        assert read_back(vault, vault.points()[0][0]) == needed
