"""How old points are is said by the store's clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safehold.app.status import standings
from safehold.model.errors import StorePermission
from safehold.objects.memory import MemoryStore
from safehold.testing.fault_store import FaultStore
from tests.clocks import FakeClock
from tests.worlds import BLOCK, World

DAY = 86400.0
YEAR = 365 * DAY


@pytest.fixture
def clock() -> FakeClock:
    """The store's."""
    return FakeClock()


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> World:
    made = World(tmp_path, MemoryStore(clock))
    made.back_up(b"x" * BLOCK)
    clock.sleep(3 * DAY)
    return made


@pytest.mark.parametrize("wrong", [-10 * YEAR, -3 * DAY, 10 * YEAR])
def test_no_clock_of_a_client_makes_points_young_or_old(world: World, clock: FakeClock, wrong: float) -> None:
    world.ctx = replace(world.ctx, clock=FakeClock(clock.time + wrong))
    before = [stamp.name for stamp in world.store.list("")]
    for limit, overdue in ((2 * DAY, True), (4 * DAY, False)):
        (one,) = standings(vault := world.open(), vault.points()[0], [], world.ctx, limit, {})
        assert one.overdue == overdue
        assert one.age == pytest.approx(3 * DAY)
    assert [stamp.name for stamp in world.store.list("")] == before


def test_who_may_only_read_gets_an_estimate(world: World, clock: FakeClock) -> None:
    store = FaultStore(world.store)
    store.fail("put", error=lambda: StorePermission("may only read"), times=10**9)
    world.ctx = replace(world.ctx, clock=FakeClock(clock.time + 60))
    (one,) = standings(vault := world.open(store), vault.points()[0], [], world.ctx, 2 * DAY, {})
    assert one.overdue
    assert one.age == pytest.approx(3 * DAY + 60)
