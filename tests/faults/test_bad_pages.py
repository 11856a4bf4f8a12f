"""Metadata pages that cannot be read: what lies below them is named, everything else is restored, verified and filled in."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from safehold.app.points import diff_points
from safehold.app.verify import Depth, verify_next, verify_points
from safehold.blocks.layers import PRESENT
from safehold.blocks.layout import VolumeRecord
from safehold.blocks.opening import create_volume, open_volume
from safehold.model.errors import DamageError
from safehold.recovery import hydration
from safehold.recovery.disk import Losses, write_differences
from safehold.recovery.hydration import Hydrator
from safehold.vault.catalogue import Point
from safehold.vault.disk import StoredDisk
from safehold.vault.node import split_ids
from safehold.vault.vault import Vault
from tests.worlds import BLOCK, BytesDisk, World, read_back

REFS = 8
BLOCKS = 3 * REFS**2 + 5
"""25 leaves below 4 inner pages below the root."""
DATA = random.Random(1).randbytes(BLOCKS * BLOCK - 100)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.back_up(DATA)
    return world


def only(vault: Vault) -> Point:
    (point,) = vault.points()[0]
    return point


def page(vault: Vault, level: int, number: int) -> bytes:
    """The id of a page of the only disk."""
    point = only(vault)
    tree = vault.disk(point, point.body.members[0]).tree
    identity = tree.root
    for above in range(tree.levels, level, -1):
        ids = list(split_ids(tree.page(identity, above, number // REFS ** (above - level))))
        identity = ids[number // REFS ** (above - 1 - level) % REFS]
    return identity


def spoil(world: World, identities: Iterable[bytes]) -> None:
    """Flip a bit in every stored copy of the chunks."""
    vault = world.fresh()
    for identity in identities:
        for location in vault.finder(only(vault).wid).locations(identity):
            data = bytearray(world.store.get(location.pack))
            data[location.offset + location.stored // 2] ^= 1
            world.store.put(location.pack, [bytes(data)], create_only=False)


def below(level: int, number: int) -> tuple[int, int]:
    span = REFS**level * BLOCK
    return number * span, min((number + 1) * span, len(DATA))


def inclusive(ranges: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{start}-{end - 1}" for start, end in ranges)


DAMAGE = [
    pytest.param([(1, 3)], [below(1, 3)], id="a leaf"),
    pytest.param([(1, 3), (1, 4), (1, 24)], [(below(1, 3)[0], below(1, 4)[1]), below(1, 24)], id="several leaves"),
    pytest.param([(2, 1), (1, 0)], [below(1, 0), below(2, 1)], id="an inner page and a leaf"),
    pytest.param([(3, 0)], [(0, len(DATA))], id="the root"),
]


@pytest.mark.parametrize(("pages", "ranges"), DAMAGE)
def test_restores(world: World, pages: list[tuple[int, int]], ranges: list[tuple[int, int]]) -> None:
    vault = world.fresh()
    spoil(world, [page(vault, *one) for one in pages])
    vault = world.fresh()
    point = only(vault)
    with pytest.raises(DamageError, match=f"bytes {inclusive(ranges[:1]).partition('-')[0]}-") as refused:
        read_back(vault, point)
    assert "meta/" in str(refused.value)
    assert refused.value.on == "disk"
    losses = Losses(True)
    salvaged = read_back(vault, point, losses)
    assert losses.spelled() == inclusive(ranges)
    assert_only_these_are_lost(salvaged, ranges, bytes(b"\xff" * len(DATA)))


@pytest.mark.parametrize(("pages", "ranges"), DAMAGE)
def test_delta_restores(world: World, pages: list[tuple[int, int]], ranges: list[tuple[int, int]]) -> None:
    vault = world.fresh()
    spoil(world, [page(vault, *one) for one in pages])
    vault = world.fresh()
    disk = vault.disk(only(vault), only(vault).body.members[0])
    there = bytearray(DATA)
    for at in range(0, len(there), 3 * BLOCK):
        there[at] ^= 1
    with pytest.raises(DamageError, match="bytes "):
        write_differences(disk, BytesDisk(bytearray(there)), Losses(False), world.ctx)
    target, losses = BytesDisk(bytearray(there)), Losses(True)
    written = write_differences(disk, target, losses, world.ctx)
    assert losses.spelled() == inclusive(ranges)
    assert_only_these_are_lost(bytes(target.data), ranges, bytes(there))
    assert written.data + written.zeroed + written.kept == len(DATA) - losses.total


def assert_only_these_are_lost(restored: bytes, ranges: list[tuple[int, int]], before: bytes) -> None:
    """Outside of the ranges everything is right; in them what was there is still there."""
    at = 0
    for start, end in [*ranges, (len(DATA), len(DATA))]:
        assert restored[at:start] == DATA[at:start]
        assert restored[start:end] == before[start:end]
        at = end


@pytest.mark.parametrize("depth", list(Depth))
def test_verify_names_each_page_and_goes_on(world: World, depth: Depth) -> None:
    vault = world.fresh()
    block = vault.disk(only(vault), only(vault).body.members[0]).tree.block_ids(100, 1)
    whole = verify_points(vault, None, depth, [], world.ctx)
    spoil(world, [page(vault, 1, 3), page(vault, 2, 2)])
    if depth is Depth.DATA:
        spoil(world, block)
    found = verify_points(world.fresh(), None, depth, [], world.ctx)
    told = [finding.what for finding in found.found]
    expected = [below(1, 3), (100 * BLOCK, 101 * BLOCK), below(2, 2)]
    if depth is Depth.STRUCTURE:
        del expected[1]
    assert sorted(text.partition(" cannot be read")[0] for text in told) == sorted(
        f"bytes {inclusive([one])}" for one in expected
    )
    assert {finding.on for finding in found.found} == {"disk"}
    assert found.checked == whole.checked - REFS - REFS**2
    assert found.logical == whole.logical


def test_rolling_verification_reads_what_can_be_told(world: World) -> None:
    vault = world.fresh()
    spoil(world, [page(vault, 1, 3), page(vault, 1, 9)])
    rolled = verify_next(world.fresh(), 0.0, 1 << 40, world.ctx)
    told = [finding.what for finding in rolled.findings.found]
    for one in (below(1, 3), below(1, 9)):
        assert any(text.startswith(f"bytes {inclusive([one])} cannot be read") for text in told)
    assert rolled.proved == []
    assert rolled.packs > 0


def test_chunks_that_are_gone_do_not_end_a_rolling_verification(world: World) -> None:
    gone = next(s.name for s in world.store.list("packs/"))
    world.store.delete(gone)
    rolled = verify_next(world.fresh(), 0.0, 1 << 40, world.ctx)
    assert any("bytes" in finding.what and "is gone" in finding.what for finding in rolled.findings.found)
    assert rolled.proved == []
    assert rolled.packs == len(list(world.store.list("packs/")))


def test_a_comparison_names_the_bytes_it_cannot_tell(world: World) -> None:
    vault = world.fresh()
    spoil(world, [page(vault, 1, 3)])
    old = only(vault).id
    world.back_up(b"x" + DATA[1 : 3 * REFS * BLOCK] + b"y" * BLOCK + DATA[(3 * REFS + 1) * BLOCK :])
    vault = world.fresh()
    pair = vault.points()[0]
    new = pair[1].id
    with pytest.raises(DamageError, match=f"bytes {inclusive([below(1, 3)])} cannot be read"):
        diff_points(vault, pair, f"disk@{old}", f"disk@{new}")


class Filling:
    """A live volume over the point, of which all is missing."""

    def __init__(self, world: World, place: Path, whole: dict[str, bytes]) -> None:
        self._store, self._whole = world.store, whole
        record = VolumeRecord("v", "u", len(DATA) // BLOCK * BLOCK, BLOCK, "vault", 0.0)
        self.blocks = record.size // BLOCK
        create_volume(place / "v", record, [(0, self.blocks)], [])
        self.volume = open_volume(place / "v", record, "boot", lambda text: None).volume
        self.done = threading.Event()

        def open_disk() -> StoredDisk:
            vault = world.fresh()
            return vault.disk(only(vault), only(vault).body.members[0])

        def done() -> bool:
            self.done.set()
            return True

        self.hydrator = Hydrator(self.volume, None, open_disk, done, world.ctx)

    def repair(self) -> None:
        for name, data in self._whole.items():
            self._store.put(name, [data], create_only=False)

    def missing(self) -> set[int]:
        return {n for n in range(self.blocks) if self.volume.maps.states.cells[n] != PRESENT}

    def wrong(self, blocks: Iterable[int]) -> list[int]:
        buffer = bytearray(BLOCK)
        out = []
        for n in blocks:
            self.volume.read_into(n * BLOCK, memoryview(buffer))
            if buffer != DATA[n * BLOCK : (n + 1) * BLOCK]:
                out.append(n)
        return out


LOST = {n for start, end in (below(1, 3), below(2, 1)) for n in range(start // BLOCK, end // BLOCK)}


@pytest.fixture
def filling(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filling:
    """Two pages are bad."""
    monkeypatch.setattr(hydration, "_BATCH", 2 * BLOCK)
    vault = world.fresh()
    whole = {stamp.name: world.store.get(stamp.name) for stamp in world.store.list("meta/")}
    spoil(world, [page(vault, 1, 3), page(vault, 2, 1)])
    return Filling(world, tmp_path, whole)


def test_a_live_volume_lacks_only_what_is_below_bad_pages(filling: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever waits before the rest is here waits for ever.
    monkeypatch.setattr(hydration, "_PATIENCE", (86400.0,))
    filling.hydrator.start()
    try:
        assert seen(lambda: filling.missing() == LOST)
        buffer = bytearray(BLOCK)
        for n in sorted(LOST)[::7]:
            with pytest.raises(OSError, match="cannot be read"):
                filling.volume.read_into(n * BLOCK, memoryview(buffer))
        assert filling.wrong(set(range(filling.blocks)) - LOST) == []
        assert seen(lambda: "cannot be read" in filling.hydrator.problem)
        assert not filling.done.is_set()
    finally:
        filling.hydrator.stop()


def test_a_volume_is_filled_in_once_its_point_is_repaired(
    world: World, filling: Filling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydration, "_PATIENCE", (0.01,))
    filling.hydrator.start()
    try:
        assert seen(lambda: filling.missing() == LOST)
        filling.repair()
        assert filling.done.wait(60)
        assert filling.wrong(range(filling.blocks)) == []
    finally:
        filling.hydrator.stop()


def seen(condition: Callable[[], bool]) -> bool:
    """True as soon as it holds; false where it does not within a minute."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
