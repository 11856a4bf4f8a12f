"""A prune on a full store: what is garbage already goes, and makes the room for moving the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safehold.app.verify import verify_next
from safehold.model.context import Context
from safehold.model.errors import StoreFull
from safehold.objects.memory import MemoryStore
from safehold.vault.gc.prune import Prune
from tests.clocks import FakeClock
from tests.faults.test_prune_among_others import contents, expire, packs
from tests.worlds import World, read_back


class Small(MemoryStore):
    """Has room for so many bytes more."""

    room = 1 << 40

    def put(self, name: str, parts: Sequence[Any], *, create_only: bool = True) -> None:
        size = sum(len(part) for part in parts)
        if size > self.room:
            raise StoreFull("no room", on=name)
        super().put(name, parts, create_only=create_only)
        self.room -= size

    def delete(self, name: str) -> None:
        self.room += self.head(name).size
        super().delete(name)


def test_garbage_goes_first(tmp_path: Path) -> None:
    store = Small()
    world = World(tmp_path, store)
    for n in range(12):
        world.back_up(contents(*(f"{n}-{i}" for i in range(7))), f"sparse{n}")
        world.back_up(contents(f"{n}-0", f"{n}-1"), f"kept{n}")
    for n in range(8):
        world.back_up(contents(*(f"garbage{n}-{i}" for i in range(7))), f"garbage{n}")
    for n in range(12):
        expire(world, f"sparse{n}")
    for n in range(8):
        expire(world, f"garbage{n}")
    before = sum(world.store.head(name).size for name in packs(world))
    # Room for the records of a prune, and for moving some, not all.
    store.room = 60_000
    sizes = []
    for _ in range(4):
        Prune(world.fresh(), world.root, lambda session, now: True, world.ctx).run()
        sizes.append(sum(world.store.head(name).size for name in packs(world)))
    assert sizes[0] < before * 0.8
    assert sizes[-1] < before * 0.5
    vault = world.fresh()
    for point in vault.points()[0]:
        assert read_back(vault, point) == world.expected[point.id]


def test_a_vault_without_room_is_read_all_the_same(tmp_path: Path) -> None:
    """Again and again, whatever cannot be noted there: its own clock stands still then."""
    world = World(tmp_path, Small())
    clock = FakeClock()
    world.back_up(contents("a", "b"), "one")
    vault = world.open()
    day = Context(clock=clock)
    assert verify_next(vault, 86400.0, 1 << 30, day).read
    world.store.room = 0
    clock.time = max(clock.time, vault.listed_time())
    for _ in range(3):
        clock.time += 2 * 86400
        rolled = verify_next(world.open(), 86400.0, 1 << 30, day)
        assert rolled.findings.found == []
        assert rolled.read, "read again, as its last reading is old by now"
