"""Snapshots that meet two or three things at once: what becomes a point is what was there at its instant, or nothing does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from safehold.app.volumes import SnapshotRequest
from safehold.blocks.checkpoint import CheckpointLog
from safehold.blocks.epochs import LiveHeader
from safehold.blocks.layers import DataFile
from safehold.blocks.layout import SnapshotState
from safehold.blocks.maps import SectorMap
from safehold.blocks.volume import LiveVolume
from safehold.model.errors import FailedError
from tests.contents import equal
from tests.sites import SIZE, UNIT, Site, at_site, content, until

PAGE = 4096


def page(letter: str) -> memoryview:
    return memoryview(letter.encode() * PAGE)


def no_room(*arguments: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def settled(site: Site, name: str) -> None:
    """Nothing is held or redirected any more."""
    held = site.service.directory.get(name)
    until(lambda: not held.epochs.open and not held.volume.gate.phase.overlays)


@pytest.mark.parametrize("unit", [1 << 20, 2 << 20])
def test_a_vault_whose_blocks_are_larger_than_those_of_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int
) -> None:
    for site in at_site(tmp_path, monkeypatch, unit):
        held = site.service.create("data", SIZE, "vault")
        assert held.volume.block % unit == 0
        for number, letter in enumerate("ABC"):
            held.volume.write((number + 1) * UNIT, page(letter))
            held.volume.write(UNIT, page(letter))
            was = content(held)
            equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)


def test_a_vault_that_could_not_be_asked_for_its_blocks_gets_no_wrong_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in at_site(tmp_path, monkeypatch, 2 << 20):
        with monkeypatch.context() as patch:
            patch.setattr(site.service, "_open_vault", no_room)
            held = site.service.create("data", SIZE, "vault")
        held.volume.write(UNIT, page("A"))
        done = site.finish(site.snapshot("data"))
        assert done.state is SnapshotState.FAILED
        assert "copy it to a new volume" in done.problem


def test_a_volume_that_grew_before_the_end_of_its_point_was_here(site: Site) -> None:
    """The last block of a point is short, and another one than that of the volume."""
    size = SIZE - UNIT + 3 * PAGE
    first = site.service.create("first", size, "vault")
    first.volume.write(size - PAGE, page("Z"))
    first.volume.write(0, page("A"))
    done = site.finish(site.snapshot("first"))
    site.down("read", "packs/")
    held = site.service.create("two", SIZE + 2 * UNIT, "vault", f"first@{done.point}")
    assert held.missing
    pending = site.snapshot("two")
    site.up()
    done = site.finish(pending)
    until(lambda: not held.missing)
    equal(site.point(done.point, "two"), content(held))
    held.volume.write(0, page("B"))
    equal(site.point(site.finish(site.snapshot("two")).point, "two"), content(held))


def test_what_a_failed_snapshot_of_a_failed_disk_changed_is_missing_in_no_point(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (site.service.create(name, SIZE, "vault") for name in ("one", "two"))
    one.volume.write(0, page("0"))
    site.finish(site.snapshot("one", "two"))
    settled(site, "one")
    site.down("put")
    one.volume.write(0, page("1"))
    two.volume.write(0, page("1"))
    group = site.snapshot("one", "two")
    one.volume.write(4 * UNIT, page("2"))
    second = site.snapshot("one")
    until(lambda: all(mine.durable for held in site.service.directory.all() for mine in held.record.pending))
    data, sync = one.volume.data, DataFile.sync

    def bad(self: DataFile) -> None:
        if self is data:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self)

    monkeypatch.setattr(DataFile, "sync", bad)
    one.volume.write(9 * UNIT, page("3"))
    with pytest.raises(OSError, match="Input/output"):
        one.volume.flush()
    del two
    site.service.delete("two")
    site.up()
    assert site.finish(group).state is SnapshotState.FAILED
    done = site.finish(second)
    assert (done.state, "rests on" in done.problem) == (SnapshotState.FAILED, True)


def test_what_a_drop_on_a_full_disk_leaves_is_in_no_later_snapshot(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    held.volume.write(0, page("0"))
    site.finish(site.snapshot("data"))
    settled(site, "data")
    held.volume.write(0, page("1"))
    first = site.service.snapshot(SnapshotRequest(["data"], vouching=True))
    until(lambda: site.state(first).durable)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointLog, "_write", no_room)
        with pytest.raises(OSError, match="No space left"):
            site.service.discard(first.id, "the bracket failed")
    assert site.state(first).state is SnapshotState.FAILED
    site.finish(site.snapshot("data"))
    settled(site, "data")
    site.down("put")
    held.volume.write(4 * UNIT, page("3"))
    was, third = content(held), site.snapshot("data")
    until(lambda: site.state(third).durable)
    held.volume.write(0, page("4"))
    del held
    site.service.stop()
    site.service = site.begin()
    site.up()
    equal(site.point(site.finish(third).point, "data"), was)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("power", [False, True])
def test_an_overlay_that_is_gone_is_not_taken_for_an_empty_one(site: Site, power: bool, both: bool) -> None:
    held = site.service.create("data", SIZE, "vault")
    held.volume.write(0, page("o"))
    site.down("put")
    pending = site.snapshot("data")
    held.volume.write(0, page("N"))
    held.volume.flush()
    until(lambda: site.state(pending).durable)
    files = held.files
    del held
    site.service.stop()
    files.overlay(2).unlink()
    if both:
        files.overlay_sectors(2).unlink()
    if power:
        LiveHeader(files.live).write(clean=False, epoch=2, boot="another")
    for _ in range(2):
        site.service = site.begin()
        with pytest.raises(FailedError, match=r"content is damaged: ov\.2 is gone"):
            site.service.directory.get("data")
        site.service.stop()
    site.service = site.begin()


def test_a_volume_is_served_again_where_its_disk_is_still_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    held.volume.write(0, page("o"))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointLog, "_write", no_room)
        assert site.finish(site.snapshot("data")).state is SnapshotState.COMPLETED
        del held
        site.service.stop()
        site.service = site.begin()
        assert not site.service.directory.broken
    held = site.service.directory.get("data")
    held.volume.write(UNIT, page("n"))
    was = content(held)
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)


def test_what_could_not_be_made_durable_waits_while_something_is_missing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss the block is missing again, and would be taken over from the point that has the lost write."""
    origin, _ = site.made()
    site.down("read", "packs/")
    held = site.service.create("two", 0, "vault", origin)
    number = next(at for at in range(SIZE // UNIT) if not held.volume.maps.states.cells[at])
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointLog, "_write", no_room)
        held.volume.write(number * UNIT, memoryview(b"W" * UNIT))
        pending = site.snapshot("two")
        until(lambda: "waits: " in site.service.problem(held) and "No space left" in site.service.problem(held))
        assert site.state(pending).state is SnapshotState.PENDING
    was = site.finish(pending)
    site.up()
    until(lambda: not held.missing)
    equal(site.point(was.point, "two"), content(held))


def test_a_map_that_the_disk_has_not_taken_makes_no_point(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page was thrown out after a write-back that failed, which only its own flush tells."""
    held = site.service.create("data", SIZE, "vault")
    held.volume.write(0, page("o"))
    site.finish(site.snapshot("data"))
    settled(site, "data")
    site.down("put")
    held.volume.write(0, page("1"))
    first = site.snapshot("data")
    held.volume.write(0, page("2"))
    held.volume.flush()
    second = site.snapshot("data")
    until(lambda: site.state(first).durable and site.state(second).durable)
    sectors, sync, told = held.volume.gate.phase.overlays[-1].sectors, SectorMap.sync, []

    def synced(self: SectorMap) -> None:
        if self is sectors and not told:
            told.append(1)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self)

    monkeypatch.setattr(SectorMap, "sync", synced)
    os.pwrite(sectors._descriptor, bytes(sectors.length), 0)
    held.volume.flush()
    site.up()
    for one in (first, second):
        assert site.finish(one).state is SnapshotState.FAILED
    assert held.volume.read_only


def test_overlays_that_cannot_be_folded_do_not_pile_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    held.volume.write(0, page("o"))
    site.down("put")
    pending = site.snapshot("data")
    held.volume.write(0, page("N"))
    with monkeypatch.context() as patch:
        patch.setattr(LiveVolume, "fold_block", no_room)
        site.up()
        site.finish(pending)
        with pytest.raises(FailedError, match="cannot be moved to it"):  # noqa: PT012 as many as there is room for
            for number in range(100):
                held.volume.write((number % 10 + 1) * UNIT, page("x"))
                site.finish(site.snapshot("data"))
        assert "moves of what was written beside the content fail" in site.service.problem(held)
    site.service._wake()
    settled(site, "data")
    was = content(held)
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)
