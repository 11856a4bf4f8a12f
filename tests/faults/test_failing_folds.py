"""Snapshots of a volume whose disk fails while they are sealed, folded away or sent: what is sent is what was there, or nothing is."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from safehold.blocks import held as held_module
from safehold.blocks.durability import Durability
from safehold.blocks.epochs import LiveHeader
from safehold.blocks.held import HeldVolume
from safehold.blocks.layers import DataFile
from safehold.blocks.layout import SnapshotState
from safehold.blocks.maps import BlockMap
from safehold.blocks.volume import LiveVolume
from safehold.recovery.hydration import Hydrator
from tests.contents import equal
from tests.sites import SIZE, UNIT, Site, content, until

PAGE = 4096


def fail(*arguments: object, **more: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def full(*arguments: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_being_moved_when_the_disk_failed_is_not_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """The map says that it lies in the data, and the disk has not got it there."""
    held = site.service.create("data", SIZE, "vault")
    held.volume.write(0, memoryview(b"A" * PAGE))
    away = site.down("put")
    first = site.snapshot("data")
    held.volume.write(0, memoryview(b"B" * PAGE))
    second = site.snapshot("data")
    until(lambda: site.state(first).durable and site.state(second).durable)
    fold, sync, moved = LiveVolume.fold_block, DataFile.sync, threading.Event()

    def folded(self: LiveVolume, *arguments: object) -> int:
        done = fold(self, *arguments)  # type: ignore[arg-type]
        moved.set()
        if restarted:
            # The uploader goes no further than that before the service ends.
            site.store.faults.append(away)
        return done

    def synced(self: DataFile) -> None:
        if moved.is_set() and self.path.name == "data":
            # What the disk still has, once the page that could not be written is evicted.
            os.pwrite(self.descriptor, b"A" * PAGE, 0)
            fail()
        sync(self)

    monkeypatch.setattr(LiveVolume, "fold_block", folded)
    monkeypatch.setattr(DataFile, "sync", synced)
    site.up()
    assert site.finish(first).state is SnapshotState.COMPLETED
    if restarted:
        until(lambda: held.volume.read_only)
        del held
        site.service.stop()
        site.up()
        site.service = site.begin()
    lost = site.finish(second)
    assert (lost.state, lost.point) == (SnapshotState.FAILED, "")
    assert "the disk below failed to write" in lost.problem
    assert len(site.world.open().points()[0]) == 1


def test_what_has_failed_is_not_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    site.finish(site.snapshot("data"))
    site.write(held)
    monkeypatch.setattr(held.volume.data, "sync", fail)
    assert site.finish(site.snapshot("data")).state is SnapshotState.FAILED
    site.service.rest()
    assert len(site.world.open().points()[0]) == 1


def test_a_snapshot_that_fails_while_it_is_sent_is_no_point(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    demand, asked = HeldVolume.demand_pending, []

    def demanded(self: HeldVolume, identity: str) -> None:
        asked.append(identity)
        if len(asked) == 2:
            self.fail_snapshot(self.record.pending[0], "its disk failed meanwhile", compare=False)
        demand(self, identity)

    monkeypatch.setattr(HeldVolume, "demand_pending", demanded)
    lost = site.finish(site.snapshot("data"))
    assert "meanwhile" in lost.problem
    site.service.rest()
    assert site.world.open().points()[0] == []


def test_the_changes_of_a_seal_that_could_not_be_taken_back_are_in_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 3)
    site.finish(site.snapshot("data"))
    until(lambda: not held.epochs.open)
    held.volume.write(0, memoryview(b"A" * PAGE))
    with monkeypatch.context() as patch:
        patch.setattr(held_module, "write_record", full)
        patch.setattr(BlockMap, "fill", full)
        with pytest.raises(OSError, match="No space left"):
            site.snapshot("data")
    assert held.epochs.open
    held.volume.write(SIZE // 2, memoryview(b"B" * PAGE))
    was = content(held)
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)
    until(lambda: not held.epochs.open)


@pytest.mark.parametrize("why", ["could not be settled", "is being folded"])
def test_the_disk_is_asked_before_what_it_may_not_have_is_a_point(
    site: Site, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A write-back has failed and thrown the page out, and no flush has told anybody yet."""
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 3)
    site.finish(site.snapshot("data"))
    if why == "could not be settled":
        # No room for the log, of which a flush hears before it comes to the data.
        monkeypatch.setattr(Durability, "flush", full)
    else:
        monkeypatch.setattr(LiveHeader, "moving", property(lambda header: True))
    away = site.down("put", "packs/")
    held.volume.write(8 * UNIT, memoryview(b"N" * PAGE))
    pending = site.snapshot("data")
    if why == "is being folded":
        until(lambda: site.state(pending).durable)
    data, sync = held.volume.data, DataFile.sync
    os.pwrite(data.descriptor, bytes(PAGE), 8 * UNIT)

    def failing(self: DataFile) -> None:
        if self is data:
            fail()
        sync(self)

    monkeypatch.setattr(DataFile, "sync", failing)
    site.store.faults.remove(away)
    done = site.finish(pending)
    assert done.state is SnapshotState.FAILED
    assert "the disk below failed to write" in done.problem
    assert len(site.world.open().points()[0]) == 1


@pytest.mark.parametrize("then", ["the disk failed", "its map is damaged"])
def test_what_may_be_a_point_is_asked_of_the_vault_before_it_is_none(site: Site, then: str) -> None:
    """The vault took the point of a group, and its answer was lost; one of its volumes could not be sent any more."""
    one, two = (site.service.create(name, SIZE, "vault") for name in ("one", "two"))
    site.write(one), site.write(two)
    was = {"one": content(one), "two": content(two)}
    site.store.fail("put", "points/", lost=True, error=lambda: ConnectionError("no answer"))
    site.down("put", "points/")
    pending = site.snapshot("one", "two")
    until(lambda: "no answer" in site.service.problem(site.service.directory.get("one")))
    path = one.files.dirty(site.state(pending).epoch)
    if then == "the disk failed":
        one.volume._durability._lose(OSError(errno.EIO, "Input/output error"))
        one.change_snapshot(pending.id, durable=False)
    del one, two
    site.service.stop()
    if then == "its map is damaged":
        os.truncate(path, 3)
    site.up()
    site.service = site.begin()
    until(lambda: not any(held.record.pending for held in site.service.directory.all()))
    for name in ("one", "two"):
        held = site.service.directory.get(name)
        done = next(mine for mine in held.record.snapshots if mine.id == pending.id)
        assert (name, done.state, done.problem) == (name, SnapshotState.COMPLETED, "")
        equal(site.point(done.point, name), was[name])
    assert len(site.world.open().points()[0]) == 1


def test_what_may_be_a_point_and_is_none_fails_with_what_rests_on_it(site: Site) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 3)
    site.finish(site.snapshot("data"))
    site.store.fail("put", "points/", error=lambda: ConnectionError("no answer"))
    site.down("put", "points/")
    held.volume.write(0, memoryview(b"A" * PAGE))
    first = site.snapshot("data")
    until(lambda: "no answer" in site.service.problem(site.service.directory.get("data")))
    assert site.state(first).attempt
    held.volume.write(SIZE // 2, memoryview(b"B" * PAGE))
    second = site.snapshot("data")
    held.volume.write(0, memoryview(b"C" * PAGE))
    until(lambda: site.state(second).durable)
    files, was = held.files, content(held)
    del held
    site.service.stop()
    files.dirty(first.epoch).unlink()
    site.up()
    site.service = site.begin()
    for one in (first, second):
        assert site.finish(one).state is SnapshotState.FAILED
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)


@pytest.mark.parametrize("lost", ["the first's", "the second's"])
@pytest.mark.parametrize("how", [lambda path: path.unlink(), lambda path: os.truncate(path, 3)], ids=["gone", "cut"])
def test_the_changes_of_a_snapshot_whose_map_is_gone_are_in_the_next(
    site: Site, lost: str, how: Callable[[Path], None]
) -> None:
    """One that rests on it is none either: what was written since is beside nothing that no map names."""
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 3)
    site.finish(site.snapshot("data"))
    site.down("put")
    held.volume.write(0, memoryview(b"A" * PAGE))
    earlier, first = content(held), site.snapshot("data")
    held.volume.write(SIZE // 2, memoryview(b"B" * PAGE))
    second = site.snapshot("data")
    held.volume.write(8 * UNIT, memoryview(b"C" * PAGE))
    until(lambda: site.state(first).durable and site.state(second).durable)
    files, was = held.files, content(held)
    del held
    site.service.stop()
    how(files.dirty(first.epoch if lost == "the first's" else second.epoch))
    site.up()
    site.service = site.begin()
    done = site.finish(first)
    if lost == "the first's":
        assert done.state is SnapshotState.FAILED
    else:
        equal(site.point(done.point, "data"), earlier)
    assert site.finish(second).state is SnapshotState.FAILED
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)


@pytest.mark.parametrize("told", [True, False])
def test_what_was_filled_in_when_the_disk_failed_is_not_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """The map says that the rest of a block is here, and the disk has not got it: whether a flush has told before it is sent, or nobody has."""
    origin, was = site.made()
    page = next(at for at in range(0, SIZE, PAGE) if any(was[at : at + PAGE]))
    other = page + PAGE if (page + PAGE) // UNIT == page // UNIT else page - PAGE
    site.down("read", "packs/")
    held = site.service.create("two", 0, "vault", origin)
    held.volume.write(other, memoryview(b"A" * PAGE))
    data, sync = held.volume.data, DataFile.sync
    pending = site.snapshot("two")
    until(lambda: site.state(pending).durable)
    site.down("put")
    lost = []

    def synced(self: DataFile) -> None:
        if self is data and lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self)

    monkeypatch.setattr(DataFile, "sync", synced)
    present, fill = LiveVolume._present, threading.Event()

    def filled(self: LiveVolume, first: int, end: int) -> None:
        present(self, first, end)
        if first <= page // UNIT < end:
            # As after a write-back that failed: the page is thrown out, and the disk has something else there.
            os.pwrite(data.descriptor, bytes(PAGE), page)
            lost.append(first)
            fill.set()

    monkeypatch.setattr(LiveVolume, "_present", filled)
    if not told:
        # It is never let go of: hydration would flush first.
        monkeypatch.setattr(Hydrator, "_finish", lambda self: None)
    site.store.faults.clear()
    away = site.down("put")
    assert fill.wait(20)
    if told:
        with pytest.raises(OSError, match="Input/output"):
            held.volume.flush()
    del away
    site.up()
    done = site.finish(pending)
    assert done.state is SnapshotState.FAILED
    assert "may not have what was moved or filled in" in done.problem


@pytest.mark.parametrize("kind", ["the data", "an overlay's map"])
def test_where_something_lies_that_cannot_be_told_is_not_taken_for_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 100)
    site.down("put")
    pending = site.snapshot("data")
    sealed = content(held)
    site.write(held, 100)
    held.volume.flush()
    was = content(held)
    data, overlay = held.volume.data, held.volume.gate.phase.overlays[-1].sectors
    bad = data.descriptor if kind == "the data" else overlay._descriptor
    right, refused = os.lseek, []

    def lseek(descriptor: int, at: int, how: int) -> int:
        if descriptor == bad and how == os.SEEK_DATA:
            refused.append(at)
            fail()
        return right(descriptor, at, how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lseek", lseek)
        site.up()
        until(lambda: bool(refused))
    done = site.finish(pending)
    equal(site.point(done.point, "data"), sealed)
    equal(content(held), was)
    equal(site.point(site.finish(site.snapshot("data")).point, "data"), was)
    until(lambda: not held.volume.gate.phase.overlays)
    equal(content(held), was)


def test_a_service_that_stops_does_not_wait_for_a_fold(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held, 300)
    site.down("put")
    site.snapshot("data")
    site.write(held, 300)
    was = content(held)
    right, folding = LiveVolume.fold_block, []

    def slow(self: LiveVolume, *arguments: object) -> int:
        folding.append(1)
        time.sleep(0.3)
        return right(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveVolume, "fold_block", slow)
    site.up()
    until(lambda: bool(folding))
    site.service.rest()
    assert len(folding) < 4
    equal(content(held), was)
